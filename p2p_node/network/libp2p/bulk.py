"""A bulk stream over libp2p: a yamux stream of its own on the connection that the link uses.

Frames of the link aren't held up: yamux writes one frame of at most 64 KiB at a time, in the order in which
they were asked for, and trio keeps no more than 16 KiB unsent in the socket.
"""

from __future__ import annotations

import structlog
from libp2p.abc import INetStream

from p2p_node.network.port import PeerKey, StreamBroken
from p2p_node.network.shielding import last_words

__all__ = ["Libp2pBulk"]

log = structlog.get_logger(__name__)

CLOSE_S = 1.0
_READ_BYTES = 1 << 20


class Libp2pBulk:
    """See `BulkStream`."""

    def __init__(self, peer: PeerKey, stream: INetStream, source: bytes | None = None) -> None:
        self.peer = peer
        self.range = source
        self._stream = stream
        self._closed = False

    async def send(self, data: bytes) -> None:
        """See `BulkStream.send`."""
        try:
            await self._stream.write(data)
        except Exception as error:
            # libp2p raises a dozen unrelated types for "the stream is gone".
            raise StreamBroken(f"stream broke: {_reason(error)}") from error

    async def receive(self) -> bytes:
        """See `BulkStream.receive`."""
        try:
            data = await self._stream.read(_READ_BYTES)
        except Exception as error:
            raise StreamBroken(f"stream broke: {_reason(error)}") from error
        if not data:
            raise StreamBroken("stream ended")
        return data

    async def close(self) -> None:
        """See `BulkStream.close`."""
        if self._closed:
            return
        self._closed = True
        with last_words(CLOSE_S):
            try:
                await self._stream.reset()
            except Exception as error:
                log.debug("stream reset failed", error=_reason(error))


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"[:200]
