"""Straight-line programs: what a job computes, as a list of exact operators that anyone can check one by one.

A program has inputs and steps. Values are numbered: first the inputs, then each step's one output, so a step
can only use values before it and every program ends. All numbers of a step's attributes are integers or
``float.hex`` text, so two peers that derive the same program derive the same bytes.

A program may come from a stranger. `decode_program` bounds its bytes, and `infer` decides every shape, size
and amount of work from the declared inputs alone, before anything is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protocols import values
from protocols.codec import decode, encode
from protocols.digest import DIGEST_BYTES, tagged
from protocols.errors import PeerFault
from workloads.errors import ProgramRefused
from workloads.program.limits import (
    ATTRIBUTE_BYTES_MAX,
    ATTRIBUTE_INTEGERS_MAX,
    ATTRIBUTES_MAX,
    DIMENSION_MAX,
    INPUTS_MAX,
    NAME_CHARACTERS_MAX,
    PROGRAM_BYTES_MAX,
    RANK_MAX,
    STEP_INPUTS_MAX,
    STEPS_MAX,
)

__all__ = [
    "DIGEST_SPEC",
    "DTYPES",
    "JOB",
    "PARAMETER",
    "Attribute",
    "Program",
    "ProgramInput",
    "Step",
    "ValueSpec",
    "decode_program",
    "encode_program",
    "last_uses",
    "spec_of",
    "value_bytes",
    "value_digest",
]

Attribute = int | str | bytes | tuple[int, ...]

DTYPES: Mapping[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "uint8": torch.uint8,
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

PARAMETER = "parameter"
"""An input whose bytes the model's parameter root proves."""

JOB = "job"
"""An input that follows from the job's input and its units so far."""

_INTEGER_MIN, _INTEGER_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True)
class ValueSpec:
    """Kind and shape of a value.

    Args:
        dtype: a name in `DTYPES`.
        shape: at most eight dimensions; () is a scalar.

    Raises:
        ProgramRefused: either is outside the limits.
    """

    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ProgramRefused(f"dtype {self.dtype!r} must be one of {sorted(DTYPES)}")
        if len(self.shape) > RANK_MAX:
            raise ProgramRefused(f"shape of {len(self.shape)} dimensions exceeds {RANK_MAX}")
        for size in self.shape:
            if not 0 <= size <= DIMENSION_MAX:
                raise ProgramRefused(f"dimension {size} must be in [0, {DIMENSION_MAX}]")

    @property
    def elements(self) -> int:
        """Numbers in the value."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of its elements."""
        return self.elements * DTYPES[self.dtype].itemsize


DIGEST_SPEC = ValueSpec("uint8", (DIGEST_BYTES,))
"""What a whole program ends in: the digest of its chunk."""


@dataclass(frozen=True, slots=True)
class ProgramInput:
    """A value that a program is given.

    Args:
        name: for messages, and for parameters the tensor's name in the model.
        spec: what it must be.
        source: `PARAMETER` or `JOB`.
    """

    name: str
    spec: ValueSpec
    source: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= NAME_CHARACTERS_MAX:
            raise ProgramRefused(
                f"input name of {len(self.name)} characters must be in [1, {NAME_CHARACTERS_MAX}]"
            )
        if self.source not in {PARAMETER, JOB}:
            raise ProgramRefused(f"input {self.name!r} has source {self.source!r}, must be parameter or job")


