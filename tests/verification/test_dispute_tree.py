"""Two trees, walked down together: always to the first difference, with every path known there."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import merkle
from protocols.digest import tagged
from protocols.errors import Rejected
from verification.dispute_tree import Descent, level_sizes

ONE, OTHER = b"one", b"other"


def leaves(count: int, changed: frozenset[int]) -> list[bytes]:
    return [tagged("p2p-node/test-leaf/1", bytes([i]), bytes([i in changed])) for i in range(count)]


def descend(mine: list[bytes], theirs: list[bytes]) -> tuple[Descent, int]:
    trees = {ONE: merkle.grow(mine, merkle.join), OTHER: merkle.grow(theirs, merkle.join)}
    descent = Descent(len(mine), {party: levels[-1][0] for party, levels in trees.items()})
    rounds = 0
    while not descent.is_at_value:
        children = {
            party: (
                levels[descent.level - 1][2 * descent.position],
                levels[descent.level - 1][2 * descent.position + 1],
            )
            for party, levels in trees.items()
        }
        for party, pair in children.items():
            descent.check(party, pair)
        descent.step(children)
        rounds += 1
    return descent, rounds


@settings(max_examples=120, deadline=None)
@given(
    st.integers(1, 70).flatmap(
        lambda n: st.tuples(st.just(n), st.frozensets(st.integers(0, n - 1), min_size=1))
    )
)
def test_it_ends_at_the_first_difference_and_knows_every_path_there(case: tuple[int, frozenset[int]]) -> None:
    count, changed = case
    mine, theirs = leaves(count, frozenset()), leaves(count, changed)
    descent, rounds = descend(mine, theirs)
    assert descent.position == min(changed)
    assert rounds <= (count - 1).bit_length()
    levels, root = merkle.grow(mine, merkle.join), merkle.root(theirs)
    for index in range(descent.position + 1):
        path = descent.path(OTHER, index, levels)
        assert merkle.verify(root, leaf=theirs[index], index=index, count=count, proof=path)
    assert descent.node(OTHER) == theirs[descent.position]


def test_children_that_make_another_node_are_refused() -> None:
    mine, theirs = leaves(4, frozenset()), leaves(4, frozenset({2}))
    descent = Descent(
        4, {ONE: merkle.grow(mine, merkle.join)[-1][0], OTHER: merkle.grow(theirs, merkle.join)[-1][0]}
    )
    with pytest.raises(Rejected, match="don't make that node"):
        descent.check(OTHER, (mine[0], mine[1]))


def test_level_sizes() -> None:
    assert level_sizes(1) == [1]
    assert level_sizes(13) == [13, 7, 4, 2, 1]
