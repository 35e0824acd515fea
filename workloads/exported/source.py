"""A client's program and arrays, from files to a job's input: what happens on the client's machine alone.

The files may be strangers' work, so nothing in them is executed: graphs are read as data, and arrays without
pickles. Whoever calls this does it in a process of its own (`workloads.exported.read`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from protocols.blobs import blob_of
from protocols.codec import encode
from protocols.limits import INPUT_BYTES_MAX
from protocols.values import value_digest
from workloads.errors import InputRefused, ModelRefused
from workloads.exported.budget import budget_of
from workloads.exported.content import identity_of, pack, parameters_of
from workloads.exported.input import Kept, Port, RunInput
from workloads.program.exported import Template, import_archive
from workloads.program.interpreter import check_range, infer
from workloads.program.onnx.importer import import_onnx
from workloads.program.program import DTYPES, JOB, encode_program, value_bytes

__all__ = ["READERS", "Shapes", "Source", "load_program", "packed", "ports_of", "run_input"]

Source = Path | list[Any] | float | int
"""Values of an input: a file, or numbers as they stand in a job file."""

Shapes = Mapping[str, Sequence[int]]
"""Of inputs whose sizes a file leaves open, by name."""


def _read_archive(path: Path, shapes: Shapes) -> Template:
    if shapes:
        raise InputRefused(f"{path.name} has fixed shapes; shapes are for ONNX files that leave sizes open")
    return import_archive(path)


READERS: dict[str, Callable[[Path, Shapes], Template]] = {".pt2": _read_archive, ".onnx": import_onnx}
"""What reads a graph, by the file's suffix."""

_ARRAY_BYTES_MAX = 1 << 30


def load_program(path: Path, shapes: Shapes | None = None) -> Template:
    """The program in a file, held against every limit of jobs.

    Args:
        path: the file.
        shapes: see `Shapes`.

    Raises:
        ModelRefused: the file can't be read or is none that we read.
        ProgramRefused: an operator isn't allowed, or it costs too much.
        NumericsRefused: a tensor holds what exact arithmetic doesn't cover.
    """
    reader = READERS.get(path.suffix)
    if reader is None:
        raise ModelRefused(f"{path.name} must end in {' or '.join(READERS)}")
    template = reader(path, shapes or {})
    for name, tensor in template.parameters.items():
        check_range(tensor, f"tensor {name!r}")
    budget_of(template.program)
    return template


def ports_of(template: Template) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """What goes into a program and what comes out of it."""
    program, specs = template.program, infer(template.program)
    numbers = program.steps[-1].inputs
    names = template.outputs or tuple(f"output {place}" for place in range(len(numbers)))
    # One value may be put out under its name twice.
    unique = [f"{name}_{place}" if name in names[:place] else name for place, name in enumerate(names)]
    return (
        tuple(
            Port(item.name, item.spec.dtype, item.spec.shape) for item in program.inputs if item.source == JOB
        ),
        tuple(
            Port(name, specs[number].dtype, specs[number].shape)
            for name, number in zip(unique, numbers, strict=True)
        ),
    )


def run_input(template: Template, sources: Mapping[str, Source], file: str) -> RunInput:
    """The job that runs a program on the client's values.

    Args:
        template: the program.
        sources: by the names of the graph's inputs; each a batch, or several along the first dimension.
        file: what the output is to be.

    Raises:
        InputRefused: values are missing, don't fit, or aren't the same number of batches.
    """
    inputs, outputs = ports_of(template)
    names = [port.name for port in inputs]
    if sources.keys() != set(names):
        raise InputRefused(f"inputs must be given for {', '.join(names)}, got {', '.join(sources) or 'none'}")
    arrays = [_array(port, sources[port.name]) for port in inputs]
    counts = [_batches(port, array) for port, array in zip(inputs, arrays, strict=True)]
    batches = max(counts, default=1)
    for port, count in zip(inputs, counts, strict=True):
        if count not in {1, batches}:
            raise InputRefused(f"{port.name!r} has {count} batches, others {batches}")
    content = pack(template)
    return RunInput(
        identity=identity_of(encode_program(template.program), parameters_of(template)),
        content=content,
        blob=None,
        inputs=inputs,
        outputs=outputs,
        batches=batches,
        values=tuple(value_bytes(_typed(port, array)) for port, array in zip(inputs, arrays, strict=True)),
        file=file,
    )