@dataclass(frozen=True, slots=True)
class Step:
    """One operator applied to earlier values; it has one output.

    Args:
        op: a name in the registry of operators.
        inputs: numbers of the values it takes, in the operator's order.
        attributes: name and value, sorted by name, each name once.
    """

    op: str
    inputs: tuple[int, ...]
    attributes: tuple[tuple[str, Attribute], ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.op) <= NAME_CHARACTERS_MAX:
            raise ProgramRefused(
                f"op name of {len(self.op)} characters must be in [1, {NAME_CHARACTERS_MAX}]"
            )
        if len(self.inputs) > STEP_INPUTS_MAX:
            raise ProgramRefused(
                f"step {self.op!r} has {len(self.inputs)} inputs, more than {STEP_INPUTS_MAX}"
            )
        if len(self.attributes) > ATTRIBUTES_MAX:
            raise ProgramRefused(
                f"step {self.op!r} has {len(self.attributes)} attributes, more than {ATTRIBUTES_MAX}"
            )
        names = [name for name, _ in self.attributes]
        if any(left >= right for left, right in pairwise(names)):
            raise ProgramRefused(f"attributes {names} of step {self.op!r} must be sorted and distinct")
        for name, value in self.attributes:
            _check_attribute(self.op, name, value)


@dataclass(frozen=True, slots=True)
class Program:
    """Inputs and steps; value i is input i, and value ``len(inputs) + j`` the output of step j.

    Raises:
        ProgramRefused: there are too many of either, or a step uses a value that doesn't precede it.
    """

    inputs: tuple[ProgramInput, ...]
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        if len(self.inputs) > INPUTS_MAX:
            raise ProgramRefused(f"program has {len(self.inputs)} inputs, more than {INPUTS_MAX}")
        if not 1 <= len(self.steps) <= STEPS_MAX:
            raise ProgramRefused(f"program has {len(self.steps)} steps, must have 1 to {STEPS_MAX}")
        for position, step in enumerate(self.steps, start=len(self.inputs)):
            for value in step.inputs:
                if not 0 <= value < position:
                    raise ProgramRefused(
                        f"step {position - len(self.inputs)} ({step.op}) uses value {value}, "
                        f"must be in [0, {position})"
                    )

    @property
    def value_count(self) -> int:
        """Values of the program: inputs and outputs of steps."""
        return len(self.inputs) + len(self.steps)

    @property
    def digest(self) -> bytes:
        """The 32 bytes that name the program."""
        return tagged("p2p-node/program/1", encode_program(self))


def encode_program(program: Program) -> bytes:
    """The canonical bytes of a program: MessagePack arrays of its fields in order.

    Raises:
        ProgramRefused: they exceed the limit.
    """
    data = encode(
        [
            [[item.name, [item.spec.dtype, item.spec.shape], item.source] for item in program.inputs],
            [[step.op, step.inputs, step.attributes] for step in program.steps],
        ]
    )
    if len(data) > PROGRAM_BYTES_MAX:
        raise ProgramRefused(f"program of {len(data)} bytes exceeds {PROGRAM_BYTES_MAX}")
    return data


def decode_program(data: bytes) -> Program:
    """Read the bytes of `encode_program`. Whether its operators exist and fit is for `infer` to say.

    Raises:
        ProgramRefused: the bytes are too many, not canonical, or not a program within the limits.
    """
    try:
        # Text, bytes and integers in one place are beyond a typed decoder; the shape is checked here.
        value = decode(data, list[Any], bytes_max=PROGRAM_BYTES_MAX)
    except PeerFault as error:
        raise ProgramRefused(f"program is malformed: {error}") from error
    inputs, steps = _fields(value, "program", 2)
    return Program(
        tuple(_decode_input(item) for item in _list(inputs, "inputs", INPUTS_MAX)),
        tuple(_decode_step(item) for item in _list(steps, "steps", STEPS_MAX)),
    )


def spec_of(tensor: Tensor) -> ValueSpec:
    """The spec of a tensor.

    Raises:
        ProgramRefused: its dtype has no name here, or it has too many dimensions.
    """
    name = _DTYPE_NAMES.get(tensor.dtype)
    if name is None:
        raise ProgramRefused(f"dtype {tensor.dtype} must be one of {sorted(DTYPES)}")
    return ValueSpec(name, tuple(tensor.shape))


def value_bytes(tensor: Tensor) -> bytes:
    """The elements of a tensor, little-endian, in row-major order."""
    return bytes(_little_endian(tensor))


