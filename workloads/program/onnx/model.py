"""What an ONNX file holds, read as data: nodes, tensors and the shapes of what goes in and comes out.

The numbers of fields and types are those of ONNX's published schema. A graph inside a node, a tensor in
another file, a function or a type that programs don't have is refused where it stands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from protocols.values import DIMENSIONS_MAX
from workloads.errors import ModelRefused, ProgramRefused
from workloads.program.limits import STEPS_MAX
from workloads.program.onnx.wire import Field, fields, packed_floats, packed_integers, text

__all__ = ["FILE_BYTES_MAX", "Attribute", "Node", "OnnxModel", "Port", "read_model"]

FILE_BYTES_MAX = 1 << 30
_DIMENSION_MAX = 2**40
_NAMES_MAX = 4_096
_OPSET_MIN, _OPSET_MAX = 7, 23

_TYPES: Mapping[int, tuple[torch.dtype, torch.dtype]] = {
    1: (torch.float32, torch.float32),
    2: (torch.uint8, torch.uint8),
    6: (torch.int32, torch.int64),
    7: (torch.int64, torch.int64),
    9: (torch.uint8, torch.uint8),
    10: (torch.float16, torch.float16),
    11: (torch.float64, torch.float64),
    16: (torch.bfloat16, torch.bfloat16),
}
"""By ONNX's number: as it lies in a file, and as programs have it. A truth value is a byte."""

Attribute = int | float | str | list[int] | list[float] | Tensor
"""A node's attribute."""


@dataclass(frozen=True, slots=True)
class Port:
    """Something that goes into a graph or comes out of it.

    Args:
        name: of the tensor.
        dtype: None where the file doesn't say.
        shape: sizes, or the names of those that the file leaves open; None where it doesn't say.
    """

    name: str
    dtype: torch.dtype | None
    shape: tuple[int | str, ...] | None


@dataclass(frozen=True, slots=True)
class Node:
    """One operator.

    Args:
        name: for messages; may be empty.
        op: its type.
        inputs: names of tensors, empty where an optional one is left out.
        outputs: names of tensors.
        attributes: by name.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """A graph.

    Args:
        opset: version of the operators.
        nodes: in the file's order.
        tensors: initialisers by name, contiguous.
        inputs: of the graph, without the initialisers among them.
        outputs: of the graph.
    """

    opset: int
    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def read_model(path: Path) -> OnnxModel:
    """Read an ONNX file.

    Raises:
        ModelRefused: it can't be read, is too large or malformed, or contradicts itself.
        ProgramRefused: it holds what programs don't have.
    """
    try:
        size = path.stat().st_size
        if size > FILE_BYTES_MAX:
            raise ModelRefused(f"{path.name} of {size} bytes exceeds {FILE_BYTES_MAX}")
        data = path.read_bytes()
    except OSError as error:
        raise ModelRefused(f"{path.name} cannot be read: {error.strerror or error}") from error
    return _read(memoryview(data))


def _read(message: memoryview) -> OnnxModel:
    graph: memoryview | None = None
    opset = 0
    for field in fields(message):
        match field.number:
            case 7:
                if graph is not None:
                    raise ModelRefused("file holds two graphs")
                graph = field.data()
            case 8:
                opset = max(opset, _opset(field.data()))
            case 25:
                raise ProgramRefused("functions of a model's own aren't supported")
    if graph is None:
        raise ModelRefused("file holds no ONNX graph")
    if not _OPSET_MIN <= opset <= _OPSET_MAX:
        raise ProgramRefused(f"operator set {opset} must be in [{_OPSET_MIN}, {_OPSET_MAX}]")
    return _graph(graph, opset)


def _opset(message: memoryview) -> int:
    """The version of ONNX's own operators; others have a domain."""
    domain, version = "", 0
    for field in fields(message):
        if field.number == 1:
            domain = text(field)
        elif field.number == 2:
            version = field.integer()
    return version if domain in {"", "ai.onnx"} else 0


def _graph(message: memoryview, opset: int) -> OnnxModel:
    nodes: list[Node] = []
    tensors: dict[str, Tensor] = {}
    inputs: list[Port] = []
    outputs: list[Port] = []
    for field in fields(message):
        match field.number:
            case 1:
                if len(nodes) == STEPS_MAX:
                    raise ProgramRefused(f"graph has more than {STEPS_MAX} nodes")
                nodes.append(_node(field.data()))
            case 5:
                name, tensor = _tensor(field.data())
                if name in tensors:
                    raise ModelRefused(f"graph holds the tensor {name!r} twice")
                tensors[name] = tensor
            case 11:
                inputs.append(_port(field.data()))
            case 12:
                outputs.append(_port(field.data()))
            case 15:
                raise ProgramRefused("sparse tensors aren't supported")
    return OnnxModel(
        opset, tuple(nodes), tensors, tuple(p for p in inputs if p.name not in tensors), tuple(outputs)
    )


