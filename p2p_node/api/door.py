"""Stands before the API: who doesn't show the token in the first request is sent away before it is parsed.

Any program of this machine may connect to loopback, without end. A stranger costs us one read and one write
of what is made beforehand, holds one of few places of its own, and loses it to whoever comes later; after
many of them we rest before each new caller. Who has shown the token is in none of their places.

This door saves work, and `AccessGuard` decides: it sees every request, those that the door lets through too.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable

import trio

from p2p_node.api.refusals import Refusal
from p2p_node.network.standing import Pace

__all__ = ["Door", "PacedListener", "no_token"]

HEAD_BYTES_MAX = 16 * 1024
HEAD_S = 10.0
"""For a first request's line and headers to arrive."""

STRANGERS_MAX = 16
"""Connections that haven't shown the token; one more pushes the oldest out."""

REFUSALS_PER_SECOND = 64
REFUSALS_BURST = 128
"""After so many refusals, callers wait in the kernel's queue: strangers get a few hundredths of a core."""

LINGER_S = 0.5
LINGER_BYTES_MAX = 64 * 1024
"""What a refused caller still says is taken for a moment: a reset would cost it our answer."""

_END = b"\r\n\r\n"


def no_token() -> Refusal:
    """What a caller is told that doesn't show the token."""
    return Refusal(401, "the header authorization must be 'Bearer <token>', with api.json's token")


class Door:
    """Looks at the first request of each connection."""

    def __init__(self, token: str, clock: Callable[[], float] = trio.current_time) -> None:
        """Nobody is here.

        Args:
            token: what callers must show.
            clock: seconds.
        """
        self._expected = f"Bearer {token}".encode()
        self._clock = clock
        self._pace = Pace(clock, REFUSALS_PER_SECOND, REFUSALS_BURST)
        self._rests_until_s = 0.0
        self._strangers: list[trio.CancelScope] = []

    async def first_request(self, stream: trio.SocketStream) -> bytes | None:
        """What the caller said first, if it shows the token; else it is refused, and this is None."""
        if len(self._strangers) >= STRANGERS_MAX:
            self._strangers.pop(0).cancel()
        with trio.CancelScope() as scope:
            self._strangers.append(scope)
            try:
                said = await self._admitted(stream)
            finally:
                if scope in self._strangers:
                    self._strangers.remove(scope)
            if said is not None:
                return said
        self._rests_until_s = self._clock() + self._pace.wait_s(b"")
        return None

    @property
    def rest_s(self) -> float:
        """How long to leave the next caller in the kernel's queue."""
        return max(0.0, self._rests_until_s - self._clock())

    async def _admitted(self, stream: trio.SocketStream) -> bytes | None:
        try:
            with trio.move_on_after(HEAD_S):
                said = await _head(stream)
                if self._shows_token(said):
                    return said
                await _refuse(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        return None

    def _shows_token(self, said: bytes) -> bool:
        lines = said.partition(_END)[0].split(b"\r\n")[1:]
        given = [line for line in lines if line[:14].lower() == b"authorization:"]
        return len(given) == 1 and hmac.compare_digest(given[0][14:].strip(), self._expected)


class PacedListener(trio.abc.Listener[trio.SocketStream]):
    """A listener that leaves callers in the kernel's queue while the door rests."""

    def __init__(self, listener: trio.SocketListener, door: Door) -> None:
        self._listener, self._door = listener, door

    async def accept(self) -> trio.SocketStream:
        """The next caller."""
        await trio.sleep(self._door.rest_s)
        return await self._listener.accept()

    async def aclose(self) -> None:
        """Listen no more."""
        await self._listener.aclose()


async def _head(stream: trio.SocketStream) -> bytes:
    """What comes until a request's headers end, or the caller does, or it is too much."""
    said = b""
    while _END not in said and len(said) <= HEAD_BYTES_MAX:
        part = await stream.receive_some(HEAD_BYTES_MAX)
        if not part:
            return b""
        said += part
    return said


async def _refuse(stream: trio.SocketStream) -> None:
    await stream.send_all(_ANSWER)
    await stream.send_eof()
    taken = 0
    with trio.move_on_after(LINGER_S):
        while taken < LINGER_BYTES_MAX and (part := await stream.receive_some(LINGER_BYTES_MAX)):
            taken += len(part)


def _answer(refusal: Refusal) -> bytes:
    body = json.dumps({"error": refusal.error}).encode()
    head = (
        f"HTTP/1.1 {refusal.status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"www-authenticate: Bearer\r\ncache-control: no-store\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


_ANSWER = _answer(no_token())
