"""Accelerators as a worker meets them: the files by which drivers are reached, and a cap on their memory.

ROCm devices are called ``cuda`` by torch, as NVIDIA's are, so both kinds of files belong to that name. A
zygote must never touch a device: what a driver sets up doesn't survive a fork. Importable without torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["CPU", "cap_memory", "device_files", "driver_facts"]

CPU = "cpu"
_NVIDIA = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")
_ROCM = ("/dev/kfd", "/dev/dri")
_FACTS = (
    "/proc/driver/nvidia",
    "/sys/class/kfd",
    "/sys/class/drm",
    "/sys/devices",
    "/sys/bus/pci",
    "/etc/OpenCL",
)


def device_files(device: str) -> tuple[Path, ...]:
    """What must be opened for writing to compute on a device; of it those that there are.

    Args:
        device: torch's name, such as ``cpu``, ``cuda:0``, ``xpu`` or ``mps``.
    """
    kind, _, index = device.partition(":")
    names: tuple[str, ...] = ()
    if kind == "cuda":
        names = (*_NVIDIA, f"/dev/nvidia{index or 0}", *_ROCM)
    elif kind == "xpu":
        names = ("/dev/dri",)
    return tuple(path for path in map(Path, names) if path.exists())


def driver_facts(device: str) -> tuple[Path, ...]:
    """What drivers read to learn about a device."""
    return () if device == CPU else tuple(map(Path, _FACTS))


def cap_memory(device: str, fraction: float) -> None:
    """Let this process take at most this share of a device's memory; beyond it torch is out of memory.

    Args:
        device: torch's name; the CPU's memory is limited by the kernel instead.
        fraction: in (0, 1].

    Raises:
        ValueError: it isn't.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    if device == CPU:
        return
    import torch

    chosen = torch.device(device)
    module: Any = getattr(torch, chosen.type)
    if chosen.type == "mps":
        # There is one, and it has no number.
        module.set_per_process_memory_fraction(fraction)
    else:
        module.set_per_process_memory_fraction(fraction, chosen.index or 0)
