"""Verifiers that don't verify, or that lie about what they found."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from p2p_node.core.node import Act, NodeCore
from p2p_node.hostile.twisted import TwistedCore
from protocols.digest import tagged
from protocols.effects import Effect, Publish, Recompute, Run, Send, SetTimer
from protocols.envelope import Signed
from protocols.events import RunEvent, RunRecomputed
from protocols.messages import Assignment, BlindVerdict, Opening, Reveal
from verification.fraud import build_proof

__all__ = ["CopiedVerdict", "FalseAccusation", "FalseVerdict", "RubberStamp", "SilentVerifier"]

COPY_AFTER_MS = 300


class FalseVerdict(NodeCore):
    """Reports a mismatch that isn't there."""

    def run_event(self, event: RunEvent, now_ms: int) -> list[Act]:
        """As `NodeCore.run_event`, with other digests for what it verifies."""
        if isinstance(event, RunRecomputed) and event.key[0] == "verify":
            lies = tuple((chunk, bytes(32)) for chunk, _ in event.digests)
            event = RunRecomputed(event.key, lies, event.cpu_us)
        return super().run_event(event, now_ms)


class SilentVerifier(TwistedCore):
    """Claims its draw and never answers."""

    def _twist(self, effect: Effect, now_ms: int) -> list[Effect]:
        return [] if isinstance(effect, Run) and effect.key[0] == "verify" else [effect]


class RubberStamp(TwistedCore):
    """Recomputes nothing: it hides noise, and says what the executor said once that is opened."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._opened: dict[bytes, dict[int, bytes]] = {}

    def _hear_direct(self, peer: bytes, message: Signed[Any], now_ms: int) -> list[Effect]:
        if isinstance(message.body, Opening):
            opened = {entry.chunk: entry.digest for entry in message.body.chunks}
            self._opened[message.body.commitment_id] = opened
        return super()._hear_direct(peer, message, now_ms)

    def _twist(self, effect: Effect, now_ms: int) -> list[Effect]:
        if isinstance(effect, Run) and effect.key[0] == "verify" and isinstance(effect.task, Recompute):
            noise = tuple((chunk, tagged("p2p-node/hostile-noise/1")) for chunk in effect.task.chunks)
            return self.verifier.run_event(RunRecomputed(effect.key, noise, 0), now_ms)
        if isinstance(effect, Send) and isinstance(effect.message.body, Reveal):
            reveal = effect.message.body
            opened = self._opened[reveal.commitment_id]
            results = tuple((chunk, opened[chunk]) for chunk, _ in reveal.results)
            return [Send(effect.peer, self.sign(replace(reveal, results=results)), effect.until_ms)]
        return [effect]


class CopiedVerdict(TwistedCore):
    """Shows its verdicts to everybody, and hands in another's instead of its own where it was shown one.

    Two of them are a copier and its source. The source, which has the lower key, is honest beside that.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._sources: dict[bytes, tuple[Signed[BlindVerdict], Signed[Reveal] | None]] = {}
        self._held: dict[bytes, Send] = {}
        self._copied: dict[bytes, tuple[Signed[BlindVerdict], Send | None]] = {}

    def _hear_direct(self, peer: bytes, message: Signed[Any], now_ms: int) -> list[Effect]:
        body = message.body
        if not isinstance(body, BlindVerdict | Reveal) or body.commitment_id not in self.verifier.duties:
            return super()._hear_direct(peer, message, now_ms)
        commitment_id = body.commitment_id
        if isinstance(body, BlindVerdict):
            if message.signer < self.key:
                self._sources.setdefault(commitment_id, (message, None))
            return []
        source = self._sources.get(commitment_id)
        if source is None or message.signer != source[0].signer:
            return []
        self._sources[commitment_id] = (source[0], message)
        return self._reveal_copy(commitment_id)

    def _twist(self, effect: Effect, now_ms: int) -> list[Effect]:
        if not isinstance(effect, Send):
            return [effect]
        body = effect.message.body
        if isinstance(body, BlindVerdict) and effect.message.signer == self.key:
            if body.commitment_id in self._copied or body.commitment_id in self._held:
                return [effect]
            self._held[body.commitment_id] = effect
            timer = SetTimer(("hostile", body.commitment_id), now_ms + COPY_AFTER_MS)
            return [*self._show(effect, now_ms), timer]
        if isinstance(body, Reveal) and body.commitment_id in self._copied:
            copy, _ = self._copied[body.commitment_id]
            self._copied[body.commitment_id] = (copy, effect)
            return self._reveal_copy(body.commitment_id)
        if isinstance(body, Reveal):
            return [effect, *self._show(effect, now_ms)]
        return [effect]

    def _show(self, effect: Send, now_ms: int) -> list[Effect]:
        others = [advert.signer for advert in self.registry.current(now_ms)]
        return [
            Send(other, effect.message, effect.until_ms)
            for other in others
            if other not in (self.key, effect.peer)
        ]

    def timer_fired(self, key: tuple[Any, ...], now_ms: int) -> list[Act]:
        """As `NodeCore.timer_fired`; its own timer ends the wait for something to copy."""
        if key[0] != "hostile":
            return super().timer_fired(key, now_ms)
        own = self._held.get(key[1])
        source = self._sources.get(key[1])
        if own is None:
            return []
        if source is None:
            return NodeCore._act(self, [own], now_ms)
        copy = self.sign(replace(own.message.body, hidden=source[0].body.hidden))
        self._copied[key[1]] = (copy, None)
        return NodeCore._act(self, [Send(own.peer, copy, own.until_ms)], now_ms)

    def _reveal_copy(self, commitment_id: bytes) -> list[Effect]:
        """Say what the source said, once it did and once it is our turn."""
        copy, turn = self._copied.get(commitment_id, (None, None))
        _, said = self._sources.get(commitment_id, (None, None))
        if copy is None or turn is None or said is None:
            return []
        self._copied[commitment_id] = (copy, None)
        return [Send(turn.peer, self.sign(replace(said.body, blind_id=copy.id)), turn.until_ms)]


class FalseAccusation(NodeCore):
    """Verifies honestly, and accuses the executor all the same."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._assigned: dict[bytes, Assignment] = {}

    def _hear_direct(self, peer: bytes, message: Signed[Any], now_ms: int) -> list[Effect]:
        body = message.body
        effects = super()._hear_direct(peer, message, now_ms)
        if isinstance(body, Assignment):
            self._assigned[body.commitment_id] = body
        duty = self.verifier.duties.get(getattr(body, "commitment_id", b""))
        if duty is None or not isinstance(body, Opening):
            return effects
        given = self._assigned[body.commitment_id]
        proof = build_proof(
            duty.contract,
            duty.commitment,
            message,
            chunk=body.chunks[0].chunk,
            input=given.input,
            units=given.units,
        )
        return effects if proof is None else [*effects, Publish("convictions", self.sign(proof))]
