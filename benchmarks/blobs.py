"""How fast a blob moves between two processes over libp2p, and how much memory that takes.

    python -m benchmarks.blobs [--quick]

The same bytes go over a raw trio TCP stream, over a bare libp2p stream (noise and yamux, in writes of 1 MiB),
and as a blob: read and checked by its peer, checked again on arrival, and written to our disk. Rounds of the
three are interleaved, and each figure is the best of its rounds: what else the machine does only slows.
Processor time is that of both processes; where they have cores to spare, hashing and the disk hide behind the
network.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
import trio

from benchmarks.network import Lines, network
from benchmarks.table import machine_line, print_table
from p2p_node.blobs import BlobService, BlobStore
from p2p_node.network.port import BulkStream, Network
from protocols.blobs import Blob, blob_name, parse_blob_name

MIB = 1 << 20
BYTES_MAX = 8 << 30
RATE = 1 << 40
"""So fast that no limit is felt."""


@dataclass(frozen=True)
class Effort:
    """How much to move."""

    speed_mib: int
    rounds: int
    memory_mib: int


FULL = Effort(speed_mib=256, rounds=3, memory_mib=1024)
QUICK = Effort(speed_mib=32, rounds=2, memory_mib=64)


def clock() -> int:
    return time.time_ns() // 1_000_000


def service_on(store: BlobStore) -> BlobService:
    return BlobService(store, serve_bytes_per_s=RATE, serve_peer_bytes_per_s=RATE)


# --- Memory ---------------------------------------------------------------------------------------


def reset_peak() -> None:
    """Begin to measure the peak anew; not everywhere allowed."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory_mib() -> tuple[float, float]:
    """Resident now, and at most since the last reset, in MiB."""
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return tuple(int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


# --- The peer in another process ------------------------------------------------------------------


async def giver_process(folder: Path) -> None:
    """Give bytes over TCP, over bulk streams, and as blobs; take commands from the input, a line each."""
    part = bytes(MIB)

    async def give_tcp(stream: trio.SocketStream) -> None:
        for _ in range(int(await stream.receive_some(16))):
            await stream.send_all(part)

    async def give_bulk(stream: BulkStream) -> None:
        for _ in range(int(await stream.receive())):
            await stream.send(part)
        await trio.sleep(1)

    store = BlobStore.open(folder, bytes_max=BYTES_MAX, clock=clock)
    service = service_on(store)
    async with network() as net, trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, give_tcp, 0, host="127.0.0.1"))
        net.serve_bulk("raw/1", give_bulk)
        nursery.start_soon(drain, net)
        await nursery.start(service.run, net)
        print(json.dumps([listener.socket.getsockname()[1], net.addresses[0]]), flush=True)
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            command, _, count = line.strip().partition(" ")
            if command == "make":
                print(blob_name(await trio.to_thread.run_sync(make, store, int(count))), flush=True)
            elif command == "cpu":
                print(time.process_time(), flush=True)
            else:
                peak = memory_mib()
                reset_peak()
                print(json.dumps(peak), flush=True)
        nursery.cancel_scope.cancel()


