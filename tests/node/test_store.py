"""What must not be forgotten."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_node.store import TABLES, Store, StoreError
from protocols.effects import Persist

CRASH = """
import os, sys
from pathlib import Path
from p2p_node import store as module
from protocols.effects import Persist

store = module.Store.open(Path(sys.argv[1]))
pair = lambda i: [Persist("vouchers", b"%d" % i, b"signed"), Persist("outbox", b"%d" % i, b"queued")]
for i in range(3):
    store.apply(pair(i))

class Dying:
    # Dies when the second change of a transaction is about to be written.
    table = "outbox"
    key = b"3"
    @property
    def value(self):
        os._exit(9)

store.apply([pair(3)[0], Dying()])
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path) as opened:
        yield opened


def test_what_was_applied_is_there_after_reopening(path: Path) -> None:
    with Store.open(path) as store:
        store.apply([Persist("jobs", b"a", b"1"), Persist("meta", b"a", b""), Persist("jobs", b"b", b"2")])
        store.apply(
            [Persist("jobs", b"a", b"3"), Persist("jobs", b"b", None), Persist("jobs", b"none", None)]
        )
    with Store.open(path) as store:
        assert store.load("jobs") == {b"a": b"3"}
        assert store.get("meta", b"a") == b""
        assert store.get("meta", b"b") is None


def test_changes_take_effect_in_order(store: Store) -> None:
    store.apply([Persist("jobs", b"a", b"1"), Persist("jobs", b"a", None), Persist("jobs", b"a", b"2")])
    assert store.load("jobs") == {b"a": b"2"}


def test_an_unknown_table_changes_nothing(store: Store) -> None:
    with pytest.raises(ValueError, match="table 'jobs; --' must be one of"):
        store.apply([Persist("jobs", b"a", b"1"), Persist("jobs; --", b"a", b"1")])
    assert store.load("jobs") == {}
    with pytest.raises(ValueError, match="must be one of"):
        store.load("nothing")


def test_a_change_that_fails_takes_the_others_back(store: Store) -> None:
    with pytest.raises((sqlite3.Error, StoreError)):
        store.apply([Persist("jobs", b"a", b"1"), Persist("jobs", b"b", object())])  # type: ignore[arg-type]
    assert store.load("jobs") == {}
    store.apply([Persist("jobs", b"c", b"1")])
    assert store.load("jobs") == {b"c": b"1"}


def test_pages_follow_each_other_in_the_order_of_keys(store: Store) -> None:
    keys = [number.to_bytes(2, "big") for number in range(700)]
    store.apply([Persist("receipts", key, key[::-1]) for key in reversed(keys)])
    assert [key for key, _ in store.items("receipts")] == keys
    assert store.page("receipts", rows_max=2) == [(keys[0], keys[0][::-1]), (keys[1], keys[1][::-1])]
    assert [key for key, _ in store.page("receipts", after=keys[690], rows_max=100)] == keys[691:]
    assert store.page("receipts", after=keys[-1]) == []
    assert store.count("receipts") == 700
    with pytest.raises(ValueError, match="rows_max must be >= 1, got 0"):
        store.page("receipts", rows_max=0)


def test_a_crash_leaves_whole_transactions_only(path: Path) -> None:
    died = subprocess.run([sys.executable, "-c", CRASH, str(path)], check=False)
    assert died.returncode == 9
    with Store.open(path) as store:
        assert list(store.load("vouchers")) == list(store.load("outbox")) == [b"0", b"1", b"2"]


def test_commits_reach_the_disk_before_they_return(path: Path) -> None:
    with Store.open(path) as store:
        connection = store._connection
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_only_what_owes_nobody_anything_may_reach_the_disk_later(path: Path) -> None:
    with Store.open(path) as store:
        waits: list[int] = []

        def on_write(*_: object) -> int:
            (level,) = store._connection.execute("PRAGMA synchronous").fetchone()
            waits.append(level)
            return 0

        store._connection.create_function("note_level", 0, on_write)
        store._connection.execute(
            "CREATE TEMP TRIGGER watch_jobs AFTER INSERT ON main.jobs BEGIN SELECT note_level(); END"
        )
        store.apply([Persist("jobs", b"a", b"1")])
        store.apply([Persist("jobs", b"b", b"1"), Persist("vouchers", b"b", b"1")])
        with pytest.raises(sqlite3.ProgrammingError):
            store.apply([Persist("jobs", b"c", None), Persist("jobs", b"d", object())])  # type: ignore[arg-type]
        assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert waits == [1, 2]


def test_a_newer_file_is_refused_and_left_alone(path: Path) -> None:
    with Store.open(path) as store:
        store.apply([Persist("jobs", b"a", b"1")])
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match=r"schema version 99.*versions up to 6.*newer p2p-node"):
        Store.open(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (99,)
    connection.close()


def test_a_file_that_is_no_database_is_named_with_the_remedy(path: Path) -> None:
    path.write_bytes(b"hello, world! " * 100)
    with pytest.raises(StoreError, match=r"node\.sqlite is damaged .*p2p-node store salvage"):
        Store.open(path)


def test_a_page_overwritten_later_is_named_with_the_remedy(path: Path) -> None:
    with Store.open(path) as store:
        store.apply([Persist("jobs", bytes([i]), bytes(2_000)) for i in range(100)])
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4_096)
        file.write(b"\xa5" * (size - 4_096))
    with pytest.raises(StoreError, match="is damaged"), Store.open(path) as store:
        store.load("jobs")


def test_a_directory_in_its_place_is_explained(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="can't open"):
        Store.open(tmp_path)


@given(
    st.lists(
        st.lists(
            st.builds(
                Persist,
                st.sampled_from(sorted(TABLES)),
                st.binary(max_size=2),
                st.none() | st.binary(max_size=4),
            ),
            max_size=6,
        ),
        max_size=6,
    )
)
def test_a_store_is_a_dictionary_per_table(batches: list[list[Persist]]) -> None:
    model: dict[str, dict[bytes, bytes]] = {table: {} for table in TABLES}
    with Store.open(Path(":memory:")) as store:
        for batch in batches:
            store.apply(batch)
            for change in batch:
                if change.value is None:
                    model[change.table].pop(change.key, None)
                else:
                    model[change.table][change.key] = change.value
        assert {table: store.load(table) for table in TABLES} == model
