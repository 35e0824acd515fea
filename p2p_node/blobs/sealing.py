"""A blob that one peer alone can open: what an executor keeps of a private job's output.

Encrypted as it comes, a piece at a time, so memory doesn't grow with it. The result is content like any
other: it has a name of its own, can be kept and relayed by anybody, and says nothing but its size.

    magic | stream key, for the reader's X25519 key | stream header | pieces, each 17 bytes longer

The pieces are libsodium's secretstream (XChaCha20-Poly1305), which shows where one was left out, swapped or
cut off; each is bound to the name of the blob that they make. The key is sealed with `crypto_box_seal` to the
reader's Ed25519 key turned into an X25519 one: nobody else can open it, its sender included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nacl import bindings
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, SealedBox
from nacl.signing import SigningKey, VerifyKey

from p2p_node.blobs.errors import BlobError
from protocols.blobs import Blob, blob_name, index_blob, piece_count, piece_digest, piece_range

if TYPE_CHECKING:
    from p2p_node.blobs.store import BlobStore, BlobWriter

__all__ = ["Opener", "SealingWriter", "opening_key", "sealed_size"]

MAGIC = b"p2p-node/seal/1\n"
_KEY_BYTES = bindings.crypto_secretstream_xchacha20poly1305_KEYBYTES
_HEADER_BYTES = bindings.crypto_secretstream_xchacha20poly1305_HEADERBYTES
_ADDED_BYTES = bindings.crypto_secretstream_xchacha20poly1305_ABYTES
_BOX_BYTES = _KEY_BYTES + bindings.crypto_box_SEALBYTES
_HEAD_BYTES = len(MAGIC) + _BOX_BYTES + _HEADER_BYTES
_MESSAGE = bindings.crypto_secretstream_xchacha20poly1305_TAG_MESSAGE
_FINAL = bindings.crypto_secretstream_xchacha20poly1305_TAG_FINAL


def sealed_size(blob: Blob) -> int:
    """Bytes of a blob once it is sealed."""
    return _HEAD_BYTES + blob.size_bytes + _ADDED_BYTES * _parts(blob)


def opening_key(seed: bytes) -> PrivateKey:
    """What opens blobs that are sealed to the peer whose Ed25519 seed this is."""
    return SigningKey(seed).to_curve25519_private_key()


def _parts(blob: Blob) -> int:
    """Encrypted pieces; one for an empty blob, to end it."""
    return max(1, piece_count(blob.size_bytes))


def _bound_to(blob: Blob) -> bytes:
    return blob_name(blob).encode()


class SealingWriter:
    """Takes a blob piece by piece and stores it sealed; the blob itself never reaches the disk.

    Args:
        store: where the sealed blob goes.
        writer: into that store.
        blob: what the content must be.
        reader: Ed25519 key of the peer that may open it.

    Raises:
        BlobError: the reader's key isn't one.
    """

    def __init__(self, store: BlobStore, writer: BlobWriter, blob: Blob, reader: bytes) -> None:
        self._store, self._writer, self._blob, self._reader = store, writer, blob, reader
        self._state = bindings.crypto_secretstream_xchacha20poly1305_state()
        self._digests: list[bytes] = []
        key = bindings.crypto_secretstream_xchacha20poly1305_keygen()
        try:
            box = SealedBox(VerifyKey(reader).to_curve25519_public_key()).encrypt(key)
        except (CryptoError, ValueError, RuntimeError) as error:
            raise BlobError(f"nothing can be sealed to key {reader.hex()}: {error}") from error
        header = bindings.crypto_secretstream_xchacha20poly1305_init_push(self._state, key)
        writer.write(MAGIC + box + header)

    def write(self, piece: bytes) -> None:
        """Take the next piece, whole.

        Raises:
            StoreFull: no room.
        """
        self._digests.append(piece_digest(piece))
        self._push(piece)

    def _push(self, piece: bytes) -> None:
        parts = max(1, len(self._digests))
        tag = _FINAL if parts == _parts(self._blob) else _MESSAGE
        push = bindings.crypto_secretstream_xchacha20poly1305_push
        self._writer.write(push(self._state, piece, _bound_to(self._blob), tag))

    def finish(self) -> Blob:
        """That was all; what the content is called. Where it is what it must be, its reader can have it.

        Raises:
            StoreFull: the disk is full.
        """
        if not self._digests:
            self._push(b"")
        found = index_blob(self._blob.size_bytes, self._digests)
        sealed = self._writer.finish()
        if found == self._blob:
            self._store.keep_sealed(found, self._reader, sealed)
        return found


class Opener:
    """Opens a sealed blob, part by part.

    Args:
        blob: what it must be.
        key: of the reader.
        head: the sealed blob's beginning, `Opener.head_bytes` of it.

    Raises:
        BlobError: it isn't sealed to this key, or damaged.
    """

    head_bytes = _HEAD_BYTES

    def __init__(self, blob: Blob, key: PrivateKey, head: bytes) -> None:
        self._blob = blob
        self._state = bindings.crypto_secretstream_xchacha20poly1305_state()
        box_end = len(MAGIC) + _BOX_BYTES
        try:
            if head[: len(MAGIC)] != MAGIC or len(head) != _HEAD_BYTES:
                raise CryptoError("it doesn't begin as a sealed blob does")
            stream_key = SealedBox(key).decrypt(head[len(MAGIC) : box_end])
            init = bindings.crypto_secretstream_xchacha20poly1305_init_pull
            init(self._state, head[box_end:], stream_key)
        except (CryptoError, ValueError, RuntimeError) as error:
            raise BlobError(f"sealed blob {blob.digest.hex()} can't be opened: {error}") from error

    def part_sizes(self) -> list[int]:
        """Bytes of each sealed part, in order."""
        pieces = (len(piece_range(self._blob, n)) for n in range(piece_count(self._blob.size_bytes)))
        return [size + _ADDED_BYTES for size in pieces] or [_ADDED_BYTES]

    def open(self, part: bytes, *, is_last: bool) -> bytes:
        """The piece in the next part.

        Raises:
            BlobError: it isn't the next part, or damaged.
        """
        pull = bindings.crypto_secretstream_xchacha20poly1305_pull
        try:
            piece, tag = pull(self._state, part, _bound_to(self._blob))
        except (CryptoError, ValueError, RuntimeError) as error:
            raise BlobError(f"sealed blob {self._blob.digest.hex()} is damaged: {error}") from error
        if (tag == _FINAL) != is_last:
            raise BlobError(f"sealed blob {self._blob.digest.hex()} ends at another place than it says")
        return bytes(piece)