def packed(job: RunInput) -> tuple[RunInput, tuple[bytes, ...]]:
    """A job that is small enough to be one, and the contents of the blobs that it names then.

    What is largest goes into a blob first, the program or an input's values.
    """
    kept: list[bytes] = []
    while len(encode(job)) > INPUT_BYTES_MAX:
        sizes = {number: len(data) for number, data in enumerate(job.values) if isinstance(data, bytes)}
        largest = max(sizes, key=sizes.__getitem__, default=-1)
        if len(job.content) >= max(sizes.values(), default=0):
            if not job.content:
                break
            kept.append(job.content)
            job = replace(job, content=b"", blob=blob_of(job.content))
            continue
        port, data = job.inputs[largest], job.values[largest]
        assert isinstance(data, bytes)  # noqa: S101
        kept.append(data)
        size = port.size_bytes
        digests = tuple(
            value_digest(port.dtype, port.shape, data[start : start + size])
            for start in range(0, len(data), size)
        )
        values = list(job.values)
        values[largest] = Kept(blob_of(data), 0, digests)
        job = replace(job, values=tuple(values))
    return job, tuple(kept)


def _batches(port: Port, array: np.ndarray[Any, Any]) -> int:
    """How many batches an array holds, or a refusal with what would fit."""
    if array.shape == port.shape:
        return 1
    if port.shape and port.shape[0] and array.shape[1:] == port.shape[1:]:
        count, rest = divmod(array.shape[0], port.shape[0])
        if count and not rest:
            return int(count)
        raise InputRefused(f"{port.name!r} has {array.shape[0]} rows, must be a multiple of {port.shape[0]}")
    if array.shape[1:] == port.shape and array.shape[0]:
        return int(array.shape[0])
    raise InputRefused(f"{port.name!r} has shape {list(array.shape)}, must be batches of {list(port.shape)}")


def _typed(port: Port, array: np.ndarray[Any, Any]) -> Tensor:
    """The values in the type of the graph's input, if that changes none of them but by rounding."""
    if array.dtype.kind not in "biuf":
        raise InputRefused(f"{port.name!r} holds {array.dtype}, must be numbers")
    if port.dtype in {"int64", "uint8"}:
        typed = array.astype(port.dtype)
        if not np.array_equal(typed, array):
            raise InputRefused(f"{port.name!r} must hold whole numbers that fit {port.dtype}")
        return torch.from_numpy(np.ascontiguousarray(typed))
    plain = np.ascontiguousarray(array.astype("float64" if array.dtype.kind != "f" else array.dtype))
    tensor = torch.from_numpy(plain).to(DTYPES[port.dtype])
    check_range(tensor, f"input {port.name!r}")
    return tensor


def _array(port: Port, source: Source) -> np.ndarray[Any, Any]:
    if not isinstance(source, Path):
        try:
            return np.array(source)
        except ValueError as error:
            raise InputRefused(f"{port.name!r}: rows must have one length") from error
    try:
        if source.stat().st_size > _ARRAY_BYTES_MAX:
            raise InputRefused(f"{source.name} is larger than {_ARRAY_BYTES_MAX} bytes")
        return _read(source, port.name)
    except (OSError, ValueError, EOFError, SafetensorError, SyntaxError) as error:
        raise InputRefused(f"{source.name} cannot be read: {error}") from error


def _read(path: Path, name: str) -> np.ndarray[Any, Any]:
    match path.suffix:
        case ".npy":
            return np.asarray(np.load(path, allow_pickle=False, mmap_mode="r"))
        case ".npz":
            with np.load(path, allow_pickle=False) as entries:
                return np.asarray(_chosen(path, name, entries))
        case ".safetensors":
            return np.asarray(_chosen(path, name, load_file(path)))
    raise InputRefused(f"{path.name} must end in .npy, .npz or .safetensors")


def _chosen(path: Path, name: str, entries: Mapping[str, Any]) -> Any:
    names: Sequence[str] = sorted(entries)
    if name in names:
        return entries[name]
    if len(names) == 1:
        return entries[names[0]]
    raise InputRefused(f"{path.name} must hold {name!r}, it holds {', '.join(names)[:200]}")
