"""Which models a worker keeps: as many as its memory has room for, and none in the way of the next."""

from __future__ import annotations

from typing import Any

import pytest

from workloads import worker
from workloads.frames import ModelRef

ROOM_BYTES = 100


class Machine:
    """Memory of ``ROOM_BYTES``, and models that take as many bytes as their path says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.models = worker._Models(8, ROOM_BYTES, self, None, "")  # type: ignore[arg-type]
        self.opened: list[str] = []
        monkeypatch.setattr(worker, "open_workload", self.open)

    def resident_bytes(self) -> int:
        return sum(size for _, size in self.models._loaded.values()) + self.opening

    opening = 0

    def open(self, workload: str, path: Any, *_: Any, **__: Any) -> str:
        self.opening = 0
        if self.resident_bytes() + int(path.name) > ROOM_BYTES:
            raise MemoryError(path.name)
        self.opening = int(path.name)
        return str(path.name)

    def use(self, *sizes: int) -> list[int]:
        for size in sizes:
            self.models.get(ModelRef(str(size), bytes([size]) * 32, "exact14", "", "lm.generate"))
            self.opening = 0
        return [int(key.digest[0]) for key in self.models._loaded]


def test_the_least_recently_used_go_first_and_half_of_the_memory_is_for_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(monkeypatch)
    assert machine.use(20, 25) == [20, 25]
    assert machine.use(20, 10) == [20, 10]


def test_a_model_that_fits_by_itself_is_loaded_whatever_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    assert machine.use(40, 80) == [80]
    with pytest.raises(MemoryError):
        machine.use(101)
