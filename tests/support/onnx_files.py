"""Writes ONNX files, so that tests need no library that does."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["attribute", "graph", "message", "model", "node", "port", "tensor"]

_KINDS = {torch.float32: 1, torch.uint8: 2, torch.int64: 7, torch.float64: 11}


def varint(number: int) -> bytes:
    """A number, seven bits to a byte."""
    number &= (1 << 64) - 1
    written = bytearray()
    while number >= 0x80:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*written, number])


def message(*fields: tuple[int, int | float | str | bytes]) -> bytes:
    """A message of these fields."""
    written = b""
    for number, value in fields:
        match value:
            case int():
                written += varint(number << 3) + varint(value)
            case float():
                written += varint(number << 3 | 5) + struct.pack("<f", value)
            case str() | bytes():
                data = value.encode() if isinstance(value, str) else value
                written += varint(number << 3 | 2) + varint(len(data)) + data
    return written


def tensor(name: str, value: Tensor) -> bytes:
    """A tensor with raw data."""
    raw = value.contiguous().numpy().tobytes()
    return message(*((1, size) for size in value.shape), (2, _KINDS[value.dtype]), (8, name), (9, raw))


def attribute(name: str, value: Any) -> bytes:
    """An attribute."""
    match value:
        case int():
            return message((1, name), (3, value), (20, 2))
        case float():
            return message((1, name), (2, value), (20, 1))
        case str():
            return message((1, name), (4, value), (20, 3))
        case Tensor():
            return message((1, name), (5, tensor("", value)), (20, 4))
    packed = b"".join(map(varint, value))
    return message((1, name), (8, packed), (20, 7))


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> bytes:
    """An operator."""
    return message(
        *((1, name) for name in inputs),
        *((2, name) for name in outputs),
        (3, f"the {op}"),
        (4, op),
        *((5, attribute(name, value)) for name, value in attributes.items()),
    )


def port(name: str, shape: Sequence[int | str], dtype: torch.dtype = torch.float32) -> bytes:
    """An input or output."""
    sizes = [
        message((1, message((1, size)) if isinstance(size, int) else message((2, size)))) for size in shape
    ]
    kind = message((1, _KINDS[dtype]), (2, b"".join(sizes)))
    return message((1, name), (2, message((1, kind))))


def graph(
    nodes: Sequence[bytes],
    *,
    inputs: Sequence[bytes],
    outputs: Sequence[str],
    tensors: Mapping[str, Tensor] | None = None,
) -> bytes:
    """A graph."""
    return message(
        *((1, data) for data in nodes),
        (2, "graph"),
        *((5, tensor(name, value)) for name, value in (tensors or {}).items()),
        *((11, data) for data in inputs),
        *((12, message((1, name))) for name in outputs),
    )


def model(content: bytes, opset: int = 18) -> bytes:
    """A file."""
    return message((1, 8), (2, "tests"), (7, content), (8, message((1, ""), (2, opset))))
