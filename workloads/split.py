"""How a job falls into parts that different peers may do at once; readable without torch.

A kind of work says what its *items* are: rows of pictures, prompts, whatever doesn't depend on each other. A
part is a job of the same kind with a run of the items alone. Two things make it one job again:

- a part's output is bit for bit what the whole's would have been for these items: noise is a function of an
  item's place in the whole, never of its place in the part;
- the output of the whole is the outputs of its parts, one after another.

A whole may be larger than a job may be; its parts may not. Everybody derives the same part from the same
whole, so a receipt can be checked by deriving it again.

Where items do depend on each other (`Order`), each is a part of its own, and a part that starts from what
others made names that in its input, which follows from the whole's input and the units of those parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Order", "Part", "Split"]


@dataclass(frozen=True, slots=True)
class Part:
    """What a job with some of the items takes and gives.

    Args:
        input: in the workload's own encoding.
        input_units: units that the input has already.
        units_max: output units at most.
    """

    input: bytes
    input_units: int
    units_max: int


@dataclass(frozen=True, slots=True)
class Order:
    """How items follow from others.

    Args:
        needs: a whole's input and an item, to the items whose output it starts from, all before it.
        part: a whole's input, an item and the output units of those that it needs, in order, to the job that
            does it. Raises `InputRefused` if they aren't what such items give.
        label: a whole's input and an item, to what people call it.
    """

    needs: Callable[[bytes, int], tuple[int, ...]]
    part: Callable[[bytes, int, Sequence[Sequence[int]]], Part]
    label: Callable[[bytes, int], str]


@dataclass(frozen=True, slots=True)
class Split:
    """A kind's items.

    Args:
        item: what one is called.
        items: how many a whole's input has. Raises `InputRefused` if the input breaks a rule.
        part: a whole's input, the first item wanted and how many, to the job that does them. Raises
            `InputRefused` if such a job would break a rule, for one by being too large. With an order, what
            an item takes and gives as far as it is known beforehand: blobs of the right sizes.
        order: how items follow from others; None where none does.
    """

    item: str
    """Such as ``tile``, or ``chunk of texts``."""
    items: Callable[[bytes], int]
    part: Callable[[bytes, int, int], Part]
    order: Order | None = None

    @property
    def items_name(self) -> str:
        """What several items are called: ``tiles``, ``batches``, ``chunks of texts``."""
        noun, space, rest = self.item.partition(" ")
        ending = "es" if noun.endswith(("ch", "sh", "s", "x")) else "s"
        return f"{noun}{ending}{space}{rest}"

    def label(self, whole: bytes, first: int, count: int) -> str:
        """A run of items of a whole, for people."""
        if self.order is not None:
            return self.order.label(whole, first)
        return f"{self.item} {first}" if count == 1 else f"{self.items_name} {first} to {first + count - 1}"
