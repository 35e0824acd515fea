"""One segment of a receipt: was it drawn, blinded, opened and revealed by the rules, and does the
recorded verdict follow?

The functions of `verification.evidence` judge each statement, as a live peer would. What is added
here is the whole: no statement without the one before it, and a verdict that the statements imply.
What only arithmetic can tell is left as claims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from protocols.effects import Recompute
from protocols.envelope import Signed
from protocols.identity import peer_id
from protocols.limits import FRAUD_INPUT_BYTES_MAX, FRAUD_UNITS_MAX, WIDENING_MAX
from protocols.messages import (
    BlindVerdict,
    Commitment,
    DrawClaim,
    FraudProof,
    Opening,
    Reveal,
    SegmentRecord,
    VerifierRecord,
    Widening,
)
from verification.evidence import (
    Contract,
    check_blind,
    check_chain,
    check_commitment,
    check_draw,
    check_opening,
    check_reveal,
    check_widening,
)
from verification.findings import CONVICTING_PROFILES, agree, judging_numerics
from verification.fraud import Accusation, open_proof
from verification.receipt_report import Claim, Reader, ReceiptError, reading, require
from verification.round import Verdict

__all__ = ["SegmentEvidence", "VerifierEvidence", "claims_of", "owed_to", "read_segment"]

_UNENDED = ""
"""The recorded verdict of a segment whose attempt ended before its verification did."""


@dataclass(frozen=True, slots=True)
class VerifierEvidence:
    """One drawn verifier's statements, checked."""

    peer: bytes
    widening: int
    chunks: tuple[int, ...]
    is_blinded: bool
    results: Mapping[int, bytes] | None
    """Revealed digests by chunk; None if it never revealed."""
    differing: tuple[int, ...]
    """Chunks whose revealed digest isn't the executor's."""


@dataclass(frozen=True, slots=True)
class SegmentEvidence:
    """One segment's statements, checked, with the verdict that they were found to imply."""

    commitment: Signed[Commitment]
    level: int
    verifiers: tuple[VerifierEvidence, ...]
    opened: Mapping[int, bytes] | None
    """The executor's digests by chunk; None if it never opened."""
    verdict: str
    accusation: Accusation | None

    @property
    def revealed(self) -> list[VerifierEvidence]:
        """The verifiers that did all their work."""
        return [verifier for verifier in self.verifiers if verifier.results is not None]

    @property
    def disputed(self) -> set[int]:
        """Chunks about which some verifier and the executor differ."""
        return {chunk for verifier in self.verifiers for chunk in verifier.differing}


def read_segment(
    record: SegmentRecord,
    *,
    contract: Contract,
    previous: Signed[Commitment] | None,
    input: bytes,
    reader: Reader,
    step: str,
) -> SegmentEvidence:
    """Check one segment but for its units, its payments and its arithmetic.

    Args:
        record: the receipt's record of it.
        contract: the attempt's.
        previous: the commitment of the segment before, if any.
        input: the job's, as the receipt carries it.
        reader: opens envelopes.
        step: names the segment in errors.

    Raises:
        ReceiptError: the first thing that is wrong.
    """
    commitment = reader.open(record.commitment, Commitment, f"{step}: commitment")
    with reading(f"{step}: commitment"):
        check_commitment(contract, commitment)
        check_chain(previous, commitment)
    level = _read_widenings(record.widenings, contract, commitment, reader, step)
    opened = _read_opening(record.opening, contract, commitment, reader, f"{step}: opening")
    verifiers: list[VerifierEvidence] = []
    for index, entry in enumerate(record.verifiers):
        at = f"{step}, verifier {index}"
        verifier = _read_verifier(
            entry, contract, commitment, level=level, opened=opened, reader=reader, step=at
        )
        require(all(v.peer != verifier.peer for v in verifiers), at, "the same peer verifies twice")
        verifiers.append(verifier)
    accusation = _read_fraud(record, contract, reader, f"{step}: fraud proof")
    evidence = SegmentEvidence(commitment, level, tuple(verifiers), opened, record.verdict, accusation)
    _check_opening_covers(evidence, f"{step}: opening")
    is_provable = _is_provable(evidence, contract, len(input))
    _check_verdict(evidence, is_provable=is_provable, step=f"{step}: verdict")
    return evidence


