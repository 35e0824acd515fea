"""Operator fraud proofs: one false operator in a trace that somebody signed, judged without the model.

The accused signed three things: the contract or its part in it, the digest of a chunk, and the root over
the trace that it says led there. The proof opens the inputs and the output of one operator of that trace
against that root. If the operator gives another output, the accused's own statements contradict each
other, whatever the accuser is. Everything but running that operator is checked here; what is left is one
`Case` for a referee. A root that doesn't even end in the digest stated before needs no referee.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocols import merkle
from protocols.crypto import Crypto
from protocols.digest import DIGEST_BYTES, tagged
from protocols.effects import PROGRAM_INDEX, Case
from protocols.envelope import Signed, open_envelope
from protocols.errors import Rejected
from protocols.events import Finding
from protocols.limits import OPERATOR_BYTES_MAX
from protocols.messages import OpenedValue, OperatorFraud, TraceRoot
from protocols.values import value_digest
from verification.evidence import Contract
from verification.findings import EXACT_PROFILES
from verification.fraud import open_accusation

__all__ = [
    "NO_DIGEST",
    "OperatorAccusation",
    "chunk_value",
    "evidence_digest",
    "is_consistent",
    "open_operator_fraud",
    "opened_digest",
]

NO_DIGEST = bytes(DIGEST_BYTES)
"""In place of a value's digest where a program is accused."""


@dataclass(frozen=True, slots=True)
class OperatorAccusation:
    """What an operator fraud proof claims, once everything but the operator holds."""

    accused: bytes
    role: str
    contract: Contract
    commitment_id: bytes
    chunk: int
    case: Case | None
    """None if the accused's trace doesn't end in the digest it stated: that convicts by itself."""

    def is_guilty(self, finding: Finding | None) -> bool:
        """Whether a referee's finding of the case convicts the accused."""
        return self.case is None or finding is Finding.GUILTY


def evidence_digest(raw: bytes) -> bytes:
    """The digest by which a proof's envelope is named and fetched."""
    return tagged("p2p-node/evidence/1", raw)


def chunk_value(digest: bytes) -> bytes:
    """The last value digest of a trace that leads to this chunk digest."""
    return value_digest("uint8", (DIGEST_BYTES,), digest)


def opened_digest(value: OpenedValue) -> bytes:
    """The digest of an opened value.

    Raises:
        Rejected: no such type or shape, or another number of bytes.
    """
    try:
        return value_digest(value.dtype, value.shape, value.data)
    except ValueError as error:
        raise Rejected(f"value {value.index} isn't well formed: {error}") from error


def is_consistent(trace: TraceRoot, digest: bytes) -> bool:
    """Whether a signed trace ends in the chunk digest that its signer stated."""
    return merkle.verify(
        trace.root, leaf=chunk_value(digest), index=trace.values - 1, count=trace.values, proof=trace.path
    )


def open_operator_fraud(proof: OperatorFraud, *, network: str, crypto: Crypto) -> OperatorAccusation:
    """Check an operator fraud proof but for the operator.

    Raises:
        PeerFault: a part isn't signed, isn't bound to the rest, or the profile isn't exact.
    """
    trace: Signed[TraceRoot] = open_envelope(proof.trace, network=network, crypto=crypto, expect=TraceRoot)
    root = trace.body
    accusation, commitment = open_accusation(proof, root.chunk, network=network, crypto=crypto)
    profile = accusation.contract.terms.profile
    if profile not in EXACT_PROFILES:
        raise Rejected(f"profile {profile!r} isn't exact: an operator proves nothing")
    if trace.signer != accusation.accused:
        raise Rejected("the trace isn't signed by who made the accused statement")
    if root.commitment_id != commitment.id:
        raise Rejected("the trace is about another commitment")
    case: Case | None = None
    if is_consistent(root, accusation.claimed_digest):
        _check_opened(proof, root)
        task = accusation.task
        case = Case(
            workload=task.workload,
            model=task.model,
            profile=task.profile,
            input=proof.input,
            units=proof.units,
            chunk=root.chunk,
            program=root.program,
            values_total=root.values,
            index=proof.index,
            claimed=proof.digest,
            values=proof.values,
            context=proof.context,
        )
    elif proof.index != PROGRAM_INDEX or proof.values or proof.paths or proof.path or proof.context:
        raise Rejected("the trace contradicts itself, so nothing is to be opened in it")
    return OperatorAccusation(
        accusation.accused, accusation.role, accusation.contract, commitment.id, root.chunk, case
    )


def _check_opened(proof: OperatorFraud, root: TraceRoot) -> None:
    if len(proof.paths) != len(proof.values):
        raise Rejected(f"{len(proof.values)} values are opened with {len(proof.paths)} paths")
    if proof.index == PROGRAM_INDEX:
        if proof.values or proof.path or proof.digest != NO_DIGEST:
            raise Rejected("an accusation of the program opens no value")
        return
    _check_place(root, proof.index, proof.digest, proof.path)
    opened_bytes, before = 0, -1
    for value, path in zip(proof.values, proof.paths, strict=True):
        if not before < value.index < proof.index:
            raise Rejected(f"value {value.index} must be above {before} and below {proof.index}")
        before = value.index
        opened_bytes += len(value.data)
        if opened_bytes > OPERATOR_BYTES_MAX:
            raise Rejected(f"opened values exceed {OPERATOR_BYTES_MAX} bytes")
        _check_place(root, value.index, opened_digest(value), path)


def _check_place(root: TraceRoot, index: int, digest: bytes, path: tuple[bytes, ...]) -> None:
    if not merkle.verify(root.root, leaf=digest, index=index, count=root.values, proof=path):
        raise Rejected(f"value {index} isn't proved against the signed trace")
