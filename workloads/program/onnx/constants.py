"""What is known of a graph before it runs: shapes, and the little arithmetic that exporters do on them.

An operator whose inputs are all known and small is worked out while the file is read, on the client's
machine. What comes out is part of the program, so it needs no rule of exact arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from workloads.errors import ProgramRefused
from workloads.program.onnx.model import Node

__all__ = ["FOLDED_ELEMENTS_MAX", "fold"]

FOLDED_ELEMENTS_MAX = 4_096
_DTYPES = {1: torch.float32, 6: torch.int64, 7: torch.int64, 9: torch.uint8, 11: torch.float64}


def fold(node: Node, inputs: Sequence[Tensor | None]) -> Tensor | None:
    """The one output of an operator whose inputs are known.

    Args:
        node: the operator.
        inputs: its inputs, None where one is left out.

    Returns:
        Its output, or None if it isn't one that is worked out beforehand, or too large.

    Raises:
        ProgramRefused: it can't be done with these inputs.
    """
    found = _FOLDED.get(node.op)
    if found is None or len(node.outputs) != 1:
        return None
    if any(known is not None and known.numel() > FOLDED_ELEMENTS_MAX for known in inputs):
        return None
    try:
        result = found(node.attributes, *inputs)
    # What torch and Python raise for operands that don't fit.
    except (
        RuntimeError,
        TypeError,
        ValueError,
        IndexError,
        KeyError,
        AttributeError,
        OverflowError,
    ) as error:
        first = str(error).splitlines()[:1]
        raise ProgramRefused(f"can't be worked out: {' '.join(first)[:120]}") from error
    return result if result is not None and result.numel() <= FOLDED_ELEMENTS_MAX else None


Attributes = Mapping[str, Any]
_Fold = Callable[..., Tensor | None]


def _whole(x: Tensor) -> list[int]:
    return [int(number) for number in x.reshape(-1).tolist()]


def _divided(a: Attributes, x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _gathered(a: Attributes, x: Tensor, index: Tensor) -> Tensor:
    axis = a.get("axis", 0)
    places = torch.where(index < 0, index + x.shape[axis], index)
    taken = x.index_select(axis, places.reshape(-1))
    return taken.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _unsqueezed(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    places = _whole(axes) if axes is not None else a["axes"]
    rank = x.dim() + len(places)
    for axis in sorted(place % rank for place in places):
        x = x.unsqueeze(axis)
    return x


def _squeezed(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    places = _whole(axes) if axes is not None else a.get("axes")
    return x.squeeze() if places is None else x.squeeze(tuple(places))


def _sliced(  # noqa: PLR0917
    a: Attributes,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor | None:
    if starts is None or ends is None or x.dim() != 1:
        return None
    first, last = _whole(starts)[0], _whole(ends)[0]
    step = _whole(steps)[0] if steps is not None else 1
    return torch.tensor(x.tolist()[first:last:step], dtype=x.dtype)


def _filled(a: Attributes, shape: Tensor) -> Tensor | None:
    value = a.get("value", torch.zeros(1))
    sizes = _whole(shape)
    if any(size < 0 for size in sizes) or torch.Size(sizes).numel() > FOLDED_ELEMENTS_MAX:
        return None
    return torch.full(sizes, value.item(), dtype=value.dtype)


def _range(a: Attributes, start: Tensor, limit: Tensor, step: Tensor) -> Tensor | None:
    numbers = range(*(_whole(each)[0] for each in (start, limit, step)))
    if start.is_floating_point() or len(numbers) > FOLDED_ELEMENTS_MAX:
        return None
    return torch.tensor(list(numbers), dtype=torch.int64)


_FOLDED: Mapping[str, _Fold] = {
    "Add": lambda a, x, y: x + y,
    "Sub": lambda a, x, y: x - y,
    "Mul": lambda a, x, y: x * y,
    "Div": _divided,
    "Neg": lambda a, x: -x,
    "Sqrt": lambda a, x: x.sqrt(),
    "Pow": lambda a, x, y: x**y,
    "Floor": lambda a, x: x.floor(),
    "Max": lambda a, x, y: torch.maximum(x, y),
    "Min": lambda a, x, y: torch.minimum(x, y),
    "Equal": lambda a, x, y: (x == y).to(torch.uint8),
    "Where": lambda a, c, x, y: torch.where(c != 0, x, y),
    "Not": lambda a, x: (x == 0).to(torch.uint8),
    "Cast": lambda a, x: x.to(_DTYPES[a["to"]]),
    "Concat": lambda a, *parts: torch.cat(parts, a["axis"]),
    "Gather": _gathered,
    "Unsqueeze": _unsqueezed,
    "Squeeze": _squeezed,
    "Slice": _sliced,
    "Reshape": lambda a, x, shape: x.reshape(_whole(shape)),
    "ConstantOfShape": _filled,
    "Range": _range,
    "ReduceProd": lambda a, x, axes=None: x.prod() if x.dim() == 1 else None,
    "Identity": lambda a, x: x,
}
