"""How a job falls into parts that different peers may do at once; readable without torch.

A kind of work says what its *items* are: rows of pictures, prompts, whatever doesn't depend on each other. A
part is a job of the same kind with a run of the items alone. Two things make it one job again:

- a part's output is bit for bit what the whole's would have been for these items: noise is a function of an
  item's place in the whole, never of its place in the part;
- the output of the whole is the outputs of its parts, one after another.

A whole may be larger than a job may be; its parts may not. Everybody derives the same part from the same
whole, so a receipt can be checked by deriving it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Part", "Split"]


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
class Split:
    """A kind's items.

    Args:
        item: what one is called.
        items: how many a whole's input has. Raises `InputRefused` if the input breaks a rule.
        part: a whole's input, the first item wanted and how many, to the job that does them. Raises
            `InputRefused` if such a job would break a rule, for one by being too large.
    """

    item: str
    """Such as ``tile``, or ``chunk of texts``."""
    items: Callable[[bytes], int]
    part: Callable[[bytes, int, int], Part]

    @property
    def items_name(self) -> str:
        """What several items are called: ``tiles``, ``batches``, ``chunks of texts``."""
        noun, space, rest = self.item.partition(" ")
        ending = "es" if noun.endswith(("ch", "sh", "s", "x")) else "s"
        return f"{noun}{ending}{space}{rest}"

    def label(self, first: int, count: int) -> str:
        """A run of items, for people."""
        return f"{self.item} {first}" if count == 1 else f"{self.items_name} {first} to {first + count - 1}"
