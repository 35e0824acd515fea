"""A network whose messages leave late, so that a swarm on one machine feels like one across the world.

Everything that a peer sends waits the same time, in order; what it receives has waited at its sender. On a
bulk stream each write waits by itself, as over a path whose window is one write.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
import trio

from p2p_node.network.port import (
    BulkHandler,
    BulkStream,
    Network,
    NetworkError,
    NetworkEvent,
    PeerKey,
    PeerStatus,
)

__all__ = ["delayed"]

log = structlog.get_logger(__name__)

WAITING_MAX = 4_096
"""Messages on their way; a full queue refuses more, as a full link would."""


@asynccontextmanager
async def delayed(inner: Network, latency_ms: int) -> AsyncIterator[Network]:
    """A network that sends over ``inner``, each message ``latency_ms`` later.

    Args:
        inner: what really sends; its opener closes it.
        latency_ms: one-way delay of frames and gossip, at least 1.

    Raises:
        ValueError: the latency is below 1 ms.
    """
    if latency_ms < 1:
        raise ValueError(f"latency_ms={latency_ms} must be at least 1")
    async with trio.open_nursery() as nursery:
        late = _Delayed(inner, latency_ms / 1_000)
        nursery.start_soon(late.carry)
        yield late
        nursery.cancel_scope.cancel()


class _Delayed:
    def __init__(self, inner: Network, latency_s: float) -> None:
        self.local_key: PeerKey = inner.local_key
        self.events: trio.MemoryReceiveChannel[NetworkEvent] = inner.events
        self._inner = inner
        self._latency_s = latency_s
        # The deadline, then a frame for a peer, or gossip on a topic.
        self._waiting_in, self._waiting_out = trio.open_memory_channel[tuple[float, PeerKey | str, bytes]](
            WAITING_MAX
        )

    async def carry(self) -> None:
        async for due, target, data in self._waiting_out:
            await trio.sleep_until(due)
            try:
                if isinstance(target, str):
                    await self._inner.publish(target, data)
                else:
                    # False is a frame lost on the way; whoever needed it sends again.
                    await self._inner.send(target, data)
            except NetworkError as error:
                log.info("delayed message lost", why=str(error))

    @property
    def addresses(self) -> list[str]:
        return self._inner.addresses

    async def publish(self, topic: str, data: bytes) -> None:
        await self._waiting_in.send((trio.current_time() + self._latency_s, topic, data))

    async def join(self, topic: str) -> None:
        await self._inner.join(topic)

    async def leave(self, topic: str) -> None:
        await self._inner.leave(topic)

    async def send(self, peer: PeerKey, frame: bytes) -> bool:
        if not any(link.key == peer for link in self._inner.peers()):
            return False
        try:
            self._waiting_in.send_nowait((trio.current_time() + self._latency_s, peer, frame))
        except trio.WouldBlock:
            return False
        return True

    async def open_bulk(self, peer: PeerKey, protocol: str) -> BulkStream:
        await trio.sleep(self._latency_s)
        return _DelayedBulk(await self._inner.open_bulk(peer, protocol), self._latency_s)

    def serve_bulk(self, protocol: str, handler: BulkHandler) -> None:
        self._inner.serve_bulk(protocol, lambda stream: handler(_DelayedBulk(stream, self._latency_s)))

    async def dial(self, address: str) -> PeerKey:
        return await self._inner.dial(address)

    def penalise(self, peer: PeerKey, points: int, reason: str) -> None:
        self._inner.penalise(peer, points, reason)

    def hang_up(self, peer: PeerKey) -> None:
        self._inner.hang_up(peer)

    def peers(self) -> list[PeerStatus]:
        return self._inner.peers()

    async def close(self) -> None:
        await self._inner.close()


class _DelayedBulk:
    def __init__(self, inner: BulkStream, latency_s: float) -> None:
        self.peer, self.range = inner.peer, inner.range
        self._inner = inner
        self._latency_s = latency_s

    async def send(self, data: bytes) -> None:
        await trio.sleep(self._latency_s)
        await self._inner.send(data)

    async def receive(self) -> bytes:
        return await self._inner.receive()

    async def close(self) -> None:
        await self._inner.close()
