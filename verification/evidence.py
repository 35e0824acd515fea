"""The rules by which signed statements about a job become evidence.

Each function judges one kind of statement against the ones before it and returns what follows from
it, or raises `Rejected` with the rule that was broken. Live peers and the offline receipt checker
call the same functions, so a receipt can't pass what a peer would have refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from protocols import merkle
from protocols.crypto import Crypto
from protocols.envelope import Signed, open_envelope
from protocols.errors import Rejected
from protocols.messages import (
    Acceptance,
    Award,
    BlindVerdict,
    Commitment,
    CommitmentNotice,
    DrawClaim,
    MembershipProof,
    Opening,
    Reveal,
    Widening,
)
from protocols.units import FALSE_UNITS, chunk_count, units_digest
from verification.commitment import blind_digest, chunk_leaf
from verification.electorate import verify_membership
from verification.findings import as_stated
from verification.sortition import alpha, drawn_chunks, is_drawn

__all__ = [
    "Contract",
    "NotDrawn",
    "check_blind",
    "check_chain",
    "check_commitment",
    "check_contract",
    "check_draw",
    "check_opening",
    "check_reveal",
    "check_units",
    "check_widening",
    "open_notice",
    "segment_chunk_range",
    "stated_findings",
]


@dataclass(frozen=True, slots=True)
class Contract:
    """An award and its acceptance: terms that both sides signed."""

    award: Signed[Award]
    acceptance: Signed[Acceptance]

    @property
    def terms(self) -> Award:
        """What was agreed."""
        return self.award.body

    @property
    def requester(self) -> bytes:
        """Who pays."""
        return self.award.signer

    @property
    def executor(self) -> bytes:
        """Who works."""
        return self.award.body.executor


class NotDrawn(Rejected):
    """A member of the electorate whose VRF output doesn't make it a verifier, by its weight."""


def check_contract(award: Signed[Award], acceptance: Signed[Acceptance]) -> Contract:
    """The contract that an award and an acceptance make.

    Raises:
        Rejected: they don't belong together, or a party is on both sides.
    """
    if acceptance.body.award_id != award.id:
        raise Rejected("acceptance is of another award")
    if acceptance.signer != award.body.executor:
        raise Rejected("acceptance isn't signed by the award's executor")
    if award.signer == award.body.executor:
        raise Rejected("requester and executor are the same peer")
    return Contract(award, acceptance)


def check_commitment(contract: Contract, commitment: Signed[Commitment]) -> Commitment:
    """A commitment that fits its contract's shape.

    Raises:
        Rejected: another contract's, another signer's, or impossible numbers.
    """
    body, terms = commitment.body, contract.terms
    if body.award_id != contract.award.id:
        raise Rejected("commitment is for another award")
    if commitment.signer != contract.executor:
        raise Rejected("commitment isn't signed by the contract's executor")
    prefix_chunks = terms.prefix_units // terms.chunk_units
    if body.profile != terms.profile:
        raise Rejected(f"commitment profile={body.profile!r} isn't the contract's {terms.profile!r}")
    if body.first_chunk != prefix_chunks + body.segment * terms.segment_chunks:
        raise Rejected(
            f"commitment first_chunk={body.first_chunk} doesn't follow from segment={body.segment}"
        )
    if body.units_total > terms.units_max:
        raise Rejected(f"commitment units_total={body.units_total} exceeds units_max={terms.units_max}")
    if body.first_chunk + body.chunks != chunk_count(body.units_total, terms.chunk_units):
        raise Rejected(f"commitment chunks={body.chunks} doesn't cover units_total={body.units_total}")
    if body.chunks > terms.segment_chunks:
        raise Rejected(f"commitment chunks={body.chunks} exceeds segment_chunks={terms.segment_chunks}")
    if not body.final and (
        body.chunks != terms.segment_chunks
        or body.units_total % terms.chunk_units
        or body.units_total == terms.units_max
    ):
        raise Rejected("only the final segment may be short or reach units_max")
    if (body.segment == 0) != (body.previous == b""):
        raise Rejected("the first commitment, and only it, has no previous one")
    return body


def check_chain(previous: Signed[Commitment] | None, commitment: Signed[Commitment]) -> None:
    """That a commitment continues the one before.

    Raises:
        Rejected: it continues another one, skips a segment, or follows a final one.
    """
    if previous is None:
        if commitment.body.segment != 0:
            raise Rejected(f"commitment segment={commitment.body.segment} comes first")
        return
    if previous.body.final:
        raise Rejected("a commitment follows the final one")
    if commitment.body.previous != previous.id or commitment.body.segment != previous.body.segment + 1:
        raise Rejected("commitment isn't chained to the one before")


