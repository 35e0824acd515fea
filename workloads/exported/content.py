"""A program with its tensors as bytes, and what names it.

The identity covers the program's bytes and, by name, type, shape and value digest, its tensors. So a judge
who has the program and the list of tensors derives a chunk's program and the digests of its inputs, and needs
no tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from protocols.codec import Wire, decode, encode
from protocols.digest import tagged
from protocols.errors import PeerFault
from protocols.limits import CASE_CONTEXT_BYTES_MAX
from protocols.parameters import Parameter
from protocols.values import value_bytes as size_of
from workloads.errors import InputRefused, ModelRefused
from workloads.exported.input import CONTENT_BYTES_MAX
from workloads.program.exported import Template, check_template
from workloads.program.interpreter import check_range
from workloads.program.program import (
    DTYPES,
    PARAMETER,
    Program,
    decode_program,
    encode_program,
    spec_of,
    value_bytes,
    value_digest,
)

__all__ = ["identity_of", "open_context", "pack", "parameters_of", "unpack", "write_context"]


class _Packed(Wire, frozen=True):
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


class _Content(Wire, frozen=True):
    program: bytes
    tensors: tuple[_Packed, ...]


class _Context(Wire, frozen=True):
    program: bytes
    parameters: tuple[Parameter, ...]


def pack(template: Template) -> bytes:
    """The bytes of a program and its tensors.

    Raises:
        InputRefused: they exceed `CONTENT_BYTES_MAX`.
    """
    tensors = []
    for name, tensor in sorted(template.parameters.items()):
        spec = spec_of(tensor)
        tensors.append(_Packed(name, spec.dtype, spec.shape, value_bytes(tensor)))
    size = sum(len(tensor.data) for tensor in tensors)
    if size > CONTENT_BYTES_MAX:
        raise InputRefused(f"tensors of {size} bytes exceed {CONTENT_BYTES_MAX}")
    return encode(_Content(encode_program(template.program), tuple(tensors)))


def unpack(content: bytes) -> Template:
    """Read the bytes of `pack`, which may be a stranger's.

    Raises:
        ModelRefused: they are malformed, or the tensors aren't those of the program.
        ProgramRefused: the program breaks a rule.
        NumericsRefused: a tensor holds what exact arithmetic doesn't cover.
    """
    try:
        packed = decode(content, _Content, bytes_max=CONTENT_BYTES_MAX)
    except PeerFault as error:
        raise ModelRefused(f"program: {error}") from error
    program = decode_program(packed.program)
    tensors = {item.name: _tensor(item) for item in packed.tensors}
    wanted = {item.name: item.spec for item in program.inputs if item.source == PARAMETER}
    if len(tensors) != len(packed.tensors) or tensors.keys() != wanted.keys():
        raise ModelRefused(f"program's tensors must be {sorted(wanted)}, each once, got {sorted(tensors)}")
    for name, spec in wanted.items():
        if spec_of(tensors[name]) != spec:
            raise ModelRefused(f"tensor {name!r} is {spec_of(tensors[name])}, must be {spec}")
        check_range(tensors[name], f"tensor {name!r}")
    return Template(program, tensors)


def parameters_of(template: Template) -> tuple[Parameter, ...]:
    """The tensors of a program as its identity has them."""
    return tuple(
        Parameter(name, spec_of(tensor).dtype, spec_of(tensor).shape, value_digest(tensor))
        for name, tensor in sorted(template.parameters.items())
    )


def identity_of(program: bytes, parameters: Sequence[Parameter]) -> bytes:
    """The 32 bytes that name a program with its tensors.

    Raises:
        ValueError: a parameter's type or shape breaks a rule.
    """
    return tagged("p2p-node/exported/1", program, *(parameter.leaf for parameter in parameters))


def write_context(template: Template) -> bytes:
    """What a judge must know of a program.

    Raises:
        ModelRefused: it exceeds its limit.
    """
    context = encode(_Context(encode_program(template.program), parameters_of(template)))
    if len(context) > CASE_CONTEXT_BYTES_MAX:
        raise ModelRefused(f"context of {len(context)} bytes exceeds {CASE_CONTEXT_BYTES_MAX}")
    return context


def open_context(context: bytes, identity: bytes) -> tuple[Program, dict[str, Parameter]]:
    """The program of this identity and its tensors' digests.

    Raises:
        ModelRefused: the context is malformed, or of another program.
        ProgramRefused: the program breaks a rule.
    """
    try:
        opened = decode(context, _Context, bytes_max=CASE_CONTEXT_BYTES_MAX)
        found = identity_of(opened.program, opened.parameters)
    except (PeerFault, ValueError) as error:
        raise ModelRefused(f"context: {error}") from error
    if found != identity:
        raise ModelRefused(f"the context is of program {found.hex()}, must be of {identity.hex()}")
    program = decode_program(opened.program)
    check_template(program)
    return program, {parameter.name: parameter for parameter in opened.parameters}


def _tensor(item: _Packed) -> Tensor:
    try:
        size = size_of(item.dtype, item.shape)
    except ValueError as error:
        raise ModelRefused(f"tensor {item.name!r}: {error}") from error
    if len(item.data) != size:
        raise ModelRefused(f"tensor {item.name!r} of {len(item.data)} bytes must have {size}")
    dtype = DTYPES[item.dtype]
    if not item.data:
        return torch.empty(item.shape, dtype=dtype)
    return torch.frombuffer(bytearray(item.data), dtype=dtype).reshape(item.shape)
