"""Content that is too large for a message, named by what it hashes to.

A blob is cut into pieces of 1 MiB, the last one shorter. The digests of the pieces are its *index*, and the
blob is named by the hash of size and index: whoever has the index can check each piece on arrival, no matter
who sent it.
"""

from __future__ import annotations

from collections.abc import Iterable

from blake3 import blake3

from protocols.codec import Wire
from protocols.digest import DIGEST_BYTES, tagged
from protocols.errors import Malformed
from protocols.limits import BLOB_BYTES_MAX, BLOB_PIECE_BYTES

__all__ = [
    "Blob",
    "blob_name",
    "blob_of",
    "check_blob",
    "index_blob",
    "parse_blob_name",
    "piece_count",
    "piece_digest",
    "piece_range",
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
