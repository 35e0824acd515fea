"""Hostile code in a locked-down worker: each attempt is stopped, and node and pool go on."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from p2p_node import keystore
from p2p_node.datadir import DataDir
from p2p_node.workers import RunLimits, WorkerPool, WorkerSettings
from workloads.frames import Event, Failed, Finished, Generate, ModelRef, Output
from workloads.sandbox import LAYERS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")

PLUGIN = Path(__file__).with_name("hostile.py")
MODEL = ModelRef(".", bytes(32), "native", workload="test.hostile")
MEMORY_BYTES_MAX = 1 << 30
UNITS_MAX = 50_000

# Attack, its arguments, the reason it must end with, a part of the detail, and layers of which one stops it.
CASES: list[tuple[str, list[str], str, str, set[str]]] = [
    ("connect", ["PORT"], "not-permitted", "PermissionError", {"seccomp"}),
    ("send_datagram", ["PORT"], "not-permitted", "PermissionError", {"seccomp"}),
    ("connect_locally", ["SOCKET"], "not-permitted", "PermissionError", {"seccomp"}),
    ("pair_up", [], "not-permitted", "PermissionError", {"seccomp"}),
    ("read", ["KEYSTORE"], "not-permitted", "Permission denied", {"landlock"}),
    ("read", ["ENVIRONMENT"], "not-permitted", "Permission denied", {"landlock"}),
    ("read", ["/etc/passwd"], "not-permitted", "Permission denied", {"landlock"}),
    ("read", ["/proc/self/maps"], "not-permitted", "Permission denied", {"landlock"}),
    ("list_folder", ["DATADIR"], "not-permitted", "Permission denied", {"landlock"}),
    ("list_folder", ["/"], "not-permitted", "Permission denied", {"landlock"}),
    ("write", ["DATADIR/new"], "not-permitted", "Permission denied", {"landlock"}),
    ("write", ["PACKAGE"], "not-permitted", "Permission denied", {"landlock"}),
    ("write_temporary", [], "crashed", "No usable temporary directory", {"landlock"}),
    ("remove", ["KEYSTORE"], "not-permitted", "", {"landlock", "seccomp"}),
    ("fill_disk", ["DATADIR"], "not-permitted", "Permission denied", {"landlock"}),
    ("fill_disk", ["/dev/shm"], "not-permitted", "Permission denied", {"landlock"}),
    ("fill_memory_file", [], "not-permitted", "", {"seccomp"}),
    ("execute", [], "not-permitted", "", {"landlock", "seccomp"}),
    ("run_program", [], "not-permitted", "", {"seccomp"}),
    ("vfork", [], "not-permitted", "", {"seccomp"}),
    ("fork_bomb", [], "not-permitted", "PermissionError", {"seccomp"}),
    ("thread_bomb", [], "out-of-memory", "can't start new thread", {"limits"}),
    ("kill", ["NODE"], "not-permitted", "", {"seccomp"}),
    ("kill_parent", [], "not-permitted", "", {"seccomp", "landlock"}),
    ("kill_all", [], "not-permitted", "", {"seccomp"}),
    ("survive_the_node", [], "not-permitted", "", {"seccomp"}),
    ("limit_the_node", ["NODE"], "not-permitted", "", {"seccomp"}),
    ("trace", ["NODE"], "not-permitted", "", {"seccomp"}),
    ("gain_powers", [], "not-permitted", "", {"seccomp"}),
    ("take_memory", [], "out-of-memory", "MemoryError", {"limits"}),
    ("take_memory_by_torch", [], "out-of-memory", "", {"limits"}),
    ("share_memory", [], "not-permitted", "", {"seccomp"}),
    ("grow_a_stack", [], "not-permitted", "", {"seccomp"}),
    ("take_descriptors", [], "crashed", "Too many open files", {"limits"}),
    ("say_forever", [], "output-limit", f"more than {UNITS_MAX} units", set()),
    ("compute_forever", [], "deadline", "of processor time", set()),
    ("print_forever", [], "deadline", "", set()),
    ("talk_nonsense", [], "worker-died", "not a frame", set()),
    ("crash", [], "worker-died", "SIGSEGV", set()),
    ("abort", [], "worker-died", "SIGABRT", set()),
    ("leave", [], "worker-died", "exited with status 0", set()),
    ("raise_error", [], "crashed", "one of those days", set()),
]
if platform.machine() == "x86_64":
    CASES.append(("call_as_another_architecture", [], "worker-died", "SIGSYS", {"seccomp"}))


@dataclass(frozen=True)
class Outcomes:
    """What all attacks came to, in one pool."""

    endings: list[Event]
    looks: list[tuple[int, ...]]
    holding: set[str]
    unread: bytes


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Every attack in turn, with a look around before and after."""
    place = DataDir.open(tmp_path_factory.mktemp("hostile") / "node")
    keystore.create(place.keystore, None)
    secret = place.keystore.read_bytes()
    with listening(place.path) as (port, path):
        words: dict[str, Any] = {
            "PORT": port,
            "SOCKET": str(path),
            "KEYSTORE": str(place.keystore),
            "DATADIR": str(place.path),
            "DATADIR/new": str(place.path / "new"),
            "PACKAGE": str(Path(keystore.__file__).parents[1] / "workloads" / "new"),
            "ENVIRONMENT": f"/proc/{os.getpid()}/environ",
            "NODE": os.getpid(),
        }
        inputs = [json.dumps([name, *(words.get(a, a) for a in given)]).encode() for name, given, *_ in CASES]
        endings, looks, holding = trio.run(attack, inputs)
    assert place.keystore.read_bytes() == secret
    assert not (place.path / "new").exists()
    assert not (place.path / "full").exists()
    return Outcomes(endings, looks, holding, secret)


