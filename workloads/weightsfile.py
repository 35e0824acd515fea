"""A model's tensors out of ``model.safetensors``: those that its architecture calls for, all finite.

safetensors is a length, a JSON header and raw little-endian numbers, so reading it runs no code.
`workloads.tensorfile` checks the header before the library maps the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from workloads.errors import ModelRefused
from workloads.lm.manifest import WEIGHTS_FILE
from workloads.tensorfile import read_places

__all__ = ["load_tensors"]

_DTYPES = ("bfloat16", "float16", "float32")


def load_tensors(
    model_dir: Path, shapes: Mapping[str, tuple[int, ...]], is_unused: Callable[[str], bool]
) -> dict[str, Tensor]:
    """Read tensors as float32.

    Args:
        model_dir: the directory that holds the file.
        shapes: of every tensor that is wanted, by name.
        is_unused: whether a checkpoint may hold a tensor of a name that isn't wanted.

    Raises:
        ModelRefused: the file or its header is malformed, a tensor is missing, unknown, of another shape or
            dtype, or holds NaN or Inf.
    """
    path = model_dir / WEIGHTS_FILE
    places = {place.name: place for place in read_places(path)}
    if missing := sorted(shapes.keys() - places.keys()):
        raise ModelRefused(f"{WEIGHTS_FILE} lacks {len(missing)} tensors, first {missing[0]}")
    if extra := sorted(name for name in places.keys() - shapes.keys() if not is_unused(name)):
        raise ModelRefused(f"{WEIGHTS_FILE} holds {len(extra)} unknown tensors, first {extra[0]}")
    for name, shape in shapes.items():
        if places[name].shape != shape:
            raise ModelRefused(f"{WEIGHTS_FILE}: {name} has shape {places[name].shape}, must be {shape}")
        if places[name].dtype not in _DTYPES:
            raise ModelRefused(
                f"{WEIGHTS_FILE}: {name} has dtype {places[name].dtype}, must be one of {_DTYPES}"
            )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name).to(torch.float32).contiguous() for name in shapes}
    except SafetensorError as error:
        raise ModelRefused(f"{WEIGHTS_FILE} is malformed: {error}") from error
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelRefused(f"{WEIGHTS_FILE}: {name} holds NaN or Inf")
    return tensors
