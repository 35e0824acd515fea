"""The blob store keeps what it was given, within its bounds, through crashes and damage."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from p2p_node.blobs import BlobError, BlobMissing, BlobStore, BlobStoreBroken, StoreFull
from p2p_node.blobs import store as store_module
from p2p_node.blobs.partial import PieceRejected
from protocols.blobs import Blob, blob_of
from protocols.limits import BLOB_PIECE_BYTES
from tests.blobs.rig import content, index_of
from workloads.blobs import BlobFolder

MIB = BLOB_PIECE_BYTES


class Clock:
    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def __call__(self) -> int:
        self.ms += 1
        return self.ms


def opened(root: Path, *, bytes_max: int = 64 * MIB, clock: Clock | None = None) -> BlobStore:
    return BlobStore.open(root, bytes_max=bytes_max, clock=clock or Clock())


def files(store: BlobStore) -> set[str]:
    return {path.name for path in store.folder.iterdir()}


# --- Keeping ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB + 7])
def test_what_is_added_is_named_by_its_content_and_read_back(tmp_path: Path, size: int) -> None:
    data = content(3, size)
    store = opened(tmp_path)
    blob = store.add(data)
    assert blob == blob_of(data)
    assert store.has(blob)
    assert store.path(blob).read_bytes() == data
    assert store.path(blob).stat().st_mode & 0o222 == 0
    assert b"".join(store.read_piece(blob, piece) for piece in range(-(-size // MIB))) == data
    assert store.index(blob) == index_of(data)
    assert store.bytes_used == size
    # The folder is what a worker reads.
    assert BlobFolder(store.folder, lambda blob, data: None).read(blob) == data


async def test_a_file_is_added_in_parts(tmp_path: Path) -> None:
    data = content(5, 3 * MIB)
    source = tmp_path / "source"
    source.write_bytes(data)
    store = opened(tmp_path / "blobs")
    blob = await store.add_file(source)
    assert blob == blob_of(data)
    assert store.path(blob).read_bytes() == data
    source.write_bytes(b"changed later")
    assert store.path(blob).read_bytes() == data
    with pytest.raises(BlobError, match=r"can't read .*absent: No such file"):
        await store.add_file(tmp_path / "absent")


def test_parts_of_any_size_make_the_same_blob(tmp_path: Path) -> None:
    data = content(7, 2 * MIB + 123)
    store = opened(tmp_path)
    with store.writer() as writer:
        at = 0
        for size in (1, MIB, 5, MIB - 3, len(data)):
            writer.write(data[at : at + size])
            at += size
        assert writer.finish() == blob_of(data)
    assert store.path(blob_of(data)).read_bytes() == data


def test_adding_twice_keeps_one(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert store.add(b"same") == store.add(b"same")
    assert len(files(store)) == 1
    assert store.bytes_used == 4


def test_a_name_with_another_size_isnt_here(tmp_path: Path) -> None:
    store = opened(tmp_path)
    blob = store.add(b"content")
    assert not store.has(Blob(blob.digest, blob.size_bytes + 1))
    with pytest.raises(BlobMissing, match=f"blob {blob.digest.hex()} of 8 bytes isn't here"):
        store.path(Blob(blob.digest, 8))
    assert store.has(blob)


def test_an_unfinished_writer_leaves_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path)
    with pytest.raises(RuntimeError), store.writer() as writer:
        writer.write(bytes(MIB))
        raise RuntimeError("the caller stopped")
    assert store.bytes_used == 0
    assert list((tmp_path / "partial").iterdir()) == []


def test_removing(tmp_path: Path) -> None:
    store = opened(tmp_path)
    blob = store.add(b"content")
    store.pin(blob, "user")
    with pytest.raises(BlobError, match="must not be pinned, and is by user"):
        store.remove(blob)
    store.unpin("user")
    store.remove(blob)
    assert not store.has(blob) and files(store) == set() and store.bytes_used == 0
    with pytest.raises(BlobMissing):
        store.remove(blob)


# --- Bounds -----------------------------------------------------------------------------------


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    store = opened(tmp_path, bytes_max=3_000)
    one, two, three = (store.add(content(number)) for number in (1, 2, 3))
    store.path(one)
    four = store.add(content(4))
    assert [store.has(blob) for blob in (one, two, three, four)] == [True, False, True, True]
    assert [row.blob for row in store.stored()] == [four, one, three]


def test_what_is_pinned_stays_until_its_last_owner_lets_go(tmp_path: Path) -> None:
    store = opened(tmp_path, bytes_max=2_000)
    one, two = store.add(content(1)), store.add(content(2))
    store.pin(one, "job-a")
    store.pin(one, "job-b")
    store.pin(two, "job-b")
    with pytest.raises(StoreFull, match="1000 bytes must fit into blob_bytes_max=2000, of which 2000"):
        store.add(content(3))
    store.unpin("job-b")
    three = store.add(content(3))
    assert store.has(one) and not store.has(two)
    store.unpin("job-a")
    store.add(content(4))
    assert not store.has(one) and store.has(three)


def test_a_pin_can_come_before_its_blob_and_go_alone(tmp_path: Path) -> None:
    store = opened(tmp_path, bytes_max=2_000)
    early, other = blob_of(content(1)), store.add(content(2))
    store.pin(early, "user")
    store.pin(other, "user")
    store.unpin("user", other)
    store.add(content(1))
    store.add(content(3))
    assert store.has(early) and not store.has(other)
    assert {row.blob: row.pins for row in store.stored()}[early] == ("user",)


def test_a_blob_larger_than_the_store_evicts_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path, bytes_max=2_000)
    blob = store.add(content(1))
    with pytest.raises(StoreFull):
        store.begin(Blob(bytes(32), 2_001))
    assert store.has(blob)


def test_what_nobody_used_for_long_goes(tmp_path: Path) -> None:
    clock = Clock()
    store = opened(tmp_path, clock=clock)
    old, held, fresh = (store.add(content(number)) for number in (1, 2, 3))
    store.pin(held, "user")
    clock.ms += store_module.AGE_MS_MAX
    store.path(fresh)
    store.tidy()
    assert [store.has(blob) for blob in (old, held, fresh)] == [False, True, True]


def test_a_full_disk_is_said_to_be_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path)
    kept = store.add(content(1))
    store.pin(kept, "user")
    usage = type("Usage", (), {"free": store_module.DISK_MARGIN_BYTES + 500})()
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StoreFull, match="must have 1000 bytes free"):
        store.add(content(2))

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.undo()
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StoreFull, match=r"the disk of .* is full"):
        store.add(content(2))
    assert files(store) == {kept.digest.hex()}
    assert store.bytes_used == 1_000


# --- Restarts, crashes and damage ----------------------------------------------------------------


def test_blobs_pins_and_use_survive_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    store = opened(tmp_path, bytes_max=2_000, clock=clock)
    one, two = store.add(content(1)), store.add(content(2))
    clock.ms += store_module.TOUCH_MS
    store.path(one)
    store.pin(two, "user")
    store.close()
    again = opened(tmp_path, bytes_max=2_000, clock=clock)
    assert [(row.blob, row.pins) for row in again.stored()] == [(one, ()), (two, ("user",))]
    again.add(content(3))
    assert again.has(two) and not again.has(one)


def test_a_changed_file_is_dropped_when_it_is_looked_up(tmp_path: Path) -> None:
    store = opened(tmp_path)
    blob = store.add(content(1))
    path = store.path(blob)
    path.chmod(0o644)
    path.write_bytes(content(2))
    assert not store.has(blob)
    assert files(store) == set() and store.bytes_used == 0


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_damage_while_nobody_looked_is_found_on_opening(tmp_path: Path, harm: str) -> None:
    store = opened(tmp_path)
    blob, other = store.add(content(1)), store.add(content(2))
    path = store.path(blob)
    store.close()
    path.chmod(0o644)
    if harm == "flip":
        path.write_bytes(b"\xff" + content(1)[1:])
    elif harm == "truncate":
        path.write_bytes(b"")
    else:
        path.unlink()
    again = opened(tmp_path)
    assert not again.has(blob) and again.has(other)
    assert files(again) == {other.digest.hex()}


def test_bits_that_rot_are_found_when_a_piece_is_served(tmp_path: Path) -> None:
    store = opened(tmp_path)
    data = content(1, 2 * MIB)
    blob = store.add(data)
    path = store.path(blob)
    times = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(MIB + 5)
        file.write(b"\xff\xfe\xfd")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.read_piece(blob, 0) == data[:MIB]
    with pytest.raises(BlobMissing, match="came to harm and was dropped"):
        store.read_piece(blob, 1)
    assert not store.has(blob)


def test_a_damaged_index_costs_the_blob_and_no_more(tmp_path: Path) -> None:
    store = opened(tmp_path)
    blob, other = store.add(content(1)), store.add(content(2))
    (tmp_path / "index" / blob.digest.hex()).write_bytes(bytes(32))
    with pytest.raises(BlobMissing):
        store.index(blob)
    assert not store.has(blob) and store.has(other)


@pytest.mark.parametrize("junk", [None, b"not a database at all, just bytes" * 100])
def test_lost_records_cost_the_pins_and_no_more(tmp_path: Path, junk: bytes | None) -> None:
    store = opened(tmp_path)
    blob = store.add(content(1, 2 * MIB))
    store.pin(blob, "user")
    store.close()
    for path in tmp_path.glob("blobs.sqlite*"):
        path.unlink()
    if junk is not None:
        (tmp_path / "blobs.sqlite").write_bytes(junk)
    (store.folder / ("ab" * 32)).write_bytes(b"a stranger's file")
    again = opened(tmp_path)
    assert [(row.blob, row.pins) for row in again.stored()] == [(blob, ())]
    assert again.index(blob) == index_of(content(1, 2 * MIB))
    assert files(again) == {blob.digest.hex()}


def test_a_crash_between_name_and_record_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path)

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store._book, "keep", crash)
    with pytest.raises(KeyboardInterrupt):
        store.add(content(1))
    store.close()
    assert opened(tmp_path).has(blob_of(content(1)))


def test_a_folder_that_cant_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BlobStoreBroken, match="can't use the blob store"):
        opened(tmp_path / "file")


def test_records_that_cant_be_written_are_the_operators(tmp_path: Path) -> None:
    store = opened(tmp_path)
    other = sqlite3.connect(tmp_path / "blobs.sqlite", isolation_level=None)
    other.execute("DROP TABLE pins")
    other.close()
    with pytest.raises(BlobStoreBroken, match="can't write the blob store's records"):
        store.pin(Blob(bytes(32), 1), "user")


# --- Blobs on their way -----------------------------------------------------------------------


def test_pieces_come_in_any_order_and_are_checked(tmp_path: Path) -> None:
    data = content(9, 3 * MIB + 5)
    blob, pieces = blob_of(data), [data[at : at + MIB] for at in range(0, len(data), MIB)]
    store = opened(tmp_path)
    partial = store.begin(blob)
    assert store.bytes_used == len(data)
    with pytest.raises(ValueError, match="before the index is here"):
        partial.write(0, pieces[0])
    for wrong in (b"", index_of(data)[:-32], index_of(data)[32:] + index_of(data)[:32], bytes(128)):
        with pytest.raises(PieceRejected, match="isn't that of blob"):
            partial.accept_index(wrong)
    partial.accept_index(index_of(data))
    partial.write(2, pieces[2])
    for piece, wrong in ((0, pieces[1]), (1, pieces[1][:-1]), (1, pieces[1] + b"more"), (1, b"")):
        with pytest.raises(PieceRejected, match=f"piece {piece} of blob"):
            partial.write(piece, wrong)
    with pytest.raises(ValueError, match="piece 4 must be in"):
        partial.write(4, b"")
    assert partial.missing == [0, 1, 3]
    assert partial.read(2) == pieces[2]
    with pytest.raises(BlobMissing):
        partial.read(0)
    with pytest.raises(ValueError, match="3 pieces are missing"):
        store.complete(partial)
    assert not store.has(blob)
    for piece in partial.missing:
        partial.write(piece, pieces[piece])
    assert partial.bytes_here == len(data)
    assert store.complete(partial).read_bytes() == data
    assert store.has(blob) and store.bytes_used == len(data)
    assert list((tmp_path / "partial").iterdir()) == []


def test_an_empty_blob_needs_nobody(tmp_path: Path) -> None:
    store = opened(tmp_path)
    partial = store.begin(blob_of(b""))
    assert partial.missing == []
    assert store.complete(partial).read_bytes() == b""


@pytest.mark.parametrize("ends", ["paused", "killed"])
def test_a_cut_or_a_crash_costs_no_piece_that_was_written(tmp_path: Path, ends: str) -> None:
    data = content(9, 3 * MIB + 5)
    store = opened(tmp_path)
    partial = store.begin(blob_of(data))
    partial.accept_index(index_of(data))
    partial.write(1, data[MIB : 2 * MIB])
    partial.write(2, data[2 * MIB : 3 * MIB])
    if ends == "paused":
        store.pause(partial)
    else:
        store.close()
        store = opened(tmp_path)
        assert store.bytes_used == 4 * MIB
    resumed = store.begin(blob_of(data))
    assert resumed.missing == [0, 3]
    assert resumed.index == index_of(data)


def test_a_crash_in_the_middle_of_a_piece_costs_that_piece(tmp_path: Path) -> None:
    data = content(9, 3 * MIB + 5)
    store = opened(tmp_path)
    partial = store.begin(blob_of(data))
    partial.accept_index(index_of(data))
    for piece in (0, 1):
        partial.write(piece, data[piece * MIB : (piece + 1) * MIB])
    store.close()
    # The mark reached the disk, half of the piece didn't.
    with partial.path.open("r+b") as file:
        file.seek(MIB + MIB // 2)
        file.write(bytes(MIB // 2))
    again = opened(tmp_path)
    assert again.begin(blob_of(data)).missing == [1, 2, 3]


def test_a_damaged_index_of_a_partial_starts_it_anew(tmp_path: Path) -> None:
    data = content(9, 2 * MIB + 5)
    store = opened(tmp_path)
    partial = store.begin(blob_of(data))
    partial.accept_index(index_of(data))
    partial.write(0, data[:MIB])
    store.pause(partial)
    partial.index_path.write_bytes(bytes(96))
    resumed = store.begin(blob_of(data))
    assert resumed.index is None and resumed.missing == [0, 1, 2]


def test_what_is_on_its_way_counts_and_yields_only_when_paused(tmp_path: Path) -> None:
    store = opened(tmp_path, bytes_max=3_000)
    coming = Blob(bytes(32), 2_000)
    partial = store.begin(coming)
    with pytest.raises(StoreFull, match="on their way"):
        store.begin(Blob(bytes([1]) * 32, 1_001))
    store.pause(partial)
    store.begin(Blob(bytes([1]) * 32, 1_001))
    assert store.bytes_used == 1_001
    assert not partial.path.exists()
