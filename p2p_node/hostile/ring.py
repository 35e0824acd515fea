"""One operator with many keys: its executors make results up, and its verifiers confirm them.

The keys know each other by a word in their adverts. A real ring would share a list; what matters is that
each of them can say what the others say without computing anything.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from p2p_node.core.node import Act, Capability
from p2p_node.core.provider import Provider
from p2p_node.hostile.twisted import TwistedCore
from protocols.digest import tagged
from protocols.effects import Effect, Recompute, Run, Send
from protocols.envelope import Signed, open_envelope
from protocols.events import RunChunk, RunEvent, RunOutput, RunRecomputed
from protocols.messages import Award, Proposal, SyncSummary, SyncWant

__all__ = ["Eclipse", "SybilSwarm"]

RING = "p2p-node ring"


class _AnyElectorate(Provider):
    """A provider that doesn't mind who is left out: the fewer can be drawn, the better."""

    def _check_electorate(self, award: Signed[Award], proposal: Proposal, now_ms: int) -> None:
        return


class SybilSwarm(TwistedCore):
    """One key of the ring."""

    def __init__(self, *, capability: Capability, **arguments: Any) -> None:
        super().__init__(capability=replace(capability, software=RING), **arguments)
        self.provider = _AnyElectorate(
            self,
            self.registry,
            own_key=self.key,
            abilities=capability.abilities,
            slots_total=capability.slots_total,
        )

    def _is_of_ring(self, key: bytes) -> bool:
        advert = self.registry.get(key)
        return key == self.key or (advert is not None and advert.body.software == RING)

    def run_event(self, event: RunEvent, now_ms: int) -> list[Act]:
        """As `NodeCore.run_event`, with a false result for whatever it executes."""
        if event.key[0] == "execute" and isinstance(event, RunOutput):
            false = (*event.units[:-1], event.units[-1] ^ 1) if event.units else ()
            event = RunOutput(event.key, event.first_unit, false)
        if event.key[0] == "execute" and isinstance(event, RunChunk):
            event = RunChunk(event.key, event.chunk, _made_up(event.key[1], event.chunk))
        return super().run_event(event, now_ms)

    def _twist(self, effect: Effect, now_ms: int) -> list[Effect]:
        if not (isinstance(effect, Run) and effect.key[0] == "verify" and isinstance(effect.task, Recompute)):
            return [effect]
        duty = self.verifier.duties[effect.key[1]]
        if not self._is_of_ring(duty.contract.executor):
            return [effect]
        award_id = duty.contract.award.id
        digests = tuple((chunk, _made_up(award_id, chunk)) for chunk in effect.task.chunks)
        return self.verifier.run_event(RunRecomputed(effect.key, digests, 0), now_ms)


class Eclipse(SybilSwarm):
    """A key of a ring that is all its victim hears: it tells what the ring said, and no more."""

    def _twist(self, effect: Effect, now_ms: int) -> list[Effect]:
        if isinstance(effect, Send) and isinstance(effect.message.body, SyncSummary):
            ids = tuple(i for i in effect.message.body.ids if self._is_of_ring(self._signer(i)))
            return [Send(effect.peer, self.sign(SyncSummary(ids)), effect.until_ms)]
        return super()._twist(effect, now_ms)

    def _serve_gossip(self, peer: bytes, want: SyncWant) -> list[Act]:
        return super()._serve_gossip(
            peer, SyncWant(tuple(i for i in want.ids if self._is_of_ring(self._signer(i))))
        )

    def _signer(self, identifier: bytes) -> bytes:
        raw = self._gossip.recent(identifier)
        if raw is None:
            return b""
        return open_envelope(raw, network=self.network, crypto=self.crypto).signer


def _made_up(award_id: bytes, chunk: int) -> bytes:
    return tagged("p2p-node/hostile-digest/1", award_id, chunk.to_bytes(8, "little"))
