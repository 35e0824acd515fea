"""Swarms of real peers on this machine: one process each, real libp2p over loopback.

For demonstrations, tests and whoever wants to try. A swarm leaves nothing behind: however the block of
`running_swarm` ends, its processes are stopped and their directories removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from platformdirs import user_cache_path

from p2p_node import keystore
from p2p_node.client import NodeClient, connect
from p2p_node.datadir import DataDir
from p2p_node.errors import ExitCode, UserError
from p2p_node.hostile import CHEATS
from protocols.digest import tagged
from protocols.identity import peer_id

__all__ = ["Site", "Swarm", "SwarmError", "SwarmPeer", "running_swarm"]

PEERS_MAX = 64
PRICE_MICROS = 100
"""What an honest peer asks for one output unit."""

CHEAT_PRICE_MICROS = 60
"""What a cheater asks: its work costs it less, so it can underbid and win."""

START_TIMEOUT_S = 240
MESH_S = 1.2
ACQUAINT_TIMEOUT_S = 60
STOP_S = 5
BOOTSTRAP_MAX = 4
LOG_TAIL_LINES = 15

OnEvent = Callable[[str, dict[str, Any]], None]


class SwarmError(UserError):
    """A peer of a local swarm didn't start, or didn't find the others."""

    exit_code = ExitCode.TASK_FAILED


@dataclass(frozen=True, slots=True)
class Site:
    """Where a peer runs: on loopback, or in a network of its own on this machine."""

    host: str = "127.0.0.1"
    """Where it listens."""
    launcher: tuple[str, ...] = ()
    """Put before its command, and becomes it."""
    api: str = "127.0.0.1:0"


@dataclass(slots=True)
class SwarmPeer:
    """One peer of a local swarm."""

    index: int
    peer_id: str
    address: str
    """Its multiaddress, ending in its peer id."""
    datadir: Path
    cheat: str
    price_micros: int
    process: subprocess.Popen[bytes]
    is_up: bool = False
    """Whether it has answered once."""

    def connect(self) -> AbstractContextManager[NodeClient]:
        """A client of its local API."""
        return connect(self.datadir)

    @property
    def log(self) -> Path:
        """What it logs."""
        return self.datadir / "node.log"

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self.process.poll() is None

    def log_tail(self) -> str:
        """The end of its log."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-LOG_TAIL_LINES:])


