"""The tree against RFC 6962's recursive shape, and proofs bent in every direction."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from protocols import merkle
from protocols.digest import tagged

quick = settings(max_examples=100, deadline=None, derandomize=True)
digests = st.binary(min_size=32, max_size=32)
leaf_lists = st.lists(digests, min_size=1, max_size=40)


def numbered(count: int) -> list[bytes]:
    return [tagged("test-leaf", index.to_bytes(4, "little")) for index in range(count)]


def top_by_halving(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1: split at the largest power of two below the count."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return tagged("p2p-node/merkle-node/1", top_by_halving(leaves[:split]), top_by_halving(leaves[split:]))


@pytest.mark.parametrize("count", range(1, 34))
def test_shape_is_that_of_rfc_6962(count: int) -> None:
    leaves = numbered(count)
    sealed = tagged("p2p-node/merkle-root/1", count.to_bytes(8, "little"), top_by_halving(leaves))
    assert merkle.root(leaves) == sealed


def test_root_bytes_are_pinned() -> None:
    assert merkle.root([bytes([index]) * 32 for index in range(5)]).hex() == (
        "3a3c7f33f58560abda63fdc99977472a0ed71f6200d22fc690b06ab1345629c8"
    )


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 31, 33])
def test_every_leaf_is_proved_in_its_place_and_in_no_other(count: int) -> None:
    leaves = numbered(count)
    root = merkle.root(leaves)
    for index, leaf in enumerate(leaves):
        proof = merkle.prove(leaves, index)
        for claimed in range(count):
            assert merkle.verify(root, leaf=leaf, index=claimed, count=count, proof=proof) is (
                claimed == index
            )


@given(leaves=leaf_lists, data=st.data())
@quick
def test_another_leaf_is_not_proved(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    other = data.draw(digests)
    assume(other != leaves[index])
    proof = merkle.prove(leaves, index)
    root = merkle.root(leaves)
    assert merkle.verify(root, leaf=leaves[index], index=index, count=len(leaves), proof=proof)
    assert not merkle.verify(root, leaf=other, index=index, count=len(leaves), proof=proof)


@given(leaves=leaf_lists, data=st.data())
@quick
def test_another_count_is_not_proved(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    claimed = data.draw(st.integers(-2, 100).filter(lambda count: count != len(leaves)))
    proof = merkle.prove(leaves, index)
    assert not merkle.verify(merkle.root(leaves), leaf=leaves[index], index=index, count=claimed, proof=proof)


@given(leaves=leaf_lists, data=st.data())
@quick
def test_proofs_are_exact(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    root, count, leaf = merkle.root(leaves), len(leaves), leaves[index]
    proof = merkle.prove(leaves, index)
    assert not merkle.verify(root, leaf=leaf, index=index, count=count, proof=(*proof, leaf))
    for position in range(len(proof)):
        shortened = proof[:position] + proof[position + 1 :]
        assert not merkle.verify(root, leaf=leaf, index=index, count=count, proof=shortened)
        for wrong in (proof[position][:-1], proof[position] + b"\x00", bytes(32)):
            bent = (*proof[:position], wrong, *proof[position + 1 :])
            assert not merkle.verify(root, leaf=leaf, index=index, count=count, proof=bent)


@given(left=leaf_lists, right=leaf_lists)
@quick
def test_different_lists_have_different_roots(left: list[bytes], right: list[bytes]) -> None:
    assert (merkle.root(left) == merkle.root(right)) is (left == right)


def test_doubling_the_last_leaf_changes_the_root() -> None:
    leaves = numbered(3)
    assert merkle.root([*leaves, leaves[-1]]) != merkle.root(leaves)


def test_an_inner_node_is_no_leaf() -> None:
    leaves = numbered(4)
    inner = [
        tagged("p2p-node/merkle-node/1", *leaves[:2]),
        tagged("p2p-node/merkle-node/1", *leaves[2:]),
    ]
    root = merkle.root(leaves)
    assert merkle.root(inner) != root
    assert not merkle.verify(root, leaf=inner[0], index=0, count=4, proof=(inner[1],))
    assert not merkle.verify(root, leaf=inner[0], index=0, count=2, proof=(inner[1],))


def test_verify_refuses_what_is_out_of_bounds() -> None:
    leaves = numbered(2)
    root, proof = merkle.root(leaves), merkle.prove(leaves, 1)
    assert merkle.verify(root, leaf=leaves[1], index=1, count=2, proof=proof)
    assert not merkle.verify(root, leaf=leaves[1], index=-1, count=2, proof=proof)
    assert not merkle.verify(root, leaf=leaves[1], index=2, count=2, proof=proof)
    assert not merkle.verify(root, leaf=leaves[1], index=0, count=0, proof=())
    assert not merkle.verify(root, leaf=leaves[1], index=1, count=merkle.LEAVES_MAX + 1, proof=proof)
    assert not merkle.verify(root, leaf=leaves[1][:31], index=1, count=2, proof=proof)
    assert not merkle.verify(root[:31], leaf=leaves[1], index=1, count=2, proof=proof)


def test_building_refuses_bad_leaves() -> None:
    with pytest.raises(ValueError, match="leaves, got 0"):
        merkle.root([])
    with pytest.raises(ValueError, match="leaves, got 0"):
        merkle.prove([], 0)
    with pytest.raises(ValueError, match="leaf 1 must be 32 bytes, got 31"):
        merkle.root([bytes(32), bytes(31)])
    with pytest.raises(ValueError, match="leaf 0 must be 32 bytes, got 33"):
        merkle.prove([bytes(33)], 0)


@pytest.mark.parametrize("index", [-1, 3])
def test_proving_refuses_an_index_outside(index: int) -> None:
    with pytest.raises(ValueError, match=rf"index must be in 0\.\.2, got {index}"):
        merkle.prove(numbered(3), index)