def check_units(contract: Contract, commitment: Commitment, units: Sequence[int]) -> None:
    """That ``units`` are the output the commitment binds, and end where they may.

    Args:
        contract: its terms say when output may end.
        commitment: already checked by `check_commitment`.
        units: all output units from the first to the commitment's ``units_total``.

    Raises:
        Rejected: other units, or an early end without the stop unit.
    """
    terms = contract.terms
    if len(units) != commitment.units_total or units_digest(units) != commitment.units_digest:
        raise Rejected("output units don't match the commitment's digest")
    if units_digest(units[: terms.prefix_units]) != terms.prefix_digest:
        raise Rejected("output units don't begin with the verified prefix")
    if commitment.final and commitment.units_total < terms.units_max and units[-1] != terms.stop_unit:
        raise Rejected("output ends before units_max without the stop unit")
    if terms.stop_unit in units[:-1] or (not commitment.final and units[-1] == terms.stop_unit):
        raise Rejected("output goes on after the stop unit")


def open_notice(
    notice: CommitmentNotice, *, network: str, crypto: Crypto
) -> tuple[Contract, Signed[Commitment]]:
    """The contract and the commitment inside a gossiped notice, checked together.

    Raises:
        PeerFault: a part isn't properly signed, or they don't belong together.
    """
    award = open_envelope(notice.award, network=network, crypto=crypto, expect=Award)
    acceptance = open_envelope(notice.acceptance, network=network, crypto=crypto, expect=Acceptance)
    commitment = open_envelope(notice.commitment, network=network, crypto=crypto, expect=Commitment)
    contract = check_contract(award, acceptance)
    check_commitment(contract, commitment)
    return contract, commitment


def segment_chunk_range(commitment: Commitment) -> range:
    """The chunk numbers that a commitment covers."""
    return range(commitment.first_chunk, commitment.first_chunk + commitment.chunks)


def check_widening(contract: Contract, commitment: Signed[Commitment], widening: Signed[Widening]) -> int:
    """The level that a widening grants.

    Raises:
        Rejected: not the requester's, or for another commitment.
    """
    if widening.signer != contract.requester or widening.body.commitment_id != commitment.id:
        raise Rejected("widening isn't the requester's for this commitment")
    return widening.body.level


def check_draw(
    contract: Contract,
    commitment: Signed[Commitment],
    claim: Signed[DrawClaim],
    membership: MembershipProof,
    *,
    network: str,
    crypto: Crypto,
    level: int,
) -> tuple[int, ...]:
    """The chunks that a drawn verifier must recompute.

    Args:
        contract: its terms pin the electorate and the odds.
        commitment: fixes the draw.
        claim: the verifier's proof of its VRF output.
        membership: its place in the electorate.
        network: part of the VRF's input.
        crypto: judges the proof.
        level: the highest widening granted so far.

    Returns:
        Chunk numbers, absolute, ascending.

    Raises:
        NotDrawn: not at this level.
        Rejected: not a member, or the claim is for a level that wasn't granted.
    """
    terms = contract.terms
    if claim.body.commitment_id != commitment.id:
        raise Rejected("draw claim is for another commitment")
    if claim.signer in (contract.requester, contract.executor):
        raise Rejected("a party to the contract can't verify it")
    if claim.body.widening > level:
        raise Rejected(f"draw claim widening={claim.body.widening} exceeds the granted level {level}")
    if not verify_membership(
        terms.electorate_root,
        total_weight=terms.electorate_weight,
        count=terms.electorate_count,
        key=claim.signer,
        proof=membership,
    ):
        raise Rejected("verifier isn't proved to be in the electorate")
    beta = crypto.vrf_output(claim.signer, alpha(network, commitment.id), claim.body.proof)
    if beta is None:
        raise Rejected("the VRF proof of a draw claim doesn't hold")
    if not is_drawn(
        beta,
        weight=membership.weight,
        total_weight=terms.electorate_weight,
        expected_milli=terms.expected_verifiers_milli,
        # A wider draw contains every narrower one. Whoever doesn't know its weight claims too early.
        widening=level,
    ):
        raise NotDrawn("the VRF didn't draw this verifier")
    first = commitment.body.first_chunk
    drawn = drawn_chunks(beta, chunks=commitment.body.chunks, samples=terms.samples)
    return tuple(first + chunk for chunk in drawn)


