"""Verifying one commitment: every state, every deadline and every verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from protocols.effects import Notify, Publish, Recompute, Run, Send, SetTimer
from protocols.errors import Rejected
from protocols.events import DisputeEnded, Heard, RunFailed, RunRecomputed, TimerFired
from protocols.messages import Assignment, Opening, OpeningRequest, Widening
from tests.support.builders import (
    CRYPTO,
    ELECTORATE,
    EXECUTOR,
    INPUT,
    NETWORK,
    NOW_MS,
    REQUESTER,
    UNITS,
    VERIFIERS,
    blind,
    claim,
    committed,
    contract,
    digests,
    key,
    opening,
    reveal,
    signed,
)
from verification.fraud import open_proof
from verification.round import Round, RoundState, Verdict

WINDOW_MS, ANSWER_MS = 600, 8_000
AGREED = contract()
TRUTH = digests(AGREED.terms)
FALSE = digests(AGREED.terms, variant=b"cheap")


class Stage:
    """A round and an executor that may have committed to something false."""

    def __init__(self, *, variant: bytes = b"", agreed: Any = AGREED) -> None:
        self.prover, self.commitment = committed(agreed, variant=variant)
        self.round = Round(
            agreed,
            self.commitment,
            electorate=ELECTORATE,
            input=INPUT,
            units=UNITS,
            draw_window_ms=WINDOW_MS,
            job_id=b"job",
            network=NETWORK,
            crypto=CRYPTO,
            sign=lambda body: signed(REQUESTER, body),
        )
        self.round.start(NOW_MS)

    def hear(self, message: Any) -> list[Any]:
        return self.round.handle(Heard(message), NOW_MS)

    def timer(self, name: str, level: int | None = None) -> list[Any]:
        key = ("round", self.commitment.id, name, self.round.level if level is None else level)
        return self.round.handle(TimerFired(key), NOW_MS)

    def claims(self, *numbers: int) -> None:
        for number in numbers:
            self.hear(claim(number, self.commitment))

    def blinds(self, *numbers: int, results: Sequence[bytes] = TRUTH) -> list[Any]:
        effects = []
        for number in numbers:
            effects += self.hear(blind(number, self.commitment, results))
        return effects

    def opened(self, effects: list[Any]) -> Any:
        [request] = messages(effects, OpeningRequest)
        return self.prover.open(request)

    def reveals(self, *numbers: int, results: Sequence[bytes] = TRUTH) -> list[Any]:
        effects = []
        for number in numbers:
            hidden = blind(number, self.commitment, results)
            effects += self.hear(reveal(number, self.commitment, hidden, results))
        return effects

    def settle(self, truth: Sequence[bytes] = TRUTH) -> None:
        self.round.handle(RunRecomputed(("settle", self.commitment.id), tuple(enumerate(truth)), 1), NOW_MS)


def messages(effects: list[Any], kind: type[Any]) -> list[Any]:
    return [e.message for e in effects if isinstance(e, Send) and isinstance(e.message.body, kind)]


def awaiting_reveals(*, variant: bytes = b"", said: dict[int, Sequence[bytes]]) -> Stage:
    stage = Stage(variant=variant)
    stage.claims(*said)
    stage.timer("draw")
    effects: list[Any] = []
    for number, results in said.items():
        effects += stage.blinds(number, results=results)
    stage.hear(stage.opened(effects))
    assert stage.round.state is RoundState.AWAITING_REVEALS
    return stage


# --- Drawing -------------------------------------------------------------------------------------


def test_the_draw_window_is_a_timer() -> None:
    stage = Stage()
    timer = SetTimer(("round", stage.commitment.id, "draw", 0), NOW_MS + WINDOW_MS)
    assert stage.round.start(NOW_MS) == [timer]
    assert stage.round.state is RoundState.DRAWING


def test_a_drawn_verifier_is_given_inputs_and_nothing_of_the_executors() -> None:
    stage = Stage()
    effects = stage.hear(claim(2, stage.commitment))
    [assignment] = messages(effects, Assignment)
    assert (assignment.body.input, assignment.body.units) == (INPUT, UNITS)
    assert not any(digest in assignment.raw for digest in TRUTH)
    assert effects[0] == Notify(b"job", "verifier-drawn", {"peer": key(2), "chunks": (0, 1), "segment": 0})


def test_a_repeated_claim_changes_nothing() -> None:
    stage = Stage()
    stage.claims(2)
    assert stage.hear(claim(2, stage.commitment)) == []


def test_whoever_joined_after_the_award_is_left_out_without_blame() -> None:
    assert Stage().hear(claim(9, Stage().commitment)) == []


def test_a_claim_that_the_vrf_does_not_bear_out_is_refused() -> None:
    stage = Stage(agreed=contract(expected_verifiers_milli=1))
    with pytest.raises(Rejected, match="didn't draw"):
        stage.claims(2)
    assert stage.round.entries == {}


def test_when_the_whole_electorate_has_claimed_the_window_closes() -> None:
    stage = Stage()
    stage.claims(*VERIFIERS)
    assert stage.round.state is RoundState.AWAITING_BLIND


def test_nobody_claims_so_the_draw_widens_until_it_cannot() -> None:
    stage = Stage()
    # Each wider draw waits longer for slow links and machines, and no longer than for any answer.
    for level, window_ms in ((1, 4 * WINDOW_MS), (2, ANSWER_MS)):
        effects = stage.timer("draw")
        [published] = [effect for effect in effects if isinstance(effect, Publish)]
        assert published.message.body == Widening(stage.commitment.id, level)
        assert SetTimer(("round", stage.commitment.id, "draw", level), NOW_MS + window_ms) in effects
    assert stage.timer("draw") == []
    assert stage.round.verdict is Verdict.UNVERIFIED


def test_a_claim_in_a_wider_draw_ends_the_longer_wait_soon() -> None:
    stage = Stage()
    stage.timer("draw")
    effects = stage.hear(claim(2, stage.commitment))
    assert effects[-1] == SetTimer(("round", stage.commitment.id, "draw", 1), NOW_MS + WINDOW_MS)


def test_a_timer_set_before_a_widening_is_stale() -> None:
    stage = Stage()
    stage.timer("draw")
    assert stage.timer("draw", level=0) == []
    assert stage.round.state is RoundState.DRAWING


def test_a_late_claim_counts_while_verdicts_are_awaited() -> None:
    stage = Stage()
    stage.claims(2)
    stage.timer("draw")
    assert messages(stage.hear(claim(3, stage.commitment)), Assignment)
    assert messages(stage.blinds(2), OpeningRequest) == []
    assert messages(stage.blinds(3), OpeningRequest)
    assert stage.hear(claim(4, stage.commitment)) == []


# --- Blind verdicts ------------------------------------------------------------------------------


def test_the_executor_is_asked_to_open_once_all_verdicts_are_hidden() -> None:
    stage = Stage()
    stage.claims(2, 3)
    assert stage.timer("draw") == [SetTimer(("round", stage.commitment.id, "blind", 0), NOW_MS + ANSWER_MS)]
    assert messages(stage.blinds(2), OpeningRequest) == []
    effects = stage.blinds(3)
    [request] = [effect for effect in effects if isinstance(effect, Send)]
    assert (request.peer, request.until_ms) == (key(EXECUTOR), NOW_MS + ANSWER_MS)
    assert len(request.message.body.draws) == 2
    assert stage.round.state is RoundState.AWAITING_OPENING


def test_verdicts_that_came_before_the_window_closed_open_at_once() -> None:
    stage = Stage()
    stage.claims(2)
    stage.blinds(2)
    assert messages(stage.timer("draw"), OpeningRequest)


def test_a_verifier_that_stays_silent_is_left_behind() -> None:
    stage = Stage()
    stage.claims(2, 3)
    stage.timer("draw")
    stage.blinds(2)
    [request] = messages(stage.timer("blind"), OpeningRequest)
    assert len(request.body.draws) == 1


def test_if_all_stay_silent_the_draw_widens() -> None:
    stage = Stage()
    stage.claims(2)
    stage.timer("draw")
    stage.timer("blind")
    assert (stage.round.state, stage.round.level) == (RoundState.DRAWING, 1)


def test_two_different_hidden_verdicts_are_refused() -> None:
    stage = Stage()
    stage.claims(2)
    stage.blinds(2)
    assert stage.blinds(2) == []
    with pytest.raises(Rejected, match="two different blind verdicts"):
        stage.blinds(2, results=FALSE)


def test_a_verdict_without_a_claim_is_not_heard() -> None:
    stage = Stage()
    assert stage.blinds(2) == []


# --- Opening -------------------------------------------------------------------------------------


def test_an_opening_goes_to_those_who_hid_a_verdict() -> None:
    stage = Stage()
    stage.claims(2, 3)
    stage.timer("draw")
    stage.blinds(2)
    effects = stage.hear(stage.opened(stage.timer("blind")))
    assert [effect.peer for effect in effects if isinstance(effect, Send)] == [key(2)]
    assert SetTimer(("round", stage.commitment.id, "reveals", 0), NOW_MS + ANSWER_MS) in effects


def test_an_opening_comes_in_its_turn() -> None:
    stage = Stage()
    assert stage.hear(opening(stage.prover, stage.commitment, TRUTH)) == []
    assert stage.round.state is RoundState.DRAWING


def test_an_opening_that_leaves_a_chunk_out_is_refused_and_then_withheld() -> None:
    stage = Stage()
    stage.claims(2)
    stage.timer("draw")
    whole = stage.opened(stage.blinds(2))
    partial = signed(EXECUTOR, Opening(stage.commitment.id, whole.body.chunks[:1]))
    with pytest.raises(Rejected, match=r"must be of chunks \[0, 1\]"):
        stage.hear(partial)
    stage.timer("opening")
    assert stage.round.verdict is Verdict.WITHHELD


# --- Verdicts ------------------------------------------------------------------------------------


def test_agreement_verifies() -> None:
    stage = awaiting_reveals(said={2: TRUTH, 3: TRUTH})
    stage.reveals(2)
    assert stage.round.verdict is None
    stage.reveals(3)
    assert stage.round.verdict is Verdict.VERIFIED
    assert all(entry.is_payable for entry in stage.round.entries.values())


def test_one_reveal_is_enough_at_the_deadline() -> None:
    stage = awaiting_reveals(said={2: TRUTH, 3: TRUTH})
    stage.reveals(2)
    stage.timer("reveals")
    assert stage.round.verdict is Verdict.VERIFIED
    assert [entry.is_payable for entry in stage.round.entries.values()] == [True, False]


def test_no_reveal_verifies_nothing() -> None:
    """The opening is out: a wider draw could copy it."""
    stage = awaiting_reveals(said={2: TRUTH})
    stage.timer("reveals")
    assert stage.round.verdict is Verdict.UNVERIFIED


def test_a_reveal_that_was_not_hidden_is_refused() -> None:
    stage = awaiting_reveals(said={2: FALSE})
    with pytest.raises(Rejected, match="isn't the one that was hidden"):
        stage.hear(reveal(2, stage.commitment, blind(2, stage.commitment, FALSE), TRUTH))
    assert stage.hear(reveal(4, stage.commitment, blind(4, stage.commitment, TRUTH), TRUTH)) == []


def test_a_dispute_is_recomputed_before_anybody_is_blamed() -> None:
    stage = awaiting_reveals(said={2: TRUTH}, variant=b"cheap")
    effects = stage.reveals(2)
    task = Recompute("sim.hash", AGREED.terms.model, "exact14", INPUT, UNITS, (0, 1))
    assert Run(("settle", stage.commitment.id), task) in effects
    assert Notify(b"job", "verdict", {"peer": key(2), "agrees": False, "chunks": (0, 1)}) in effects
    assert stage.round.state is RoundState.SETTLING and stage.round.verdict is None


def accused(stage: Stage) -> list[tuple[str, bytes]]:
    opened = [open_proof(proof, network=NETWORK, crypto=CRYPTO) for proof in stage.round.proofs]
    return [(accusation.role, accusation.accused) for accusation in opened]


def test_fraud_is_proved_by_one_chunk() -> None:
    stage = awaiting_reveals(said={2: TRUTH}, variant=b"cheap")
    stage.reveals(2)
    stage.settle()
    assert (stage.round.verdict, stage.round.guilty_chunk) == (Verdict.FRAUD, 0)
    assert accused(stage) == [("executor", key(EXECUTOR))]
    assert stage.round.entries[key(2)].is_payable


def test_a_rubber_stamp_falls_with_the_executor() -> None:
    stage = awaiting_reveals(said={2: TRUTH, 3: FALSE}, variant=b"cheap")
    stage.reveals(2)
    stage.reveals(3, results=FALSE)
    stage.settle()
    assert stage.round.verdict is Verdict.FRAUD
    assert accused(stage) == [("executor", key(EXECUTOR)), ("verifier", key(3))]
    assert not stage.round.entries[key(3)].is_payable


def test_a_false_accuser_is_accused_and_the_segment_stands() -> None:
    stage = awaiting_reveals(said={2: FALSE, 3: TRUTH})
    stage.reveals(2, results=FALSE)
    stage.reveals(3)
    stage.settle()
    assert stage.round.verdict is Verdict.VERIFIED
    assert accused(stage) == [("verifier", key(2))]
    assert [entry.is_payable for entry in stage.round.entries.values()] == [False, True]


def test_only_false_accusers_verify_nothing() -> None:
    stage = awaiting_reveals(said={2: FALSE})
    stage.reveals(2, results=FALSE)
    stage.settle()
    assert stage.round.verdict is Verdict.UNVERIFIED
    assert accused(stage) == [("verifier", key(2))]


def test_half_a_truth_settles_nothing() -> None:
    stage = awaiting_reveals(said={2: FALSE})
    stage.reveals(2, results=FALSE)
    stage.settle(TRUTH[:0])
    assert stage.round.verdict is Verdict.UNSETTLED
    assert stage.round.proofs == []


# --- Without the model, by disputes --------------------------------------------------------------


def disputed(*, variant: bytes = b"", said: dict[int, Sequence[bytes]], recomputes: bool = False) -> Stage:
    """Reveals are in, and the requester can't recompute."""
    stage = awaiting_reveals(variant=variant, said=said)
    for number, results in said.items():
        stage.reveals(number, results=results)
    assert stage.round.state is RoundState.SETTLING
    if not recomputes:
        stage.round.handle(RunFailed(("settle", stage.commitment.id), "model", ""), NOW_MS)
    return stage


