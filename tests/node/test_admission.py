"""What a machine holds is decided before it is offered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from p2p_node.admission import fitting, worker_memory_bytes
from p2p_node.models import builtin_models

GIB = 1 << 30


@pytest.mark.parametrize(
    ("machine", "worker"),
    [(64 * GIB, 28 * GIB), (8 * GIB, 7 * GIB // 2), (4 * GIB, 3 * GIB // 2), (GIB, GIB // 4)],
)
def test_workers_share_what_their_owner_can_spare(machine: int, worker: int) -> None:
    assert worker_memory_bytes(machine) == worker


def test_a_model_larger_than_a_worker_is_not_offered(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(3_000))
    kind, model = builtin_models()[0]
    large = kind, replace(model, name="large", path=tmp_path)
    weightless = kind, replace(model, name="none", path=Path())
    kept, declined = fitting([large, weightless], 2_999)
    assert kept == [weightless]
    assert declined == ["large: memory 0.0 GiB < 0.0 GiB of files"]
    assert fitting([large], 3_000) == ([large], [])
