"""Operator fraud proofs as one peer holds them: kept and served, fetched, judged, believed or not.

A proof is too large to gossip, so a notice of it goes round, and whoever wants to know fetches the proof
from the notice's signer in parts and judges it. No word of anybody counts: the proof's own signatures and
one operator, run again in a worker, do. It needs no model, so every peer can.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from p2p_node.core.surroundings import Surroundings
from protocols.effects import Effect, Judge, Notify, Persist, Publish, Run, Send, SetTimer
from protocols.envelope import Signed, open_envelope
from protocols.errors import PeerFault, Rejected
from protocols.events import Finding, RunEvent, RunJudged
from protocols.limits import (
    EVIDENCE_BYTES_MAX,
    EVIDENCE_FETCHES_MAX,
    EVIDENCE_KEPT_BYTES_MAX,
    EVIDENCE_PART_BYTES_MAX,
    EVIDENCE_SERVED_BYTES_MAX,
    EVIDENCE_SERVED_MS,
    REGISTRY_PEERS_MAX,
    SEEN_MESSAGES_MAX,
)
from protocols.messages import EvidencePart, EvidenceWant, FraudNotice, OperatorFraud
from verification.dispute_evidence import OperatorAccusation, evidence_digest, open_operator_fraud

__all__ = ["Archive", "Convicted"]

Convicted = Callable[[OperatorAccusation, Signed[OperatorFraud], int], list[Effect]]

PART_MS = 10_000
"""A part that hasn't come after this long won't."""

NOTICES_KEPT_MAX = 8
"""Of others that say they have a proof which is being fetched."""


@dataclass(slots=True)
class _Fetch:
    """One proof on its way to us, then under judgement."""

    notice: Signed[FraudNotice]
    parts: list[bytes] = field(default_factory=list)
    proof: Signed[OperatorFraud] | None = None
    accusation: OperatorAccusation | None = None
    others: list[Signed[FraudNotice]] = field(default_factory=list)
    """Notices of the same proof by others, who are asked if this one's signer doesn't answer."""

    @property
    def parts_total(self) -> int:
        return -(-self.notice.body.bytes_total // EVIDENCE_PART_BYTES_MAX)


class Archive:
    """What one peer has, and what it is getting."""

    def __init__(self, node: Surroundings, *, own: bytes, convicted: Convicted) -> None:
        """An empty archive.

        Args:
            node: where it lives.
            own: our key.
            convicted: told of each proof that a referee upheld, by whoever it was brought.
        """
        self._node = node
        self._own = own
        self._convicted = convicted
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._fetches: dict[bytes, _Fetch] = {}
        self._judged: OrderedDict[bytes, None] = OrderedDict()
        self._served: OrderedDict[bytes, tuple[int, int]] = OrderedDict()

    @property
    def fetching(self) -> int:
        """Proofs on their way or under judgement."""
        return len(self._fetches)

    # --- Our own ---------------------------------------------------------------------------------

    def publish(self, proof: OperatorFraud, requester: bytes, now_ms: int) -> list[Effect]:
        """Bring a proof that our own referee upheld."""
        signed = self._node.sign(proof)
        if len(signed.raw) > EVIDENCE_BYTES_MAX:
            return [Notify(b"", "proof-too-large", {"bytes": len(signed.raw)})]
        accusation = open_operator_fraud(proof, network=self._node.network, crypto=self._node.crypto)
        digest = self._keep(signed.raw)
        notice = self._node.sign(
            FraudNotice(
                digest,
                len(signed.raw),
                accusation.accused,
                accusation.commitment_id,
                accusation.chunk,
                now_ms,
            )
        )
        effects = self._convict(accusation, signed, notice, now_ms)
        effects.append(Publish("convictions", notice))
        if requester != self._own:
            effects.append(Send(requester, notice, now_ms + accusation.contract.terms.answer_within_ms))
        return effects

    def _keep(self, raw: bytes) -> bytes:
        digest = evidence_digest(raw)
        self._judged[digest] = None
        while len(self._judged) > SEEN_MESSAGES_MAX:
            self._judged.popitem(last=False)
        if digest not in self._kept:
            self._kept[digest] = raw
            self._kept_bytes += len(raw)
        while self._kept_bytes > EVIDENCE_KEPT_BYTES_MAX:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])
        return digest

    def proof(self, digest: bytes) -> bytes | None:
        """The envelope of a proof that we keep."""
        return self._kept.get(digest)

    def _convict(
        self,
        accusation: OperatorAccusation,
        proof: Signed[OperatorFraud],
        notice: Signed[FraudNotice],
        now_ms: int,
    ) -> list[Effect]:
        self._node.standings.convict(accusation.accused)
        index = accusation.case.index if accusation.case else None
        details = {
            "peer": accusation.accused,
            "role": accusation.role,
            "chunk": accusation.chunk,
            "value": index,
            "evidence": notice.body.evidence,
        }
        return [
            Persist("convictions", accusation.accused, notice.raw),
            Notify(b"", "convicted", details),
            *self._convicted(accusation, proof, now_ms),
        ]

    # --- Serving ---------------------------------------------------------------------------------

    def hear_want(self, message: Signed[EvidenceWant], now_ms: int) -> list[Effect]:
        """Serve one part of what we keep."""
        raw = self._kept.get(message.body.evidence)
        first = message.body.part * EVIDENCE_PART_BYTES_MAX
        if raw is None or first >= len(raw):
            return []
        since_ms, served = self._served.pop(message.signer, (now_ms, 0))
        if now_ms - since_ms >= EVIDENCE_SERVED_MS:
            since_ms, served = now_ms, 0
        data = raw[first : first + EVIDENCE_PART_BYTES_MAX]
        self._served[message.signer] = (since_ms, served + len(data))
        while len(self._served) > REGISTRY_PEERS_MAX:
            self._served.popitem(last=False)
        if served + len(data) > EVIDENCE_SERVED_BYTES_MAX:
            return []
        part = self._node.sign(EvidencePart(message.body.evidence, message.body.part, data))
        return [Send(message.signer, part, now_ms + PART_MS)]

    # --- Fetching --------------------------------------------------------------------------------

    def hear_notice(self, message: Signed[FraudNotice], *, is_ours: bool, now_ms: int) -> list[Effect]:
        """Somebody says it can convict a peer: fetch the proof, if the peer matters to us.

        Args:
            message: the notice.
            is_ours: whether the dispute was one of our own jobs': then there is always room.
            now_ms: the clock.
        """
        body = message.body
        if body.accused == self._own or body.evidence in self._judged:
            return []
        known = self._fetches.get(body.evidence)
        if known is not None:
            if len(known.others) < NOTICES_KEPT_MAX:
                known.others.append(message)
            return []
        if self._node.standings.of(body.accused).convicted and not is_ours:
            return []
        if len(self._fetches) >= EVIDENCE_FETCHES_MAX * (2 if is_ours else 1):
            return []
        if not self._node.standings.is_welcome(message.signer, now_ms):
            return []  # It accused falsely before, and a proof is a lot to fetch.
        self._fetches[body.evidence] = _Fetch(message)
        return self._ask(body.evidence, now_ms)

    def _ask(self, digest: bytes, now_ms: int) -> list[Effect]:
        fetch = self._fetches[digest]
        want = self._node.sign(EvidenceWant(digest, len(fetch.parts)))
        until = now_ms + PART_MS
        return [Send(fetch.notice.signer, want, until), SetTimer(("evidence", digest), until)]

    def hear_part(self, message: Signed[EvidencePart], now_ms: int) -> list[Effect]:
        """A part arrived.

        Raises:
            Rejected: it isn't the size it must have, or the whole isn't what the notice named.
        """
        fetch = self._fetches.get(message.body.evidence)
        if fetch is None or message.signer != fetch.notice.signer or fetch.proof is not None:
            return []
        body = message.body
        if body.part != len(fetch.parts):
            return []  # A repeat.
        rest = fetch.notice.body.bytes_total - body.part * EVIDENCE_PART_BYTES_MAX
        if len(body.data) != min(rest, EVIDENCE_PART_BYTES_MAX):
            self._drop(fetch, now_ms)
            raise Rejected(f"part {body.part} of a proof has {len(body.data)} bytes")
        fetch.parts.append(body.data)
        if len(fetch.parts) < fetch.parts_total:
            return self._ask(body.evidence, now_ms)
        return self._open(fetch, now_ms)

    def _open(self, fetch: _Fetch, now_ms: int) -> list[Effect]:
        raw, said = b"".join(fetch.parts), fetch.notice.body
        fetch.parts = []
        try:
            if evidence_digest(raw) != said.evidence:
                raise Rejected("the proof isn't the one that the notice names")
            proof = open_envelope(
                raw,
                network=self._node.network,
                crypto=self._node.crypto,
                expect=OperatorFraud,
                bytes_max=EVIDENCE_BYTES_MAX,
            )
            accusation = open_operator_fraud(proof.body, network=self._node.network, crypto=self._node.crypto)
            about = (accusation.accused, accusation.commitment_id, accusation.chunk)
            if about != (said.accused, said.commitment_id, said.chunk):
                raise Rejected("the proof accuses somebody else than its notice, or of something else")
        except PeerFault:
            self._drop(fetch, now_ms)
            raise
        fetch.proof, fetch.accusation = proof, accusation
        if accusation.case is None:
            return self._settle(fetch, None, now_ms)
        contract = accusation.contract
        sources = (contract.requester, contract.executor, fetch.notice.signer)
        return [Run(("judge", said.evidence), Judge(accusation.case, sources=sources))]

    def _drop(self, fetch: _Fetch, now_ms: int) -> None:
        """Nothing that its signer brings is fetched for a while."""
        self._fetches.pop(fetch.notice.body.evidence, None)
        self._node.standings.record_failure(fetch.notice.signer, now_ms)

    def timer_fired(self, digest: bytes, now_ms: int) -> list[Effect]:
        """A part is overdue: somebody else may have it."""
        fetch = self._fetches.get(digest)
        if fetch is None or fetch.proof is not None:
            return []
        del self._fetches[digest]
        if not fetch.others:
            return []
        # Anybody can say another's notice again under its own name, first, and then never answer.
        self._fetches[digest] = _Fetch(fetch.others[0], others=fetch.others[1:])
        return self._ask(digest, now_ms)

    # --- Judging ---------------------------------------------------------------------------------

    def run_event(self, event: RunEvent, now_ms: int) -> list[Effect]:
        """The referee's worker reports."""
        fetch = self._fetches.get(event.key[1])
        if fetch is None or fetch.accusation is None:
            return []
        if not isinstance(event, RunJudged):
            del self._fetches[event.key[1]]
            return []  # Our own machine failed; another notice may come.
        return self._settle(fetch, event.finding, now_ms)

    def _settle(self, fetch: _Fetch, finding: Finding | None, now_ms: int) -> list[Effect]:
        digest = fetch.notice.body.evidence
        self._fetches.pop(digest, None)
        self._judged[digest] = None
        accusation, proof = fetch.accusation, fetch.proof
        if accusation is None or proof is None:
            return []
        if accusation.is_guilty(finding):
            self._keep(proof.raw)
            return self._convict(accusation, proof, fetch.notice, now_ms)
        if finding is not Finding.ACQUITTED:
            return []
        # The proof itself is the proof against whoever brought it.
        self._node.standings.record_failure(proof.signer, now_ms)
        details = {"accuser": proof.signer, "accused": accusation.accused}
        return [Notify(b"", "false-accusation", details)]