def make(store: BlobStore, count: int) -> Blob:
    """A blob of so many MiB, no two pieces alike."""
    with store.writer() as writer:
        for number in range(count):
            writer.write(number.to_bytes(8, "little") * (MIB // 8))
        return writer.finish()


async def drain(net: Network) -> None:
    async for _ in net.events:
        pass


# --- Our side -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moved:
    """One round: MiB a second, and processor milliseconds for each MiB."""

    mib_per_s: float
    cpu_ms: float


async def timed(
    move: Callable[[], Awaitable[None]], count: int, their_cpu_s: Callable[[], Awaitable[float]]
) -> Moved:
    cpu_s = time.process_time() + await their_cpu_s()
    began = time.perf_counter()
    await move()
    took_s = time.perf_counter() - began
    cpu_s = time.process_time() + await their_cpu_s() - cpu_s
    return Moved(count / took_s, 1_000 * cpu_s / count)


async def take_tcp(port: int, count: int) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(str(count).encode())
        missing = count * MIB
        while missing:
            missing -= len(await stream.receive_some(MIB))


async def take_bulk(net: Network, peer: bytes, count: int) -> None:
    stream = await net.open_bulk(peer, "raw/1")
    await stream.send(str(count).encode())
    missing = count * MIB
    while missing:
        missing -= len(await stream.receive())
    await stream.close()


async def measure(effort: Effort, folder: Path) -> tuple[dict[str, list[Moved]], list[list[str]]]:
    """Speeds by name, and the table of memory."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "benchmarks.blobs", "--giver", str(folder / "giver")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    answers = Lines(process.stdout)

    async def ask(command: str) -> str:
        assert process.stdin is not None
        await process.stdin.send_all(command.encode() + b"\n")
        return (await answers.next()).decode()

    try:
        port, address = json.loads(await answers.next())
        store = BlobStore.open(folder / "taker", bytes_max=BYTES_MAX, clock=clock)
        service = service_on(store)
        async with network() as net, trio.open_nursery() as nursery:
            nursery.start_soon(drain, net)
            await nursery.start(service.run, net)
            peer = await net.dial(address)
            blob = parse_blob_name(await ask(f"make {effort.speed_mib}"))

            async def take_blob(blob: Blob) -> None:
                await service.fetch(blob, [peer])

            async def their_cpu_s() -> float:
                return float(await ask("cpu"))

            size = effort.speed_mib
            paths: dict[str, Callable[[], Awaitable[None]]] = {
                "raw trio TCP": partial(take_tcp, port, size),
                "libp2p stream": partial(take_bulk, net, peer, size),
                "blob": partial(take_blob, blob),
            }
            speeds: dict[str, list[Moved]] = {name: [] for name in paths}
            for _ in range(effort.rounds):
                for name, move in paths.items():
                    speeds[name].append(await timed(move, size, their_cpu_s))
                store.remove(blob)
            large = parse_blob_name(await ask(f"make {effort.memory_mib}"))
            await ask("memory")
            before, (giver_before, _) = memory_mib()[0], json.loads(await ask("memory"))
            reset_peak()
            await take_blob(large)
            peaks = memory_mib()[1], json.loads(await ask("memory"))[1]
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
    rows = []
    for name, start, peak in (("taker", before, peaks[0]), ("giver", giver_before, peaks[1])):
        more = peak - start
        rows.append([name, f"{start:.0f}", f"{peak:.0f}", f"{more:.0f}", f"{more / effort.memory_mib:.3f}"])
    return speeds, rows


def speed_rows(speeds: dict[str, list[Moved]]) -> list[list[str]]:
    """Each path's best round, beside the raw stream's and the libp2p stream's."""
    best = {name: max(moved.mib_per_s for moved in rounds) for name, rounds in speeds.items()}
    cpu = {name: min(moved.cpu_ms for moved in rounds) for name, rounds in speeds.items()}
    return [
        [
            name,
            f"{value:.0f}",
            f"{value / best['raw trio TCP']:.3f}",
            f"{value / best['libp2p stream']:.2f}",
            f"{cpu[name]:.1f}",
            f"{cpu[name] / cpu['libp2p stream']:.2f}x",
        ]
        for name, value in best.items()
    ]


def main(*, quick: bool = False) -> None:
    """Measure everything and print it."""
    effort = QUICK if quick else FULL
    print(machine_line(), flush=True)
    folder = Path(tempfile.mkdtemp(prefix="blobs-bench-"))
    try:
        speeds, memory = trio.run(measure, effort, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print_table(
        f"{effort.speed_mib} MiB between two processes, best of {effort.rounds} rounds",
        ["path", "MiB/s", "to raw", "to libp2p", "CPU ms/MiB", "to libp2p"],
        speed_rows(speeds),
    )
    print_table(
        f"Resident memory while a blob of {effort.memory_mib} MiB moves",
        ["process", "before MiB", "peak MiB", "more", "of the blob"],
        memory,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller blobs, a few seconds")
    parser.add_argument("--giver", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    if arguments.giver is not None:
        trio.run(giver_process, arguments.giver)
    else:
        main(quick=arguments.quick)