@contextmanager
def listening(folder: Path) -> Iterator[tuple[int, Path]]:
    path = folder / "socket"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
        unix.listen()
        yield tcp.getsockname()[1], path


async def attack(inputs: list[bytes]) -> tuple[list[Event], list[tuple[int, ...]], set[str]]:
    settings = WorkerSettings(memory_bytes_max=MEMORY_BYTES_MAX, plugins=(PLUGIN,))
    limits = RunLimits(wall_s=10, cpu_s=2.0, units_max=UNITS_MAX)
    before = set(psutil.Process().children(recursive=True))
    pool = WorkerPool(1, settings, limits=limits)
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        looks, endings = [await look_around(pool)], []
        for data in inputs:
            events = await run(pool, data)
            endings.append(events[-1])
        looks.append(await look_around(pool))
        holding = {layer.name for layer in pool.layers if layer.holds}
        nursery.cancel_scope.cancel()
    assert set(psutil.Process().children(recursive=True)) <= before
    return endings, looks, holding


async def run(pool: WorkerPool, data: bytes) -> list[Event]:
    events: list[Event] = []
    done = trio.Event()

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, Finished | Failed):
            done.set()

    pool.start_run(Generate(0, MODEL, data), on_event)
    with trio.fail_after(60):
        await done.wait()
    return events


async def look_around(pool: WorkerPool) -> tuple[int, ...]:
    events = await run(pool, b'["look_around"]')
    return tuple(unit for event in events if isinstance(event, Output) for unit in event.units)


@pytest.mark.parametrize("index", range(len(CASES)), ids=["-".join([c[0], *c[1]]).lower() for c in CASES])
def test_an_attack_ends_in_a_typed_reason(outcomes: Outcomes, index: int) -> None:
    _, _, reason, detail, layers = CASES[index]
    if layers and not layers & outcomes.holding:
        pytest.skip(f"this kernel lacks {', '.join(sorted(layers))}")
    ending = outcomes.endings[index]
    assert isinstance(ending, Failed), ending
    assert ending.reason == reason, ending
    assert detail in ending.detail, ending


def test_the_pool_works_on_and_a_run_finds_nothing_left_by_another(outcomes: Outcomes) -> None:
    before, after = outcomes.looks
    assert len(before) == len(after) == 4
    # Descriptors: stdin, stdout, stderr, commands, events, and the one that says how much memory is in use.
    assert after[0] == before[0] == 6
    assert after[3] == before[3]


def test_all_layers_hold_where_the_kernel_has_them(outcomes: Outcomes) -> None:
    release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    if release < (6, 12) or platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("an older kernel, or another architecture")
    if "namespaces" not in outcomes.holding:
        pytest.skip("a container that allows no namespaces may lack more")
    assert outcomes.holding == set(LAYERS)
