"""A transfer's stream, as messages and bare bytes, each awaited for so long and no longer."""

from __future__ import annotations

import trio

from p2p_node.network.port import BulkStream, StreamBroken
from protocols.blobs import BlobMessage, MessageSplitter, blob_message

__all__ = ["PROTOCOL", "BlobTalk", "PeerSilent"]

PROTOCOL = "blobs/1"


class PeerSilent(StreamBroken):
    """The peer is there, and sends or takes nothing."""


class BlobTalk:
    """One end of a stream.

    Args:
        stream: closed by whoever opened it.
        silence_s: how long the peer may send nothing, or take nothing, while we wait for it.
    """

    def __init__(self, stream: BulkStream, *, silence_s: float) -> None:
        self._stream, self._silence_s = stream, silence_s
        self._splitter = MessageSplitter()

    async def send(self, message: BlobMessage, data: bytes = b"") -> None:
        """Send a message, and bytes behind it.

        Raises:
            StreamBroken: the stream is over; as `PeerSilent`, the peer takes nothing.
        """
        await self.send_bytes(blob_message(message) + data)

    async def send_bytes(self, data: bytes) -> None:
        """Send bytes, at most a piece and its message.

        Raises:
            StreamBroken: the stream is over; as `PeerSilent`, the peer takes nothing.
        """
        with trio.move_on_after(self._silence_s) as deadline:
            await self._stream.send(data)
        if deadline.cancelled_caught:
            raise PeerSilent(f"peer took no piece within {self._silence_s:g} s")

    async def message(self) -> BlobMessage:
        """The next message.

        Raises:
            Malformed: the peer sent something else.
            StreamBroken: the stream is over; as `PeerSilent`, nothing comes.
        """
        with self._patience() as patience:
            while (message := self._splitter.take_message()) is None:
                await self._receive(patience)
            return message
        raise self._silent()

    async def bytes(self, size: int) -> bytes:
        """The next ``size`` bytes: a piece or an index.

        Raises:
            StreamBroken: the stream is over; as `PeerSilent`, nothing comes.
        """
        with self._patience() as patience:
            while (data := self._splitter.take_bytes(size)) is None:
                await self._receive(patience)
            return data
        raise self._silent()

    def _patience(self) -> trio.CancelScope:
        return trio.move_on_after(self._silence_s)

    def _silent(self) -> PeerSilent:
        return PeerSilent(f"peer was silent for {self._silence_s:g} s")

    async def _receive(self, patience: trio.CancelScope) -> None:
        self._splitter.feed(await self._stream.receive())
        # One scope for all parts of a piece: a scope for each costs as much as reading it.
        patience.deadline = trio.current_time() + self._silence_s
