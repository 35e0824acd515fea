"""k, 2k, 4k: each level of widening, from the draw to the receipt's rule, and electors of uneven weight."""

from __future__ import annotations

from typing import Any

import pytest

from protocols.effects import Publish
from protocols.errors import Rejected
from protocols.events import Heard, RunRecomputed, TimerFired
from protocols.messages import Assignment, BlindVerdict, DrawClaim, Member, Reveal
from tests.support.builders import (
    CRYPTO,
    EXECUTOR,
    INPUT,
    NETWORK,
    NOW_MS,
    REQUESTER,
    UNITS,
    changed,
    committed,
    contract,
    digests,
    key,
    keys,
    signed,
)
from tests.support.machines import sent
from verification.duty import Duty, DutyState, draw_level, draw_proof
from verification.electorate import Electorate
from verification.evidence import NotDrawn, check_draw
from verification.round import Round, RoundState, Verdict
from verification.sortition import alpha, is_drawn


class Stage:
    """A round, and the duty of one elector."""

    def __init__(self, weights: dict[int, int], expected_milli: int, award_ms: int = NOW_MS) -> None:
        self.electorate = Electorate([Member(key(n), weight) for n, weight in weights.items()])
        self.contract = contract(
            electorate_root=self.electorate.root,
            electorate_weight=self.electorate.total_weight,
            electorate_count=self.electorate.count,
            electorate_weight_max=max(weights.values()),
            expected_verifiers_milli=expected_milli,
            sent_ms=award_ms,
        )
        self.prover, self.commitment = committed(self.contract)
        self.round = Round(
            self.contract,
            self.commitment,
            electorate=self.electorate,
            input=INPUT,
            units=UNITS,
            draw_window_ms=600,
            job_id=b"job",
            network=NETWORK,
            crypto=CRYPTO,
            sign=lambda body: signed(REQUESTER, body),
        )
        self.round.start(NOW_MS)

    def level_of(self, number: int) -> int | None:
        """The level at which an elector is drawn by its own weight."""
        beta = CRYPTO.vrf_output(key(number), alpha(NETWORK, self.commitment.id), self.proof(number))
        assert beta is not None
        for level in range(3):
            if is_drawn(
                beta,
                weight=self.electorate.weight_of(key(number)),
                total_weight=self.electorate.total_weight,
                expected_milli=self.contract.terms.expected_verifiers_milli,
                widening=level,
            ):
                return level
        return None

    def claimed_level(self, number: int) -> int | None:
        """The level at which it claims, since it knows the heaviest weight only."""
        beta = CRYPTO.vrf_output(key(number), alpha(NETWORK, self.commitment.id), self.proof(number))
        assert beta is not None
        return draw_level(beta, self.contract)

    def proof(self, number: int) -> bytes:
        return draw_proof(keys(number), NETWORK, self.commitment.id)

    def duty(self, number: int) -> Duty:
        level = self.claimed_level(number)
        assert level is not None
        return Duty(
            self.contract,
            self.commitment,
            level=level,
            proof=self.proof(number),
            keys=keys(number),
            secret=bytes(32),
            network=NETWORK,
            crypto=CRYPTO,
            sign=lambda body: signed(number, body),
        )

    def hear(self, message: Any) -> list[Any]:
        return self.round.handle(Heard(message), NOW_MS)

    def timer(self, name: str) -> list[Any]:
        return self.round.handle(TimerFired(("round", self.commitment.id, name, self.round.level)), NOW_MS)


def found(wanted: Any, weights: dict[int, int], expected_milli: int) -> Stage:
    """The first stage, over awards that differ by a millisecond, whose draws are as wanted."""
    stages = (Stage(weights, expected_milli, NOW_MS - ms) for ms in range(2_000))
    return next(stage for stage in stages if wanted(stage))


