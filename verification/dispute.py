"""What a dispute is about: two signed statements that differ about one chunk of one commitment.

The requester opens it and relays every move, as it relays everything between executor and verifiers;
so it sees who is silent. It can't decide anything: what convicts is an operator that gives another
output than the accused signed (`verification.dispute_evidence`). Both parties play the same part
(`verification.dispute_party`): each signs the root over its trace, both walk down their trees together,
and whoever finds that a referee convicts the other says so. So a false accuser is convicted by its own
signatures exactly as a false executor is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from protocols.crypto import Crypto
from protocols.effects import PROGRAM_INDEX
from protocols.envelope import Signed, open_envelope
from protocols.errors import Rejected
from protocols.messages import (
    Commitment,
    Dispute,
    OpenedValue,
    Opening,
    OperatorFraud,
    Reveal,
    TraceRoot,
)
from verification.dispute_evidence import NO_DIGEST, is_consistent
from verification.evidence import Contract, segment_chunk_range
from verification.findings import EXACT_PROFILES
from verification.fraud import stated_digest

__all__ = ["Exhibit", "Quarrel", "accuse", "accuse_contradiction", "check_root", "open_dispute"]


@dataclass(frozen=True, slots=True)
class Quarrel:
    """Who differs from whom, and by which statements."""

    id: bytes
    contract: Contract
    commitment: Signed[Commitment]
    chunk: int
    verifier: bytes
    statements: Mapping[bytes, Signed[Any]]
    """The executor's opening and the verifier's reveal, by key."""
    digests: Mapping[bytes, bytes]
    """What each states for the chunk."""

    @property
    def executor(self) -> bytes:
        """The party that committed to the chunk."""
        return self.contract.executor

    def other(self, party: bytes) -> bytes:
        """The party that isn't ``party``."""
        return self.verifier if party == self.executor else self.executor


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One false value of a party's trace, opened."""

    index: int
    digest: bytes
    path: tuple[bytes, ...]
    values: tuple[OpenedValue, ...]
    paths: tuple[tuple[bytes, ...], ...]
    context: bytes


def open_dispute(
    message: Signed[Dispute],
    *,
    contract: Contract,
    commitment: Signed[Commitment],
    network: str,
    crypto: Crypto,
) -> Quarrel:
    """The quarrel that a requester asks its parties to settle.

    Raises:
        PeerFault: not the requester's, statements about something else, or statements that agree.
    """
    body = message.body
    if message.signer != contract.requester or body.commitment_id != commitment.id:
        raise Rejected("dispute isn't the requester's for this commitment")
    if contract.terms.profile not in EXACT_PROFILES:
        raise Rejected(f"profile {contract.terms.profile!r} isn't exact: there is nothing to dispute")
    if body.chunk not in segment_chunk_range(commitment.body):
        raise Rejected(f"disputed chunk {body.chunk} is outside the committed segment")
    opening = open_envelope(body.opening, network=network, crypto=crypto, expect=Opening)
    reveal = open_envelope(body.reveal, network=network, crypto=crypto, expect=Reveal)
    if reveal.signer in (contract.requester, contract.executor):
        raise Rejected("a party to the contract can't have verified it")
    statements: dict[bytes, Signed[Any]] = {contract.executor: opening, reveal.signer: reveal}
    digests = {
        party: stated_digest(contract, commitment, statement, body.chunk)[1]
        for party, statement in statements.items()
    }
    if len(set(digests.values())) == 1:
        raise Rejected(f"the parties agree about chunk {body.chunk}")
    return Quarrel(message.id, contract, commitment, body.chunk, reveal.signer, statements, digests)


def check_root(quarrel: Quarrel, message: Signed[TraceRoot]) -> None:
    """See that a signed root is about this quarrel.

    Raises:
        Rejected: about another chunk or commitment, or by neither party.
    """
    body = message.body
    if message.signer not in quarrel.digests:
        raise Rejected("trace root is by neither party of the dispute")
    if (body.commitment_id, body.chunk) != (quarrel.commitment.id, quarrel.chunk):
        raise Rejected("trace root is about another chunk than the dispute")


def accuse(
    quarrel: Quarrel, trace: Signed[TraceRoot], exhibit: Exhibit, *, input: bytes, units: tuple[int, ...]
) -> OperatorFraud:
    """The proof against whoever signed ``trace``.

    Args:
        quarrel: what it stated.
        trace: its signed root.
        exhibit: the false value, opened in that trace.
        input: the job's.
        units: all output units up to the commitment's end.
    """
    return OperatorFraud(
        award=quarrel.contract.award.raw,
        acceptance=quarrel.contract.acceptance.raw,
        commitment=quarrel.commitment.raw,
        statement=quarrel.statements[trace.signer].raw,
        trace=trace.raw,
        input=input,
        units=units,
        index=exhibit.index,
        digest=exhibit.digest,
        path=exhibit.path,
        values=exhibit.values,
        paths=exhibit.paths,
        context=exhibit.context,
    )


def accuse_contradiction(
    quarrel: Quarrel, trace: Signed[TraceRoot], *, input: bytes, units: tuple[int, ...]
) -> OperatorFraud | None:
    """The proof against whoever signed a trace that doesn't end in the digest it stated; None if it does."""
    if is_consistent(trace.body, quarrel.digests[trace.signer]):
        return None
    exhibit = Exhibit(PROGRAM_INDEX, NO_DIGEST, (), (), (), b"")
    return accuse(quarrel, trace, exhibit, input=input, units=units)
