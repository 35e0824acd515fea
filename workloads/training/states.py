"""States of a training run and decoders to start from, between tensors and the bytes of files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from workloads.errors import InputRefused, NumericsRefused
from workloads.training.statefile import SECTIONS, state_header

__all__ = ["read_base", "read_state", "write_state"]


def write_state(values: Sequence[Tensor], shapes: Mapping[str, tuple[int, ...]], steps: int) -> bytes:
    """A state's file.

    Args:
        values: parameter, mean and variance of each name, float32.
        shapes: by name, sorted.
        steps: that led to it.
    """
    ordered = (value for section in range(len(SECTIONS)) for value in values[section :: len(SECTIONS)])
    numbers = (value.contiguous().numpy().astype("<f4", copy=False).tobytes() for value in ordered)
    return b"".join((state_header(shapes, steps), *numbers))


def read_state(data: bytes, shapes: Mapping[str, tuple[int, ...]], steps: int) -> list[Tensor]:
    """The values of `write_state`.

    Raises:
        NumericsRefused: it is no such file. An honest executor leaves none, as it leaves no numbers that
            can't be computed with.
    """
    header = state_header(shapes, steps)
    count = sum(map(math.prod, shapes.values()))
    size = len(header) + len(SECTIONS) * np.dtype("<f4").itemsize * count
    if len(data) != size or not data.startswith(header):
        raise NumericsRefused(f"{len(data)} bytes are no state after {steps} steps, which has {size}")
    flat = torch.from_numpy(np.frombuffer(data, dtype="<f4", offset=len(header)).astype(np.float32))
    values, start = [], 0
    for shape in shapes.values():
        stop = start + math.prod(shape)
        values += [
            flat[section * count + start : section * count + stop].reshape(shape)
            for section in range(len(SECTIONS))
        ]
        start = stop
    return values


def read_base(data: bytes, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A decoder's parameters out of a safetensors file, as float32, sorted by name.

    Raises:
        InputRefused: the file is malformed, or lacks one of these.
    """
    try:
        found = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputRefused(f"base is no safetensors file: {error}") from error
    for name, shape in shapes.items():
        tensor = found.get(name)
        if tensor is None or tuple(tensor.shape) != shape or not tensor.dtype.is_floating_point:
            raise InputRefused(f"base must hold {name} of shape {shape}")
    return {name: found[name].to(torch.float32).contiguous() for name in shapes}
