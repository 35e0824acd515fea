"""How blobs are named, cut into pieces, and checked by them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.blobs import (
    Blob,
    blob_name,
    blob_of,
    check_blob,
    index_blob,
    parse_blob_name,
    piece_count,
    piece_digest,
    piece_range,
)
from protocols.errors import Malformed
from protocols.limits import BLOB_BYTES_MAX, BLOB_PIECE_BYTES

DIGEST = "ab" * 32


@pytest.mark.parametrize(
    ("size", "lengths"),
    [
        (0, []),
        (1, [1]),
        (BLOB_PIECE_BYTES, [BLOB_PIECE_BYTES]),
        (BLOB_PIECE_BYTES + 1, [BLOB_PIECE_BYTES, 1]),
    ],
)
def test_pieces_cover_the_blob(size: int, lengths: list[int]) -> None:
    blob = Blob(bytes(32), size)
    assert [len(piece_range(blob, piece)) for piece in range(piece_count(size))] == lengths
    for piece in (-1, piece_count(size)):
        with pytest.raises(ValueError, match=f"piece {piece} must be in"):
            piece_range(blob, piece)


def test_the_name_depends_on_size_and_every_piece() -> None:
    data = bytes(BLOB_PIECE_BYTES) + b"end"
    blob = blob_of(data)
    pieces = [piece_digest(data[:BLOB_PIECE_BYTES]), piece_digest(b"end")]
    assert index_blob(len(data), pieces) == blob
    assert index_blob(len(data) + 1, pieces).digest != blob.digest
    assert index_blob(len(data), pieces[::-1]).digest != blob.digest
    # Pinned: the same content has the same name in every release.
    assert blob_of(b"").digest.hex()[:16] == "9f744022e25317a3"
    assert blob_of(b"light").digest.hex()[:16] == "2f72ff9b3bd3a5f2"


@settings(max_examples=50)
@given(st.binary(min_size=32, max_size=32), st.integers(0, BLOB_BYTES_MAX))
def test_a_written_name_is_read_back(digest: bytes, size: int) -> None:
    blob = Blob(digest, size)
    check_blob(blob)
    assert parse_blob_name(blob_name(blob)) == blob


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (DIGEST, "must be <digest in hex>:<size in bytes>"),
        ("", "must be <digest in hex>:<size in bytes>"),
        (DIGEST[2:] + ":5", "must begin with 64 digits"),
        (DIGEST.upper() + ":5", "must begin with 64 digits"),
        ("zz" + DIGEST[2:] + ":5", "must begin with 64 digits"),
        (DIGEST + ":", "must end in a size"),
        (DIGEST + ":05", "without leading zeros"),
        (DIGEST + ":-5", "must end in a size"),
        (DIGEST + ":5 ", "must end in a size"),
        (DIGEST + ":٥", "must end in a size"),
        (DIGEST + ":" + "9" * 5_000, "without leading zeros"),
        (DIGEST + f":{BLOB_BYTES_MAX + 1}", f"at most {BLOB_BYTES_MAX} bytes"),
    ],
)
def test_a_name_that_isnt_one_is_refused_by_its_rule(text: str, rule: str) -> None:
    with pytest.raises(ValueError, match="blob name") as refusal:
        parse_blob_name(text)
    assert rule in str(refusal.value)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    "blob", [Blob(b"short", 1), Blob(bytes(32), -1), Blob(bytes(32), BLOB_BYTES_MAX + 1)]
)
def test_a_peers_blob_is_checked(blob: Blob) -> None:
    with pytest.raises(Malformed):
        check_blob(blob)
