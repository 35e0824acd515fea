"""The workers of a running node: made at once, started when the node is up.

A client is answered and the network joined before torch is imported and this machine tried: that takes
seconds. What is asked of the workers meanwhile waits for them, and nothing is offered to others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import trio

from p2p_node.blobs import BlobStore
from p2p_node.calibrated import CalibrationFile, Finding, Machine
from p2p_node.calibration import calibrate, measure, takes_exact_work
from p2p_node.models import Served
from p2p_node.workers import WorkerPool, WorkerSettings, Zygote
from workloads.sandbox import LayerReport

if TYPE_CHECKING:
    # libp2p brings stubs that hide trio's own types, and these that go with them.
    from trio_typing import TaskStatus

__all__ = ["Workshop"]

log = structlog.get_logger(__name__)


class Workshop:
    """Two pools of workers, and what this machine was found to do with them.

    Args:
        settings: of every worker.
        blobs: where what a probe leaves is kept.
        on_death: told why, each time a process is lost.
        measured: what this machine was measured to do; one that is empty is filled in.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        blobs: BlobStore,
        on_death: Callable[[str], None],
        measured: dict[str, Any],
    ) -> None:
        self.measured = measured
        self._settings = settings
        self._blobs = blobs
        self._zygote = Zygote(settings, on_death)
        self.working = WorkerPool(1, on_death=on_death, zygote=self._zygote)
        self.checking = WorkerPool(1, on_death=on_death, zygote=self._zygote)

    async def run(self, place: Path, *, task_status: TaskStatus[bool] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the workers running until cancelled; reports, when they are ready, if they take exact work.

        Args:
            place: whose disk is measured.

        Raises:
            UserError: this machine can't be measured.
            WorkerDied: no worker could be started.
        """
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as starting:
                if not self.measured:
                    starting.start_soon(measure, place, self.measured)
                # The pools belong to the outer nursery: they outlive the start.
                starting.start_soon(nursery.start, self._zygote.run)
                starting.start_soon(nursery.start, self.working.run)
                starting.start_soon(nursery.start, self.checking.run)
            _tell_layers(self.working.layers)
            task_status.started(await takes_exact_work(self.working))

    def findings(self, path: Path, *, is_exact: bool) -> CalibrationFile:
        """What was found on this machine before; it is measured by now."""
        return CalibrationFile(path, Machine.here(self.measured, self._settings.kernels, is_exact=is_exact))

    async def calibrate(self, served: Served) -> Finding:
        """See `p2p_node.calibration.calibrate`."""
        kind, model = served
        return Finding(*await calibrate(self.working, self.checking, kind, model, blobs=self._blobs))


def _tell_layers(layers: Sequence[LayerReport]) -> None:
    for layer in layers:
        if not layer.holds:
            log.warning("a layer of the sandbox doesn't hold", layer=layer.name, why=layer.detail)
    held = [layer.name for layer in layers if layer.holds]
    log.info("workers are locked in", layers=",".join(held))