def end(stage: Stage, verifier: int, loser: int | None, *, is_proved: bool = True) -> None:
    key_of = ("dispute", stage.commitment.id, key(verifier))
    lost = key(loser) if loser is not None else b""
    stage.round.handle(DisputeEnded(key_of, 0, key(verifier), lost, is_proved), NOW_MS)


def test_quarrels_are_with_the_verifiers_that_differ() -> None:
    stage = disputed(said={2: FALSE, 3: TRUTH, 4: FALSE})
    assert {number: chunk for number, (chunk, _) in stage.round.quarrels().items()} == {key(2): 0, key(4): 0}
    assert all(reveal.signer == verifier for verifier, (_, reveal) in stage.round.quarrels().items())


def test_without_the_model_a_round_waits_for_its_disputes() -> None:
    stage = disputed(said={2: FALSE, 3: TRUTH})
    assert stage.round.state is RoundState.SETTLING
    end(stage, 2, 2)
    assert stage.round.verdict is Verdict.VERIFIED
    assert stage.round.entries[key(2)].false_verdict
    assert not stage.round.entries[key(3)].false_verdict
    assert accused(stage) == [("verifier", key(2))]


def test_one_proof_against_the_executor_is_fraud_whatever_else_is_open() -> None:
    stage = disputed(variant=b"cheap", said={2: TRUTH, 3: TRUTH})
    end(stage, 2, None, is_proved=False)
    assert stage.round.verdict is None
    end(stage, 3, EXECUTOR)
    assert stage.round.verdict is Verdict.FRAUD
    assert stage.round.guilty_chunk == 0
    assert accused(stage) == [("executor", key(EXECUTOR))]


