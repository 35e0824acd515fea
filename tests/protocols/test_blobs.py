"""How blobs are named, cut into pieces, and checked by them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.blobs import (
    Ask,
    Blob,
    BlobMessage,
    Holding,
    Lacking,
    MessageSplitter,
    Piece,
    Want,
    blob_message,
    blob_name,
    blob_of,
    check_blob,
    index_blob,
    parse_blob_name,
    piece_count,
    piece_digest,
    piece_range,
    read_blob_message,
)
from protocols.errors import Malformed, Oversized
from protocols.limits import BLOB_BYTES_MAX, BLOB_MESSAGE_BYTES_MAX, BLOB_PIECE_BYTES

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


# --- What peers say to each other ----------------------------------------------------------------

NAMES = st.builds(Blob, st.binary(min_size=32, max_size=32), st.integers(0, BLOB_BYTES_MAX))
PIECES = st.integers(0, BLOB_BYTES_MAX // BLOB_PIECE_BYTES - 1)
MESSAGES: st.SearchStrategy[BlobMessage] = st.one_of(
    st.builds(Want, NAMES, st.booleans()),
    st.builds(Holding, st.binary(max_size=64)),
    st.builds(Lacking, st.booleans(), st.text(max_size=32)),
    st.builds(Ask, PIECES),
    st.builds(Piece, PIECES),
)


@settings(max_examples=100)
@given(MESSAGES)
def test_a_message_is_read_back(message: BlobMessage) -> None:
    assert read_blob_message(blob_message(message)[4:]) == message


@settings(max_examples=200)
@given(MESSAGES, st.data())
def test_bytes_are_a_message_in_one_form_or_refused(message: BlobMessage, data: st.DataObject) -> None:
    body = bytearray(blob_message(message)[4:])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        match data.draw(st.integers(0, 2)):
            case 0:
                body[at] ^= data.draw(st.integers(1, 255))
            case 1:
                body[at:at] = data.draw(st.binary(min_size=1, max_size=4))
            case 2 if len(body) > 1:
                del body[at]
    try:
        read = read_blob_message(bytes(body))
    except Malformed:
        return
    assert blob_message(read)[4:] == bytes(body)


@settings(max_examples=50)
@given(st.lists(st.one_of(MESSAGES, st.binary(max_size=200)), max_size=8), st.integers(1, 50))
def test_messages_and_bytes_come_off_a_stream_cut_anywhere(
    items: list[BlobMessage | bytes], cut: int
) -> None:
    stream = b"".join(item if isinstance(item, bytes) else blob_message(item) for item in items)
    splitter, taken = MessageSplitter(), []
    for at in range(0, len(stream) + cut, cut):
        splitter.feed(stream[at : at + cut])
        while len(taken) < len(items):
            item = items[len(taken)]
            found: BlobMessage | bytes | None = (
                splitter.take_bytes(len(item)) if isinstance(item, bytes) else splitter.take_message()
            )
            if found is None:
                break
            taken.append(found)
    assert taken == items
    assert splitter.waiting == 0


@pytest.mark.parametrize(
    "body",
    [
        blob_message(Want(Blob(b"short", 1), True))[4:],
        blob_message(Want(Blob(bytes(32), -1), True))[4:],
        blob_message(Ask(-1))[4:],
        blob_message(Piece(BLOB_BYTES_MAX // BLOB_PIECE_BYTES))[4:],
        blob_message(Lacking(True, "x" * 300))[4:],
        blob_message(Holding(bytes(BLOB_MESSAGE_BYTES_MAX)))[4:],
        b"",
        b"\x92\xa7unknown\x01",
    ],
)
def test_a_message_that_breaks_a_bound_is_refused(body: bytes) -> None:
    with pytest.raises(Malformed):
        read_blob_message(body)


def test_bytes_that_come_one_by_one_dont_pile_up() -> None:
    splitter = MessageSplitter()
    for number in range(5_000):
        splitter.feed(bytes((number % 256,)))
    assert len(splitter._parts) <= 1_025
    assert splitter.take_bytes(5_000) == bytes(number % 256 for number in range(5_000))


def test_an_announced_length_beyond_the_bound_is_refused_before_it_comes() -> None:
    splitter = MessageSplitter()
    splitter.feed((BLOB_MESSAGE_BYTES_MAX + 1).to_bytes(4, "little"))
    with pytest.raises(Oversized):
        splitter.take_message()
