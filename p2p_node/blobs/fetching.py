"""One blob on its way to us, from several peers at once.

Each source has a task and a stream; they share the pieces out among themselves as they go. A piece is asked
of a second source when nothing else is left to ask for, so that one slow source doesn't hold up the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import structlog
import trio

from p2p_node.blobs.errors import BlobError, BlobSealed, BlobUnavailable
from p2p_node.blobs.partial import PartialBlob
from p2p_node.blobs.sealing import sealed_size
from p2p_node.blobs.serving import Offload
from p2p_node.blobs.talk import BlobTalk, PeerSilent
from p2p_node.network.port import BulkStream, NetworkError
from protocols.blobs import (
    Ask,
    Blob,
    Holding,
    Lacking,
    Piece,
    Sealed,
    Want,
    blob_message,
    blob_name,
    piece_count,
    piece_range,
)
from protocols.digest import DIGEST_BYTES
from protocols.errors import Malformed, PeerFault
from protocols.identity import short_id
from protocols.limits import BLOB_ASKS_MAX, BLOB_SOURCES_MAX

__all__ = ["Fetch", "Progress"]

log = structlog.get_logger(__name__)

SILENCE_S = 15.0
PIECE_S = 120.0
"""A source that gives its pieces one byte at a time is as good as silent: below 18 KiB/s it is left."""

WAIT_S = 10.0
"""How long a source is kept that has nothing we could ask it for now."""

TRIES = 3
"""Without a piece in between; then a source is given up."""

RETRY_S = 0.5
BUSY_S = 120.0
"""How long we come back to a source that is busy."""

SILENT_POINTS = 5
ASKERS_MAX = 2
SECOND_ASKS_MAX = 2
"""So many pieces that another source was asked for are asked of one at a time: most of them come twice."""

Progress = Callable[[int, int], None]
"""Told bytes here and bytes in all."""


class _Refused(Exception):
    """The source can't, for now or at all."""

    def __init__(self, answer: Lacking) -> None:
        super().__init__(answer.detail)
        self.is_busy = answer.is_busy


@dataclass(slots=True)
class _Draw:
    """What goes on with one source: which pieces it has, and where those are that it was asked for."""

    source: bytes
    held: bytes = b""
    """A byte for each piece; empty for all of them."""
    asked: deque[int] = field(default_factory=deque)
    """On their way to us."""
    unwritten: deque[int] = field(default_factory=deque)
    """Come, and not on the disk yet."""