def test_a_silent_verifier_is_overruled_and_accused_of_nothing() -> None:
    stage = disputed(said={2: FALSE, 3: TRUTH})
    end(stage, 2, 2, is_proved=False)
    assert stage.round.verdict is Verdict.VERIFIED
    assert not stage.round.entries[key(2)].is_payable
    assert stage.round.proofs == []


@pytest.mark.parametrize(("loser", "is_proved"), [(EXECUTOR, False), (None, False)])
def test_a_silent_executor_or_nothing_decided_convicts_nobody(loser: int | None, is_proved: bool) -> None:
    stage = disputed(said={2: FALSE, 3: TRUTH})
    end(stage, 2, loser, is_proved=is_proved)
    assert stage.round.verdict is Verdict.UNSETTLED
    assert stage.round.proofs == []


def test_a_recomputation_does_not_wait_for_disputes() -> None:
    stage = disputed(said={2: FALSE, 3: TRUTH}, recomputes=True)
    end(stage, 2, EXECUTOR)
    assert stage.round.state is RoundState.SETTLING
    stage.settle()
    assert stage.round.verdict is Verdict.VERIFIED


def test_a_run_that_fails_out_of_turn_means_nothing() -> None:
    stage = Stage()
    assert stage.round.handle(RunFailed(("settle", stage.commitment.id), "memory", ""), NOW_MS) == []
    stage.settle()
    assert stage.round.state is RoundState.DRAWING
