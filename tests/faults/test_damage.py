"""Stores on full disks and with bytes overwritten or cut off: said clearly, and saved as far as it goes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from p2p_node.core.keyring import Keyring, RealCrypto
from p2p_node.core.node import NodeCore
from p2p_node.errors import UserError
from p2p_node.records import recover, tell_earnings
from p2p_node.runtime import Runtime
from p2p_node.salvage import salvage
from p2p_node.sim.scenario import job_request, sim_capability
from p2p_node.store import Store, StoreError
from protocols.digest import tagged
from protocols.effects import Persist
from tests.support.builders import NETWORK, NOW_MS
from tests.support.sim_executor import SimExecutor

TABLES = ("vouchers", "receipts", "outbox", "lanes", "contracts", "registry", "standings", "drafts")
ROWS = 60


def core() -> NodeCore:
    return NodeCore(
        keys=Keyring(bytes(32)),
        crypto=RealCrypto(),
        secret=bytes(32),
        network=NETWORK,
        capability=sim_capability(),
        jitter=random.Random(0),
    )


def filled(path: Path) -> dict[bytes, bytes]:
    """A store with rows of all sorts of sizes in each table; those of the receipts."""
    luck = random.Random(1)
    rows = {tagged("row", bytes([i])): luck.randbytes(luck.randint(1, 9_000)) for i in range(ROWS)}
    with Store.open(path) as store:
        for table in TABLES:
            store.apply([Persist(table, key, value) for key, value in rows.items()])
    return rows


def test_a_full_disk_is_named_with_the_remedy_and_nothing_is_half_written(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s") as store:
        store.apply([Persist("vouchers", b"a", b"1")])
        (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
        store._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(StoreError, match=r"is full; make room on the disk and start again"):
            store.apply([Persist("vouchers", b"b", b"2"), Persist("receipts", b"c", bytes(100_000))])
        assert store.load("vouchers") == {b"a": b"1"}


async def test_a_node_that_cant_write_says_nothing_more_and_ends(nursery: trio.Nursery) -> None:
    class Full:
        def apply(self, changes: Sequence[Persist]) -> None:
            raise UserError("the disk is full")

    class Wire:
        local_key = bytes(32)
        published = 0

        def __init__(self) -> None:
            self.sender, self.events = trio.open_memory_channel[object](1)

        async def publish(self, topic: str, data: bytes) -> None:
            self.published += 1

    executor = SimExecutor(nursery, units_max=1)
    runtime = Runtime(core(), executor=executor, keeper=Full(), clock=lambda: NOW_MS)
    wire = Wire()
    with pytest.raises(BaseExceptionGroup) as ended:
        async with trio.open_nursery() as running:
            await running.start(runtime.run, wire)
            # The client is told, and the node ends although it was a request that met the fault.
            with pytest.raises(UserError, match="the disk is full"):
                runtime.perform([Persist("vouchers", b"a", b"1")])
            runtime.submit(job_request(1), nonce=bytes(16))
            await trio.sleep(5)
    assert ended.group_contains(UserError, match="the disk is full")


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_store_is_refused_or_read_and_can_be_saved(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "node.sqlite"
    rows = filled(path)
    luck = random.Random(seed)
    size = path.stat().st_size
    with path.open("r+b") as file:
        if seed % 4 == 0:
            file.truncate(luck.randint(1, size))
        else:
            for _ in range(1 if seed % 2 else 40):
                file.seek(luck.randrange(size))
                file.write(luck.randbytes(luck.randint(1, 300)))
    damaged = path.read_bytes()
    try:
        with Store.open(path) as store:
            # Whatever is read is believed only where it is signed; nothing of it ends the node.
            node = core()
            recover(store, node, NOW_MS)
            trio.run(tell_earnings, store, node, {})
    except StoreError as error:
        assert "p2p-node store salvage" in str(error)
    done = salvage(path)
    assert done.damaged.read_bytes()[:100] == damaged[:100]
    with Store.open(path) as store:
        saved = store.load("receipts")
        whole = sum(saved.get(key) == value for key, value in rows.items())
        if seed % 4:
            assert whole >= ROWS // 2
        assert recover(store, core(), NOW_MS) is not None


def test_what_is_no_store_at_all_is_kept_and_a_new_one_begun(tmp_path: Path) -> None:
    path = tmp_path / "node.sqlite"
    path.write_bytes(b"hello, world! " * 1_000)
    done = salvage(path)
    assert (done.rows, len(done.unreadable)) == ({}, 15)
    assert done.damaged.read_bytes() == b"hello, world! " * 1_000
    with Store.open(path) as store:
        store.apply([Persist("jobs", b"a", b"1")])


def test_a_whole_store_loses_nothing(tmp_path: Path) -> None:
    rows = filled(tmp_path / "s")
    done = salvage(tmp_path / "s")
    assert done.unreadable == () and done.rows == dict.fromkeys(sorted(TABLES), ROWS)
    with Store.open(tmp_path / "s") as store:
        assert store.load("receipts") == rows
