"""Native findings: fingerprints that are compared, and the exact re-run that alone convicts."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import pytest

from protocols.effects import Recompute
from protocols.envelope import Signed
from protocols.errors import Rejected
from protocols.events import Heard, RunFailed, RunRecomputed, TimerFired
from protocols.messages import Opening, Reveal, Tolerance
from protocols.units import FALSE_UNITS
from tests.support.builders import (
    CRYPTO,
    ELECTORATE,
    EXECUTOR,
    INPUT,
    NETWORK,
    NOW_MS,
    REQUESTER,
    UNITS,
    award,
    blind,
    changed,
    claim,
    contract,
    opening_request,
    prover,
    reveal,
    signed,
)
from verification.evidence import check_opening, check_reveal
from verification.findings import (
    agree,
    as_stated,
    digest_of,
    distance,
    is_false,
    judging_numerics,
    numerics,
    stated,
)
from verification.fraud import open_proof
from verification.round import Round, Verdict

TOLERANCE = Tolerance(agree_steps=10, convict_steps=100)
AGREED = contract(profile="native", tolerance=TOLERANCE)
TERMS = AGREED.terms


def fingerprint(*units: tuple[int, int, int, int]) -> bytes:
    return b"".join(struct.pack("<4i", *unit) for unit in units)


def findings(offset: int = 0) -> list[bytes]:
    """Of both chunks; every value ``offset`` steps from the exact run's."""
    return [fingerprint(*[(c + u + offset,) * 4 for u in range(32)]) for c in (0, 1_000)]


EXACT = findings()


@pytest.mark.parametrize(
    ("one", "other", "steps"),
    [
        (fingerprint((0, 0, 0, 0)), fingerprint((0, 0, 0, 0)), 0),
        (fingerprint((1, -1, 3, -3)), fingerprint((0, 0, 0, 0)), 2),
        # The farthest unit counts: one false unit among many right ones shows.
        (fingerprint((0, 0, 0, 0), (40, 40, 40, 40)), fingerprint((0, 0, 0, 0), (0, 0, 0, 0)), 40),
    ],
)
def test_distance(one: bytes, other: bytes, steps: int) -> None:
    assert distance(one, other) == distance(other, one) == steps


@pytest.mark.parametrize(
    ("one", "other"), [(b"", b""), (bytes(16), bytes(32)), (bytes(15), bytes(15)), (bytes(16), b"")]
)
def test_what_is_no_fingerprint_is_far_from_everything(one: bytes, other: bytes) -> None:
    assert distance(one, other) > 2**40


@pytest.mark.parametrize(
    ("one", "other", "do_agree"),
    [
        (findings(0)[0], findings(10)[0], True),
        (findings(0)[0], findings(11)[0], False),
        (FALSE_UNITS, findings(0)[0], False),
        (FALSE_UNITS, FALSE_UNITS, True),
    ],
)
def test_native_findings_agree_within_the_tolerance(one: bytes, other: bytes, do_agree: bool) -> None:
    assert agree(TERMS, one, other) is do_agree
    assert agree(award().body, one, other) is (one == other)


@pytest.mark.parametrize(
    ("claimed", "truth", "guilty"),
    [
        (findings(100)[0], EXACT[0], False),
        (findings(101)[0], EXACT[0], True),
        (EXACT[0], FALSE_UNITS, True),
        # How far a unit may be from its draw differs between machines: whoever doubts is never convicted.
        (FALSE_UNITS, EXACT[0], False),
    ],
)
def test_only_the_exact_re_run_shows_a_native_finding_false(
    claimed: bytes, truth: bytes, guilty: bool
) -> None:
    assert is_false(TERMS, claimed, truth) is guilty
    assert is_false(award().body, claimed, truth)


def test_what_workers_compute_in() -> None:
    homogeneous = award(profile="homogeneous", numeric_class="x86-avx512").body
    assert (numerics(TERMS), judging_numerics(TERMS)) == ("native", "native-reference")
    assert numerics(homogeneous) == judging_numerics(homogeneous) == "homogeneous/x86-avx512"
    assert numerics(award().body) == judging_numerics(award().body) == "exact14"


def test_a_statement_carries_the_fingerprint_that_its_digest_is_of() -> None:
    digest, shown = stated("native", EXACT[0])
    assert as_stated("native", digest, shown) == EXACT[0]
    assert stated("native", FALSE_UNITS) == (FALSE_UNITS, b"")
    assert stated("exact14", digest) == (digest, b"")
    for profile, wrong in (("native", EXACT[1]), ("native", b""), ("exact14", shown)):
        with pytest.raises(Rejected, match="fingerprint isn't what"):
            as_stated(profile, digest, wrong)


