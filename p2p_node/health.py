"""What a node would find on this machine: whether it can run, and how well its owner is protected.

Nothing is concluded from version numbers: a worker is forked and locked in as a node's would be, and says
what holds.
"""

from __future__ import annotations

import enum
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import psutil
import trio

from p2p_node.calibration import measure
from p2p_node.config import NodeConfig
from p2p_node.datadir import DataDir
from p2p_node.dialledback import dialled_back
from p2p_node.errors import UserError
from p2p_node.kernels import NO_KERNELS, find_kernels
from p2p_node.network.reachability import Found
from p2p_node.workers import WorkerDied, WorkerSettings, open_worker
from workloads.sandbox import bubblewrap

__all__ = ["Check", "State", "examine", "run"]

_GIB = 1 << 30
_FREE_BYTES_MIN = 1 * _GIB
_KERNELS_PATIENCE_S = 60.0


class State(enum.Enum):
    """How a check came out."""

    OK = "ok"
    WEAK = "weak"
    """A node runs, slower or less protected than it could."""
    FAILS = "fails"
    """A node doesn't run."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at."""

    name: str
    state: State
    detail: str


async def examine(config: NodeConfig, place: DataDir) -> list[Check]:
    """Look at everything that a node needs here."""
    kernels = await find_kernels(_KERNELS_PATIENCE_S)
    checks = [
        Check("torch", State.OK, f"{metadata.version('torch')}, Python packages in place"),
        Check("kernels", State.WEAK, "none: exact profiles run slower; a C++ compiler builds them")
        if kernels == NO_KERNELS
        else Check("kernels", State.OK, kernels),
    ]
    checks += await _machine(place)
    checks += await _worker(kernels)
    checks.append(_bubblewrap(checks))
    checks.append(_disk(place))
    checks += [_port(address) for address in config.listen]
    return [*checks, *map(_reachable, await dialled_back(config, place))]


async def _machine(place: DataDir) -> list[Check]:
    measured: dict[str, Any] = {}
    try:
        await measure(place.path, measured)
    except UserError as error:
        return [Check("machine", State.FAILS, str(error))]
    memory = measured["memory_bytes"] / _GIB
    devices = [f"{device['device']} ({device['name']})" for device in measured["accelerators"]]
    return [
        Check("machine", State.OK, f"{measured['cores']} cores, {memory:.1f} GiB, {measured['cpu']}"),
        Check("devices", State.OK, ", ".join(["cpu", *devices])),
    ]


async def _worker(kernels: str) -> list[Check]:
    try:
        async with open_worker(WorkerSettings(kernels=kernels)) as worker:
            threads = psutil.Process(worker.pid).num_threads()
            ready = worker.ready
    except WorkerDied as error:
        return [Check("worker", State.FAILS, str(error))]
    checks = [
        Check("worker", State.OK, f"ready in {ready.start_ms} ms after the fork, 1 thread for torch"),
        # One computes, one listens; a library that started more would share the owner's cores unasked.
        Check("threads", State.OK if threads <= 2 else State.WEAK, f"{threads} in a worker, of at most 2"),
    ]
    return checks + [
        Check(f"sandbox: {layer.name}", State.OK if layer.holds else State.WEAK, layer.detail)
        for layer in ready.layers
    ]


def _bubblewrap(checks: Sequence[Check]) -> Check:
    found = bubblewrap.find()
    namespaces = next((check for check in checks if check.name == "sandbox: namespaces"), None)
    if namespaces is not None and namespaces.detail == bubblewrap.REPORT.detail:
        return Check(
            "bubblewrap", State.OK, f"{found}, gives workers the namespaces that the kernel refuses us"
        )
    if namespaces is not None and namespaces.state is not State.OK:
        why = (
            f"{found}, can't give workers namespaces here" if found else "not installed, and might give them"
        )
        return Check("bubblewrap", State.WEAK, why)
    # It would add nothing, so its absence is no weakness.
    return Check("bubblewrap", State.OK, f"{found}, not needed" if found else "not installed, and not needed")


def _disk(place: DataDir) -> Check:
    free = shutil.disk_usage(place.path).free
    state = State.OK if free >= _FREE_BYTES_MIN else State.WEAK
    return Check("disk", state, f"{free / _GIB:.1f} GiB free in {place.path}, of at least 1")


def _port(address: str) -> Check:
    """Whether we can listen there, or a node of ours does."""
    _, version, host, _, port = address.split("/")[:5]
    if version not in ("ip4", "ip6"):
        return Check("port", State.WEAK, f"{address}: only numeric addresses can be tried")
    family = socket.AF_INET6 if version == "ip6" else socket.AF_INET
    try:
        with socket.create_server((host, int(port)), family=family) as listener:
            number = listener.getsockname()[1]
            with socket.create_connection((_reached_at(host), number), timeout=2):
                return Check("port", State.OK, f"{address} is free and reachable from this machine")
    except OSError as error:
        return _taken(address, host, int(port), error)


def _reachable(found: Found) -> Check:
    # What nobody could find out is no fault of the machine.
    state = State.WEAK if found.state == "not reachable" else State.OK
    detail = f"{found.address}: {found.state}: {found.reason}"
    return Check("reachable", state, f"{detail}; {found.remedy}" if found.remedy else detail)


def _taken(address: str, host: str, port: int, error: OSError) -> Check:
    why = error.strerror or str(error)
    try:
        with socket.create_connection((_reached_at(host), port), timeout=2):
            return Check("port", State.WEAK, f"{address}: {why}; something answers there, a node perhaps")
    except OSError:
        return Check("port", State.FAILS, f"{address}: {why}")


def _reached_at(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - what to dial instead of it


def run(config: NodeConfig, place: DataDir) -> list[Check]:
    """The same, for callers without an event loop."""
    return trio.run(examine, config, place)
