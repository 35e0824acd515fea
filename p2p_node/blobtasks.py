"""Blobs in a job's life: what a task names is fetched before it is run, and held on to while it is.

An executor around an executor. Whoever computes needs the blobs of the job's input, and those of earlier
output that its chunks start from; the requester wants those that the output names. What can't be had ends
the task with a typed reason, and accuses nobody: from here it can't be told who withheld it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import structlog
import trio

from p2p_node.blobrights import job_owner
from p2p_node.blobs import BlobError, BlobUnavailable, StoreFull
from p2p_node.executor import owner_of, sealed_owner_of
from p2p_node.runtime import Executor
from protocols.blobs import Blob, check_blob
from protocols.effects import Execute, FetchBlobs, Judge, OpenValues, Prefetch, Recompute, Task, Trace
from protocols.errors import PeerFault
from protocols.events import (
    INPUT_MISSING,
    NO_ROOM,
    OUTPUT_MISSING,
    Finding,
    RunChunk,
    RunEvent,
    RunFailed,
    RunFetched,
    RunJudged,
    RunOutput,
    RunProgress,
)
from protocols.limits import BLOBS_PER_JOB_MAX
from verification.findings import NATIVE
from workloads.errors import InputRefused, WorkloadRefused
from workloads.registry import KINDS
from workloads.workload import Kind, names_none

__all__ = ["BlobTasks", "Fetch", "Store", "blobs_of_input", "leaves_blobs"]

log = structlog.get_logger(__name__)

FETCHING = "fetching"
PREFETCHES_MAX = 4
PREFETCH_BYTES_MAX = 256 * 1024 * 1024
"""A stranger's offer makes us fetch no more than this before it is ours."""

OUTPUT_KEPT_S = 900
"""After a run, how long what it left stays pinned: its requester and verifiers come for it."""

RETRY_S = 2.0
TRIES = 10
"""A verifier may ask for output that its requester is only fetching itself."""


class Fetch(Protocol):
    """Gets a blob from peers, or finds it here."""

    async def __call__(
        self, blob: Blob, sources: Sequence[bytes], *, on_progress: Callable[[int, int], None]
    ) -> Path:
        """See `p2p_node.blobs.BlobService.fetch`."""
        ...


class Store(Protocol):
    """The part of `p2p_node.blobs.BlobStore` that is needed here."""

    bytes_max: int

    def has(self, blob: Blob) -> bool:
        """Whether it is here."""
        ...

    def pin(self, blob: Blob, owner: str) -> None:
        """Keep it for an owner."""
        ...

    def unpin(self, owner: str) -> None:
        """Let go of all that an owner holds."""
        ...

    def set_private(self, blob: Blob, *, is_lent: bool) -> None:
        """Keep it from everybody without a right to it."""
        ...


def blobs_of_input(kind: Kind, input: bytes) -> tuple[Blob, ...]:
    """The blobs that a job's input names.

    Raises:
        InputRefused: they can't be, or are too many; or the workload refuses the input.
    """
    return _checked(kind.input_blobs(input), BLOBS_PER_JOB_MAX)


def leaves_blobs(kind: Kind, input: bytes) -> bool:
    """Whether a job's output will name blobs."""
    if kind.output_blobs is names_none:
        return False
    return kind.leaves_blobs is None or kind.leaves_blobs(input)


def _checked(blobs: Sequence[Blob], count_max: int | None = None) -> tuple[Blob, ...]:
    wanted = tuple(dict.fromkeys(blobs))
    if count_max is not None and len(wanted) > count_max:
        raise InputRefused(f"{len(wanted)} blobs must be {count_max} at most")
    for blob in wanted:
        try:
            check_blob(blob)
        except PeerFault as fault:
            raise InputRefused(str(fault)) from fault
    return wanted