class Stage:
    """A round over native findings, from the draw to the dispute."""

    def __init__(self, made: Sequence[bytes], found: Sequence[bytes]) -> None:
        executor = prover(AGREED)
        self.commitment = executor.commit(made, UNITS, final=True)
        self.round = Round(
            AGREED,
            self.commitment,
            electorate=ELECTORATE,
            input=INPUT,
            units=UNITS,
            draw_window_ms=600,
            job_id=b"job",
            network=NETWORK,
            crypto=CRYPTO,
            sign=lambda body: signed(REQUESTER, body),
        )
        self.round.start(NOW_MS)
        self.hear(claim(2, self.commitment))
        self.round.handle(TimerFired(("round", self.commitment.id, "draw", 0)), NOW_MS)
        hidden = blind(2, self.commitment, found)
        self.hear(hidden)
        self.opening: Signed[Opening] = executor.open(opening_request(self.commitment, found, 2))
        self.hear(self.opening)
        self.reveal: Signed[Reveal] = reveal(2, self.commitment, hidden, found)
        self.effects = self.hear(self.reveal)

    def hear(self, message: Any) -> list[Any]:
        return self.round.handle(Heard(message), NOW_MS)

    def settle(self, truth: Sequence[bytes]) -> None:
        event = RunRecomputed(("settle", self.commitment.id), tuple(enumerate(truth)), 1)
        self.round.handle(event, NOW_MS)


def test_near_findings_are_verified_without_a_re_run() -> None:
    stage = Stage(findings(3), findings(-4))
    assert stage.round.verdict is Verdict.VERIFIED
    assert [entry.is_payable for entry in stage.round.entries.values()] == [True]


def test_far_findings_call_for_the_exact_re_run() -> None:
    stage = Stage(findings(60), findings(0))
    assert stage.round.verdict is None
    assert stage.effects[-1].task == Recompute(
        "sim.hash", TERMS.model, "native-reference", INPUT, UNITS, (0, 1)
    )


def test_an_odd_but_honest_executor_is_not_convicted() -> None:
    stage = Stage(findings(60), findings(0))
    stage.settle(EXACT)
    # Nobody is accused, and nobody agreed either: the segment isn't verified.
    assert stage.round.verdict is Verdict.UNVERIFIED
    assert stage.round.proofs == []


def test_an_executor_beyond_the_bound_is_convicted_by_a_proof_that_others_judge() -> None:
    stage = Stage(findings(500), findings(1))
    stage.settle(EXACT)
    assert stage.round.verdict is Verdict.FRAUD
    [proof] = stage.round.proofs
    accusation = open_proof(proof, network=NETWORK, crypto=CRYPTO)
    assert (accusation.accused, accusation.task.profile) == (AGREED.executor, "native-reference")
    assert accusation.is_guilty(EXACT[0]) and not accusation.is_guilty(findings(450)[0])


def test_a_verifier_beyond_the_bound_is_convicted_and_unpaid() -> None:
    stage = Stage(findings(1), findings(500))
    stage.settle(EXACT)
    [proof] = stage.round.proofs
    accusation = open_proof(proof, network=NETWORK, crypto=CRYPTO)
    assert accusation.role == "verifier" and accusation.is_guilty(EXACT[0])
    assert stage.round.verdict is Verdict.UNVERIFIED
    assert [entry.is_payable for entry in stage.round.entries.values()] == [False]


def test_false_units_convict_the_executor_only_if_the_exact_run_says_so() -> None:
    doubted = [FALSE_UNITS, FALSE_UNITS]
    guilty, innocent = Stage(EXACT, doubted), Stage(EXACT, doubted)
    guilty.settle(doubted)
    assert guilty.round.verdict is Verdict.FRAUD
    innocent.settle(EXACT)
    assert innocent.round.verdict is Verdict.UNVERIFIED and innocent.round.proofs == []
    assert [entry.is_payable for entry in innocent.round.entries.values()] == [False]


def test_whoever_cannot_judge_settles_nothing() -> None:
    stage = Stage(findings(500), findings(0))
    failed = RunFailed(("settle", stage.commitment.id), "input-refused", "another class")
    stage.round.handle(failed, NOW_MS)
    assert stage.round.verdict is Verdict.UNSETTLED
    assert stage.round.proofs == []


def test_statements_name_the_contracts_profile_and_bind_their_fingerprints() -> None:
    stage = Stage(findings(3), findings(3))
    assert check_opening(AGREED, stage.commitment, stage.opening) == dict(enumerate(findings(3)))
    chunks = tuple(changed(chunk, fingerprint=EXACT[0]) for chunk in stage.opening.body.chunks)
    with pytest.raises(Rejected, match="fingerprint isn't what"):
        check_opening(AGREED, stage.commitment, signed(EXECUTOR, changed(stage.opening.body, chunks=chunks)))
    hidden = blind(2, stage.commitment, findings(3))
    for fields, rule in (
        ({"profile": "exact14"}, "profile='exact14' isn't the commitment's"),
        ({"fingerprints": ()}, "fingerprint isn't what"),
        ({"fingerprints": (b"",)}, "1 fingerprints for 2 results"),
    ):
        with pytest.raises(Rejected, match=rule):
            check_reveal(stage.commitment, hidden, signed(2, changed(stage.reveal.body, **fields)))
    assert all(digest_of("native", f) != f for f in findings(3))
