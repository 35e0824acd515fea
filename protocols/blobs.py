"""Content that is too large for a message, named by what it hashes to, and how peers ask for it.

A blob is cut into pieces of 1 MiB, the last one shorter. The digests of the pieces are its *index*, and the
blob is named by the hash of size and index: whoever has the index can check each piece on arrival, no matter
who sent it.

A transfer has a stream of its own. Who opened it says `Want`, is told `Holding` (and the index, if it asked)
or `Lacking` (or `Sealed`, which names another blob to ask for), and then asks for pieces, each of which comes
as `Piece` and its bytes, in the order asked.
Messages are preceded by their length, u32 little-endian; the index and the pieces come bare, since their
lengths follow from the blob's name.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable
from typing import TypeAlias

import msgspec
from blake3 import blake3

from protocols.codec import Wire
from protocols.digest import DIGEST_BYTES, tagged
from protocols.errors import Malformed, Oversized
from protocols.limits import BLOB_BYTES_MAX, BLOB_MESSAGE_BYTES_MAX, BLOB_PIECE_BYTES, TEXT_BYTES_MAX

__all__ = [
    "Ask",
    "Blob",
    "BlobMessage",
    "Holding",
    "Lacking",
    "MessageSplitter",
    "Piece",
    "Sealed",
    "Want",
    "blob_message",
    "blob_name",
    "blob_of",
    "check_blob",
    "index_blob",
    "parse_blob_name",
    "piece_count",
    "piece_digest",
    "piece_range",
    "read_blob_message",
]


class Blob(Wire, frozen=True):
    """Names some bytes.

    Args:
        digest: of size and index, 32 bytes.
        size_bytes: how many there are.
    """

    digest: bytes
    size_bytes: int


def piece_digest(piece: bytes | bytearray | memoryview) -> bytes:
    """What one piece hashes to: plain BLAKE3, so that pieces can be checked at full speed."""
    return blake3(piece).digest()


def piece_count(size_bytes: int) -> int:
    """Pieces of a blob; an empty one has none."""
    return -(-size_bytes // BLOB_PIECE_BYTES)


def piece_range(blob: Blob, piece: int) -> range:
    """The bytes that a piece covers.

    Raises:
        ValueError: there is no such piece.
    """
    if not 0 <= piece < piece_count(blob.size_bytes):
        raise ValueError(f"piece {piece} must be in [0, {piece_count(blob.size_bytes)})")
    return range(piece * BLOB_PIECE_BYTES, min(blob.size_bytes, (piece + 1) * BLOB_PIECE_BYTES))


def index_blob(size_bytes: int, pieces: Iterable[bytes]) -> Blob:
    """The blob whose pieces have these digests, in order."""
    return Blob(tagged("p2p-node/blob/1", size_bytes.to_bytes(8, "little"), b"".join(pieces)), size_bytes)


def blob_of(data: bytes) -> Blob:
    """The blob that some bytes are."""
    view = memoryview(data)
    starts = range(0, len(data), BLOB_PIECE_BYTES)
    return index_blob(len(data), (blake3(view[at : at + BLOB_PIECE_BYTES]).digest() for at in starts))


def check_blob(blob: Blob) -> None:
    """Whether a name that a peer or a user gave can be one.

    Raises:
        Malformed: it can't.
    """
    if len(blob.digest) != DIGEST_BYTES:
        raise Malformed(f"blob digest of {len(blob.digest)} bytes must have {DIGEST_BYTES}")
    if not 0 <= blob.size_bytes <= BLOB_BYTES_MAX:
        raise Malformed(f"blob of {blob.size_bytes} bytes must have 0 to {BLOB_BYTES_MAX}")


def blob_name(blob: Blob) -> str:
    """A blob's name as people write it: ``<digest in hex>:<size in bytes>``."""
    return f"{blob.digest.hex()}:{blob.size_bytes}"


def parse_blob_name(text: str) -> Blob:
    """The blob that a name written by a person means.

    Raises:
        ValueError: it isn't one; the message says which rule it breaks.
    """
    digest, colon, size = text.partition(":")
    if not colon:
        raise ValueError(f"blob name {text[:100]!r} must be <digest in hex>:<size in bytes>")
    if len(digest) != 2 * DIGEST_BYTES or not set(digest) <= set("0123456789abcdef"):
        raise ValueError(f"blob name {text[:100]!r} must begin with {2 * DIGEST_BYTES} digits of 0-9 and a-f")
    if not (size.isascii() and size.isdecimal()) or str(int(size[:20])) != size:
        raise ValueError(f"blob name {text[:100]!r} must end in a size in bytes, without leading zeros")
    if int(size) > BLOB_BYTES_MAX:
        raise ValueError(f"blob name {text[:100]!r} must name at most {BLOB_BYTES_MAX} bytes")
    return Blob(bytes.fromhex(digest), int(size))