def check_blind(
    commitment: Signed[Commitment],
    claim: Signed[DrawClaim],
    blind: Signed[BlindVerdict],
    chunks: Sequence[int],
) -> None:
    """That a blind verdict covers exactly the drawn chunks.

    Raises:
        Rejected: another signer's, commitment's or profile's, or other chunks.
    """
    if blind.signer != claim.signer or blind.body.claim_id != claim.id:
        raise Rejected("blind verdict belongs to another claim")
    if blind.body.commitment_id != commitment.id:
        raise Rejected("blind verdict is for another commitment")
    if blind.body.profile != commitment.body.profile:
        raise Rejected(f"blind verdict profile={blind.body.profile!r} isn't the commitment's")
    if tuple(chunk for chunk, _ in blind.body.hidden) != tuple(chunks):
        raise Rejected("blind verdict doesn't cover exactly the drawn chunks")


def check_opening(
    contract: Contract, commitment: Signed[Commitment], opening: Signed[Opening]
) -> Mapping[int, bytes]:
    """The executor's findings by chunk, each proved against the root.

    Raises:
        Rejected: another signer's or commitment's, a chunk twice or outside, a false path, or a
            fingerprint that isn't what its digest is of.
    """
    if opening.signer != contract.executor or opening.body.commitment_id != commitment.id:
        raise Rejected("opening isn't the executor's for this commitment")
    body = commitment.body
    findings: dict[int, bytes] = {}
    for chunk in opening.body.chunks:
        if chunk.chunk in findings or chunk.chunk not in segment_chunk_range(body):
            raise Rejected(f"opening of chunk {chunk.chunk} is repeated or outside the segment")
        # An executor that states this could agree with whoever finds its units false.
        if chunk.digest == FALSE_UNITS:
            raise Rejected(f"opening of chunk {chunk.chunk} states the digest of false units")
        leaf = chunk_leaf(
            executor=contract.executor,
            job_id=contract.award.id,
            segment=body.segment,
            chunk=chunk.chunk,
            salt=chunk.salt,
            digest=chunk.digest,
        )
        if not merkle.verify(
            body.root,
            leaf=leaf,
            index=chunk.chunk - body.first_chunk,
            count=body.chunks,
            proof=chunk.path,
        ):
            raise Rejected(f"opening of chunk {chunk.chunk} doesn't lead to the committed root")
        findings[chunk.chunk] = as_stated(body.profile, chunk.digest, chunk.fingerprint)
    return findings


def check_reveal(
    commitment: Signed[Commitment], blind: Signed[BlindVerdict], reveal: Signed[Reveal]
) -> Mapping[int, bytes]:
    """A verifier's findings by chunk, each the one it hid before it saw the executor's.

    Raises:
        Rejected: another signer's, commitment's or profile's, other chunks, a digest it hadn't hidden,
            or a fingerprint that isn't what its digest is of.
    """
    body = reveal.body
    if reveal.signer != blind.signer or body.blind_id != blind.id or body.commitment_id != commitment.id:
        raise Rejected("reveal belongs to another blind verdict")
    if tuple(chunk for chunk, _ in body.results) != tuple(chunk for chunk, _ in blind.body.hidden):
        raise Rejected("reveal doesn't cover exactly the chunks that were hidden")
    for (chunk, digest), (_, hidden) in zip(body.results, blind.body.hidden, strict=True):
        shown = blind_digest(
            verifier=reveal.signer, root=commitment.body.root, chunk=chunk, digest=digest, nonce=body.nonce
        )
        if shown != hidden:
            raise Rejected(f"revealed digest of chunk {chunk} isn't the one that was hidden")
    return stated_findings(commitment, body)


def stated_findings(commitment: Signed[Commitment], reveal: Reveal) -> Mapping[int, bytes]:
    """The findings that a reveal states, by chunk.

    Raises:
        Rejected: another profile's, or a fingerprint that isn't what its digest is of.
    """
    profile = commitment.body.profile
    if reveal.profile != profile:
        raise Rejected(f"reveal profile={reveal.profile!r} isn't the commitment's {profile!r}")
    fingerprints = reveal.fingerprints or (b"",) * len(reveal.results)
    if len(fingerprints) != len(reveal.results):
        raise Rejected(f"reveal has {len(fingerprints)} fingerprints for {len(reveal.results)} results")
    return {
        chunk: as_stated(profile, digest, fingerprint)
        for (chunk, digest), fingerprint in zip(reveal.results, fingerprints, strict=True)
    }
