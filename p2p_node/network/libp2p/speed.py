"""The fast path: libp2p 0.8.1 spends its time in Python per frame, not in cryptography.

Wire-compatible with any peer. Each patch names the cost it removes; without this module everything works the
same, at about half the speed. What costs most is trio's scheduler: taking a free lock is a full turn of it,
and upstream takes up to six per frame. Where one task reads and yamux's own lock orders the writes, none of
them is needed.
"""

from __future__ import annotations

import struct

import libp2p.io.msgio as msgio_module
import libp2p.stream_muxer.yamux.yamux as yamux_module
import trio
from libp2p.abc import INetStream
from libp2p.io.abc import Reader
from libp2p.io.exceptions import ConnectionClosedError, IncompleteReadError
from libp2p.io.trio import TrioTCPStream
from libp2p.io.utils import DEFAULT_RETRY_READ_COUNT
from libp2p.security.noise.io import MAX_PLAINTEXT_LENGTH
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from libp2p.stream_muxer.yamux.yamux import (
    DEFAULT_WINDOW_SIZE,
    HEADER_SIZE,
    TYPE_DATA,
    YAMUX_HEADER_FORMAT,
    YamuxStream,
)

__all__ = ["install", "keep_window"]

WINDOW_BYTES = 4 << 20
"""Receive window of a stream that carries bulk: enough for 100 ms at 40 MiB/s."""

WINDOW_WAIT_S = 5.0
FRAME_BYTES = MAX_PLAINTEXT_LENGTH - HEADER_SIZE
"""Payload of the largest yamux frame that fits one Noise message. Upstream's needs two."""

_RECEIVE_BYTES = 1 << 18
_KEEPS_WINDOW = "_keeps_window"


def keep_window(stream: INetStream) -> None:
    """Never let more of this stream wait here than a window of the usual size: it isn't bulk."""
    muxed = getattr(stream, "muxed_stream", None)
    if muxed is not None:
        muxed.__dict__[_KEEPS_WINDOW] = True


def install() -> None:
    """Patch the hot methods. Idempotent."""
    TrioTCPStream.read = _read_tcp  # type: ignore[method-assign]
    TrioTCPStream.write = _write_tcp  # type: ignore[method-assign]
    SecureSession.read = _read_session  # type: ignore[method-assign]
    msgio_module.read_exactly = yamux_module.read_exactly = _read_exactly  # type: ignore[attr-defined]
    YamuxStream.read = _read_stream  # type: ignore[method-assign]
    YamuxStream.write = _write_stream  # type: ignore[method-assign]
    YamuxStream._auto_tune_and_send_window_update = _update_window_seldom  # type: ignore[method-assign]
    YamuxStream.send_window = property(_credit, _set_credit)  # type: ignore[assignment]


async def _read_tcp(self: TrioTCPStream, n: int | None = None) -> bytes:
    """Up to ``n`` bytes, from a buffer filled by large receives.

    Cost: two system calls per Noise message of at most 64 KiB, one of them for its two length bytes.
    """
    if n == 0:
        return b""
    rest: _Rest | None = self.__dict__.get("_received")
    if rest is None:
        rest = self.__dict__["_received"] = _Rest()
    if not rest:
        try:
            rest.put(await self.stream.receive_some(_RECEIVE_BYTES))
        except trio.BrokenResourceError as error:
            raise ConnectionClosedError(f"TCP connection reset: {error}", transport="tcp") from error
        except trio.ClosedResourceError:
            return b""
    return rest.take(n)


class _Rest:
    """What of a message or a receive wasn't read yet."""

    __slots__ = ("_at", "_data")

    def __init__(self) -> None:
        self._data, self._at = b"", 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def put(self, data: bytes | bytearray) -> None:
        """Only when all before it was taken."""
        self._data, self._at = bytes(data), 0

    def take(self, n: int | None) -> bytes:
        """Up to ``n`` bytes."""
        start, end = self._at, len(self._data)
        if n is not None and start + n < end:
            self._at = start + n
            return self._data[start : self._at]
        data, self._data, self._at = self._data[start:], b"", 0
        return data


async def _read_session(self: SecureSession, n: int | None = None) -> bytes:
    """``n`` bytes, fewer only where the connection ends; without ``n``, what there is.

    Cost: five copies of what passes from a Noise message to a yamux frame.

    Raises:
        ConnectionClosedError: it ended before the first byte.
    """
    if n == 0:
        return b""
    rest: _Rest | None = self.__dict__.get("_rest")
    if rest is None:
        rest = self.__dict__["_rest"] = _Rest()
    taken = rest.take(n)
    if taken and (n is None or len(taken) == n):
        return taken
    parts, missing = [taken], 0 if n is None else n - len(taken)
    while True:
        rest.put(await self.conn.read_msg())
        part = rest.take(None if n is None else missing)
        if not part and not any(parts):
            raise ConnectionClosedError("Connection closed")
        if n is None or len(part) == n:
            return part
        parts.append(part)
        missing -= len(part)
        if not part or not missing:
            return b"".join(parts)