EVEN = {2: 1, 3: 1, 4: 1, 5: 1}


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_verifier_drawn_at_each_level_sees_the_segment_through(level: int) -> None:
    def only_two_at_the_level(stage: Stage) -> bool:
        levels = {n: stage.level_of(n) for n in EVEN}
        return levels[2] == level and all(levels[n] is None for n in (3, 4, 5))

    stage = found(only_two_at_the_level, EVEN, 400)
    duty = stage.duty(2)
    effects = duty.start(NOW_MS)
    for granted in range(1, level + 1):
        assert sent(effects, DrawClaim) == []
        [widening] = [effect.message for effect in stage.timer("draw") if isinstance(effect, Publish)]
        assert (stage.round.level, widening.body.level) == (granted, granted)
        effects = duty.handle(Heard(widening), NOW_MS)
    [claim] = sent(effects, DrawClaim)
    assert claim.body.widening == level
    [assignment] = sent(stage.hear(claim), Assignment)
    [run] = duty.handle(Heard(assignment), NOW_MS)
    truth = digests(stage.contract.terms)
    done = RunRecomputed(run.key, tuple((c, truth[c]) for c in run.task.chunks), 1)
    [blind] = sent(duty.handle(done, NOW_MS), BlindVerdict)
    stage.hear(blind)
    [request] = sent(stage.timer("draw"))
    opening = stage.prover.open(request)
    stage.hear(opening)
    [reveal] = sent(duty.handle(Heard(opening), NOW_MS), Reveal)
    stage.hear(reveal)
    assert stage.round.verdict is Verdict.VERIFIED
    assert len(request.body.widenings) == len(stage.round.widenings) == level


def test_nobody_at_any_level_is_unverified() -> None:
    stage = found(lambda s: all(s.level_of(n) is None for n in EVEN), EVEN, 100)
    for level in range(3):
        assert stage.round.level == level
        stage.timer("draw")
    assert stage.round.verdict is Verdict.UNVERIFIED


UNEVEN = {2: 1, 3: 8}


def claims_early(stage: Stage) -> bool:
    """The light elector claims at once and is drawn by its own weight at level 2; the other stays silent."""
    return stage.claimed_level(2) == 0 and stage.level_of(2) == 2


def test_a_light_elector_that_claims_early_waits_for_the_widening_that_draws_it() -> None:
    stage = found(claims_early, UNEVEN, 300)
    [claim] = sent(stage.duty(2).start(NOW_MS), DrawClaim)
    assert stage.hear(claim) == [] and stage.round.entries == {}
    stage.timer("draw")
    assert stage.round.entries == {}
    [assignment] = sent(stage.timer("draw"), Assignment)
    assert stage.round.level == 2 and list(stage.round.entries) == [key(2)]
    # It hasn't heard of the widening, and takes the work all the same.
    duty = stage.duty(2)
    duty.start(NOW_MS)
    duty.handle(Heard(assignment), NOW_MS)
    assert duty.state is DutyState.RECOMPUTING


def test_a_heavy_elector_that_is_not_drawn_breaks_a_rule() -> None:
    stage = found(lambda s: s.level_of(3) is None, UNEVEN, 50)
    claim = signed(3, DrawClaim(stage.commitment.id, 0, stage.proof(3)))
    with pytest.raises(Rejected, match="didn't draw"):
        stage.hear(claim)
    assert stage.round.state is RoundState.DRAWING


def test_a_claim_is_judged_at_the_level_that_was_granted() -> None:
    stage = found(claims_early, UNEVEN, 300)
    claim = signed(2, DrawClaim(stage.commitment.id, 0, stage.proof(2)))
    arguments: dict[str, Any] = {"network": NETWORK, "crypto": CRYPTO}
    proof = stage.electorate.prove(key(2))
    for level in (0, 1):
        with pytest.raises(NotDrawn):
            check_draw(stage.contract, stage.commitment, claim, proof, level=level, **arguments)
    assert check_draw(stage.contract, stage.commitment, claim, proof, level=2, **arguments) == (0, 1)
    ahead = signed(2, changed(claim.body, widening=2))
    with pytest.raises(Rejected, match="exceeds the granted level 1"):
        check_draw(stage.contract, stage.commitment, ahead, proof, level=1, **arguments)
    assert stage.contract.executor == key(EXECUTOR)
