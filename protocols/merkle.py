"""Merkle trees whose root also fixes how many leaves there are.

Leaves are digests that were domain-tagged by whoever made them. Level by level, neighbours are
joined in pairs; the last of an odd level moves up unjoined, which gives the shape of RFC 6962. No
leaf is ever doubled, and the root hashes the count too, so a root stands for exactly one list.
From index and count alone follows how long a proof is and on which side each sibling stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from protocols.digest import DIGEST_BYTES, tagged
from protocols.limits import MERKLE_DEPTH_MAX

__all__ = [
    "LEAVES_MAX",
    "ascend",
    "climb",
    "grow",
    "is_left",
    "join",
    "prove",
    "reached",
    "root",
    "verify",
]

LEAVES_MAX = 2**MERKLE_DEPTH_MAX

_NODE = "p2p-node/merkle-node/1"
_ROOT = "p2p-node/merkle-root/1"

_Node = TypeVar("_Node")


def root(leaves: Sequence[bytes]) -> bytes:
    """The 32-byte root over ``leaves``.

    Raises:
        ValueError: there are no leaves, or one is not 32 bytes.
    """
    _check_leaves(leaves)
    return _seal(len(leaves), grow(leaves, join)[-1][0])


def prove(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The siblings between leaf ``index`` and the root, from the bottom up.

    Returns:
        At most ceil(log2(count)) digests of 32 bytes; none where there is one leaf.

    Raises:
        ValueError: no leaves, a leaf that is not 32 bytes, or an index outside of them.
    """
    _check_leaves(leaves)
    if not 0 <= index < len(leaves):
        raise ValueError(f"index must be in 0..{len(leaves) - 1}, got {index}")
    levels = grow(leaves, join)
    return tuple(levels[level][sibling] for level, sibling in climb(index, len(leaves)))


def verify(root: bytes, *, leaf: bytes, index: int, count: int, proof: Sequence[bytes]) -> bool:
    """Whether ``root`` stands for ``count`` leaves of which number ``index`` is ``leaf``.

    False for whatever is malformed: an index or count out of bounds, a digest of another length,
    a proof that is longer or shorter than the place of the leaf demands.
    """
    return reached(leaf=leaf, index=index, count=count, proof=proof) == root


def reached(*, leaf: bytes, index: int, count: int, proof: Sequence[bytes]) -> bytes | None:
    """The root that ``proof`` leads to from ``leaf``; None for whatever is malformed, as in `verify`."""
    top = ascend(leaf=leaf, index=index, count=count, proof=proof)
    return None if top is None else _seal(count, top)


def ascend(*, leaf: bytes, index: int, count: int, proof: Sequence[bytes]) -> bytes | None:
    """The top node, under the root, that ``proof`` leads to; None for whatever is malformed."""
    if not 1 <= count <= LEAVES_MAX or not 0 <= index < count:
        return None
    siblings = [sibling for _, sibling in climb(index, count)]
    if len(proof) != len(siblings) or any(len(digest) != DIGEST_BYTES for digest in (leaf, *proof)):
        return None
    node = leaf
    for sibling, digest in zip(siblings, proof, strict=True):
        node = join(digest, node) if is_left(sibling) else join(node, digest)
    return node


def grow(leaves: Sequence[_Node], join: Callable[[_Node, _Node], _Node]) -> list[Sequence[_Node]]:
    """All levels of a tree of this shape, leaves first, the single top last.

    Args:
        leaves: at least one.
        join: makes a parent of a left and a right child.
    """
    levels = [leaves]
    while len(below := levels[-1]) > 1:
        joined = [join(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)]
        levels.append([*joined, below[-1]] if len(below) % 2 else joined)
    return levels


def climb(index: int, count: int) -> Iterator[tuple[int, int]]:
    """The siblings on the way up from leaf ``index`` of ``count``: (level, position in that level)."""
    level = 0
    while count > 1:
        # The last of an odd level has no sibling: it moves up as it is.
        if index ^ 1 < count:
            yield level, index ^ 1
        index, count, level = index // 2, (count + 1) // 2, level + 1


def is_left(position: int) -> bool:
    """Whether the node at ``position`` of its level is the left one of its pair."""
    return position % 2 == 0


def join(left: bytes, right: bytes) -> bytes:
    """The parent of two nodes."""
    return tagged(_NODE, left, right)


def _seal(count: int, top: bytes) -> bytes:
    return tagged(_ROOT, count.to_bytes(8, "little"), top)


def _check_leaves(leaves: Sequence[bytes]) -> None:
    if not 1 <= len(leaves) <= LEAVES_MAX:
        raise ValueError(f"a tree has 1..{LEAVES_MAX} leaves, got {len(leaves)}")
    for position, leaf in enumerate(leaves):
        if len(leaf) != DIGEST_BYTES:
            raise ValueError(f"leaf {position} must be {DIGEST_BYTES} bytes, got {len(leaf)}")
