"""How fast the network is: gossip between processes and hosts, and the direct stream against raw trio TCP.

    python -m benchmarks.network [--quick]

Every figure is of this run on this machine; the ratios are to the raw TCP stream measured just before.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
import trio

from benchmarks.table import machine_line, percentile, print_table
from p2p_node.network.libp2p import open_network
from p2p_node.network.libp2p.network import Libp2pNetwork
from p2p_node.network.port import FrameReceived, GossipReceived
from protocols.rulings import Ruling

TOPIC = "/p2p-node/bench/jobs/1"
MESSAGE_BYTES = 1_024
REQUEST_BYTES = 1_024
BULK_FRAME_BYTES = (1 << 20) - 1
RATES = (5, 10, 20, 40, 80, 120, 160, 240, 320, 480, 640)
DELIVERED_MIN = 0.999
LATE_S_MAX = 0.5
PROBE_S_MAX = 3.0


@dataclass(frozen=True)
class Effort:
    """How much of each to measure."""

    probes: int
    rate_s: float
    requests: int
    bulk_mib: int
    rates: tuple[int, ...]


FULL = Effort(probes=60, rate_s=4.0, requests=500, bulk_mib=256, rates=RATES)
QUICK = Effort(probes=20, rate_s=1.5, requests=200, bulk_mib=64, rates=(10, 40, 80, 160, 320))


class NoBook:
    """Remembers nothing: whom to dial is part of the measurement."""

    def load(self) -> list[str]:
        return []

    def remember(self, address: str) -> None:
        pass

    def forget(self, address: str) -> None:
        pass


def network() -> Any:
    return open_network(
        seed=os.urandom(32),
        listen=["/ip4/127.0.0.1/tcp/0"],
        topics=[TOPIC],
        rule=lambda topic, data, forwarder: Ruling.ACCEPT,
        network_name="bench",
        bootstrap=[],
        address_book=NoBook(),
        mdns=False,
        jitter=random.Random(0),
        clock=lambda: time.monotonic_ns() // 1_000_000,
    )


def tag(sender: int, number: int) -> str:
    return f"{sender:03d}/{number:08d}"


def message(sender: int, number: int) -> bytes:
    return tag(sender, number).encode() + os.urandom(MESSAGE_BYTES - 12)


# --- One peer, in this process or another ---------------------------------------------------------


class Peer:
    """A network that notes when it hears what."""

    def __init__(self, net: Libp2pNetwork, number: int) -> None:
        self.net, self.number = net, number
        self.heard: dict[str, float] = {}

    async def listen(self) -> None:
        async for event in self.net.events:
            if isinstance(event, GossipReceived):
                self.heard[event.data[:12].decode()] = time.monotonic()
            elif isinstance(event, FrameReceived):
                await self._answer(event)

    async def _answer(self, event: FrameReceived) -> None:
        # Bulk is only counted: its last frame asks for an answer, as every request does.
        if event.data[:1] == b"?":
            await self.net.send(event.peer, event.data)

    async def do(self, command: list[Any]) -> Any:
        match command:
            case ["address"]:
                return self.net.addresses[0]
            case ["dial", addresses]:
                for address in addresses:
                    await self.net.dial(address)
            case ["mesh"]:
                return len(self.net.router.mesh.get(TOPIC, ()))
            case ["publish", first, count, start, interval]:
                for number in range(first, first + count):
                    await trio.sleep_until(trio.current_time() + start - time.monotonic())
                    await self.net.publish(TOPIC, message(self.number, number))
                    start += interval
            case ["heard"]:
                heard, self.heard = self.heard, {}
                return heard
        return None


async def peer_process(number: int) -> None:
    """Serve commands, one JSON array a line, until the input ends."""
    async with network() as net, trio.open_nursery() as nursery:
        peer = Peer(net, number)
        nursery.start_soon(peer.listen)
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            print(json.dumps(await peer.do(json.loads(line))), flush=True)
        nursery.cancel_scope.cancel()


# --- A swarm of them ------------------------------------------------------------------------------

Ask = Callable[[int, list[Any]], Awaitable[Any]]


async def measure_gossip(name: str, size: int, ask: Ask, effort: Effort) -> list[str]:
    """Connect ``size`` peers, then measure propagation and the highest rate that all of them keep up with."""
    rng = random.Random(size)

    async def ask_all(command: list[Any], indices: range = range(size)) -> list[Any]:
        answers: list[Any] = [None] * size

        async def one(index: int) -> None:
            answers[index] = await ask(index, command)

        async with trio.open_nursery() as nursery:
            for index in indices:
                nursery.start_soon(one, index)
        return answers

    addresses = await ask_all(["address"])
    for index in range(1, size):
        await ask(index, ["dial", [addresses[other] for other in rng.sample(range(index), min(index, 4))]])
    with trio.move_on_after(20):
        while min(await ask_all(["mesh"])) < min(3, size - 1):  # noqa: ASYNC110
            await trio.sleep(0.1)
    await trio.sleep(1)

    number = 0
    each, last = [], []
    for _ in range(effort.probes):
        sender = rng.randrange(size)
        start = time.monotonic() + 0.01
        await ask(sender, ["publish", number, 1, start, 0])
        delays: list[float] = []
        with trio.move_on_after(PROBE_S_MAX):
            while len(delays) < size - 1:
                await trio.sleep(0.05)
                sent = tag(sender, number)
                delays += [heard[sent] - start for heard in await ask_all(["heard"]) if sent in heard]
        number += 1
        each += delays
        if len(delays) == size - 1:
            last.append(max(delays))

    sustained = 0
    for rate in effort.rates:
        count = max(1, round(rate * effort.rate_s / size))
        start = time.monotonic() + 0.3

        async def publish(
            index: int, first: int = number, count: int = count, start: float = start, rate: int = rate
        ) -> None:
            await ask(index, ["publish", first, count, start + index / rate, size / rate])

        async with trio.open_nursery() as nursery:
            for index in range(size):
                nursery.start_soon(publish, index)
        await trio.sleep(LATE_S_MAX)
        arrivals = [when for heard in await ask_all(["heard"]) for when in heard.values()]
        number += count
        in_time = sum(when <= start + effort.rate_s + LATE_S_MAX for when in arrivals)
        if in_time < DELIVERED_MIN * count * size * (size - 1):
            await trio.sleep(3)
            await ask_all(["heard"])
            break
        sustained = rate
    return [
        name,
        f"{1e3 * statistics.median(each):.1f}",
        f"{1e3 * percentile(each, 95):.1f}",
        f"{1e3 * statistics.median(last):.1f}" if last else "-",
        f"{1e3 * percentile(last, 95):.1f}" if last else "-",
        f"{len(last)}/{effort.probes}",
        f"{'>= ' if sustained == effort.rates[-1] else ''}{sustained}",
    ]


async def gossip_between_processes(size: int, effort: Effort) -> list[str]:
    """Each peer in a process of its own."""
    processes = [
        await trio.lowlevel.open_process(
            [sys.executable, "-m", "benchmarks.network", "--peer", str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number in range(size)
    ]
    try:
        answers = [Lines(process.stdout) for process in processes]

        async def ask(index: int, command: list[Any]) -> Any:
            await processes[index].stdin.send_all(json.dumps(command).encode() + b"\n")
            return json.loads(await answers[index].next())

        return await measure_gossip(f"{size} processes", size, ask, effort)
    finally:
        with trio.CancelScope() as scope:
            scope.shield = True
            for process in processes:
                process.kill()
                await process.wait()


class Lines:
    """Lines of a byte stream."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._buffer = stream, bytearray()

    async def next(self) -> bytes:
        while b"\n" not in self._buffer:
            data = await self._stream.receive_some(65_536)
            if not data:
                raise EOFError("the peer's process ended")
            self._buffer += data
        line, _, rest = self._buffer.partition(b"\n")
        self._buffer = rest
        return bytes(line)


