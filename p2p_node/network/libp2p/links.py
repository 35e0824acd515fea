"""The direct stream between us and one peer: two yamux streams, each written by the side that opened it.

Two, so that neither side must win when both dial at once. A link lives as long as both halves and the
connections under them: when one goes, all go, the runtime hears `PeerDisconnected`, and whoever wants the
peer back dials again.

The reader always drains (yamux gives up a stream whose reader stalls five seconds), the writer works off a
bounded queue, and each write has a deadline. Pings every five seconds find a peer that hangs. What was read
and not yet heard, at our pace or on a busy machine, is no silence of the peer's, and until then it hears from
us although its own pings wait behind the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Literal, Protocol

import structlog
import trio
from libp2p.abc import INetStream
from libp2p.network.connection.swarm_connection import SwarmConn

from p2p_node.network.frames import (
    CONTROL,
    FrameSplitter,
    Hello,
    Peers,
    Ping,
    Pong,
    control_frame,
    read_control,
)
from p2p_node.network.libp2p.admission import range_of
from p2p_node.network.libp2p.mends import close_connection
from p2p_node.network.port import DialFailed, NetworkMismatch, PeerKey
from p2p_node.network.shielding import last_words
from protocols.errors import Malformed, PeerFault
from protocols.limits import LINK_QUEUE_BYTES_MAX, LINK_QUEUE_FRAMES_MAX

__all__ = ["Link", "LinkOwner"]

log = structlog.get_logger(__name__)

HANDSHAKE_S = 10.0
WRITE_S = 20.0
CLOSE_S = 1.0
PING_EVERY_S = 5.0
SILENCE_S = 3.0
SIGN_OF_LIFE_S = 1.0
"""How often a peer hears from us while we haven't heard it out."""

STANDSTILL_S = 1.0
"""A sleep that took this much too long was our own process standing still, and says nothing of the peer."""

PEERS_MAX = 4
"""Peer lists on one link; more would only push better candidates out."""

_READ_BYTES = 1 << 16
"""Small: a peer has room to write again only once we have heard this much."""
_WRITE_BYTES = 1 << 18


class LinkOwner(Protocol):
    """What a link asks of the network it belongs to."""

    network_name: str

    def hello(self) -> Hello:
        """Our greeting."""
        ...

    async def open_link_stream(self, connection: SwarmConn) -> INetStream:
        """Open our half on this connection."""
        ...

    async def link_up(self, link: Link) -> None:
        """Both halves stand and both hellos are said."""
        ...

    async def link_frame(self, link: Link, payload: bytes) -> None:
        """An application frame came in."""
        ...

    def link_peers(self, link: Link, addresses: list[str]) -> None:
        """The peer told us of others."""
        ...

    def fault(self, peer: Any, points: int, reason: str) -> None:
        """The peer broke a rule."""
        ...


