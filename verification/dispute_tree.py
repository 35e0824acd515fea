"""Two traces of one program, walked down together to the first value about which they differ.

A trace is a list of value digests under a Merkle root, as in `protocols.merkle`. The parties stand at
one node of their trees, where they differ, and each shows its node's two children. Both go to the left
pair if it differs, else to the right one: so wherever they end, every value before it is the same in
both traces. That is why either party can prove any earlier value against the other's root with its own
digests, and nobody has to open anything at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from protocols import merkle
from protocols.errors import Rejected

__all__ = ["Descent", "level_sizes"]

Children = tuple[bytes, bytes]
Place = tuple[int, int]


def level_sizes(count: int) -> list[int]:
    """Nodes of each level of a tree of ``count`` leaves, leaves first."""
    sizes = [count]
    while sizes[-1] > 1:
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


class Descent:
    """Where the parties stand; `step` takes them down until `is_at_value`."""

    def __init__(self, count: int, tops: Mapping[bytes, bytes]) -> None:
        """Start at the top.

        Args:
            count: values of the program, at least 1.
            tops: each party's top node; they differ.
        """
        self._sizes = level_sizes(count)
        self._known: dict[bytes, dict[Place, bytes]] = {party: {} for party in tops}
        self.level = len(self._sizes) - 1
        self.position = 0
        self._stand(dict(tops))

    @property
    def is_at_value(self) -> bool:
        """Whether the first differing value is found; its index is `position`."""
        return self.level == 0

    def node(self, party: bytes) -> bytes:
        """A party's node at which the parties stand."""
        return self._known[party][self.level, self.position]

    def check(self, party: bytes, children: Children) -> None:
        """See that these are the children of the party's node.

        Raises:
            Rejected: they aren't.
        """
        if merkle.join(*children) != self.node(party):
            raise Rejected(f"children of node {self.position} at level {self.level} don't make that node")

    def step(self, children: Mapping[bytes, Children]) -> None:
        """Go to the first pair of children that differs.

        Args:
            children: each party's, checked.
        """
        one, other = children.values()
        side = 0 if one[0] != other[0] else 1
        left = 2 * self.position
        for party, pair in children.items():
            self._known[party][self.level - 1, left] = pair[0]
            self._known[party][self.level - 1, left + 1] = pair[1]
        self.level, self.position = self.level - 1, left + side
        self._stand({party: pair[side] for party, pair in children.items()})

    def _stand(self, nodes: Mapping[bytes, bytes]) -> None:
        for party, node in nodes.items():
            self._known[party][self.level, self.position] = node
        # The last of an odd level has no sibling below: it moved up as it was.
        while self.level > 0 and 2 * self.position + 1 >= self._sizes[self.level - 1]:
            self.level, self.position = self.level - 1, 2 * self.position
            for party, node in nodes.items():
                self._known[party][self.level, self.position] = node

    def path(self, party: bytes, index: int, levels: Sequence[Sequence[bytes]]) -> tuple[bytes, ...]:
        """The siblings that prove value ``index`` against a party's root, at the end of the descent.

        Args:
            party: against whose root.
            index: up to `position`.
            levels: the whole tree of a trace that is equal before `position`, e.g. the other party's.
        """
        known = self._known[party]
        return tuple(
            # What the party didn't show lies wholly before the value, where both are the same.
            known.get((level, sibling)) or levels[level][sibling]
            for level, sibling in merkle.climb(index, len(levels[0]))
        )