def _read_widenings(
    raws: Sequence[bytes], contract: Contract, commitment: Signed[Commitment], reader: Reader, step: str
) -> int:
    for index, raw in enumerate(raws):
        at = f"{step}: widening {index}"
        widening = reader.open_own(raw, Widening, at)
        with reading(at):
            level = check_widening(contract, commitment, widening)
        require(level == index + 1, at, f"level={level} must be {index + 1}")
    return len(raws)


def _read_opening(
    raw: bytes, contract: Contract, commitment: Signed[Commitment], reader: Reader, step: str
) -> Mapping[int, bytes] | None:
    if raw == b"":
        return None
    opening = reader.open(raw, Opening, step)
    with reading(step):
        return check_opening(contract, commitment, opening)


def _read_verifier(
    record: VerifierRecord,
    contract: Contract,
    commitment: Signed[Commitment],
    *,
    level: int,
    opened: Mapping[int, bytes] | None,
    reader: Reader,
    step: str,
) -> VerifierEvidence:
    claim = reader.open(record.claim, DrawClaim, f"{step}: draw")
    with reading(f"{step}: draw"):
        chunks = check_draw(
            contract,
            commitment,
            claim,
            record.membership,
            network=reader.network,
            crypto=reader.crypto,
            level=level,
        )
    widening = claim.body.widening
    if record.blind == b"":
        require(record.reveal == b"", f"{step}: reveal", "it reveals what it never hid")
        return VerifierEvidence(claim.signer, widening, chunks, False, None, ())
    blind = reader.open(record.blind, BlindVerdict, f"{step}: blind verdict")
    with reading(f"{step}: blind verdict"):
        check_blind(commitment, claim, blind, chunks)
    if record.reveal == b"":
        return VerifierEvidence(claim.signer, widening, chunks, True, None, ())
    reveal = reader.open(record.reveal, Reveal, f"{step}: reveal")
    with reading(f"{step}: reveal"):
        results = check_reveal(commitment, blind, reveal)
    if opened is None:
        raise ReceiptError(f"{step}: reveal", "it is revealed although the executor opened nothing")
    differing = tuple(
        chunk
        for chunk, finding in results.items()
        if chunk not in opened or not agree(contract.terms, finding, opened[chunk])
    )
    return VerifierEvidence(claim.signer, widening, chunks, True, results, differing)


def _read_fraud(record: SegmentRecord, contract: Contract, reader: Reader, step: str) -> Accusation | None:
    if record.fraud == b"":
        return None
    proof = reader.open_own(record.fraud, FraudProof, step).body
    with reading(step):
        accusation = open_proof(proof, network=reader.network, crypto=reader.crypto)
    require(accusation.contract.award.id == contract.award.id, step, "it is about another contract")
    require(proof.commitment == record.commitment, step, "it is about another commitment")
    require(proof.statement == record.opening, step, "it doesn't accuse the executor's opening")
    return accusation


def _check_opening_covers(evidence: SegmentEvidence, step: str) -> None:
    blinded = [verifier for verifier in evidence.verifiers if verifier.is_blinded]
    if evidence.opened is None:
        return
    require(bool(blinded), step, "it was opened before any verifier had committed to its results")
    missing = {chunk for verifier in blinded for chunk in verifier.chunks} - evidence.opened.keys()
    require(not missing, step, f"it leaves out the drawn chunks {sorted(missing)}")


# --- The verdict that the statements imply -----------------------------------------------------


def _check_verdict(evidence: SegmentEvidence, *, is_provable: bool, step: str) -> None:
    known = {verdict.value for verdict in Verdict} | {_UNENDED}
    require(evidence.verdict in known, step, f"{evidence.verdict!r} is no verdict")
    if evidence.verdict == Verdict.FRAUD.value:
        _check_fraud(evidence, is_provable=is_provable, step=step)
        return
    require(evidence.accusation is None, step, f"{evidence.verdict!r} although it carries a fraud proof")
    if evidence.verdict == Verdict.VERIFIED.value:
        agreeing = [verifier for verifier in evidence.revealed if not verifier.differing]
        require(bool(agreeing), step, "verified, but no verifier revealed that it agrees")
    elif evidence.verdict == Verdict.WITHHELD.value:
        asked = any(verifier.is_blinded for verifier in evidence.verifiers)
        require(asked, step, "withheld, but no verifier had committed, so nothing was to be opened")
        require(evidence.opened is None, step, "withheld, but here is the opening")
    elif evidence.verdict == Verdict.UNSETTLED.value:
        require(bool(evidence.disputed), step, "unsettled, but nothing is disputed")
    elif evidence.verdict == Verdict.UNVERIFIED.value:
        _check_unverified(evidence, step)