async def gossip_between_hosts(size: int, effort: Effort) -> list[str]:
    """Every peer in this process."""
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        peers = [Peer(await stack.enter_async_context(network()), number) for number in range(size)]
        for peer in peers:
            nursery.start_soon(peer.listen)
        row = await measure_gossip(
            f"{size} hosts, one process", size, lambda index, command: peers[index].do(command), effort
        )
        nursery.cancel_scope.cancel()
    return row


# --- Direct streams -------------------------------------------------------------------------------


async def echo_process() -> None:
    """A raw TCP echo of length-prefixed frames, and a peer that does the same on its link."""

    async def serve(stream: trio.SocketStream) -> None:
        buffer = bytearray()
        while data := await stream.receive_some(1 << 18):
            buffer += data
            while len(buffer) >= 4 and len(buffer) >= 4 + (size := struct.unpack_from("<I", buffer)[0]):
                frame = bytes(memoryview(buffer)[: 4 + size])
                del buffer[: 4 + size]
                if frame[4:5] == b"?":
                    await stream.send_all(frame)

    async with network() as net, trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        nursery.start_soon(Peer(net, 0).listen)
        print(json.dumps([listener.socket.getsockname()[1], net.addresses[0]]), flush=True)
        await trio.sleep_forever()


@dataclass(frozen=True)
class Figures:
    """Round trips in milliseconds and bulk in MiB a second."""

    p50_ms: float
    p95_ms: float
    mib_per_s: float