# --- What peers say to each other ----------------------------------------------------------------


class Want(Wire, tag="want", frozen=True):
    """First on a stream: which blob, and whether its index is wanted."""

    blob: Blob
    with_index: bool


class Holding(Wire, tag="holding", frozen=True):
    """Answers `Want`: a byte for each piece, 1 where it can be asked for; empty means all of them."""

    pieces: bytes


class Lacking(Wire, tag="lacking", frozen=True):
    """Answers `Want` or `Ask`: no. ``is_busy`` means that asking again later may help."""

    is_busy: bool
    detail: str


class Sealed(Wire, tag="sealed", frozen=True):
    """Answers `Want`: here only in a form that you alone can open, which is this blob."""

    blob: Blob


class Ask(Wire, tag="ask", frozen=True):
    """Asks for one piece."""

    piece: int


class Piece(Wire, tag="piece", frozen=True):
    """Announces the piece whose bytes follow."""

    piece: int


BlobMessage: TypeAlias = Want | Holding | Lacking | Sealed | Ask | Piece

_LENGTH = struct.Struct("<I")
_PARTS_MAX = 1_024
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[BlobMessage] = msgspec.msgpack.Decoder(BlobMessage)


def blob_message(message: BlobMessage) -> bytes:
    """A message as it goes on the stream, with its length."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def read_blob_message(body: bytes) -> BlobMessage:
    """The message in ``body``, without its length.

    Raises:
        Malformed: not the canonical encoding of one, or it breaks a bound.
    """
    if len(body) > BLOB_MESSAGE_BYTES_MAX:
        raise Oversized(f"blob message of {len(body)} bytes exceeds {BLOB_MESSAGE_BYTES_MAX}")
    try:
        message = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise Malformed(f"not a blob message: {error}") from error
    if _encoder.encode(message) != body:
        raise Malformed("blob message isn't in canonical form")
    match message:
        case Want(blob) | Sealed(blob):
            check_blob(blob)
        case Lacking(_, detail) if len(detail.encode()) > TEXT_BYTES_MAX:
            raise Oversized(f"detail of {len(detail.encode())} bytes exceeds {TEXT_BYTES_MAX}")
        case Ask(piece) | Piece(piece) if not 0 <= piece < piece_count(BLOB_BYTES_MAX):
            raise Malformed(f"piece {piece} must be in [0, {piece_count(BLOB_BYTES_MAX)})")
        case _:
            pass
    return message


class MessageSplitter:
    """Takes messages and bare bytes off a stream, in whatever parts it comes."""

    def __init__(self) -> None:
        # Joined once for each thing taken: a buffer that grows and shrinks would be copied many times.
        self._parts: deque[bytes] = deque()
        self._size: int | None = None
        self.waiting = 0
        """Bytes that have come and weren't taken."""

    def feed(self, data: bytes) -> None:
        """Add what was received."""
        if data:
            self._parts.append(data)
            self.waiting += len(data)
        if len(self._parts) > _PARTS_MAX:
            # Bytes that come one by one would take forty times their room.
            self._parts = deque((b"".join(self._parts),))

    def take_bytes(self, size: int) -> bytes | None:
        """The next ``size`` bytes, once they are all there."""
        if self.waiting < size:
            return None
        self.waiting -= size
        taken: list[bytes] = []
        while size:
            part = self._parts.popleft()
            if len(part) > size:
                self._parts.appendleft(part[size:])
                part = part[:size]
            taken.append(part)
            size -= len(part)
        return b"".join(taken)

    def take_message(self) -> BlobMessage | None:
        """The next message, once all of it is there.

        Raises:
            Malformed: what comes isn't one, or announces more than it may have.
        """
        if self._size is None:
            prefix = self.take_bytes(_LENGTH.size)
            if prefix is None:
                return None
            (self._size,) = _LENGTH.unpack(prefix)
        if self._size > BLOB_MESSAGE_BYTES_MAX:
            raise Oversized(f"blob message of {self._size} bytes exceeds {BLOB_MESSAGE_BYTES_MAX}")
        body = self.take_bytes(self._size)
        if body is None:
            return None
        self._size = None
        return read_blob_message(body)