class Swarm:
    """Some running peers. Made by `running_swarm`, which also ends it."""

    def __init__(
        self,
        folder: Path,
        *,
        seed: int | None,
        latency_ms: int,
        on_event: OnEvent,
        models: Sequence[Path] = (),
        site_of: Callable[[int], Site] = lambda index: Site(),
    ) -> None:
        self.folder = folder
        self.peers: list[SwarmPeer] = []
        # Random even with a seed: two swarms of one seed must not mingle.
        self.network = f"swarm-{secrets.token_hex(4)}"
        self._secret = secrets.token_bytes(32) if seed is None else str(seed).encode()
        self._latency_ms = latency_ms
        self._models = [str(folder.resolve()) for folder in models]
        self._on_event = on_event
        self._started = 0
        self._site_of = site_of

    @property
    def requester(self) -> SwarmPeer:
        """The first peer, which is honest: give it the jobs."""
        return self.peers[0]

    def add(self, *, cheat: str = "", price_micros: int | None = None) -> SwarmPeer:
        """Start one more peer; `wait_until_acquainted` waits for it.

        Args:
            cheat: a kind of `p2p_node.hostile.CHEATS`, or nothing for an honest peer.
            price_micros: what it asks for one output unit; None is what peers of its kind ask.

        Raises:
            SwarmError: no such kind of cheat, or too many peers.
        """
        price = (CHEAT_PRICE_MICROS if cheat else PRICE_MICROS) if price_micros is None else price_micros
        return self._start([(cheat, price)])[0]

    def _start(self, wanted: list[tuple[str, int]]) -> list[SwarmPeer]:
        if len(self.peers) + len(wanted) > PEERS_MAX:
            raise SwarmError(f"a swarm has at most {PEERS_MAX} peers, got {len(self.peers) + len(wanted)}")
        # Where everybody will be is settled first, so that all can start at once and find each other.
        first = self._started
        self._started += len(wanted)
        identities = [self._make_identity(first + offset) for offset in range(len(wanted))]
        ports = _free_ports(len(wanted))
        addresses = [
            f"/ip4/{self._site_of(first + offset).host}/tcp/{port}/p2p/{peer_id(key)}"
            for offset, ((_, key), port) in enumerate(zip(identities, ports, strict=True))
        ]
        known = [peer.address for peer in self.peers if peer.is_running] + addresses
        started = []
        for offset, (cheat, price) in enumerate(wanted):
            datadir, key = identities[offset]
            others = [address for address in known if address != addresses[offset]]
            site = self._site_of(first + offset)
            process = self._spawn(
                site, datadir, ports[offset], others[:BOOTSTRAP_MAX], cheat=cheat, price_micros=price
            )
            peer = SwarmPeer(first + offset, peer_id(key), addresses[offset], datadir, cheat, price, process)
            self.peers.append(peer)
            started.append(peer)
            self._on_event("started", {"peer": peer})
        return started

    def _make_identity(self, index: int) -> tuple[Path, bytes]:
        place = DataDir.open(self.folder / f"peer-{index}")
        seed = tagged("p2p-node/swarm-peer/1", self._secret, index.to_bytes(4, "big"))
        return place.path, keystore.create(place.keystore, None, seed=seed).public

    def _spawn(
        self, site: Site, datadir: Path, port: int, bootstrap: list[str], *, cheat: str, price_micros: int
    ) -> subprocess.Popen[bytes]:
        command = [*site.launcher, sys.executable, "-I", "-m", "p2p_node", "start", "--no-mdns"]
        options = {
            "--datadir": str(datadir),
            "--listen": f"/ip4/{site.host}/tcp/{port}",
            "--api": site.api,
            "--network": self.network,
            "--price": str(price_micros),
            "--measured": str(self._measurements),
            # Of all swarms of this user: the second one needn't measure again.
            "--calibrations": str(user_cache_path("p2p-node") / "calibrations.json"),
            "--latency-ms": str(self._latency_ms),
            "--parent": str(os.getpid()),
        }
        if cheat:
            options["--cheat"] = cheat
        command += [part for pair in options.items() for part in pair]
        command += [part for address in bootstrap for part in ("--bootstrap", address)]
        command += [part for models in self._models for part in ("--models", models)]
        with (datadir / "node.log").open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own program
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                # A terminal's Ctrl-C is ours to handle: peers are stopped in order.
                start_new_session=True,
            )

    def restart(self, peer: SwarmPeer) -> None:
        """Start a peer again, with what its directory has; kill it first if it runs.

        `wait_until_acquainted` waits for it.
        """
        if peer.is_running:
            peer.process.kill()
        peer.process.wait()
        # Whoever is killed leaves word of an API that answers nobody.
        (peer.datadir / "api.json").unlink(missing_ok=True)
        peer.is_up = False
        port = int(peer.address.split("/")[4])
        others = [other.address for other in self.peers if other is not peer and other.is_running]
        peer.process = self._spawn(
            self._site_of(peer.index),
            peer.datadir,
            port,
            others[:BOOTSTRAP_MAX],
            cheat=peer.cheat,
            price_micros=peer.price_micros,
        )

    def remove(self, peer: SwarmPeer) -> None:
        """End one peer, as the end of the swarm would, and forget it."""
        self._stop([peer])
        # One that never came up is forgotten already.
        self.peers = [other for other in self.peers if other is not peer]

    # --- Starting --------------------------------------------------------------------------------

    @property
    def _measurements(self) -> Path:
        return self.folder / "measured.json"

    def _measure(self) -> None:
        """Measure the machine once: peers that measure at the same time would measure each other."""
        command = [sys.executable, "-I", "-m", "workloads.measure", "--disk", str(self.folder)]
        done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - our own program
        if done.returncode != 0:
            raise SwarmError(f"measuring this machine failed: {_last_line(done.stderr)}")
        self._measurements.write_bytes(done.stdout)
        self._on_event("measured", {"measured": json.loads(done.stdout)})

    def wait_until_acquainted(self, *, outcasts: Sequence[SwarmPeer] = ()) -> None:
        """Wait until every running peer answers and knows the adverts of all others.

        Args:
            outcasts: peers that the others may refuse as soon as they are up; nobody has to know them.

        Raises:
            SwarmError: a peer died, or it takes too long.
        """
        self._wait_until_up()
        running = [peer for peer in self.peers if peer.is_running and peer not in outcasts]
        offered = self._wait_until_measured(running)
        deadline = time.monotonic() + ACQUAINT_TIMEOUT_S
        for peer in running:
            with peer.connect() as client:
                while missing := _unheard(client, offered) - {peer.peer_id}:
                    if not peer.is_running:
                        raise self._died(peer)
                    if time.monotonic() > deadline:
                        raise SwarmError(
                            f"peer {peer.index} hasn't heard of {', '.join(sorted(missing))} within "
                            f"{ACQUAINT_TIMEOUT_S} s; its log ends:\n{peer.log_tail()}"
                        )
                    time.sleep(0.1)
        # Adverts also come by direct sync; an offer comes by the mesh, which takes peers in at its heartbeat.
        time.sleep(MESH_S)
        self._on_event("acquainted", {"peers": running})

    def _wait_until_measured(self, running: list[SwarmPeer]) -> dict[str, int]:
        """Wait until every peer knows how fast it is; how many offerings each has, by peer id."""
        deadline = time.monotonic() + START_TIMEOUT_S
        offered = {}
        for peer in running:
            with peer.connect() as client:
                while (status := client.status())["measuring"]:
                    if not peer.is_running:
                        raise self._died(peer)
                    if time.monotonic() > deadline:
                        waiting = ", ".join(status["measuring"])
                        raise SwarmError(
                            f"peer {peer.index} still measures {waiting} after {START_TIMEOUT_S} s; "
                            f"its log ends:\n{peer.log_tail()}"
                        )
                    time.sleep(0.1)
                offered[peer.peer_id] = len(status["offerings"])
        return offered

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        waiting = [peer for peer in self.peers if not peer.is_up]
        while waiting:
            for peer in list(waiting):
                if (peer.datadir / "api.json").exists():
                    waiting.remove(peer)
                    peer.is_up = True
                    self._on_event("up", {"peer": peer})
                elif not peer.is_running:
                    # It never was one of the swarm.
                    self.peers.remove(peer)
                    raise self._died(peer)
            if time.monotonic() > deadline:
                raise SwarmError(
                    f"peer {waiting[0].index} isn't up after {START_TIMEOUT_S} s; its log ends:\n"
                    f"{waiting[0].log_tail()}"
                )
            time.sleep(0.05)

    def _died(self, peer: SwarmPeer) -> SwarmError:
        return SwarmError(
            f"peer {peer.index} ended with status {peer.process.returncode}; its log ends:\n{peer.log_tail()}"
        )

    # --- Ending ----------------------------------------------------------------------------------

    def _end(self) -> None:
        self._stop(self.peers)

    def _stop(self, peers: list[SwarmPeer]) -> None:
        for peer in peers:
            if peer.is_running:
                peer.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for peer in peers:
            try:
                peer.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._on_event("killed", {"peer": peer})
                peer.process.kill()
                peer.process.wait()


