"""One zygote for both pools: what it shares, and what happens when it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import trio

from p2p_node.workers import WorkerPool, WorkerSettings, Zygote
from workloads.frames import Event, Failed, Finished, Generate, ModelRef
from workloads.sandbox import bubblewrap

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")

PLUGIN = Path(__file__).with_name("hostile.py")
MODEL = ModelRef(".", bytes(32), "native", workload="test.hostile")
LOOK, HANG = b'["look_around"]', b'["compute_forever"]'


def start(pool: WorkerPool, data: bytes) -> tuple[trio.Event, list[Event]]:
    over, events = trio.Event(), list[Event]()

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, Finished | Failed):
            over.set()

    pool.start_run(Generate(0, MODEL, data), on_event)
    return over, events


async def finished(pool: WorkerPool, data: bytes) -> Event:
    over, events = start(pool, data)
    with trio.fail_after(60):
        await over.wait()
    return events[-1]


async def test_two_pools_share_one_that_is_started_again_when_it_dies() -> None:
    deaths: list[str] = []
    zygote = Zygote(WorkerSettings(plugins=(PLUGIN,)), deaths.append)
    pools = [WorkerPool(1, zygote=zygote), WorkerPool(1, zygote=zygote)]
    async with trio.open_nursery() as nursery:
        for runner in (zygote.run, pools[0].run, pools[1].run):
            await nursery.start(runner)
        waiting = psutil.Process(zygote.pid)
        (origin,) = waiting.children()
        workers = origin.children()
        assert len(workers) == 2
        # A fork copies the thread that calls it and no other.
        assert origin.num_threads() == 1
        assert [worker.num_threads() for worker in workers] == [2, 2]

        over, events = start(pools[0], HANG)
        await trio.sleep(0.05)
        os.kill(origin.pid, signal.SIGKILL)
        with trio.fail_after(60):
            await over.wait()
        failed = events[-1]
        assert isinstance(failed, Failed)
        assert failed.reason == "worker-died"
        # Whatever was forked from it went with it.
        psutil.wait_procs(workers, timeout=10)
        assert not any(worker.is_running() for worker in workers)
        for pool in pools:
            assert isinstance(await finished(pool, LOOK), Finished)
        assert len(deaths) == 1
        assert "zygote" in deaths[0]
        everybody = psutil.Process(zygote.pid).children(recursive=True)
        assert len(everybody) == 3
        nursery.cancel_scope.cancel()
    _, left = psutil.wait_procs(everybody, timeout=10)
    assert left == []


def test_a_zygote_with_threads_refuses_to_fork() -> None:
    code = (
        "import threading, workloads.zygote\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "workloads.zygote._stay_alone()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "2 threads run after the imports, and only 1 may" in ended.stderr


@pytest.mark.skipif(not bubblewrap.find(), reason="bubblewrap isn't installed")
def test_bubblewrap_starts_the_init_of_its_own_processes_without_a_network() -> None:
    looks = "import os; print(os.getpid(), open('/proc/net/dev').read().count(':'))"
    wrapped = bubblewrap.command([sys.executable, "-I", "-c", looks])
    if not wrapped:
        pytest.skip("bubblewrap can't do it here")
    done = subprocess.run(wrapped, capture_output=True, check=True)
    # Its one network device is its own loopback.
    assert done.stdout.split() == [b"1", b"1"]


def test_where_it_is_missing_or_fails_there_is_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bubblewrap, "_FOLDERS", str(tmp_path))
    assert bubblewrap.command(["true"]) == []
    (tmp_path / "bwrap").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    assert bubblewrap.command(["true"]) == []
    (tmp_path / "bwrap").write_text("#!/bin/sh\nexit 0\n")
    assert bubblewrap.command(["true", "x"])[-3:] == ["--", "true", "x"]