class Link:
    """Both halves, from the first connection to the end."""

    def __init__(self, owner: LinkOwner, key: PeerKey, connection: SwarmConn, *, now_ms: int) -> None:
        self.key = key
        self.direction: Literal["inbound", "outbound"] = (
            "inbound" if connection.direction.name == "INBOUND" else "outbound"
        )
        self.address = ""
        self.since_ms = now_ms
        self.rtt_ms: float | None = None
        self.remote_addresses: list[str] = []
        self.up = trio.Event()
        self.ended = trio.Event()
        self.failure: DialFailed | None = None
        self.superseded = False
        self.announced = False
        self._owner = owner
        self._connections = {connection}
        self._first = connection
        host = self.host()
        name = range_of(host) if host is not None else None
        self.range = None if name is None else name.encode()
        """The address range it comes from, if it isn't this machine."""
        self._outbound: INetStream | None = None
        self.inbound: INetStream | None = None
        self._greeted = trio.Event()
        self._settled = trio.Event()
        self._scope = trio.CancelScope()
        self._urgent: deque[bytes] = deque()
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._wake = trio.Event()
        self._written = trio.Event()
        self._written.set()
        self._heard_at = self._spoke_at = self._progress_at = self._pinged_at = trio.current_time()
        self._ping_number = 0
        self._peers_heard = 0

    # --- What the network does with it ---------------------------------------------------------

    def push(self, frame: bytes) -> bool:
        """Queue a frame for writing; False if it doesn't fit or the link isn't up."""
        if not self.up.is_set() or self.ended.is_set() or self._scope.cancel_called:
            return False
        if (
            len(self._queue) >= LINK_QUEUE_FRAMES_MAX
            or self._queued_bytes + len(frame) > LINK_QUEUE_BYTES_MAX
        ):
            return False
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        self._wake.set()
        return True

    def end(self, failure: DialFailed | None = None) -> None:
        """Begin to end. Idempotent; `ended` says when it is done."""
        if self.failure is None:
            self.failure = failure
        self._settled.set()
        self._scope.cancel()

    async def run(self) -> None:
        """Greet, then write and watch until something ends it."""
        with self._scope:
            if await self._ends_quietly(self._greet_each_other):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._ends_quietly, self._write_forever)
                    nursery.start_soon(self._ends_quietly, self._watch_forever)
                    nursery.start_soon(self._free_writer_at_the_end)

    async def _ends_quietly(self, step: Callable[[], Awaitable[None]]) -> bool:
        """Run one task of the link; if it fails, end the link. Its error must not meet a cancellation in a
        nursery: the group of both would pass through whoever catches either.
        """
        try:
            await step()
        except DialFailed as error:
            self.end(error)
        except Exception as error:
            # libp2p raises a dozen unrelated types for "the stream is gone".
            self.end(DialFailed(f"link broke: {_brief(error)}"))
        else:
            return True
        return False

    async def _greet_each_other(self) -> None:
        with trio.move_on_after(HANDSHAKE_S) as handshake:
            self._outbound = await self._owner.open_link_stream(self._first)
            await self._outbound.write(control_frame(self._owner.hello()))
            await self._greeted.wait()
        if handshake.cancelled_caught:
            raise DialFailed(f"no hello within {HANDSHAKE_S:g} s")
        # Whoever hears that the peer is there may send to it at once.
        self.up.set()
        await self._owner.link_up(self)
        self.announced = True
        self._settled.set()

    async def close_streams(self) -> None:
        """Reset both halves and, if the peer has come back on another connection, close the old ones."""
        with last_words(CLOSE_S):
            for stream in (self._outbound, self.inbound):
                if stream is not None:
                    try:
                        await stream.reset()
                    except Exception as error:
                        log.debug("stream reset failed", error=_brief(error))
        await self._close_connections()

    async def _close_connections(self) -> None:
        with last_words(2 * CLOSE_S):
            for connection in self._connections:
                await close_connection(connection)

    @property
    def connection(self) -> SwarmConn | None:
        """A connection under it that is open, for other streams."""
        return next((connection for connection in self._connections if not connection.is_closed), None)

    @property
    def first_connection(self) -> SwarmConn:
        """The connection that the link began with, open or not."""
        return self._first

    def transport_addresses(self) -> list[str]:
        """Where the first connection leads, as multiaddrs without a peer id."""
        return [str(address) for address in self._first.get_transport_addresses()]

    def host(self) -> str | None:
        """The address that the first connection leads to, without its port."""
        return next((parts[2] for a in self.transport_addresses() if len(parts := a.split("/")) > 2), None)

    # --- Reading -------------------------------------------------------------------------------

    async def read_from(self, stream: INetStream) -> None:
        """Read the peer's half until it ends. Runs in the stream's own handler."""
        self.inbound = stream
        connection = getattr(stream, "swarm_conn", None)
        if connection is not None:
            self._connections.add(connection)
        await self._ends_quietly(partial(self._read_forever, stream))

    async def _read_forever(self, stream: INetStream) -> None:
        splitter = FrameSplitter()
        try:
            while not self._scope.cancel_called:
                data = await stream.read(_READ_BYTES)
                if not data:
                    break
                self._heard_at = trio.current_time()
                if len(data) < _READ_BYTES:
                    # Nothing else waits.
                    self._spoke_at = self._heard_at
                for lead, payload in splitter.feed(data):
                    await self._take(lead, payload)
                    self._note_backlog()
        except PeerFault as error:
            self._owner.fault(self.key, max(error.points, 1), f"link: {error}")
            raise DialFailed(str(error)) from error
        raise DialFailed("peer closed its half")

    def _note_backlog(self) -> None:
        self._heard_at = trio.current_time()
        if self._heard_at - self._spoke_at >= SIGN_OF_LIFE_S and self.announced:
            self._spoke_at = self._heard_at
            self._push_urgent(control_frame(Ping(self._ping_number)))

    async def _take(self, lead: int, payload: bytes) -> None:
        if lead != CONTROL:
            if not self._greeted.is_set():
                raise Malformed("the first frame must be a hello")
            await self._settled.wait()
            if self.announced:
                await self._owner.link_frame(self, payload)
            return
        message = read_control(payload)
        if isinstance(message, Hello):
            self._greet(message)
            return
        if not self._greeted.is_set():
            raise Malformed("the first frame must be a hello")
        match message:
            case Ping(number):
                self._push_urgent(control_frame(Pong(number)))
            case Pong(number):
                if number == self._ping_number:
                    self.rtt_ms = (trio.current_time() - self._pinged_at) * 1_000
            case Peers(addresses):
                self._peers_heard += 1
                if self._peers_heard > PEERS_MAX:
                    raise Malformed(f"more than {PEERS_MAX} peer lists on one link")
                self._owner.link_peers(self, addresses)

    def _greet(self, hello: Hello) -> None:
        if self._greeted.is_set():
            raise Malformed("a link has one hello")
        if hello.network != self._owner.network_name:
            raise NetworkMismatch(
                f"peer is on network {hello.network!r}, we are on {self._owner.network_name!r}"
            )
        self.remote_addresses = hello.addresses
        self._greeted.set()

    # --- Writing and watching ------------------------------------------------------------------

    def send_peers(self, addresses: list[str]) -> None:
        """Tell the peer of others."""
        self._push_urgent(control_frame(Peers(addresses)))

    def _push_urgent(self, frame: bytes) -> None:
        if len(self._urgent) < LINK_QUEUE_FRAMES_MAX:
            self._urgent.append(frame)
            self._wake.set()

    async def _write_forever(self) -> None:
        stream = self._outbound
        assert stream is not None  # noqa: S101  run() opened it
        while True:
            if not self._urgent and not self._queue:
                self._wake = trio.Event()
                await self._wake.wait()
                continue
            batch = self._next_batch()
            self._written = trio.Event()
            try:
                with trio.move_on_after(WRITE_S) as deadline:
                    await stream.write(batch)
            finally:
                self._written.set()
            if deadline.cancelled_caught:
                raise DialFailed(f"peer took no bytes for {WRITE_S:g} s")
            self._progress_at = trio.current_time()

    async def _free_writer_at_the_end(self) -> None:
        """A frame that is being written can't be cancelled; a peer that takes none must not hold us."""
        try:
            await trio.sleep_forever()
        finally:
            with last_words(CLOSE_S) as patience:
                await self._written.wait()
            if patience.cancelled_caught:
                await self._close_connections()

    def _next_batch(self) -> bytes:
        # Many small frames cost one write; a large one isn't copied.
        frames = list(self._urgent)
        self._urgent.clear()
        size = sum(map(len, frames))
        while self._queue and (not frames or size + len(self._queue[0]) <= _WRITE_BYTES):
            frame = self._queue.popleft()
            self._queued_bytes -= len(frame)
            size += len(frame)
            frames.append(frame)
        return frames[0] if len(frames) == 1 else b"".join(frames)

    async def _watch_forever(self) -> None:
        while True:
            self._ping_number += 1
            asked_at = self._pinged_at = trio.current_time()
            self._push_urgent(control_frame(Ping(self._ping_number)))
            await trio.sleep(SILENCE_S)
            stood_still = trio.current_time() - asked_at > SILENCE_S + STANDSTILL_S
            # Bytes the peer takes off a long queue are a sign of life as good as its answer behind them.
            busy = bool(self._queue) and self._progress_at > asked_at
            if self._heard_at < asked_at and not busy and not stood_still:
                raise DialFailed(f"peer is silent for {SILENCE_S:g} s")
            await trio.sleep(PING_EVERY_S - SILENCE_S)


def _brief(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:200]
