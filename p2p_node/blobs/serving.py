"""Giving blobs to peers: to whoever can name them, within rates, and no longer than they read."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import structlog
import trio

from p2p_node.blobs.errors import BlobError, BlobMissing
from p2p_node.blobs.partial import PartialBlob
from p2p_node.blobs.store import BlobStore
from p2p_node.blobs.talk import BlobTalk
from p2p_node.network.port import BulkStream
from p2p_node.network.turns import PIECES_PER_SECOND_MIN, Turns
from protocols.blobs import Ask, Blob, Holding, Lacking, Piece, Sealed, Want, blob_message, piece_range
from protocols.errors import Malformed
from protocols.identity import short_id
from protocols.limits import (
    BLOB_PIECE_BYTES,
    BLOB_PIECES_SERVED_MAX,
    BLOB_STREAMS_MAX,
    BLOB_STREAMS_PER_PEER_MAX,
    BLOB_STREAMS_PER_RANGE_MAX,
)

__all__ = ["BlobServer", "Offload", "TokenBucket"]

log = structlog.get_logger(__name__)

IDLE_S = 30.0
"""A stream on which nothing is asked for, or nothing taken, is closed."""

BURST_S = 1.0
"""A rate may be exceeded for so long."""

SLICE_BYTES = 1 << 16
"""What passes a slow rate limit at once: a little comes often rather than much seldom."""

SLICES_PER_S = 16
"""Where a rate is faster, more passes at once, up to a piece with its message."""

SLICE_S_MAX = 5.0
"""So many streams are served as leave each of them a slice in this time."""

_SLICE_BYTES_MAX = BLOB_PIECE_BYTES + 64

PEERS_REMEMBERED = 1_024

Offload: TypeAlias = Callable[..., Awaitable[Any]]
"""Runs a function that blocks away from trio's thread: `trio.to_thread.run_sync`, or a test's stand-in."""


class TokenBucket:
    """Lets so many bytes pass a second, in the order in which they were asked for."""

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = float("-inf")

    async def take(self, size: int) -> None:
        """Wait until ``size`` bytes may pass."""
        now = trio.current_time()
        self._free_at = max(self._free_at, now - BURST_S) + size / self._bytes_per_s
        if self._free_at > now:
            await trio.sleep_until(self._free_at)


class _Places:
    """Places in memory that one stream holds: one for each piece that was read and isn't sent."""

    def __init__(self, places: trio.Semaphore) -> None:
        self._places, self._held = places, 0

    async def take(self) -> None:
        """Wait for one."""
        await self._places.acquire()
        self._held += 1

    def give_back(self) -> None:
        """One piece is sent."""
        self._held -= 1
        self._places.release()

    def give_all_back(self) -> None:
        """The stream is over."""
        while self._held:
            self.give_back()