async def measure_stream(
    send: Callable[[bytes], Awaitable[None]], answer: Callable[[], Awaitable[None]], effort: Effort
) -> Figures:
    """Requests of 1 KiB one at a time, then bulk in 1 MiB frames, the better of two."""
    request = b"?" + bytes(REQUEST_BYTES - 1)
    trips = []
    for _ in range(effort.requests):
        start = time.perf_counter()
        await send(request)
        await answer()
        trips.append(1e3 * (time.perf_counter() - start))
    bulk = bytes(BULK_FRAME_BYTES)
    speeds = []
    for _ in range(2):
        start = time.perf_counter()
        for _ in range(effort.bulk_mib):
            await send(bulk)
        await send(request)
        await answer()
        speeds.append(effort.bulk_mib / (time.perf_counter() - start))
    return Figures(percentile(trips, 50), percentile(trips, 95), max(speeds))


async def direct_streams(effort: Effort) -> list[list[str]]:
    """Raw TCP first, then the link, against the same other process."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "benchmarks.network", "--echo"], stdout=subprocess.PIPE
    )
    try:
        port, address = json.loads(await Lines(process.stdout).next())
        stream = await trio.open_tcp_stream("127.0.0.1", port)

        async def send_raw(frame: bytes) -> None:
            await stream.send_all(struct.pack("<I", len(frame)) + frame)

        async def answer_raw() -> None:
            missing = 4 + REQUEST_BYTES
            while missing:
                missing -= len(await stream.receive_some(missing))

        raw = await measure_stream(send_raw, answer_raw, effort)
        async with network() as net:
            peer = await net.dial(address)

            async def send(frame: bytes) -> None:
                while not await net.send(peer, frame):  # noqa: ASYNC110
                    await trio.sleep(0.001)

            async def answer() -> None:
                while not isinstance(await net.events.receive(), FrameReceived):
                    pass

            link = await measure_stream(send, answer, effort)
    finally:
        with trio.CancelScope() as scope:
            scope.shield = True
            process.kill()
            await process.wait()
    return [
        [
            name,
            f"{figures.p50_ms:.2f}",
            f"{figures.p95_ms:.2f}",
            f"{figures.p50_ms / raw.p50_ms:.1f}x",
            f"{figures.mib_per_s:.0f}",
            f"{figures.mib_per_s / raw.mib_per_s:.3f}",
        ]
        for name, figures in (("raw trio TCP", raw), ("link (noise, yamux)", link))
    ]


# --- Running --------------------------------------------------------------------------------------


def main(*, quick: bool = False) -> None:
    """Measure everything and print it."""
    effort = QUICK if quick else FULL
    print(machine_line(), flush=True)
    print_table(
        "Direct stream: 1 KiB round trip and bulk in 1 MiB frames, between two processes",
        ["stream", "p50 ms", "p95 ms", "to raw", "MiB/s", "to raw"],
        trio.run(direct_streams, effort),
    )
    rows = [
        trio.run(gossip_between_processes, 4, effort),
        trio.run(gossip_between_processes, 8, effort),
        trio.run(gossip_between_hosts, 16, effort),
    ]
    print_table(
        "Gossip of 1 KiB: from publishing to each peer, to the last peer, and the rate that all keep up with",
        ["swarm", "p50 ms", "p95 ms", "last p50", "last p95", "complete", "messages/s"],
        rows,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller samples, about half a minute")
    parser.add_argument("--peer", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--echo", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    if arguments.peer is not None:
        trio.run(peer_process, arguments.peer)
    elif arguments.echo:
        trio.run(echo_process)
    else:
        main(quick=arguments.quick)
