"""The executor's commitments: build a segment's tree, and open what was drawn.

Salts are derived from the node's secret, so that a root reveals nothing to copy, and a restart can
still open every leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from protocols import merkle
from protocols.crypto import Crypto
from protocols.envelope import Signed, open_envelope
from protocols.errors import Rejected
from protocols.messages import (
    BlindVerdict,
    ChunkOpening,
    Commitment,
    DrawClaim,
    Opening,
    OpeningRequest,
    Widening,
)
from protocols.units import units_digest
from verification.commitment import chunk_leaf, chunk_salt
from verification.evidence import Contract, check_blind, check_draw, check_widening
from verification.findings import stated

__all__ = ["Prover"]

Sign = Callable[[Any], Signed[Any]]


class Prover:
    """One contract's commitments, on the executor's side."""

    def __init__(
        self, contract: Contract, *, secret: bytes, network: str, crypto: Crypto, sign: Sign
    ) -> None:
        self.contract = contract
        self.commitments: list[Signed[Commitment]] = []
        self.drawn: dict[bytes, set[bytes]] = {}
        """Who was shown to be drawn to verify a commitment, by its id."""
        self._findings: dict[int, bytes] = {}
        self._secret = secret
        self._network = network
        self._crypto = crypto
        self._sign = sign

    def commit(self, findings: Sequence[bytes], units: Sequence[int], *, final: bool) -> Signed[Commitment]:
        """Sign the next segment.

        Args:
            findings: of the segment's chunks, in order.
            units: all output units so far.
            final: whether no segment follows.
        """
        terms = self.contract.terms
        segment = len(self.commitments)
        first = terms.prefix_units // terms.chunk_units + segment * terms.segment_chunks
        for offset, finding in enumerate(findings):
            self._findings[first + offset] = finding
        commitment: Signed[Commitment] = self._sign(
            Commitment(
                award_id=self.contract.award.id,
                segment=segment,
                previous=self.commitments[-1].id if self.commitments else b"",
                first_chunk=first,
                chunks=len(findings),
                root=merkle.root(self._leaves(segment, first, len(findings))),
                units_total=len(units),
                units_digest=units_digest(units),
                final=final,
                profile=terms.profile,
            )
        )
        self.commitments.append(commitment)
        return commitment

    def restore(self, commitment: Signed[Commitment], findings: Sequence[bytes]) -> None:
        """Take back the next commitment after a restart, so that it can still be opened."""
        for offset, finding in enumerate(findings):
            self._findings[commitment.body.first_chunk + offset] = finding
        self.commitments.append(commitment)

    def open(self, request: Signed[OpeningRequest]) -> Signed[Opening]:
        """Open the chunks that drawn verifiers have already committed to.

        Raises:
            PeerFault: not the requester's, a draw that doesn't hold, or nobody drawn. Without this
                check a requester could have the whole result opened and hand it to copiers.
        """
        if request.signer != self.contract.requester:
            raise Rejected("opening request isn't the requester's")
        commitment = next((c for c in self.commitments if c.id == request.body.commitment_id), None)
        if commitment is None:
            raise Rejected("opening request is for an unknown commitment")
        level = 0
        for raw in request.body.widenings:
            widening = open_envelope(raw, network=self._network, crypto=self._crypto, expect=Widening)
            level = max(level, check_widening(self.contract, commitment, widening))
        wanted: set[int] = set()
        drawn = self.drawn.setdefault(commitment.id, set())
        for draw in request.body.draws:
            claim = open_envelope(draw.claim, network=self._network, crypto=self._crypto, expect=DrawClaim)
            blind = open_envelope(draw.blind, network=self._network, crypto=self._crypto, expect=BlindVerdict)
            chunks = check_draw(
                self.contract,
                commitment,
                claim,
                draw.membership,
                network=self._network,
                crypto=self._crypto,
                level=level,
            )
            check_blind(commitment, claim, blind, chunks)
            wanted.update(chunks)
            drawn.add(claim.signer)
        if not wanted:
            raise Rejected("opening request names no drawn verifier")
        body = commitment.body
        leaves = self._leaves(body.segment, body.first_chunk, body.chunks)
        openings = tuple(
            ChunkOpening(
                chunk=chunk,
                salt=self._salt(body.segment, chunk),
                digest=digest,
                path=merkle.prove(leaves, chunk - body.first_chunk),
                fingerprint=fingerprint,
            )
            for chunk, (digest, fingerprint) in ((c, self._stated(c)) for c in sorted(wanted))
        )
        opening: Signed[Opening] = self._sign(Opening(commitment.id, openings))
        return opening

    def _salt(self, segment: int, chunk: int) -> bytes:
        return chunk_salt(self._secret, self.contract.award.id, segment, chunk)

    def _stated(self, chunk: int) -> tuple[bytes, bytes]:
        return stated(self.contract.terms.profile, self._findings[chunk])

    def _leaves(self, segment: int, first: int, count: int) -> list[bytes]:
        return [
            chunk_leaf(
                executor=self.contract.executor,
                job_id=self.contract.award.id,
                segment=segment,
                chunk=chunk,
                salt=self._salt(segment, chunk),
                digest=self._stated(chunk)[0],
            )
            for chunk in range(first, first + count)
        ]