class BlobServer:
    """Serves the streams that peers open.

    Args:
        store: what we have.
        partial_of: a blob that we are fetching ourselves; its pieces are given too.
        bytes_per_s: to all peers together, at least `SLICE_BYTES`.
        peer_bytes_per_s: to each, at least `SLICE_BYTES`.
        may_have: whether a peer has a right to a private blob.
        offload: for what blocks.
    """

    def __init__(
        self,
        store: BlobStore,
        *,
        partial_of: Callable[[Blob], PartialBlob | None],
        bytes_per_s: int,
        peer_bytes_per_s: int,
        may_have: Callable[[bytes, Blob], bool],
        offload: Offload,
    ) -> None:
        self._store, self._partial_of, self._offload = store, partial_of, offload
        self._may_have = may_have
        self._peer_bytes_per_s = peer_bytes_per_s
        self._all = TokenBucket(bytes_per_s)
        self._range_bytes_per_s = max(peer_bytes_per_s, bytes_per_s // 2)
        self._buckets: OrderedDict[bytes, TokenBucket] = OrderedDict()
        self._streams: Counter[bytes] = Counter()
        self._range_streams: Counter[bytes | None] = Counter()
        self._turns = Turns(PIECES_PER_SECOND_MIN)
        self._pieces = trio.Semaphore(BLOB_PIECES_SERVED_MAX)
        """Places in memory."""
        slowest = min(bytes_per_s, peer_bytes_per_s)
        self._slice_bytes = min(_SLICE_BYTES_MAX, max(SLICE_BYTES, slowest // SLICES_PER_S))
        self._streams_max = min(BLOB_STREAMS_MAX, max(1, int(bytes_per_s * SLICE_S_MAX) // SLICE_BYTES))
        self.bytes_served = 0

    async def serve(self, stream: BulkStream) -> None:
        """Serve one stream to its end.

        Raises:
            PeerFault: the peer broke a rule.
            StreamBroken: the peer is done, or doesn't read.
        """
        talk = BlobTalk(stream, silence_s=IDLE_S)
        want = await talk.message()
        if not isinstance(want, Want):
            raise Malformed(f"the first message must be a want, got {type(want).__name__}")
        if (
            self._streams[stream.peer] >= BLOB_STREAMS_PER_PEER_MAX
            or self._streams.total() >= self._streams_max
            or (stream.range is not None and self._range_streams[stream.range] >= BLOB_STREAMS_PER_RANGE_MAX)
        ):
            await talk.send(Lacking(is_busy=True, detail="too many transfers"))
            return
        self._streams[stream.peer] += 1
        self._range_streams[stream.range] += 1
        try:
            await self._give_if_allowed(talk, want, stream)
        except BlobError as error:
            log.info("blob not given", peer=short_id(stream.peer), why=str(error))
            await talk.send(Lacking(is_busy=False, detail="not here"))
        finally:
            self._streams[stream.peer] -= 1
            if not self._streams[stream.peer]:
                del self._streams[stream.peer]
            self._range_streams[stream.range] -= 1
            if not self._range_streams[stream.range]:
                del self._range_streams[stream.range]

    async def _give_if_allowed(self, talk: BlobTalk, want: Want, stream: BulkStream) -> None:
        peer = stream.peer
        if self._store.is_private(want.blob) and not self._may_have(peer, want.blob):
            # In the words for what isn't here: who has no right to it learns nothing.
            raise BlobMissing(f"blob {want.blob.digest.hex()} is private, and not this peer's to have")
        sealed = await self._offload(self._store.sealed, want.blob, peer)
        if sealed is not None:
            await talk.send(Sealed(sealed))
            return
        buckets = [self._bucket(peer, self._peer_bytes_per_s)]
        if stream.range is not None:
            buckets.append(self._bucket(stream.range, self._range_bytes_per_s))
        await self._give(talk, want, [*buckets, self._all])

    async def _give(self, talk: BlobTalk, want: Want, buckets: list[TokenBucket]) -> None:
        blob = want.blob
        pieces, index = await self._offload(self._holding, blob)
        await talk.send(Holding(pieces))
        if want.with_index:
            await self._pass(talk, buckets, index)
        places = _Places(self._pieces)
        try:
            failure = await self._give_pieces(talk, blob, buckets, places)
        finally:
            places.give_all_back()
        if failure is not None:
            raise failure

    async def _give_pieces(
        self, talk: BlobTalk, blob: Blob, buckets: list[TokenBucket], places: _Places
    ) -> Exception | None:
        """Give what is asked for; returns why that ended, as a nursery would wrap it in a group."""
        # One piece is read from the disk while another is sent.
        ahead, pieces_read = trio.open_memory_channel[tuple[int, bytes] | Exception](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_ahead, talk, blob, ahead, places)
            try:
                async for piece in pieces_read:
                    if isinstance(piece, Exception):
                        raise piece
                    number, framed = piece
                    await self._pass(talk, buckets, framed)
                    del piece, framed
                    places.give_back()
                    self.bytes_served += len(piece_range(blob, number))
            except Exception as error:
                return error
            finally:
                nursery.cancel_scope.cancel()
        return None

    async def _read_ahead(
        self,
        talk: BlobTalk,
        blob: Blob,
        ahead: trio.MemorySendChannel[tuple[int, bytes] | Exception],
        places: _Places,
    ) -> None:
        """What was asked for, piece by piece with its message, and at last why there is no more."""
        try:
            while True:
                ask = await talk.message()
                if not isinstance(ask, Ask):
                    raise Malformed(f"a piece must be asked for, got {type(ask).__name__}")
                await places.take()
                try:
                    framed = await self._offload(self._framed, blob, ask.piece)
                except ValueError as error:
                    raise Malformed(str(error)) from error
                await ahead.send((ask.piece, framed))
                del framed
        except Exception as error:
            await ahead.send(error)

    async def _pass(self, talk: BlobTalk, buckets: list[TokenBucket], data: bytes) -> None:
        for at in range(0, len(data), self._slice_bytes):
            part = data[at : at + self._slice_bytes]
            await self._turns.next()
            for bucket in buckets:
                await bucket.take(len(part))
            await talk.send_bytes(part)

    def _holding(self, blob: Blob) -> tuple[bytes, bytes]:
        partial = self._partial_of(blob)
        if partial is not None and partial.index is not None:
            return partial.held(), partial.index
        return b"", self._store.index(blob)

    def _framed(self, blob: Blob, piece: int) -> bytes:
        # Joined here, in a thread, and not where frames are sent.
        return blob_message(Piece(piece)) + self._read(blob, piece)

    def _read(self, blob: Blob, piece: int) -> bytes:
        partial = self._partial_of(blob)
        if partial is not None:
            try:
                return partial.read(piece)
            except BlobMissing:
                # Complete in the meantime, or not.
                pass
        return self._store.read_piece(blob, piece)

    def _bucket(self, source: bytes, bytes_per_s: int) -> TokenBucket:
        bucket = self._buckets.get(source)
        if bucket is None:
            bucket = self._buckets[source] = TokenBucket(bytes_per_s)
        self._buckets.move_to_end(source)
        if len(self._buckets) > PEERS_REMEMBERED:
            self._buckets.popitem(last=False)
        return bucket