def _node(message: memoryview) -> Node:
    inputs: list[str] = []
    outputs: list[str] = []
    attributes: dict[str, Attribute] = {}
    name = op = domain = ""
    later: list[memoryview] = []
    for field in fields(message):
        match field.number:
            case 1:
                inputs.append(text(field))
            case 2:
                outputs.append(text(field))
            case 3:
                name = text(field)
            case 4:
                op = text(field)
            case 5:
                later.append(field.data())
            case 7:
                domain = text(field)
        if max(len(inputs), len(outputs), len(later)) > _NAMES_MAX:
            raise ModelRefused(f"a node has more than {_NAMES_MAX} inputs, outputs or attributes")
    if domain not in {"", "ai.onnx"}:
        raise ProgramRefused(f"node {name!r}: operator {domain}.{op} isn't one of ONNX's own")
    for data in later:
        key, value = _attribute(data, f"node {name!r} ({op})")
        if key in attributes:
            raise ModelRefused(f"node {name!r} ({op}) has {key} twice")
        attributes[key] = value
    return Node(name, op, tuple(inputs), tuple(outputs), attributes)


def _attribute(message: memoryview, where: str) -> tuple[str, Attribute]:
    name, kind = "", 0
    found: dict[int, Any] = {2: 0.0, 3: 0, 4: "", 7: [], 8: []}
    for field in fields(message):
        match field.number:
            case 1:
                name = text(field)
            case 20:
                kind = field.integer()
            case 2:
                found[2] = field.real()
            case 3:
                found[3] = field.integer()
            case 4:
                found[4] = text(field)
            case 5:
                found[5] = _tensor(field.data())[1]
            case 7:
                found[7] += packed_floats(field)
            case 8:
                found[8] += packed_integers(field)
    place = {1: 2, 2: 3, 3: 4, 4: 5, 6: 7, 7: 8}.get(kind)
    if place not in found:
        raise ProgramRefused(f"{where}: attribute {name!r} is of kind {kind}, which isn't supported")
    return name, found[place]


def _port(message: memoryview) -> Port:
    name, dtype, shape = "", None, None
    for field in fields(message):
        if field.number == 1:
            name = text(field)
        elif field.number == 2:
            for inner in fields(field.data()):
                if inner.number != 1:
                    raise ProgramRefused(f"{name!r} must be a tensor")
                dtype, shape = _type(inner, name)
    return Port(name, dtype, shape)


def _type(field: Field, name: str) -> tuple[torch.dtype | None, tuple[int | str, ...] | None]:
    dtype, shape = None, None
    for inner in fields(field.data()):
        if inner.number == 1:
            dtype = _dtype(inner.integer(), name)[1]
        elif inner.number == 2:
            shape = tuple(_dimension(size) for size in fields(inner.data()) if size.number == 1)
    return dtype, shape


def _dimension(field: Field) -> int | str:
    size: int | str = "?"
    for inner in fields(field.data()):
        if inner.number == 1:
            size = _size(inner.integer())
        elif inner.number == 2:
            size = text(inner)
    return size


def _size(size: int) -> int:
    if not 0 <= size <= _DIMENSION_MAX:
        raise ModelRefused(f"size {size} must be in [0, {_DIMENSION_MAX}]")
    return size


def _dtype(number: int, name: str) -> tuple[torch.dtype, torch.dtype]:
    if number not in _TYPES:
        raise ProgramRefused(f"tensor {name!r} has element type {number}, which programs don't have")
    return _TYPES[number]


def _tensor(message: memoryview) -> tuple[str, Tensor]:
    sizes: list[int] = []
    name, kind = "", 0
    raw: memoryview | None = None
    floats: list[float] = []
    integers: list[int] = []
    for field in fields(message):
        match field.number:
            case 1:
                sizes += [_size(size) for size in packed_integers(field)]
            case 2:
                kind = field.integer()
            case 4:
                floats += packed_floats(field)
            case 5 | 7:
                integers += packed_integers(field)
            case 8:
                name = text(field)
            case 9:
                raw = field.data()
            case 10:
                raise ProgramRefused(f"tensor {name!r} has values of a kind that isn't supported")
            case 13 | 14:
                raise ProgramRefused(f"tensor {name!r} lies in another file; save the model as one")
    stored, dtype = _dtype(kind, name)
    count = math.prod(sizes)
    if len(sizes) > DIMENSIONS_MAX:
        raise ModelRefused(f"tensor {name!r} of {len(sizes)} dimensions exceeds {DIMENSIONS_MAX}")
    if raw is not None:
        if len(raw) != count * stored.itemsize:
            raise ModelRefused(f"tensor {name!r} of {len(raw)} bytes must have {count * stored.itemsize}")
        flat = torch.frombuffer(bytearray(raw), dtype=stored) if count else torch.empty(0, dtype=stored)
    else:
        values: list[float] | list[int] = floats if stored == torch.float32 else integers
        if len(values) != count or stored in {torch.float16, torch.bfloat16, torch.float64}:
            raise ModelRefused(f"tensor {name!r} has {len(values)} values, must have {count}")
        try:
            flat = torch.tensor(values, dtype=stored)
        except (RuntimeError, OverflowError) as error:
            raise ModelRefused(f"tensor {name!r}: {error}") from error
    return name, flat.to(dtype).reshape(sizes)
