"""Fraud proofs: one signed, false statement about one chunk, and what it takes to see that it's false.

A proof carries the contract, the commitment, the accused's own signed statement of the chunk's
digest, and the chunk's inputs, each bound to what was signed. Everything but the arithmetic is
checked here; the arithmetic is one recomputation, which every peer does for itself. There is no
vote, and a false accusation falls to the same recomputation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from protocols.crypto import Crypto
from protocols.effects import Recompute
from protocols.envelope import Signed, open_envelope
from protocols.errors import Rejected
from protocols.limits import FRAUD_INPUT_BYTES_MAX, FRAUD_UNITS_MAX
from protocols.messages import Acceptance, Award, Commitment, FraudProof, Opening, OperatorFraud, Reveal
from protocols.units import input_digest
from verification.evidence import (
    Contract,
    check_commitment,
    check_contract,
    check_opening,
    check_units,
    segment_chunk_range,
    stated_findings,
)
from verification.findings import CONVICTING_PROFILES, EXACT_PROFILES, is_false, judging_numerics

__all__ = ["EXACT_PROFILES", "Accusation", "build_proof", "open_accusation", "open_proof", "stated_digest"]


@dataclass(frozen=True, slots=True)
class Accusation:
    """What a fraud proof claims, once everything but the arithmetic holds."""

    accused: bytes
    role: str
    contract: Contract
    chunk: int
    claimed_digest: bytes
    task: Recompute

    def is_guilty(self, recomputed: bytes) -> bool:
        """Whether an honest recomputation convicts the accused."""
        return is_false(self.contract.terms, self.claimed_digest, recomputed)


def open_proof(proof: FraudProof, *, network: str, crypto: Crypto) -> Accusation:
    """Check a fraud proof but for the recomputation.

    Raises:
        PeerFault: a part isn't signed, isn't bound to the rest, or the profile isn't exact.
    """
    return open_accusation(proof, proof.chunk, network=network, crypto=crypto)[0]


def open_accusation(
    proof: FraudProof | OperatorFraud, chunk: int, *, network: str, crypto: Crypto
) -> tuple[Accusation, Signed[Commitment]]:
    """What a proof of either kind says about ``chunk``, and the commitment that it belongs to.

    Raises:
        PeerFault: a part isn't signed, isn't bound to the rest, or the profile isn't exact.
    """
    award = open_envelope(proof.award, network=network, crypto=crypto, expect=Award)
    acceptance = open_envelope(proof.acceptance, network=network, crypto=crypto, expect=Acceptance)
    commitment = open_envelope(proof.commitment, network=network, crypto=crypto, expect=Commitment)
    statement: Signed[Any] = open_envelope(proof.statement, network=network, crypto=crypto)
    contract = check_contract(award, acceptance)
    body = check_commitment(contract, commitment)
    terms = contract.terms
    if terms.profile not in CONVICTING_PROFILES:
        raise Rejected(f"profile {terms.profile!r} is unknown: a difference proves nothing")
    if chunk not in segment_chunk_range(body):
        raise Rejected(f"chunk {chunk} is outside the committed segment")
    if input_digest(proof.input) != terms.input_digest:
        raise Rejected("the proof's input isn't the contract's")
    check_units(contract, body, proof.units)
    role, digest = stated_digest(contract, commitment, statement, chunk)
    task = Recompute(
        terms.workload,
        terms.model,
        judging_numerics(terms),
        proof.input,
        proof.units,
        (chunk,),
        sources=tuple(dict.fromkeys((contract.requester, contract.executor, statement.signer))),
    )
    return Accusation(statement.signer, role, contract, chunk, digest, task), commitment


def stated_digest(
    contract: Contract, commitment: Signed[Commitment], statement: Signed[Any], chunk: int
) -> tuple[str, bytes]:
    """The role in which an opening or a reveal was signed, and what it says that ``chunk``'s digest is.

    Raises:
        Rejected: another kind, another commitment's, or it doesn't mention the chunk.
    """
    if isinstance(statement.body, Opening):
        digests = dict(check_opening(contract, commitment, statement))
        role = "executor"
    elif isinstance(statement.body, Reveal):
        if statement.body.commitment_id != commitment.id:
            raise Rejected("the accused statement is about another commitment")
        digests = dict(stated_findings(commitment, statement.body))
        role = "verifier"
    else:
        raise Rejected(f"a {statement.body.KIND!r} doesn't state a digest")
    if chunk not in digests:
        raise Rejected(f"the accused statement doesn't mention chunk {chunk}")
    return role, digests[chunk]


def build_proof(
    contract: Contract,
    commitment: Signed[Commitment],
    statement: Signed[Any],
    *,
    chunk: int,
    input: bytes,
    units: tuple[int, ...],
) -> FraudProof | None:
    """The proof that ``statement`` is false about ``chunk``.

    Returns:
        None if it's too large to gossip, or the profile is unknown and a difference proves nothing.
    """
    if contract.terms.profile not in CONVICTING_PROFILES:
        return None
    if len(input) > FRAUD_INPUT_BYTES_MAX or len(units) > FRAUD_UNITS_MAX:
        return None
    return FraudProof(
        contract.award.raw,
        contract.acceptance.raw,
        commitment.raw,
        statement.raw,
        chunk,
        input,
        units[: commitment.body.units_total],
    )
