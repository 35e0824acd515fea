"""Devices by torch's names; the machine of these tests needs none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from workloads.devices import cap_memory, device_files, driver_facts
from workloads.sandbox import seccomp


@pytest.mark.parametrize(
    ("device", "there", "expected"),
    [
        ("cpu", ("/dev/nvidiactl", "/dev/dri"), ()),
        ("mps", ("/dev/nvidiactl",), ()),
        ("cuda:1", ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia1"), ("/dev/nvidiactl", "/dev/nvidia1")),
        ("cuda", ("/dev/nvidia0", "/dev/nvidia1"), ("/dev/nvidia0",)),
        ("cuda:0", ("/dev/kfd", "/dev/dri"), ("/dev/kfd", "/dev/dri")),
        ("xpu:0", ("/dev/dri", "/dev/kfd"), ("/dev/dri",)),
    ],
)
def test_only_a_devices_own_files_are_opened(
    monkeypatch: pytest.MonkeyPatch, device: str, there: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: str(path) in there)
    assert device_files(device) == tuple(map(Path, expected))
    assert bool(driver_facts(device)) == (device != "cpu")


@pytest.mark.parametrize(
    ("device", "given"),
    [("cpu", []), ("cuda", [(0.5, 0)]), ("cuda:1", [(0.5, 1)]), ("xpu:1", [(0.5, 1)]), ("mps", [(0.5,)])],
)
def test_a_device_is_capped_by_torchs_own_call(
    monkeypatch: pytest.MonkeyPatch, device: str, given: list[Any]
) -> None:
    calls: list[Any] = []
    for name in ("cuda", "xpu", "mps"):
        module = SimpleNamespace(set_per_process_memory_fraction=lambda *arguments: calls.append(arguments))
        monkeypatch.setattr(torch, name, module)
    cap_memory(device, 0.5)
    assert calls == given


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1])
def test_a_share_of_memory_is_a_share(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
        cap_memory("cpu", fraction)


def test_the_names_of_calls_exist_in_this_torch() -> None:
    for name in ("cuda", "xpu", "mps"):
        assert callable(getattr(torch, name).set_per_process_memory_fraction)
    assert len(seccomp.program("x86_64", 1, has_accelerator=True)) < 4_096
