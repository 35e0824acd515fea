"""What calibration found, kept in a file, so that a start doesn't measure again what can't have changed.

A finding holds for one model in one kind of work, on one machine, with one release of torch, of the compiled
kernels and of ours: `Machine` names the latter. Several processes may share a file: local swarms do.
"""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import msgspec
import structlog
import trio
from msgspec import Meta

from p2p_node.kernels import NO_KERNELS
from p2p_node.models import Served

__all__ = ["CalibrationFile", "Finding", "Machine"]

log = structlog.get_logger(__name__)

FINDINGS_MAX = 256
FILE_BYTES_MAX = 1 << 20
TURN_POLL_S = 0.1
_CPUINFO = Path("/proc/cpuinfo")


class Finding(msgspec.Struct, frozen=True):
    """What this machine may offer of a model.

    Args:
        profiles: numerics profiles in which it may be judged; none if it may in none.
        rate_milli: output units in 1,000 seconds, in the first of them.
    """

    profiles: tuple[str, ...]
    rate_milli: Annotated[int, Meta(ge=0)]


@dataclass(frozen=True, slots=True)
class Machine:
    """What a finding depends on beside the model.

    Args:
        processor: its name and what torch uses of it.
        torch: its release.
        kernels: the compiled library's name, which says what it was built from; empty for none.
        version: our release.
        is_exact: whether its workers give the published digests of the exact operators.
    """

    processor: str
    torch: str
    kernels: str
    version: str
    is_exact: bool = True

    @classmethod
    def here(cls, measured: dict[str, Any], kernels: str, *, is_exact: bool) -> Machine:
        """This one.

        Args:
            measured: what `workloads.measure` found.
            kernels: as `p2p_node.kernels.find_kernels` gave it.
            is_exact: as `p2p_node.calibration.takes_exact_work` found.
        """
        library = "" if kernels == NO_KERNELS else Path(kernels).name
        processor = f"{_processor_name()} {measured.get('cpu', '')}".strip()
        version = metadata.version("p2p-node")
        return cls(processor, str(measured.get("torch", "")), library, version, is_exact)


class CalibrationFile:
    """See the module. Methods block on the disk, for as long as a small file takes.

    Args:
        path: of the file; it may be absent. One that is damaged is begun anew.
        machine: whose findings are read and written; others stay as they are.
    """

    def __init__(self, path: Path, machine: Machine) -> None:
        self._path = path
        self._machine = machine

    def find(self, served: Served) -> Finding | None:
        """What was found of a model, if anything."""
        return self._read().get(self._key(served))

    def keep(self, served: Served, finding: Finding) -> None:
        """Write down what was found. A file that can't be written costs the next start a measurement."""
        try:
            with self._lock():
                findings = self._read()
                findings.pop(self._key(served), None)
                findings[self._key(served)] = finding
                # The newest are last.
                kept = dict(list(findings.items())[-FINDINGS_MAX:])
                unfinished = self._path.with_name(f"{self._path.name}.{os.getpid()}")
                unfinished.write_bytes(msgspec.json.encode(kept))
                unfinished.replace(self._path)
        except OSError as error:
            log.warning("what was measured can't be kept", path=str(self._path), why=error.strerror)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold off all processes that share the file: who measures at the same time measures the other.

        The kernel ends it when a process dies. Without a place for the lock nobody waits.
        """
        with ExitStack() as stack:
            try:
                descriptor = self._open("turn")
                stack.callback(os.close, descriptor)
                while not _try_lock(descriptor):  # noqa: ASYNC110 - another process's end sets no event
                    await trio.sleep(TURN_POLL_S)
            except OSError as error:
                log.warning("what is measured can't be shared", path=str(self._path), why=error.strerror)
            yield

    @contextmanager
    def _lock(self) -> Iterator[None]:
        descriptor = self._open("lock")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _open(self, ending: str) -> int:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        return os.open(self._path.with_name(f"{self._path.name}.{ending}"), flags, 0o600)

    def _read(self) -> dict[str, Finding]:
        try:
            with self._path.open("rb") as file:
                content = file.read(FILE_BYTES_MAX + 1)
            return msgspec.json.decode(content, type=dict[str, Finding])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.warning("what was measured before can't be read", path=str(self._path), why=str(error)[:200])
            return {}

    def _key(self, served: Served) -> str:
        kind, model = served
        here = self._machine
        arithmetic = "exact" if here.is_exact else "not exact"
        where = (here.version, here.torch, here.processor, here.kernels, arithmetic)
        return "|".join((kind.name, model.digest.hex(), *where))


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _processor_name() -> str:
    """The processor's name; Python knows only its architecture on Linux."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.machine()
