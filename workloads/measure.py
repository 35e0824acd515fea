"""What this machine can do, measured in under 2 s: ``python -m workloads.measure [--disk DIR]``.

Prints one JSON object of integers: a signed advert carries no floats. It runs as a process of its own because
it imports torch.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from workloads.numeric_class import numeric_class, pin

__all__ = ["main", "measure"]

_MIB = 1 << 20
_GEMM_SECONDS = 0.15
_GEMM_SIZE_FIRST = 256
_GEMM_SIZE_MAX_CPU = 1024
_GEMM_SIZE_MAX_ACCELERATOR = 8192
# A product this long is neither start-up cost nor a large part of the budget.
_GEMM_SECONDS_LONG = 0.02
_COPY_SECONDS = 0.15
_COPY_BYTES = 32 * _MIB
_COPIES_MIN = 3
_DISK_BYTES = 16 * _MIB


def measure(disk: Path | None) -> dict[str, Any]:
    """Measure processor, memory, accelerators and, where ``disk`` names a directory, its write bandwidth.

    Returns:
        Integers and text: ``cores``, ``memory_bytes``, ``gemm_fp32_mflops``, ``gemm_bf16_mflops``,
        ``memory_mib_s``, ``disk_mib_s`` (0 without a directory), ``disk_free_bytes``, ``torch``, ``cpu``,
        ``numeric_class``, ``elapsed_ms`` and ``accelerators``: a list of ``device`` (torch's name), ``name``,
        ``memory_bytes``, ``gemm_fp32_mflops``, ``gemm_bf16_mflops``.
    """
    started = time.monotonic()
    cpu = torch.device("cpu")
    result: dict[str, Any] = {
        "cores": _usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
        "gemm_fp32_mflops": _gemm_mflops(cpu, torch.float32),
        "gemm_bf16_mflops": _gemm_mflops(cpu, torch.bfloat16),
        "memory_mib_s": _copy_mib_s(),
        "disk_mib_s": _disk_mib_s(disk) if disk else 0,
        "disk_free_bytes": psutil.disk_usage(str(disk)).free if disk else 0,
        "accelerators": [_accelerator(device) for device in _accelerators()],
        "numeric_class": _class_of_workers(),
    }
    result["elapsed_ms"] = round((time.monotonic() - started) * 1000)
    return result


def _class_of_workers() -> str:
    """The numeric class, on one thread as workers compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return numeric_class()
    finally:
        torch.set_num_threads(threads)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _accelerators() -> list[torch.device]:
    found = []
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        if kind is not None:
            found = [torch.device(kind.type, index) for index in range(torch.accelerator.device_count())]
    return found


def _accelerator(device: torch.device) -> dict[str, Any]:
    module = getattr(torch, device.type)
    if device.type == "mps":
        name, memory = "Apple GPU", int(module.recommended_max_memory())
    else:
        properties = module.get_device_properties(device)
        name, memory = str(properties.name), int(properties.total_memory)
    return {
        "device": str(device),
        "name": name,
        "memory_bytes": memory,
        "gemm_fp32_mflops": _gemm_mflops(device, torch.float32),
        "gemm_bf16_mflops": _gemm_mflops(device, torch.bfloat16),
    }


def _gemm_mflops(device: torch.device, dtype: torch.dtype) -> int:
    """Best rate of square matrix products; the size grows until one product takes a while."""
    size_max = _GEMM_SIZE_MAX_CPU if device.type == "cpu" else _GEMM_SIZE_MAX_ACCELERATOR
    size, best = _GEMM_SIZE_FIRST, 0.0
    deadline = time.perf_counter() + _GEMM_SECONDS
    while True:
        left = torch.ones(size, size, dtype=dtype, device=device)
        product = torch.empty_like(left)
        seconds = _seconds(lambda a=left, b=product: torch.mm(a, a, out=b), device)  # type: ignore[misc]
        best = max(best, 2 * size**3 / seconds)
        if time.perf_counter() >= deadline:
            return int(best / 1e6)
        # Growing must not overrun the budget: eight times the work for twice the size.
        if size < size_max and seconds < _GEMM_SECONDS_LONG / 8:
            size *= 2


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    work()
    _wait_for(device)
    started = time.perf_counter()
    work()
    _wait_for(device)
    return time.perf_counter() - started


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _copy_mib_s() -> int:
    """Bytes read and written a second by a large copy."""
    source = torch.ones(_COPY_BYTES, dtype=torch.uint8)
    # Written to beforehand: the first touch of a page is the kernel's work, not the memory's.
    target = torch.zeros_like(source)
    best = float("inf")
    copies = 0
    deadline = time.perf_counter() + _COPY_SECONDS
    while copies < _COPIES_MIN or time.perf_counter() < deadline:
        started = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - started)
        copies += 1
    return int(2 * _COPY_BYTES / best / _MIB)


def _disk_mib_s(directory: Path) -> int:
    """Rate of writing a file and having it on the disk."""
    path = directory / f".p2p-node-measure-{os.getpid()}"
    block = os.urandom(_MIB)
    try:
        started = time.perf_counter()
        with path.open("wb") as file:
            for _ in range(_DISK_BYTES // _MIB):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        seconds = time.perf_counter() - started
    finally:
        path.unlink(missing_ok=True)
    return int(_DISK_BYTES / seconds / _MIB)


def main() -> None:
    """Print the measurements as one line of JSON."""
    parser = argparse.ArgumentParser(prog="workloads.measure", description="Measure this machine.")
    parser.add_argument("--disk", type=Path, help="directory whose write bandwidth to measure")
    parser.add_argument("--threads", type=int, default=0, help="threads for torch; 0 for all usable cores")
    arguments = parser.parse_args()
    pin()
    torch.set_num_threads(arguments.threads or _usable_cores())
    print(json.dumps(measure(arguments.disk)), flush=True)


if __name__ == "__main__":
    main()
