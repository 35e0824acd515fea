"""The blobs of one node: a folder with a bound, in which each complete blob is a file named by its digest.

    complete/   what `BlobFolder` reads: read-only files, one blob each
    index/      the digests of each blob's pieces, to check it by
    partial/    what is on its way, from a peer or from a caller
    blobs.sqlite   when each was last used, and who holds on to it

A file gets its name in ``complete/`` once all of it has been checked and is on the disk. Whatever comes to
harm later is dropped: a file that was written to when it is looked up, a piece whose bits have changed when
it is served.

Methods may be called from any thread; those that read or write whole blobs block on the disk.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio
from nacl.public import PrivateKey

from p2p_node.blobs.book import BlobBook, Entry
from p2p_node.blobs.errors import BlobError, BlobMissing, BlobStoreBroken, StoreFull
from p2p_node.blobs.partial import PartialBlob, is_index_of
from p2p_node.blobs.sealing import Opener, SealingWriter
from protocols.blobs import Blob, index_blob, piece_digest, piece_range
from protocols.digest import DIGEST_BYTES
from protocols.limits import BLOB_BYTES_MAX, BLOB_PIECE_BYTES

__all__ = ["BlobStore", "BlobWriter", "StoredBlob"]

log = structlog.get_logger(__name__)

DAY_MS = 24 * 3_600_000
AGE_MS_MAX = 30 * DAY_MS
"""An unpinned blob that nobody used for so long goes, even where there is room."""

PARTIAL_AGE_MS_MAX = DAY_MS
"""A blob on its way that nobody fetches any more is kept so long, to be resumed."""

TOUCH_MS = 60_000
"""The last use of a blob is written down this often at most."""

DISK_MARGIN_BYTES = 64 * 1024 * 1024
"""Left free on the disk for what else the node must write."""


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A complete blob as an operator sees it."""

    blob: Blob
    used_ms: int
    pins: tuple[str, ...]
    is_private: bool = False