@contextlib.contextmanager
def running_swarm(
    count: int,
    *,
    cheats: Mapping[str, int] | None = None,
    seed: int | None = None,
    latency_ms: int = 0,
    models: Sequence[Path] = (),
    site_of: Callable[[int], Site] = lambda index: Site(),
    on_event: OnEvent = lambda event, details: None,
) -> Iterator[Swarm]:
    """Run a local swarm for the length of the block; every peer knows all others when it begins.

    Args:
        count: peers, cheaters included; at least 2.
        cheats: how many of them cheat, by kind; these are the last ones, and underbid the others.
        seed: makes their identities the same each time; None draws them.
        latency_ms: one-way delay added to everything they send.
        models: directories whose models all of them offer.
        site_of: where each peer runs, by its index.
        on_event: told ``measured``, ``started``, ``up``, ``acquainted`` and ``killed``.

    Raises:
        SwarmError: it can't be started; the message ends with the log of the peer at fault.
    """
    kinds = [kind for kind, number in (cheats or {}).items() for _ in range(number)]
    for kind in kinds:
        if kind not in CHEATS:
            raise SwarmError(f"cheat {kind!r} must be one of {', '.join(CHEATS)}")
    if not max(2, len(kinds) + 1) <= count <= PEERS_MAX:
        raise SwarmError(
            f"a swarm must have 2 to {PEERS_MAX} peers, one of them honest, got {count} with "
            f"{len(kinds)} cheaters"
        )
    honest = [("", PRICE_MICROS)] * (count - len(kinds))
    with _ending_by_exception(), _folder() as folder:
        swarm = Swarm(
            folder, seed=seed, latency_ms=latency_ms, on_event=on_event, models=models, site_of=site_of
        )
        try:
            swarm._measure()
            swarm._start(honest + [(kind, CHEAT_PRICE_MICROS) for kind in kinds])
            swarm.wait_until_acquainted()
            yield swarm
        finally:
            # A second Ctrl-C must not leave peers behind.
            with _deaf():
                swarm._end()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="p2p-node-swarm-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _ending_by_exception() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does, so that what must be cleaned up is."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with _handling({signal.SIGTERM: leave, signal.SIGHUP: leave}):
        yield


def _deaf() -> AbstractContextManager[None]:
    return _handling(dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIG_IGN))


@contextlib.contextmanager
def _handling(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread may set handlers, and only it is interrupted.
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _unheard(client: NodeClient, offered: Mapping[str, int]) -> set[str]:
    """Peers of whose offerings a node doesn't know all yet."""
    heard = {row["peer_id"]: len(row["offerings"]) for row in client.peers() if row["offerings"] is not None}
    return {peer for peer, count in offered.items() if heard.get(peer) != count}


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on, below those that the system hands out to others meanwhile."""
    ports: list[int] = []
    generator = random.SystemRandom()
    while len(ports) < count:
        port = generator.randrange(16_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
