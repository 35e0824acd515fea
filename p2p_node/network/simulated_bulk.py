"""Bulk streams of the simulated network: bytes that arrive late and in order, or not at all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

import trio

from p2p_node.network.port import PeerKey, StreamBroken

__all__ = ["SimulatedBulk"]

WINDOW_BYTES = 4 << 20
"""Bytes sent and not received before the sender must wait, as with real streams."""

WINDOW_WAIT_S = 5.0
_SLICE_BYTES = 1 << 16


class Weather(Protocol):
    """What a stream asks of the network it runs over."""

    def reaches(self, one: PeerKey, other: PeerKey) -> bool:
        """Whether bytes get through now."""
        ...

    def carry(self, due: float, action: Callable[[], None]) -> float:
        """Do something after the network's delay, not before ``due``; when that will be."""
        ...


class SimulatedBulk:
    """One end of a stream: the `BulkStream` port. Made in pairs by `pair`."""

    def __init__(self, weather: Weather, local: PeerKey, peer: PeerKey) -> None:
        self.peer = peer
        self.range: bytes | None = None
        self._weather, self._local = weather, local
        self._other: SimulatedBulk | None = None
        self._arrived: deque[bytes] = deque()
        self._unread = 0
        self._last_due = 0.0
        self._changed = trio.Event()
        self.is_over = False

    @classmethod
    def pair(cls, weather: Weather, opener: PeerKey, server: PeerKey) -> tuple[SimulatedBulk, SimulatedBulk]:
        """Both ends of a new stream."""
        near, far = cls(weather, opener, server), cls(weather, server, opener)
        near._other, far._other = far, near
        return near, far

    async def send(self, data: bytes) -> None:
        """See `BulkStream.send`."""
        other = self._other
        assert other is not None  # noqa: S101  made in pairs
        await trio.lowlevel.checkpoint()
        for at in range(0, len(data), _SLICE_BYTES):
            part = bytes(data[at : at + _SLICE_BYTES])
            with trio.move_on_after(WINDOW_WAIT_S) as waiting:
                while not self.is_over and other._unread + len(part) > WINDOW_BYTES:
                    await self._change()
            if self.is_over:
                raise StreamBroken("stream ended")
            if waiting.cancelled_caught:
                self._end()
                raise StreamBroken(f"peer gave no credit for {WINDOW_WAIT_S:g} s")
            other._unread += len(part)
            self._carry(partial(other._take, part))

    async def receive(self) -> bytes:
        """See `BulkStream.receive`."""
        await trio.lowlevel.checkpoint()
        while not self._arrived:
            if self.is_over:
                raise StreamBroken("stream ended")
            await self._change()
        data = b"".join(self._arrived)
        self._arrived.clear()
        self._unread -= len(data)
        if self._other is not None:
            self._other._wake()
        return data

    async def close(self) -> None:
        """See `BulkStream.close`."""
        self._end()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _end(self) -> None:
        if not self.is_over and self._other is not None:
            self._carry(self._other.cut)
        self.cut()

    def cut(self) -> None:
        """End this side: the link went, or the peer closed and all that it sent has arrived."""
        self.is_over = True
        self._wake()

    def _carry(self, action: Callable[[], None]) -> None:
        def arrive() -> None:
            # What is on its way when the path breaks is lost; the end of the link says so.
            if self._weather.reaches(self._local, self.peer):
                action()

        self._last_due = self._weather.carry(self._last_due, arrive)

    def _take(self, part: bytes) -> None:
        if not self.is_over:
            self._arrived.append(part)
            self._wake()

    def _wake(self) -> None:
        self._changed.set()

    async def _change(self) -> None:
        # One event for both who sends and who receives: neither may take the other's away.
        if self._changed.is_set():
            self._changed = trio.Event()
        await self._changed.wait()
