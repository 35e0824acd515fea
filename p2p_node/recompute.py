"""Settles a receipt's claims by running the model, in a worker process of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import trio

from p2p_node.errors import UserError
from p2p_node.executor import ModelPlace, WorkerExecutor, builtin_places
from p2p_node.kernels import find_kernels
from p2p_node.receipts import ClaimResult, recompute_claims
from p2p_node.workers import WorkerPool, WorkerSettings
from protocols.effects import Recompute
from protocols.events import RunEvent, RunFailed, RunRecomputed
from verification.receipt import ReceiptReport
from verification.receipt_parts import WholeReport

__all__ = ["recompute_receipt"]


def recompute_receipt(
    report: ReceiptReport | WholeReport,
    places: Mapping[str, ModelPlace] | None = None,
    blob_folder: Path | None = None,
) -> list[ClaimResult]:
    """Recompute every claim of a receipt that holds.

    Args:
        report: of the receipt.
        places: models by name; None for the built-in ones.
        blob_folder: with what the job's input and units name, each file called by its digest.

    Raises:
        UserError: the model isn't on this machine, or doesn't run here.
    """
    known = builtin_places() if places is None else places
    models = {place.digest: place for place in known.values()}
    if report.claims and report.model not in models:
        raise UserError(f"model {report.model.hex()} isn't on this machine, so nothing can be recomputed")
    return trio.run(_recompute_all, report, models, blob_folder)


async def _recompute_all(
    report: ReceiptReport | WholeReport, models: Mapping[bytes, ModelPlace], blob_folder: Path | None
) -> list[ClaimResult]:
    pool = WorkerPool(1, WorkerSettings(kernels=await find_kernels()))
    executor = WorkerExecutor(pool, pool, models, blob_folder=blob_folder)

    async def run(task: Recompute) -> Mapping[int, bytes]:
        ended = trio.Event()
        events: list[RunEvent] = []

        def on_event(event: RunEvent) -> None:
            events.append(event)
            ended.set()

        executor.start(("receipt",), task, on_event)
        await ended.wait()
        match events[-1]:
            case RunRecomputed(_, digests):
                return dict(digests)
            case RunFailed(_, reason, detail):
                raise UserError(f"recomputing failed: {reason}: {detail}")
        raise AssertionError(f"a recomputation ended with {events[-1]}")

    def recompute(task: Recompute) -> Mapping[int, bytes]:
        return trio.from_thread.run(run, task)

    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        results = await trio.to_thread.run_sync(recompute_claims, report, recompute)
        nursery.cancel_scope.cancel()
    return results
