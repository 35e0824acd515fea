"""Executors that compute honestly, or not at all, and lie in what they commit to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from p2p_node.core.node import NodeCore
from p2p_node.hostile.twisted import TwistedCore
from protocols.digest import tagged
from protocols.effects import Effect, Execute, Publish, Run, Send
from protocols.envelope import Signed
from protocols.events import RunChunk, RunEvent, RunFinished, RunOutput
from protocols.limits import OUTPUT_UNITS_PER_MESSAGE_MAX
from protocols.messages import (
    Assignment,
    ChunkOpening,
    Commitment,
    CommitmentNotice,
    Opening,
    OpeningRequest,
)
from protocols.units import chunk_count, input_digest

__all__ = ["CopiedResult", "Equivocation", "WithheldOpening"]


class WithheldOpening(NodeCore):
    """Never opens its commitment."""

    def _hear_direct(self, peer: bytes, message: Signed[Any], now_ms: int) -> list[Effect]:
        if isinstance(message.body, OpeningRequest):
            return []
        return super()._hear_direct(peer, message, now_ms)


class Equivocation(TwistedCore):
    """Sends the requester one commitment and gossips another: its verifiers would be drawn by that one."""

    def _twist(self, effect: Effect, now_ms: int) -> list[Effect]:
        if not (isinstance(effect, Publish) and isinstance(effect.message.body, CommitmentNotice)):
            return [effect]
        notice = effect.message.body
        own = self._gossip.reader.notice(effect.message)[1]
        other = self.sign(replace(own.body, root=tagged("p2p-node/hostile-root/1", own.id)))
        return [Publish(effect.topic, self.sign(replace(notice, commitment=other.raw)))]


@dataclass(slots=True)
class _Seen:
    """What a verifier gets to see of a contract, as long as it is drawn."""

    input: bytes
    units: tuple[int, ...]
    root: bytes
    chunks: tuple[ChunkOpening, ...] = ()
    copies: set[bytes] = field(default_factory=set)


class CopiedResult(TwistedCore):
    """Verifies honestly, and hands in what it saw when it gets the same job as an executor."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._seen: dict[bytes, _Seen] = {}
        self._copying: dict[bytes, _Seen] = {}

    def _hear_direct(self, peer: bytes, message: Signed[Any], now_ms: int) -> list[Effect]:
        body = message.body
        duty = self.verifier.duties.get(getattr(body, "commitment_id", b""))
        if duty is not None and isinstance(body, Assignment):
            self._seen[input_digest(body.input)] = _Seen(body.input, body.units, duty.commitment.body.root)
        if duty is not None and isinstance(body, Opening):
            seen = self._seen.get(duty.contract.terms.input_digest)
            if seen is not None:
                seen.chunks = body.chunks
        if isinstance(body, OpeningRequest) and body.commitment_id in self._copying:
            copied = self._copying[body.commitment_id]
            return [
                Send(peer, self.sign(Opening(body.commitment_id, copied.chunks)), now_ms + 10_000),
            ]
        return super()._hear_direct(peer, message, now_ms)

    def _twist(self, effect: Effect, now_ms: int) -> list[Effect]:
        if isinstance(effect, Run) and isinstance(effect.task, Execute):
            seen = self._seen.get(input_digest(effect.task.input))
            return [effect] if seen is None else self._hand_in(effect.key, seen, now_ms)
        message = effect.message if isinstance(effect, Send | Publish) else None
        if message is None or not isinstance(message.body, Commitment | CommitmentNotice):
            return [effect]
        if isinstance(message.body, Commitment):
            copy = self._copy_of(message)
            return [effect] if copy is None else [Send(effect.peer, copy, effect.until_ms)]  # type: ignore[union-attr]
        copy = self._copy_of(self._gossip.reader.notice(message)[1])
        if copy is None:
            return [effect]
        return [Publish("jobs", self.sign(replace(message.body, commitment=copy.raw)))]

    def _copy_of(self, own: Signed[Commitment]) -> Signed[Commitment] | None:
        engagement = self.provider.engagements.get(own.body.award_id)
        seen = self._seen.get(engagement.award.body.input_digest) if engagement else None
        if seen is None:
            return None
        copy = self.sign(replace(own.body, root=seen.root))
        self._copying[copy.id] = seen
        return copy

    def _hand_in(self, key: tuple[Any, ...], seen: _Seen, now_ms: int) -> list[Effect]:
        engagement = self.provider.engagements[key[1]]
        chunk_units = engagement.award.body.chunk_units
        events: list[RunEvent] = [
            RunOutput(key, first, seen.units[first : first + OUTPUT_UNITS_PER_MESSAGE_MAX])
            for first in range(0, len(seen.units), OUTPUT_UNITS_PER_MESSAGE_MAX)
        ]
        chunks = chunk_count(len(seen.units), chunk_units)
        events += [RunChunk(key, chunk, bytes([1]) * 32) for chunk in range(chunks)]
        events.append(RunFinished(key, len(seen.units), 0))
        made = [effect for event in events for effect in engagement.handle(event, now_ms)]
        return [twisted for effect in made for twisted in self._twist(effect, now_ms)]