class Fetch:
    """See above. Its owner runs `run` once; others may add sources and listeners meanwhile.

    Args:
        blob: what is fetched.
        open_stream: to a source, connecting first if need be; raises `NetworkError`.
        penalise: charges a source with points, for a reason.
        offload: for what blocks.
        is_reader: whether we open what is sealed to us; `run` then raises `BlobSealed` where it is.
    """

    def __init__(
        self,
        blob: Blob,
        *,
        open_stream: Callable[[bytes], Awaitable[BulkStream]],
        penalise: Callable[[bytes, int, str], None],
        offload: Offload,
        is_reader: bool = False,
    ) -> None:
        self.blob = blob
        self._is_reader = is_reader
        self.listeners: list[Progress] = []
        self.waiting = 0
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.failure: BlobError | None = None
        self.partial: PartialBlob | None = None
        self._open_stream, self._penalise, self._offload = open_stream, penalise, offload
        self._sources: dict[bytes, str] = {}
        self._nursery: trio.Nursery | None = None
        self._places = trio.Semaphore(BLOB_SOURCES_MAX)
        self._writing = trio.Lock()
        self._free: dict[int, None] = {}
        self._asked: dict[int, set[bytes]] = {}
        self._changed = trio.Event()

    def add_sources(self, sources: Iterable[bytes]) -> None:
        """More peers that may have it; those that were given up get another chance."""
        for source in sources:
            if self._sources.get(source) == "":
                continue
            self._sources[source] = ""
            if self._nursery is not None:
                self._nursery.start_soon(self._use, self._nursery, source)

    def tell(self) -> None:
        """Tell all listeners how far it is."""
        here = self.partial.bytes_here if self.partial is not None else 0
        for listener in list(self.listeners):
            listener(here, self.blob.size_bytes)

    async def run(self, partial: PartialBlob) -> None:
        """Fetch what is missing.

        Raises:
            BlobSealed: a source has it sealed to us.
            BlobUnavailable: no source is left.
            BlobError: the store can't take it.
        """
        self.partial = partial
        self._free = dict.fromkeys(partial.missing)
        self.tell()
        async with trio.open_nursery() as nursery:
            if not self._is_complete():
                self._nursery = nursery
                for source in self._sources:
                    nursery.start_soon(self._use, nursery, source)
        self._nursery = None
        if self.failure is not None:
            raise self.failure
        if not self._is_complete():
            reasons = "; ".join(f"{short_id(source)}: {why}" for source, why in self._sources.items())
            raise BlobUnavailable(
                f"blob {blob_name(self.blob)} can't be had from {len(self._sources)} peers"
                + (f" ({reasons})" if reasons else "")
            )

    def _is_complete(self) -> bool:
        partial = self.partial
        return (
            partial is not None and partial.index is not None and partial.bytes_here == self.blob.size_bytes
        )

    # --- One source ------------------------------------------------------------------------------

    async def _use(self, nursery: trio.Nursery, source: bytes) -> None:
        """Draw on a source until all is here or it is given up; its reason is kept."""
        tries, busy_until = 0, trio.current_time() + BUSY_S
        while True:
            here = self.partial.bytes_here if self.partial is not None else 0
            try:
                async with self._places:
                    await self._draw(source)
                if self._is_complete():
                    nursery.cancel_scope.cancel()
                    return
                why = "has no more of it"
            except _Refused as error:
                why = f"refused: {error}"
                if not error.is_busy or trio.current_time() >= busy_until:
                    break
                tries = -1
            except PeerFault as error:
                why = f"sent junk: {error}"
                self._penalise(source, max(error.points, 1), f"blobs: {error}")
                break
            except PeerSilent as error:
                why = str(error)
                self._penalise(source, SILENT_POINTS, f"blobs: {error}")
            except NetworkError as error:
                why = str(error)
            except BlobError as error:
                # Ours, or sealed to us: no other source would help.
                self.failure = error
                nursery.cancel_scope.cancel()
                return
            gained = self.partial is not None and self.partial.bytes_here > here
            tries = 1 if gained else tries + 1
            if tries >= TRIES:
                break
            await trio.sleep(RETRY_S * 2 ** max(0, tries))
        log.info("blob source given up", peer=short_id(source), blob=self.blob.digest.hex()[:16], why=why)
        self._sources[source] = why[:200]

    async def _draw(self, source: bytes) -> None:
        partial = self.partial
        assert partial is not None  # noqa: S101  set before any source is used
        stream = await self._open_stream(source)
        draw = _Draw(source)
        failure: Exception | None = None
        try:
            talk = BlobTalk(stream, silence_s=SILENCE_S)
            draw.held = await self._introduce(talk, partial, source)
            # Pieces are written to the disk while the next ones come.
            come, to_write = trio.open_memory_channel[tuple[int, bytes]](1)
            async with trio.open_nursery() as nursery:

                async def write_down() -> None:
                    nonlocal failure
                    try:
                        async for first in to_write:
                            pieces = [first, *_waiting(to_write)]
                            await self._take(partial, pieces)
                            for _ in pieces:
                                draw.unwritten.popleft()
                    except Exception as error:
                        # Raised below: a nursery would wrap it in a group.
                        failure = error
                        nursery.cancel_scope.cancel()

                nursery.start_soon(write_down)
                try:
                    await self._receive_pieces(talk, draw, come)
                except Exception as error:
                    # What has come is still written.
                    failure = failure or error
        finally:
            for piece in (*draw.asked, *draw.unwritten):
                self._give_back(source, piece)
            await stream.close()
        if failure is not None:
            raise failure

    async def _receive_pieces(
        self, talk: BlobTalk, draw: _Draw, come: trio.MemorySendChannel[tuple[int, bytes]]
    ) -> None:
        """Ask and receive, until all is here or the source has nothing more for us."""
        async with come:
            while not self._is_complete():
                if len(draw.asked) <= BLOB_ASKS_MAX // 2:
                    await self._ask(talk, draw)
                if not draw.asked:
                    # All that it has is on its way from it or from others: until one of them fails.
                    with trio.move_on_after(WAIT_S) as waiting:
                        await self._changed.wait()
                    if waiting.cancelled_caught:
                        return
                    continue
                data = await self._receive(talk, draw.asked[0])
                draw.unwritten.append(draw.asked.popleft())
                await come.send((draw.unwritten[-1], data))

    async def _ask(self, talk: BlobTalk, draw: _Draw) -> None:
        """Ask for as many pieces as may be on their way, all in one frame."""
        asks: list[bytes] = []
        while len(draw.asked) < BLOB_ASKS_MAX and (piece := self._next(draw)) is not None:
            draw.asked.append(piece)
            asks.append(blob_message(Ask(piece)))
        if asks:
            await talk.send_bytes(b"".join(asks))

    async def _introduce(self, talk: BlobTalk, partial: PartialBlob, source: bytes) -> bytes:
        """Say what we want; which pieces the source has, empty for all."""
        needs_index = partial.index is None
        await talk.send(Want(self.blob, needs_index))
        answer = await talk.message()
        if isinstance(answer, Lacking):
            raise _Refused(answer)
        if isinstance(answer, Sealed) and self._is_reader:
            if answer.blob.size_bytes != (size := sealed_size(self.blob)):
                raise Malformed(f"a sealed blob of {answer.blob.size_bytes} bytes must have {size}")
            raise BlobSealed(self.blob, answer.blob, source)
        count = piece_count(self.blob.size_bytes)
        if not isinstance(answer, Holding) or len(answer.pieces) not in (0, count):
            raise Malformed(f"a want must be answered by what is held of {count} pieces")
        if needs_index:
            with trio.move_on_after(PIECE_S) as deadline:
                index = await talk.bytes(DIGEST_BYTES * count)
            if deadline.cancelled_caught:
                raise PeerSilent(f"peer took more than {PIECE_S:g} s for an index")
            async with self._writing:
                if partial.index is None:
                    await self._offload(partial.accept_index, index)
        return answer.pieces

    async def _receive(self, talk: BlobTalk, piece: int) -> bytes:
        with trio.move_on_after(PIECE_S) as deadline:
            answer = await talk.message()
            if isinstance(answer, Lacking):
                raise _Refused(answer)
            if answer != Piece(piece):
                raise Malformed(f"piece {piece} was asked for, got {answer!r}"[:200])
            data = await talk.bytes(len(piece_range(self.blob, piece)))
        if deadline.cancelled_caught:
            raise PeerSilent(f"peer took more than {PIECE_S:g} s for a piece")
        return data

    # --- Sharing the pieces out --------------------------------------------------------------------

    def _next(self, draw: _Draw) -> int | None:
        """A piece to ask this source for, and note that it is asked."""
        source, held = draw.source, draw.held
        piece = next((piece for piece in self._free if not held or held[piece]), None)
        if piece is not None:
            del self._free[piece]
            self._asked[piece] = {source}
            return piece
        if len(draw.asked) >= SECOND_ASKS_MAX:
            return None
        for piece, askers in self._asked.items():
            if len(askers) < ASKERS_MAX and source not in askers and (not held or held[piece]):
                askers.add(source)
                return piece
        return None

    async def _take(self, partial: PartialBlob, pieces: list[tuple[int, bytes]]) -> None:
        async with self._writing:
            await self._offload(_write_new, partial, pieces)
            self.tell()
        for piece, _ in pieces:
            self._asked.pop(piece, None)
        self._wake()

    def _give_back(self, source: bytes, piece: int) -> None:
        askers = self._asked.get(piece)
        if askers is None:
            return
        askers.discard(source)
        if not askers:
            del self._asked[piece]
            # It may be here all the same: what was written before the piece that failed.
            if self.partial is None or not self.partial.has(piece):
                self._free[piece] = None
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _waiting(channel: trio.MemoryReceiveChannel[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """What has come meanwhile: a turn of a thread for several pieces costs as much as for one."""
    pieces = []
    with suppress(trio.WouldBlock, trio.EndOfChannel):
        while True:
            pieces.append(channel.receive_nowait())
    return pieces


def _write_new(partial: PartialBlob, pieces: list[tuple[int, bytes]]) -> None:
    for piece, data in pieces:
        if not partial.has(piece):
            partial.write(piece, data)