class BlobStore:
    """See above. Made by `open`; a process has one on a folder.

    Attributes:
        folder: where complete blobs lie.
        bytes_max: all blobs together, complete or on their way.
    """

    def __init__(self, root: Path, *, bytes_max: int, clock: Callable[[], int]) -> None:
        self.folder = root / "complete"
        self.bytes_max = bytes_max
        self._root, self._clock = root, clock
        self._indices, self._partials = root / "index", root / "partial"
        self._lock = threading.RLock()
        self._entries: dict[bytes, Entry] = {}
        self._complete_bytes = 0
        self._saved_ms: dict[bytes, int] = {}
        self._owners: dict[bytes, set[str]] = {}
        self._private: dict[bytes, bool] = {}
        """Blobs that aren't for everybody, and whether they were lent to us for a run."""
        # Room taken by what isn't complete, by its path in partial/; the second value is its last use, or
        # None while somebody works on it.
        self._unfinished: dict[Path, tuple[int, int | None]] = {}
        self._numbers = itertools.count()

    @classmethod
    def open(cls, root: Path, *, bytes_max: int, clock: Callable[[], int]) -> BlobStore:
        """The store in a folder, made if absent. Files nobody vouches for are read in full.

        Args:
            root: a folder of the store's own.
            bytes_max: see the class.
            clock: milliseconds since the epoch.

        Raises:
            BlobStoreBroken: the folder can't be used.
        """
        store = cls(root, bytes_max=bytes_max, clock=clock)
        try:
            for folder in (store.folder, store._indices, store._partials):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            store._book = BlobBook(root / "blobs.sqlite")
            store._recover()
        except OSError as error:
            raise BlobStoreBroken(f"can't use the blob store {root}: {error.strerror or error}") from error
        return store

    _book: BlobBook

    def close(self) -> None:
        """Let go of the records. Closing twice is fine."""
        with self._lock:
            self._book.close()

    # --- Complete blobs --------------------------------------------------------------------------

    def has(self, blob: Blob) -> bool:
        """Whether the blob is here, whole and untouched since it was checked."""
        with self._lock:
            entry = self._entries.get(blob.digest)
            if entry is None or entry.size_bytes != blob.size_bytes:
                return False
            try:
                status = self._file(blob.digest).stat()
            except OSError:
                status = None
            if status is not None and (status.st_size, status.st_mtime_ns) == (
                entry.size_bytes,
                entry.mtime_ns,
            ):
                return True
            self._drop(blob.digest, "its file has changed or is gone")
            return False

    def path(self, blob: Blob) -> Path:
        """The blob's file, to be read only. It stays while the blob is pinned; else it may go at any time.

        Raises:
            BlobMissing: it isn't here.
        """
        with self._lock:
            if not self.has(blob):
                raise BlobMissing(f"blob {blob.digest.hex()} of {blob.size_bytes} bytes isn't here")
            self._touch(blob.digest)
            return self._file(blob.digest)

    def add(self, data: bytes) -> Blob:
        """Take content that is in memory. Blocks until it is on the disk.

        Raises:
            StoreFull: no room.
        """
        with self.writer() as writer:
            writer.write(data)
            return writer.finish()

    async def add_file(self, path: Path) -> Blob:
        """Take a file's content, a piece at a time, off trio's thread.

        Raises:
            StoreFull: no room.
            BlobError: the file can't be read, or is larger than a blob can be.
        """
        return await trio.to_thread.run_sync(self._add_file, path)

    def _add_file(self, path: Path) -> Blob:
        try:
            source = path.open("rb")
        except OSError as error:
            raise BlobError(f"can't read {path}: {error.strerror}") from error
        with source, self.writer() as writer:
            while True:
                try:
                    data = source.read(BLOB_PIECE_BYTES)
                except OSError as error:
                    raise BlobError(f"can't read {path}: {error.strerror}") from error
                if not data:
                    return writer.finish()
                writer.write(data)

    @contextmanager
    def writer(self) -> Iterator[BlobWriter]:
        """Takes content of unknown size; what isn't finished when the block ends is thrown away."""
        path = self._partials / f"new-{next(self._numbers)}"
        with self._lock:
            self._unfinished[path] = (0, None)
        with _disk_explained(path):
            writer = BlobWriter(self, path)
        try:
            yield writer
        finally:
            writer.close()
            with self._lock:
                self._unfinished.pop(path, None)
            path.unlink(missing_ok=True)

    def read_piece(self, blob: Blob, piece: int) -> bytes:
        """One piece, of a complete blob or one on its way, checked as it is read.

        Raises:
            BlobMissing: it isn't here, or came to harm; then the blob is dropped.
            ValueError: the blob has no such piece.
        """
        place = piece_range(blob, piece)
        path = self.path(blob)
        try:
            with path.open("rb") as file, (self._indices / path.name).open("rb") as index:
                data = os.pread(file.fileno(), len(place), place.start)
                digest = os.pread(index.fileno(), DIGEST_BYTES, piece * DIGEST_BYTES)
        except OSError:
            data = digest = b""
        if not digest or piece_digest(data) != digest:
            with self._lock:
                self._drop(blob.digest, f"piece {piece} isn't what it was")
            raise BlobMissing(f"blob {blob.digest.hex()} came to harm and was dropped")
        return data

    def index(self, blob: Blob) -> bytes:
        """The digests of a complete blob's pieces.

        Raises:
            BlobMissing: it isn't here, or came to harm; then the blob is dropped.
        """
        path = self.path(blob)
        try:
            index = (self._indices / path.name).read_bytes()
        except OSError:
            index = b""
        if not is_index_of(blob, index):
            with self._lock:
                self._drop(blob.digest, "its index isn't what it was")
            raise BlobMissing(f"blob {blob.digest.hex()} came to harm and was dropped")
        return index

    def remove(self, blob: Blob) -> None:
        """Throw a blob away.

        Raises:
            BlobMissing: it isn't here.
            BlobError: somebody holds on to it.
        """
        with self._lock:
            if not self.has(blob):
                raise BlobMissing(f"blob {blob.digest.hex()} of {blob.size_bytes} bytes isn't here")
            owners = self._owners.get(blob.digest)
            if owners:
                raise BlobError(
                    f"blob {blob.digest.hex()} must not be pinned, and is by {', '.join(sorted(owners))}"
                )
            self._forget(blob.digest)

    def stored(self) -> list[StoredBlob]:
        """Every complete blob, the most recently used first."""
        with self._lock:
            rows = [
                StoredBlob(
                    Blob(digest, entry.size_bytes),
                    entry.used_ms,
                    tuple(sorted(self._owners.get(digest, ()))),
                    digest in self._private,
                )
                for digest, entry in self._entries.items()
            ]
        return sorted(rows, key=lambda row: (-row.used_ms, row.blob.digest))

    @property
    def bytes_used(self) -> int:
        """Room taken by all blobs, those on their way in full."""
        with self._lock:
            return self._complete_bytes + sum(size for size, _ in self._unfinished.values())

    # --- Pins --------------------------------------------------------------------------------------

    def pin(self, blob: Blob, owner: str) -> None:
        """Keep a blob until this owner lets go. A blob that isn't here yet is kept from when it comes."""
        with self._lock:
            self._owners.setdefault(blob.digest, set()).add(owner)
            self._book.pin(owner, blob.digest)

    def unpin(self, owner: str, blob: Blob | None = None) -> None:
        """Let go of one blob, or of all that this owner holds. Does nothing where there is no pin."""
        with self._lock:
            held = [digest for digest, owners in self._owners.items() if owner in owners]
            for digest in held:
                if blob is not None and digest != blob.digest:
                    continue
                self._owners[digest].discard(owner)
                if not self._owners[digest]:
                    del self._owners[digest]
                self._book.unpin(owner, digest)
                self._give_back(digest)

    def owners(self, blob: Blob) -> tuple[str, ...]:
        """Who holds on to a blob."""
        with self._lock:
            return tuple(sorted(self._owners.get(blob.digest, ())))

    # --- Private blobs -----------------------------------------------------------------------------

    def set_private(self, blob: Blob, *, is_lent: bool) -> None:
        """Keep a blob from everybody without a right to it, from before it is here.

        Args:
            blob: which.
            is_lent: it is another's, for as long as somebody here holds on to it; then it is thrown away.
                What was ours before stays what it was.
        """
        with self._lock:
            if is_lent and (blob.digest in self._private or self.has(blob)):
                return
            self._private[blob.digest] = is_lent
            self._book.set_private(blob.digest, is_lent)

    def is_private(self, blob: Blob) -> bool:
        """Whether a blob isn't for everybody."""
        with self._lock:
            return blob.digest in self._private

    def _give_back(self, digest: bytes) -> None:
        """Throw away what was lent once nobody holds on to it."""
        if not self._private.get(digest) or digest in self._owners:
            return
        path = self._partials / digest.hex()
        if path in self._unfinished and self._unfinished[path][1] is None:
            return  # Somebody works on it: `pause` ends here again.
        if path in self._unfinished:
            self._discard(path)
        if digest in self._entries:
            self._forget(digest)
        elif self._private.pop(digest, None) is not None:
            self._book.forget_private(digest)

    def sealing_writer(self, writer: BlobWriter, blob: Blob, reader: bytes) -> SealingWriter:
        """Takes a blob's pieces through ``writer`` so that ``reader`` alone can open what is stored."""
        return SealingWriter(self, writer, blob, reader)

    def keep_sealed(self, blob: Blob, reader: bytes, sealed: Blob) -> None:
        """Note that a stored blob is another one, sealed to a reader."""
        with self._lock:
            self._book.keep_sealed(blob.digest, reader, sealed)

    def sealed(self, blob: Blob, reader: bytes) -> Blob | None:
        """What is here of a blob in a form that this reader alone can open."""
        with self._lock:
            sealed = self._book.sealed(blob.digest, reader)
            return sealed if sealed is not None and self.has(sealed) else None

    def unseal(self, blob: Blob, sealed: Blob, key: PrivateKey) -> Path:
        """Open a sealed blob that is here; it is thrown away afterwards.

        Args:
            blob: what it must be.
            sealed: which.
            key: of its reader.

        Raises:
            BlobMissing: it isn't here.
            BlobError: it isn't for us, damaged, or something else.
            StoreFull: no room.
        """
        with self.path(sealed).open("rb") as source, self.writer() as writer:
            opener = Opener(blob, key, source.read(Opener.head_bytes))
            sizes = opener.part_sizes()
            for number, size in enumerate(sizes, start=1):
                writer.write(opener.open(source.read(size), is_last=number == len(sizes)))
            if (found := writer.finish()) != blob:
                with self._lock:
                    self._forget(found.digest)
                raise BlobError(f"what was sealed as blob {blob.digest.hex()} is {found.digest.hex()}")
        with self._lock:
            self._forget(sealed.digest)
        return self.path(blob)

    # --- Blobs on their way ----------------------------------------------------------------------

    def begin(self, blob: Blob) -> PartialBlob:
        """What there is of a blob, with room for the rest; pieces of an earlier try are checked again.

        The caller ends with `complete` or `pause`, and is the only one that works on this blob.

        Raises:
            StoreFull: no room.
        """
        path = self._partials / blob.digest.hex()
        with self._lock:
            # From here on it can't be thrown away to make room for itself.
            self._unfinished[path] = (0, None)
            try:
                self.make_room(blob.size_bytes)
                self._unfinished[path] = (blob.size_bytes, None)
            except StoreFull:
                self._discard(path)
                raise
        try:
            with _disk_explained(path):
                return PartialBlob(self._partials, blob)
        except BaseException:
            with self._lock:
                self._discard(path)
            raise

    def pause(self, partial: PartialBlob) -> None:
        """Leave a blob as it is, to be resumed by `begin`. It may be thrown away before that."""
        with self._lock:
            if partial.path in self._unfinished:
                self._unfinished[partial.path] = (partial.blob.size_bytes, self._clock())
                self._give_back(partial.blob.digest)

    def drop(self, partial: PartialBlob) -> None:
        """Throw away what there is of a blob: it won't be resumed."""
        with self._lock:
            self._discard(partial.path)

    def complete(self, partial: PartialBlob) -> Path:
        """Make a blob that has all its pieces one of ours.

        Raises:
            ValueError: pieces are missing.
            StoreFull: the disk is full.
        """
        if partial.missing or partial.index is None:
            raise ValueError(f"{len(partial.missing)} pieces are missing")
        with _disk_explained(partial.path):
            self._adopt(partial.path, partial.blob, partial.index)
            partial.discard()
        return self._file(partial.blob.digest)

    # --- Room ------------------------------------------------------------------------------------

    def make_room(self, size_bytes: int) -> None:
        """Throw away what was unused for longest until so many bytes fit.

        Raises:
            StoreFull: they don't, even so.
        """
        with self._lock:
            while True:
                used = self.bytes_used
                fits = used + size_bytes <= self.bytes_max
                if fits and shutil.disk_usage(self._root).free >= size_bytes + DISK_MARGIN_BYTES:
                    return
                if size_bytes > self.bytes_max or not self._evict_one():
                    break
        if fits:
            raise StoreFull(f"the disk of {self._root} must have {size_bytes} bytes free, and hasn't")
        raise StoreFull(
            f"{size_bytes} bytes must fit into blob_bytes_max={self.bytes_max}, "
            f"of which {used} are taken by blobs that are pinned or on their way"
        )

    def tidy(self) -> None:
        """Throw away what nobody used for too long."""
        with self._lock:
            now_ms = self._clock()
            for digest, entry in list(self._entries.items()):
                if digest not in self._owners and now_ms - entry.used_ms > AGE_MS_MAX:
                    self._forget(digest)
            for path, (_, used_ms) in list(self._unfinished.items()):
                if used_ms is not None and now_ms - used_ms > PARTIAL_AGE_MS_MAX:
                    self._discard(path)

    def _evict_one(self) -> bool:
        candidates: list[tuple[int, str, bytes | Path]] = [
            (entry.used_ms, digest.hex(), digest)
            for digest, entry in self._entries.items()
            if digest not in self._owners
        ]
        candidates += [
            (used_ms, path.name, path)
            for path, (_, used_ms) in self._unfinished.items()
            if used_ms is not None
        ]
        if not candidates:
            return False
        victim = min(candidates)[2]
        if isinstance(victim, Path):
            self._discard(victim)
        else:
            log.info("blob evicted", blob=victim.hex()[:16])
            self._forget(victim)
        return True

    # --- Files and records -------------------------------------------------------------------------

    def _file(self, digest: bytes) -> Path:
        return self.folder / digest.hex()

    def _adopt(self, source: Path, blob: Blob, index: bytes) -> None:
        """Give a checked file its name. On the disk before the name: a power cut leaves all of it or none."""
        target = self._file(blob.digest)
        index_path = self._indices / target.name
        index_path.write_bytes(index)
        descriptor = os.open(source, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        source.chmod(0o444)
        with self._lock:
            source.replace(target)
            entry = Entry(blob.size_bytes, target.stat().st_mtime_ns, self._clock())
            self._enter(blob.digest, entry)
            self._saved_ms[blob.digest] = entry.used_ms
            self._book.keep(blob.digest, entry)
            self._unfinished.pop(source, None)

    def _enter(self, digest: bytes, entry: Entry) -> None:
        if digest not in self._entries:
            self._complete_bytes += entry.size_bytes
        self._entries[digest] = entry

    def _touch(self, digest: bytes) -> None:
        entry = self._entries[digest]
        entry.used_ms = self._clock()
        if entry.used_ms - self._saved_ms.get(digest, 0) >= TOUCH_MS:
            self._saved_ms[digest] = entry.used_ms
            try:
                self._book.keep(digest, entry)
            except BlobError as error:
                # A full disk must not keep anybody from reading.
                log.warning("the last use of a blob wasn't written down", why=str(error))

    def _drop(self, digest: bytes, why: str) -> None:
        log.warning("blob dropped", blob=digest.hex()[:16], why=why)
        self._forget(digest)

    def _forget(self, digest: bytes) -> None:
        entry = self._entries.pop(digest, None)
        if entry is not None:
            self._complete_bytes -= entry.size_bytes
        self._saved_ms.pop(digest, None)
        if self._private.pop(digest, None) is not None:
            self._book.forget_private(digest)
        self._book.forget(digest)
        self._book.forget_sealed(digest)
        self._file(digest).unlink(missing_ok=True)
        (self._indices / digest.hex()).unlink(missing_ok=True)

    def _discard(self, path: Path) -> None:
        self._unfinished.pop(path, None)
        for leftover in (path, path.with_suffix(".index"), path.with_suffix(".have")):
            leftover.unlink(missing_ok=True)

    def _recover(self) -> None:
        """Take stock after a restart: files and records may disagree where a crash came between them."""
        for owner, digest in self._book.pins():
            self._owners.setdefault(digest, set()).add(owner)
        self._private.update(self._book.private())
        for digest, entry in list(self._book.entries()):
            self._enter(digest, entry)
            self.has(Blob(digest, entry.size_bytes))
        known = {digest.hex() for digest in self._entries}
        for path in sorted(self.folder.iterdir()):
            if path.name not in known:
                self._adopt_stray(path)
        known = {digest.hex() for digest in self._entries}
        for path in self._indices.iterdir():
            if path.name not in known:
                path.unlink()
        self._recover_partials()
        for digest in list(self._private):
            self._give_back(digest)
        self.tidy()

    def _adopt_stray(self, path: Path) -> None:
        blob, index = _read_in_full(path)
        if blob.digest.hex() == path.name:
            self._adopt(path, blob, index)
        else:
            log.warning("file dropped: it isn't what its name says", name=path.name[:80])
            path.unlink()

    def _recover_partials(self) -> None:
        for path in list(self._partials.iterdir()):
            base = path.with_suffix("")
            if path.name.startswith("new-") or not base.with_suffix(".index").exists():
                path.unlink(missing_ok=True)
            elif path == base and path.name in {digest.hex() for digest in self._entries}:
                self._discard(path)
            elif path == base:
                # Its full size is in its name's hash only; the index tells it to within a piece.
                pieces = base.with_suffix(".index").stat().st_size // DIGEST_BYTES
                self._unfinished[path] = (pieces * BLOB_PIECE_BYTES, int(path.stat().st_mtime * 1_000))


class BlobWriter:
    """Content that comes a part at a time; see `BlobStore.writer`. Parts may have any size."""

    def __init__(self, store: BlobStore, path: Path) -> None:
        self._store, self._path = store, path
        self._file = path.open("wb")
        self._piece = bytearray()
        self._digests: list[bytes] = []
        self._size = 0

    def write(self, data: bytes | bytearray) -> None:
        """Take the next part.

        Raises:
            StoreFull: no room.
            BlobError: it makes more than a blob can have.
        """
        if self._size + len(data) > BLOB_BYTES_MAX:
            raise BlobError(f"a blob must have at most {BLOB_BYTES_MAX} bytes")
        with self._store._lock:
            self._store.make_room(len(data))
            self._store._unfinished[self._path] = (self._size + len(data), None)
        with _disk_explained(self._path):
            self._file.write(data)
        self._size += len(data)
        self._piece += data
        whole = len(self._piece) // BLOB_PIECE_BYTES * BLOB_PIECE_BYTES
        if whole:
            with memoryview(self._piece) as view:
                for at in range(0, whole, BLOB_PIECE_BYTES):
                    self._digests.append(piece_digest(view[at : at + BLOB_PIECE_BYTES]))
            del self._piece[:whole]

    def finish(self) -> Blob:
        """That was all; what it is called.

        Raises:
            StoreFull: the disk is full.
        """
        if self._piece:
            self._digests.append(piece_digest(self._piece))
            self._piece = bytearray()
        blob = index_blob(self._size, self._digests)
        with _disk_explained(self._path):
            self._file.close()
            if self._store.has(blob):
                self._store.path(blob)
            else:
                self._store._adopt(self._path, blob, b"".join(self._digests))
        return blob

    def close(self) -> None:
        """Let go of the file."""
        try:
            self._file.close()
        except OSError as error:
            # What was buffered and doesn't fit: the file is thrown away.
            log.debug("closing an unfinished blob failed", error=str(error))


def _read_in_full(path: Path) -> tuple[Blob, bytes]:
    digests, size = [], 0
    with path.open("rb") as file:
        while data := file.read(BLOB_PIECE_BYTES):
            digests.append(piece_digest(data))
            size += len(data)
    return index_blob(size, digests), b"".join(digests)


@contextmanager
def _disk_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreFull(f"the disk of {path.parent} is full: {error.strerror}") from error
        raise BlobStoreBroken(f"can't write to {path.parent}: {error.strerror or error}") from error