def value_digest(tensor: Tensor) -> bytes:
    """The 32 bytes that stand for a value in a trace (`protocols.values`)."""
    spec = spec_of(tensor)
    return values.value_digest(spec.dtype, spec.shape, _little_endian(tensor))


def _little_endian(tensor: Tensor) -> memoryview:
    plain = tensor.detach().cpu().contiguous()
    # numpy has no bfloat16; a view of bytes has at least one dimension.
    array = (plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain).numpy().reshape(-1)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).view(np.uint8).data


def _check_attribute(op: str, name: str, value: Attribute) -> None:
    if not 1 <= len(name) <= NAME_CHARACTERS_MAX:
        raise ProgramRefused(f"attribute name of {len(name)} characters in step {op!r}")
    if isinstance(value, bytes | str):
        size = len(value if isinstance(value, bytes) else value.encode())
        if size > ATTRIBUTE_BYTES_MAX:
            raise ProgramRefused(
                f"attribute {name!r} of step {op!r} has {size} bytes, more than {ATTRIBUTE_BYTES_MAX}"
            )
        return
    integers = value if isinstance(value, tuple) else (value,)
    if len(integers) > ATTRIBUTE_INTEGERS_MAX:
        raise ProgramRefused(
            f"attribute {name!r} of step {op!r} has {len(integers)} integers, "
            f"more than {ATTRIBUTE_INTEGERS_MAX}"
        )
    for integer in integers:
        if type(integer) is not int or not _INTEGER_MIN <= integer <= _INTEGER_MAX:
            raise ProgramRefused(f"attribute {name!r} of step {op!r} holds {integer!r}, not a 64-bit integer")


def _decode_input(value: Any) -> ProgramInput:
    name, spec, source = _fields(value, "input", 3)
    dtype, shape = _fields(spec, "spec", 2)
    return ProgramInput(
        _text(name, "input name"),
        ValueSpec(_text(dtype, "dtype"), _integers(shape, "shape", RANK_MAX)),
        _text(source, "source"),
    )


def _decode_step(value: Any) -> Step:
    op, inputs, attributes = _fields(value, "step", 3)
    return Step(
        _text(op, "op"),
        _integers(inputs, "step inputs", STEP_INPUTS_MAX),
        tuple(_decode_attribute(item) for item in _list(attributes, "attributes", ATTRIBUTES_MAX)),
    )


def _decode_attribute(item: Any) -> tuple[str, Attribute]:
    name, value = _fields(item, "attribute", 2)
    if isinstance(value, list):
        value = _integers(value, "attribute", ATTRIBUTE_INTEGERS_MAX)
    elif type(value) not in {int, str, bytes}:
        raise ProgramRefused(f"attribute of type {type(value).__name__} must be int, text, bytes or integers")
    return _text(name, "attribute name"), value


def _list(value: Any, what: str, count_max: int) -> list[Any]:
    if not isinstance(value, list):
        raise ProgramRefused(f"{what} must be an array, got {type(value).__name__}")
    if len(value) > count_max:
        raise ProgramRefused(f"{what} of {len(value)} items exceeds {count_max}")
    return value


def _fields(value: Any, what: str, count: int) -> list[Any]:
    fields = _list(value, what, count)
    if len(fields) != count:
        raise ProgramRefused(f"{what} of {len(fields)} fields must have {count}")
    return fields


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ProgramRefused(f"{what} must be text, got {type(value).__name__}")
    return value


def _integers(value: Any, what: str, count_max: int) -> tuple[int, ...]:
    items = _list(value, what, count_max)
    for item in items:
        if type(item) is not int:
            raise ProgramRefused(f"{what} must hold integers, got {type(item).__name__}")
    return tuple(items)


def last_uses(program: Program) -> Sequence[int]:
    """For each value, the number of the last step that takes it, or -1 if none does."""
    last = [-1] * program.value_count
    for index, step in enumerate(program.steps):
        for value in step.inputs:
            last[value] = index
    return last
