"""Who may be drawn to verify a job, fixed before the job is awarded.

Peers see different networks, so the terms of a job pin one electorate: the root of a Merkle sum
tree over (key, weight), its total weight and its size. Every node carries the weight below it and
every parent hashes both children's weights, so the path from a member to the root proves its
weight and the total at once, and a checker needs no list.

A requester that packs the list harms only itself, because a conviction needs a recomputation and
not votes. An executor protects itself with `missing_share`: it refuses a list that leaves out too
much of what it sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from protocols.digest import DIGEST_BYTES, tagged
from protocols.limits import ELECTORATE_MEMBERS_MAX, MEMBER_WEIGHT_MAX, TOTAL_WEIGHT_MAX
from protocols.merkle import climb, grow, is_left
from protocols.messages import Member, MembershipProof

__all__ = ["Electorate", "Member", "MembershipProof", "verify_membership"]

KEY_BYTES = 32
PPM = 1_000_000

_LEAF = "p2p-node/electorate-leaf/1"
_NODE = "p2p-node/electorate-node/1"
_ROOT = "p2p-node/electorate-root/1"


class _Node(NamedTuple):
    digest: bytes
    weight: int


class Electorate:
    """An immutable list of members in the order of their keys, and the tree over it.

    Args:
        members: in any order, 1 to ELECTORATE_MEMBERS_MAX of them.

    Raises:
        ValueError: no members or too many, a key that is not 32 bytes or that occurs twice, a
            weight outside 1..MEMBER_WEIGHT_MAX, or a sum of weights above TOTAL_WEIGHT_MAX.
    """

    def __init__(self, members: Iterable[Member]) -> None:
        self.members: tuple[Member, ...] = tuple(sorted(members, key=lambda member: member.key))
        _check_members(self.members)
        self._index_of = {member.key: index for index, member in enumerate(self.members)}
        self._levels = grow([_leaf(member.key, member.weight) for member in self.members], _join)
        self.root: bytes = _seal(self.count, self._levels[-1][0])

    @property
    def count(self) -> int:
        """How many members there are."""
        return len(self.members)

    @property
    def total_weight(self) -> int:
        """The sum of all weights."""
        return self._levels[-1][0].weight

    def __contains__(self, key: object) -> bool:
        return key in self._index_of

    def weight_of(self, key: bytes) -> int:
        """The weight of one member.

        Raises:
            KeyError: ``key`` is not a member.
        """
        return self.members[self._index_of[key]].weight

    def prove(self, key: bytes) -> MembershipProof:
        """The proof that `verify_membership` accepts for this member.

        Raises:
            KeyError: ``key`` is not a member.
        """
        index = self._index_of[key]
        beside = (self._levels[level][sibling] for level, sibling in climb(index, self.count))
        return MembershipProof(
            index=index,
            weight=self.members[index].weight,
            siblings=tuple((node.digest, node.weight) for node in beside),
        )

    def missing_share(self, known: Mapping[bytes, int]) -> int:
        """How much of the weight that the caller knows of is missing here.

        A member listed with less weight than the caller knows counts as missing by the difference,
        or a list could silence a peer by giving it weight 1.

        Args:
            known: weight by key, as the caller sees the network.

        Returns:
            Parts per million, rounded up, 0 for an empty view.

        Raises:
            ValueError: a known weight is negative.
        """
        missing = 0
        for key, weight in known.items():
            if weight < 0:
                raise ValueError(f"known weight of {key.hex()} must be >= 0, got {weight}")
            missing += max(0, weight - (self.weight_of(key) if key in self else 0))
        seen = sum(known.values())
        return -(-missing * PPM // seen) if seen else 0


def verify_membership(
    root: bytes, *, total_weight: int, count: int, key: bytes, proof: MembershipProof
) -> bool:
    """Whether the electorate of this root, total and size has ``key`` with the weight in ``proof``.

    False for whatever is malformed: numbers out of bounds, hashes of another length, a proof that
    is longer or shorter than the member's place demands.
    """
    if not 1 <= count <= ELECTORATE_MEMBERS_MAX or not 0 <= proof.index < count:
        return False
    if not 1 <= proof.weight <= MEMBER_WEIGHT_MAX or total_weight > TOTAL_WEIGHT_MAX:
        return False
    positions = [position for _, position in climb(proof.index, count)]
    if len(key) != KEY_BYTES or len(proof.siblings) != len(positions):
        return False
    node = _leaf(key, proof.weight)
    for position, (digest, weight) in zip(positions, proof.siblings, strict=True):
        # A weight below 1 would let the sum come out right although a member's share is overstated.
        if len(digest) != DIGEST_BYTES or not 1 <= weight <= TOTAL_WEIGHT_MAX:
            return False
        sibling = _Node(digest, weight)
        node = _join(sibling, node) if is_left(position) else _join(node, sibling)
    return node.weight == total_weight and _seal(count, node) == root


def _check_members(members: Sequence[Member]) -> None:
    if not 1 <= len(members) <= ELECTORATE_MEMBERS_MAX:
        raise ValueError(f"an electorate has 1..{ELECTORATE_MEMBERS_MAX} members, got {len(members)}")
    previous = b""
    for member in members:
        if len(member.key) != KEY_BYTES:
            raise ValueError(f"member key must be {KEY_BYTES} bytes, got {len(member.key)}")
        if member.key == previous:
            raise ValueError(f"member {member.key.hex()} occurs twice")
        if not 1 <= member.weight <= MEMBER_WEIGHT_MAX:
            raise ValueError(f"member weight must be in 1..{MEMBER_WEIGHT_MAX}, got {member.weight}")
        previous = member.key
    total = sum(member.weight for member in members)
    if total > TOTAL_WEIGHT_MAX:
        raise ValueError(f"total weight must be at most {TOTAL_WEIGHT_MAX}, got {total}")


def _leaf(key: bytes, weight: int) -> _Node:
    return _Node(tagged(_LEAF, key, _u64(weight)), weight)


def _join(left: _Node, right: _Node) -> _Node:
    digest = tagged(_NODE, left.digest, _u64(left.weight), right.digest, _u64(right.weight))
    return _Node(digest, left.weight + right.weight)


def _seal(count: int, top: _Node) -> bytes:
    return tagged(_ROOT, _u64(count), _u64(top.weight), top.digest)


def _u64(number: int) -> bytes:
    return number.to_bytes(8, "little")
