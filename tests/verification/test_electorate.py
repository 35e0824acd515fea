"""The electorate's tree proves a member's weight and the total together."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.codec import decode, encode
from protocols.digest import tagged
from protocols.limits import ELECTORATE_MEMBERS_MAX, MEMBER_WEIGHT_MAX, TOTAL_WEIGHT_MAX
from verification.electorate import Electorate, Member, MembershipProof, verify_membership

quick = settings(max_examples=100, deadline=None, derandomize=True)
keys = st.binary(min_size=32, max_size=32)
weights = st.integers(1, MEMBER_WEIGHT_MAX)
weights_by_key = st.dictionaries(keys, weights, min_size=1, max_size=30)


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def electorate(*weights: int) -> Electorate:
    return Electorate(Member(key(number), weight) for number, weight in enumerate(weights))


def accepts(members: Electorate, name: bytes, proof: MembershipProof) -> bool:
    return verify_membership(
        members.root, total_weight=members.total_weight, count=members.count, key=name, proof=proof
    )


@given(weights_by_key)
@quick
def test_every_member_proves_its_weight(listed: dict[bytes, int]) -> None:
    members = Electorate(Member(*item) for item in listed.items())
    assert members.total_weight == sum(listed.values())
    assert members.count == len(listed)
    for name, weight in listed.items():
        proof = members.prove(name)
        assert proof.weight == weight == members.weight_of(name)
        assert accepts(members, name, proof)


@given(weights_by_key, st.data())
@quick
def test_no_one_proves_another_weight_total_count_or_key(
    listed: dict[bytes, int], data: st.DataObject
) -> None:
    members = Electorate(Member(*item) for item in listed.items())
    name = data.draw(st.sampled_from(sorted(listed)))
    proof = members.prove(name)
    claimed = data.draw(weights.filter(lambda weight: weight != proof.weight))
    heavier = msgspec.structs.replace(proof, weight=claimed)
    assert not accepts(members, name, heavier)
    for total in (
        members.total_weight + 1,
        members.total_weight - 1,
        members.total_weight - proof.weight + claimed,
    ):
        for attempt in (proof, heavier):
            assert not verify_membership(
                members.root, total_weight=total, count=members.count, key=name, proof=attempt
            )
    for count in (members.count + 1, members.count - 1):
        assert not verify_membership(
            members.root, total_weight=members.total_weight, count=count, key=name, proof=proof
        )
    assert not accepts(members, data.draw(keys.filter(lambda other: other != name)), proof)


@given(weights_by_key, st.data())
@quick
def test_weight_does_not_move_between_siblings(listed: dict[bytes, int], data: st.DataObject) -> None:
    members = Electorate(Member(*item) for item in listed.items())
    name = data.draw(st.sampled_from(sorted(listed)))
    proof = members.prove(name)
    for position, (digest, weight) in enumerate(proof.siblings):
        for delta in (-1, 1, -weight, -2 * weight):
            bent = list(proof.siblings)
            bent[position] = (digest, weight + delta)
            # The total still comes out, which is what a cheater wants.
            shifted = msgspec.structs.replace(proof, weight=proof.weight - delta, siblings=tuple(bent))
            assert not accepts(members, name, shifted)


def test_order_of_arrival_does_not_matter() -> None:
    members = [Member(key(number), number + 1) for number in range(5)]
    forward, backward = Electorate(members), Electorate(reversed(members))
    assert forward.root == backward.root
    assert [member.key for member in backward.members] == [key(number) for number in range(5)]


@given(weights_by_key, weights_by_key)
@quick
def test_different_electorates_have_different_roots(left: dict[bytes, int], right: dict[bytes, int]) -> None:
    roots = [Electorate(Member(*item) for item in listed.items()).root for listed in (left, right)]
    assert (roots[0] == roots[1]) is (left == right)


def test_root_bytes_are_pinned() -> None:
    assert (
        electorate(5, 1, 7).root.hex() == "22cca25a344aa538e010301f5e4fc644d4af78df6c8994186d91e0743cc11d42"
    )


def test_proofs_travel() -> None:
    members = electorate(5, 1, 7)
    received = decode(encode(members.prove(key(1))), MembershipProof)
    assert received == members.prove(key(1))
    assert accepts(members, key(1), received)


def test_malformed_proofs_are_refused() -> None:
    members = electorate(5, 1, 7)
    proof = members.prove(key(0))
    (digest, weight), *rest = proof.siblings
    assert accepts(members, key(0), proof)
    for bent in (
        msgspec.structs.replace(proof, index=-1),
        msgspec.structs.replace(proof, index=1),
        msgspec.structs.replace(proof, index=3),
        msgspec.structs.replace(proof, weight=0),
        msgspec.structs.replace(proof, weight=-5),
        msgspec.structs.replace(proof, weight=MEMBER_WEIGHT_MAX + 1),
        msgspec.structs.replace(proof, siblings=()),
        msgspec.structs.replace(proof, siblings=proof.siblings[:1]),
        msgspec.structs.replace(proof, siblings=(*proof.siblings, (digest, weight))),
        msgspec.structs.replace(proof, siblings=((digest[:31], weight), *rest)),
        msgspec.structs.replace(proof, siblings=((digest, 2**80), *rest)),
        msgspec.structs.replace(proof, siblings=((digest, -(2**80)), *rest)),
    ):
        assert not accepts(members, key(0), bent)
    assert not accepts(members, bytes(31), proof)


@pytest.mark.parametrize(
    ("total_weight", "count"),
    [(0, 1), (1, 0), (1, -1), (1, 2), (TOTAL_WEIGHT_MAX + 1, 1), (2**48, ELECTORATE_MEMBERS_MAX + 1)],
)
def test_bounds_of_total_and_count(total_weight: int, count: int) -> None:
    members = electorate(1)
    proof = members.prove(key(0))
    assert not verify_membership(
        members.root, total_weight=total_weight, count=count, key=key(0), proof=proof
    )


def hand_made_root(name: bytes, weight: int) -> bytes:
    """A requester may hash whatever it likes; only the bounds stop it."""
    size = weight.to_bytes(8, "little")
    leaf = tagged("p2p-node/electorate-leaf/1", name, size)
    return tagged("p2p-node/electorate-root/1", (1).to_bytes(8, "little"), size, leaf)


@pytest.mark.parametrize(
    ("name", "weight", "accepted"),
    [
        (key(0), 7, True),
        (bytes(31), 7, False),
        (key(0), 0, False),
        (key(0), MEMBER_WEIGHT_MAX + 1, False),
    ],
)
def test_a_consistent_root_does_not_excuse_what_is_out_of_bounds(
    name: bytes, weight: int, accepted: bool
) -> None:
    proof = MembershipProof(index=0, weight=weight, siblings=())
    root = hand_made_root(name, weight)
    assert verify_membership(root, total_weight=weight, count=1, key=name, proof=proof) is accepted


def test_a_consistent_total_above_the_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    members = electorate(5, 6)
    proof = members.prove(key(0))
    assert accepts(members, key(0), proof)
    monkeypatch.setattr("verification.electorate.TOTAL_WEIGHT_MAX", 10)
    assert not accepts(members, key(0), proof)


def test_an_electorate_has_members() -> None:
    with pytest.raises(ValueError, match=r"1\.\.4096 members, got 0"):
        Electorate([])


def test_an_electorate_is_bounded() -> None:
    assert electorate(*[1] * ELECTORATE_MEMBERS_MAX).count == ELECTORATE_MEMBERS_MAX
    with pytest.raises(ValueError, match="members, got 4097"):
        electorate(*[1] * (ELECTORATE_MEMBERS_MAX + 1))


def test_a_key_occurs_once() -> None:
    with pytest.raises(ValueError, match="occurs twice"):
        Electorate([Member(key(1), 1), Member(key(0), 1), Member(key(1), 2)])


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_has_32_bytes(length: int) -> None:
    with pytest.raises(ValueError, match=f"member key must be 32 bytes, got {length}"):
        Electorate([Member(bytes(length), 1)])


@pytest.mark.parametrize("weight", [-1, 0, MEMBER_WEIGHT_MAX + 1])
def test_weights_are_bounded(weight: int) -> None:
    with pytest.raises(ValueError, match=f"member weight must be in 1..{MEMBER_WEIGHT_MAX}, got {weight}"):
        electorate(weight)


def test_the_sum_of_weights_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verification.electorate.TOTAL_WEIGHT_MAX", 10)
    assert electorate(5, 5).total_weight == 10
    with pytest.raises(ValueError, match="total weight must be at most 10, got 11"):
        electorate(5, 6)


def test_strangers_are_no_members() -> None:
    members = electorate(5, 1)
    assert key(1) in members
    assert key(2) not in members
    with pytest.raises(KeyError):
        members.prove(key(2))
    with pytest.raises(KeyError):
        members.weight_of(key(2))


@pytest.mark.parametrize(
    ("known", "missing_ppm"),
    [
        ({}, 0),
        ({key(7): 0}, 0),
        ({key(0): 5, key(1): 10}, 0),
        ({key(0): 4}, 0),
        ({key(9): 1}, 1_000_000),
        ({key(0): 5, key(9): 15}, 750_000),
        ({key(1): 20}, 500_000),
        ({key(0): 5, key(1): 10, key(9): 1}, 62_500),
        ({key(1): 10, key(9): 5, key(8): 0}, 333_334),
    ],
)
def test_missing_share(known: dict[bytes, int], missing_ppm: int) -> None:
    assert electorate(5, 10).missing_share(known) == missing_ppm


def test_missing_share_refuses_negative_weights() -> None:
    with pytest.raises(ValueError, match="must be >= 0, got -1"):
        electorate(5).missing_share({key(0): -1})