def _check_fraud(evidence: SegmentEvidence, *, is_provable: bool, step: str) -> None:
    require(bool(evidence.disputed), step, "fraud, but no verifier differs from the executor")
    if evidence.accusation is None:
        require(not is_provable, step, "fraud, but there is no fraud proof")
        return
    chunk = evidence.accusation.chunk
    require(chunk in evidence.disputed, step, f"the fraud proof's chunk {chunk} isn't disputed")


def _is_provable(evidence: SegmentEvidence, contract: Contract, input_bytes: int) -> bool:
    """Whether fraud in this segment could be proved in one message, to anybody."""
    fits = input_bytes <= FRAUD_INPUT_BYTES_MAX and evidence.commitment.body.units_total <= FRAUD_UNITS_MAX
    return fits and contract.terms.profile in CONVICTING_PROFILES


def _check_unverified(evidence: SegmentEvidence, step: str) -> None:
    if evidence.opened is None:
        blinded = any(verifier.is_blinded for verifier in evidence.verifiers)
        require(not blinded, step, "unverified, but verifiers had committed and nothing was opened")
        require(
            evidence.level == WIDENING_MAX,
            step,
            f"unverified at widening {evidence.level}, before the draw was widened to {WIDENING_MAX}",
        )
        return
    agrees = any(not verifier.differing for verifier in evidence.revealed)
    require(not agrees, step, "unverified, but a verifier revealed that it agrees")


# --- What follows for payments and for arithmetic ----------------------------------------------


def owed_to(evidence: SegmentEvidence, verifier: VerifierEvidence) -> bool | None:
    """Whether a verifier is owed its fee; None where only a recomputation can tell."""
    if verifier.results is None or evidence.verdict in (_UNENDED, Verdict.WITHHELD.value):
        return False
    if evidence.verdict == Verdict.UNSETTLED.value:
        return True
    if evidence.verdict == Verdict.FRAUD.value:
        return _owed_after_fraud(evidence, verifier)
    # Verified or unverified: the executor's digests were found right wherever they were disputed.
    return not verifier.differing


def _owed_after_fraud(evidence: SegmentEvidence, verifier: VerifierEvidence) -> bool | None:
    """The executor is wrong about one chunk, so whoever agreed with it there is wrong too."""
    if not evidence.disputed.intersection(verifier.chunks):
        return True
    guilty = evidence.accusation.chunk if evidence.accusation else None
    if guilty in verifier.chunks and guilty not in verifier.differing:
        return False
    return None


def claims_of(
    evidence: SegmentEvidence,
    *,
    contract: Contract,
    input: bytes,
    units: tuple[int, ...] | None,
    paid: frozenset[bytes],
    step: str,
) -> list[Claim]:
    """What a recomputation can settle about one segment.

    Args:
        evidence: the checked segment.
        contract: the attempt's.
        input: the job's.
        units: all output units up to the commitment's end, or None if the receipt lacks them.
        paid: the verifiers that got a voucher.
        step: names the segment in reports.
    """
    if evidence.accusation is not None:
        units = evidence.accusation.task.units
    if units is None or evidence.opened is None:
        return []

    def claim(peer: bytes, role: str, digests: Mapping[int, bytes], is_right: bool) -> Claim:
        terms = contract.terms
        task = Recompute(
            terms.workload, terms.model, judging_numerics(terms), input, units or (), tuple(sorted(digests))
        )
        at = f"{step}, {role} {peer_id(peer)}"
        return Claim(at, peer, role, tuple(sorted(digests.items())), is_right, task, terms)

    claims = []
    if evidence.verdict == Verdict.VERIFIED.value:
        claims.append(claim(contract.executor, "executor", evidence.opened, True))
    if evidence.accusation is not None:
        guilty = evidence.accusation.chunk
        claims.append(claim(contract.executor, "executor", {guilty: evidence.opened[guilty]}, False))
    for verifier in evidence.revealed:
        results = verifier.results or {}
        disputed = {chunk: results[chunk] for chunk in verifier.chunks if chunk in evidence.disputed}
        # Where nothing is disputed the verifier's digests are the executor's.
        if disputed:
            claims.append(claim(verifier.peer, "verifier", disputed, verifier.peer in paid))
    return claims