class BlobTasks:
    """See the module.

    Args:
        inner: runs tasks whose blobs are here.
        store: where they are.
        fetch: gets them.
        nursery: in which they are fetched.
        kinds: of work, by name.
    """

    def __init__(
        self,
        inner: Executor,
        *,
        store: Store,
        fetch: Fetch,
        nursery: trio.Nursery,
        kinds: Mapping[str, Kind] = KINDS,
    ) -> None:
        self._inner = inner
        self._store = store
        self._fetch = fetch
        self._nursery = nursery
        self._kinds = kinds
        self._fetching: dict[tuple[Any, ...], trio.CancelScope] = {}
        self._prefetching: dict[tuple[Any, ...], trio.CancelScope] = {}
        self._kept: deque[tuple[float, str]] = deque()
        """Owners of what runs left, and until when, oldest first."""

    def start(self, key: tuple[Any, ...], task: Task, report: Callable[[RunEvent], None]) -> None:
        """See `p2p_node.runtime.Executor`."""
        match task:
            case Prefetch():
                self._prefetch(key, task)
            case FetchBlobs():
                scope = self._fetching[key] = trio.CancelScope()
                self._nursery.start_soon(self._fetch_output, scope, key, task, report)
            case _:
                self._start_run(key, task, report)

    def cancel(self, key: tuple[Any, ...]) -> None:
        """See `p2p_node.runtime.Executor`."""
        scope = self._fetching.pop(key, None) or self._prefetching.pop(key, None)
        if scope is not None:
            scope.cancel()
        self._inner.cancel(key)
        self._store.unpin(owner_of(key))
        self._store.unpin(sealed_owner_of(key))

    # --- Runs ------------------------------------------------------------------------------------

    def _start_run(
        self,
        key: tuple[Any, ...],
        task: Execute | Recompute | Trace | OpenValues | Judge,
        report: Callable[[RunEvent], None],
    ) -> None:
        try:
            wanted = self._wanted(task)
        except WorkloadRefused as error:
            report(_refusal(key, task, "input-refused", str(error)))
            return
        if not wanted:
            self._inner.start(key, task, self._keeping(key, task, report))
            return
        is_lent = isinstance(task, Execute | Recompute) and bool(task.private_to)
        for blob in wanted:
            if is_lent:
                self._store.set_private(blob, is_lent=True)
            self._store.pin(blob, owner_of(key))
        scope = self._fetching[key] = trio.CancelScope()
        self._nursery.start_soon(self._fetch_and_run, scope, key, task, wanted, report)

    def _wanted(self, task: Execute | Recompute | Trace | OpenValues | Judge) -> tuple[Blob, ...]:
        if isinstance(task, Judge):
            kind = self._kinds.get(task.case.workload)
            return () if kind is None else blobs_of_input(kind, task.case.input)
        kind = self._kinds.get(task.workload)
        if kind is None:
            return ()
        units: tuple[int, ...]
        match task:
            case Execute(prefix=units):
                chunks: tuple[int, ...] = (len(units) // kind.chunk_units,)
            case Recompute(units=units, chunks=chunks):
                pass
            case Trace(units=units, chunk=chunk) | OpenValues(units=units, chunk=chunk):
                chunks = (chunk,)
        named = [blob for chunk in chunks for blob in kind.chunk_blobs(task.input, units, chunk)]
        if isinstance(task, Recompute) and task.profile.partition("-")[0] == NATIVE:
            named += [blob for chunk in chunks for blob in kind.native_blobs(task.input, units, chunk)]
        return tuple(dict.fromkeys((*blobs_of_input(kind, task.input), *_checked(named))))

    async def _fetch_and_run(
        self,
        scope: trio.CancelScope,
        key: tuple[Any, ...],
        task: Execute | Recompute | Trace | OpenValues | Judge,
        wanted: tuple[Blob, ...],
        report: Callable[[RunEvent], None],
    ) -> None:
        with scope:
            try:
                await self._fetch_all(key, wanted, task.sources, report)
            except BlobError as error:
                if self._fetching.pop(key, None) is not None:
                    self._store.unpin(owner_of(key))
                    report(_refusal(key, task, INPUT_MISSING, str(error)))
                return
            # Cancelled in the very moment in which the last piece came.
            if self._fetching.pop(key, None) is not None:
                self._inner.start(key, task, self._keeping(key, task, report))

    def _keeping(
        self, key: tuple[Any, ...], task: Task, report: Callable[[RunEvent], None]
    ) -> Callable[[RunEvent], None]:
        """Reports, and lets go of the blobs when the run is over."""

        def passed_on(event: RunEvent) -> None:
            if not isinstance(event, RunOutput | RunChunk | RunProgress):
                if isinstance(task, Execute) and task.private_to:
                    # What was lent to us isn't ours to keep.
                    self._store.unpin(owner_of(key))
                    self._let_go_later(sealed_owner_of(key))
                elif isinstance(task, Execute):
                    self._let_go_later(owner_of(key))
                else:
                    self._store.unpin(owner_of(key))
            report(event)

        return passed_on

    def _let_go_later(self, owner: str) -> None:
        self._kept.append((trio.current_time() + OUTPUT_KEPT_S, owner))
        if len(self._kept) == 1:
            # One task for all: a busy peer has thousands of runs behind it.
            self._nursery.start_soon(self._let_go)

    async def _let_go(self) -> None:
        while self._kept:
            due_s, owner = self._kept[0]
            await trio.sleep_until(due_s)
            self._store.unpin(owner)
            self._kept.popleft()

    # --- Fetching --------------------------------------------------------------------------------

    async def _fetch_output(
        self,
        scope: trio.CancelScope,
        key: tuple[Any, ...],
        task: FetchBlobs,
        report: Callable[[RunEvent], None],
    ) -> None:
        ending: RunEvent = RunFetched(key)
        with scope:
            try:
                wanted = _checked(self._kinds[task.workload].output_blobs(task.input, task.units))
                for blob in wanted:
                    self._store.pin(blob, owner_of(key))
                    if task.private_job:
                        # Its verifiers, and whoever goes on after this executor, come to us for it.
                        self._store.set_private(blob, is_lent=False)
                        self._store.pin(blob, job_owner(task.private_job))
                await self._fetch_all(key, wanted, task.sources, report)
            except StoreFull as error:
                ending = RunFailed(key, NO_ROOM, str(error))
            except (BlobError, WorkloadRefused) as error:
                ending = RunFailed(key, OUTPUT_MISSING, str(error))
            if self._fetching.pop(key, None) is not None:
                self._let_go_later(owner_of(key))
                report(ending)

    async def _fetch_all(
        self,
        key: tuple[Any, ...],
        wanted: tuple[Blob, ...],
        sources: Sequence[bytes],
        report: Callable[[RunEvent], None],
    ) -> None:
        missing = [blob for blob in wanted if not self._store.has(blob)]
        total = sum(blob.size_bytes for blob in missing)
        if total > self._store.bytes_max:
            raise StoreFull(f"{total} bytes of blobs must fit into {self._store.bytes_max}")
        before = 0
        for blob in missing:

            def on_progress(done: int, _: int, before: int = before) -> None:
                if key in self._fetching:
                    report(RunProgress(key, FETCHING, before + done, total))

            await self._fetch_patiently(blob, sources, on_progress)
            before += blob.size_bytes

    async def _fetch_patiently(
        self, blob: Blob, sources: Sequence[bytes], on_progress: Callable[[int, int], None]
    ) -> None:
        for attempt in range(TRIES):
            try:
                await self._fetch(blob, sources, on_progress=on_progress)
            except BlobUnavailable:
                if attempt + 1 == TRIES:
                    raise
                await trio.sleep(RETRY_S)
            else:
                return

    def _prefetch(self, key: tuple[Any, ...], task: Prefetch) -> None:
        total = sum(blob.size_bytes for blob in task.blobs)
        if len(self._prefetching) >= PREFETCHES_MAX or total > PREFETCH_BYTES_MAX:
            return
        scope = self._prefetching[key] = trio.CancelScope()
        self._nursery.start_soon(self._fetch_early, scope, key, task)

    async def _fetch_early(self, scope: trio.CancelScope, key: tuple[Any, ...], task: Prefetch) -> None:
        try:
            with scope:
                for blob in _checked(task.blobs, BLOBS_PER_JOB_MAX):
                    await self._fetch(blob, task.sources, on_progress=lambda done, total: None)
        except (BlobError, WorkloadRefused) as error:
            log.info("not prefetched", why=str(error))
        finally:
            self._prefetching.pop(key, None)


def _refusal(key: tuple[Any, ...], task: Task, reason: str, detail: str) -> RunEvent:
    """A referee without what it takes finds nothing; everybody else fails."""
    if isinstance(task, Judge):
        return RunJudged(key, Finding.INCONCLUSIVE, f"{reason}: {detail}", 0)
    return RunFailed(key, reason, detail)
