"""What a node offers of a model, from what its workers answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from p2p_node.calibration import calibrate
from p2p_node.errors import UserError
from p2p_node.workers import WorkerPool
from workloads import frames
from workloads.registry import KINDS

LM = KINDS["lm.generate"]
MATMUL = KINDS["linalg.matmul"]
FINGERPRINT = b"".join(number.to_bytes(4, "little", signed=True) for number in (1, -2, 3, -4))


class Pool:
    """Answers at once, as a worker would whose arithmetic is as it is told."""

    def __init__(self, *, refuses: tuple[str, ...] = (), finding: bytes = FINGERPRINT) -> None:
        self.refuses = refuses
        self.finding = finding

    def start_run(self, work: Any, on_event: Callable[[frames.Event], None]) -> int:
        match work:
            case _ if work.model.profile in self.refuses:
                on_event(frames.Failed(1, "numerics-refused", "softmax differs"))
            case frames.Load():
                on_event(frames.Loaded(1, work.model.digest, 1))
            case frames.Generate():
                on_event(frames.Output(1, 0, (5,)))
                on_event(frames.ChunkDone(1, 0, self.finding))
                on_event(frames.Finished(1, 1, "length", 1_000))
            case frames.Recompute():
                on_event(frames.Recomputed(1, tuple((chunk, self.finding) for chunk in work.chunks), 1_000))
        return 1


async def offered(kind: Any, working: Pool, checking: Pool) -> tuple[tuple[str, ...], int]:
    [model] = kind.models()
    return await calibrate(cast(WorkerPool, working), cast(WorkerPool, checking), kind, model)


async def test_a_sound_machine_offers_every_profile() -> None:
    assert await offered(LM, Pool(), Pool()) == (LM.profiles, 1_000_000)


async def test_a_machine_whose_digests_differ_offers_native_only() -> None:
    pool = Pool(refuses=("exact14", "exact21"))
    assert await offered(LM, pool, pool) == (("native",), 1_000_000)
    assert await offered(MATMUL, pool, pool) == ((), 0)


async def test_a_machine_that_contradicts_itself_offers_no_exact_work() -> None:
    nearly = FINGERPRINT[:-4] + (-5).to_bytes(4, "little", signed=True)
    assert await offered(LM, Pool(), Pool(finding=nearly)) == (("native",), 1_000_000)
    assert await offered(MATMUL, Pool(), Pool(finding=nearly)) == ((), 0)


async def test_a_machine_that_is_far_off_doesnt_start() -> None:
    far = FINGERPRINT[:-4] + (2**30).to_bytes(4, "little", signed=True)
    with pytest.raises(UserError, match="doesn't give the same result twice"):
        await offered(LM, Pool(), Pool(finding=far))