async def _read_exactly(reader: Reader, n: int, retry_count: int = DEFAULT_RETRY_READ_COUNT) -> bytes:
    """Read ``n`` bytes. Cost: two copies where one read gives them all, as it nearly always does.

    Raises:
        IncompleteReadError: the connection ended first.
    """
    data = await reader.read(n)
    if len(data) == n:
        return data
    parts = bytearray(data)
    for _ in range(retry_count):
        parts += await reader.read(n - len(parts))
        if len(parts) == n:
            return bytes(parts)
    raise IncompleteReadError(
        f"connection ended after {len(parts)} of {n} bytes", expected_bytes=n, received_bytes=len(parts)
    )


async def _write_tcp(self: TrioTCPStream, data: bytes) -> None:
    """Send all of ``data``. Its callers, the handshake and then yamux, write one at a time."""
    try:
        await self.stream.send_all(data)
    except trio.BrokenResourceError as error:
        raise ConnectionClosedError(f"TCP connection reset: {error}", transport="tcp") from error
    except trio.ClosedResourceError:
        return


async def _read_stream(self: YamuxStream, n: int | None = -1) -> bytes:
    """What has arrived, up to ``n`` bytes; waits if nothing has. One reader a stream.

    Raises:
        MuxedStreamReset: the peer reset the stream.
        MuxedStreamEOF: the peer sent all it had, or the connection is gone.
    """
    connection = self.conn
    while True:
        buffer = connection.stream_buffers.get(self.stream_id)
        if buffer:
            if n is None or n < 0 or n >= len(buffer):
                data = bytes(buffer)
                buffer.clear()
            else:
                data = bytes(memoryview(buffer)[:n])
                del buffer[:n]
            if self.closed and not buffer:
                await connection._finalize_stream(self, fully_closed=True)
            await self._auto_tune_and_send_window_update(bytes_read=len(data))
            return data
        if self.reset_received:
            raise MuxedStreamReset("Stream was reset")
        arrived = connection.stream_events.get(self.stream_id)
        if buffer is None or arrived is None or self.recv_closed or connection.event_shutting_down.is_set():
            raise MuxedStreamEOF("Stream is closed for receiving")
        await arrived.wait()
        if connection.stream_events.get(self.stream_id) is arrived:
            # Whatever arrives from here on sets the new event, and what came before is in the buffer.
            connection.stream_events[self.stream_id] = trio.Event()


async def _write_stream(self: YamuxStream, data: bytes) -> None:
    """Write all of ``data`` in the fewest frames that its window and Noise allow.

    Cost: four locks per frame, and a poll every 10 ms while the window is used up.

    Raises:
        MuxedStreamError: the stream is closed, or the peer gave no credit for five seconds.
    """
    view = memoryview(data)
    while view:
        if self.send_closed or self.closed:
            raise MuxedStreamError("Stream is closed for sending")
        size = min(self.send_window, FRAME_BYTES, len(view))
        if size <= 0:
            await _wait_for_credit(self)
            continue
        self.send_window -= size
        header = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, 0, self.stream_id, size)
        await self.conn._write_frame(b"".join((header, view[:size])))
        view = view[size:]


async def _wait_for_credit(stream: YamuxStream) -> None:
    credited = stream.__dict__["_credited"] = trio.Event()
    with trio.move_on_after(WINDOW_WAIT_S) as waiting:
        # A stream that is reset gets no credit; upstream sets no event for that.
        while stream.send_window <= 0 and not stream.closed and not credited.is_set():
            with trio.move_on_after(0.5):
                await credited.wait()
    if waiting.cancelled_caught:
        raise MuxedStreamError(f"peer gave no credit for {WINDOW_WAIT_S:g} s")


def _credit(stream: YamuxStream) -> int:
    credit: int = stream.__dict__["_credit"]
    return credit


def _set_credit(stream: YamuxStream, credit: int) -> None:
    stream.__dict__["_credit"] = credit
    waiting: trio.Event | None = stream.__dict__.get("_credited")
    if waiting is not None and credit > 0:
        waiting.set()


async def _update_window_seldom(self: YamuxStream, *, bytes_read: int = 0) -> None:
    """Return credit for what was read once a quarter of the window has been.

    Cost: a WINDOW_UPDATE frame per read. It also keeps the books simpler: what the peer may send is exactly
    the window less what we haven't credited, so that they can't drift apart.
    """
    pending = self._pending_recv_release = self._pending_recv_release + bytes_read
    is_small = self.target_recv_window < WINDOW_BYTES and not self.__dict__.get(_KEEPS_WINDOW)
    if is_small and pending >= DEFAULT_WINDOW_SIZE // 4:
        # The stream carries bulk: grow its window at once.
        pending += WINDOW_BYTES - self.target_recv_window
        self.target_recv_window = WINDOW_BYTES
    elif pending < self.target_recv_window // 4:
        return
    self._pending_recv_release = 0
    self.recv_window += pending
    await self.send_window_update(pending)
