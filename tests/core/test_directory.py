"""Many directories in one process: what is kept by strangers is found, whoever is silent or lies."""

from __future__ import annotations

import math
import random

import pytest

from p2p_node.core.directory import ANSWER_MS
from p2p_node.core.outbox import message_frame
from p2p_node.sim.directories import DirectoryPeer, DirectoryWorld, Manner
from protocols.limits import QUESTIONS_PER_PEER_MAX
from protocols.messages import Closest, FindClosest, ProviderRecord, StoreRecord
from protocols.places import blob_key, place_of

PEERS = 120
KEYS = 4


def furnished(manner: Manner = "honest", share: float = 0.0, peers: int = PEERS) -> DirectoryWorld:
    """A world of peers that have been there long, of which a share isn't honest."""
    world, luck = DirectoryWorld(3), random.Random(5)
    for _ in range(peers):
        world.add(manner if luck.random() < share else "honest")
    world.furnish()
    return world


def honest(world: DirectoryWorld) -> list[DirectoryPeer]:
    return [peer for peer in world.peers if peer.manner == "honest" and peer.is_up]


def found_by_a_stranger(world: DirectoryWorld, key: bytes, provider: DirectoryPeer) -> int:
    """Hops after which a peer that keeps nothing of the key has found its provider; 0 if it hasn't."""
    stranger = next(
        peer
        for peer in reversed(honest(world))
        if peer is not provider and not peer.directory.store.get(key, world.now_ms)
    )
    search, began_ms = world.search(stranger, key, wanted=4), world.now_ms
    world.run(120_000, until=lambda: search.is_over)
    assert search.is_over
    # Not even two questions that are never answered are waited for, one after the other.
    assert world.now_ms - began_ms < 2 * ANSWER_MS
    return search.lookup.hops if provider.key in {record.signer for record in search.found} else 0


@pytest.mark.parametrize(("manner", "share"), [("honest", 0.0), ("silent", 0.33), ("lying", 0.33)])
def test_what_is_provided_is_found_in_few_hops(manner: Manner, share: float) -> None:
    world = furnished(manner, share)
    provided = {blob_key(bytes([number])): honest(world)[3 * number + 1] for number in range(KEYS)}
    for key, peer in provided.items():
        world.provide(peer, key)
    world.run(60_000)
    hops = [found_by_a_stranger(world, key, peer) for key, peer in provided.items()]
    assert min(hops) > 0
    assert max(hops) <= math.log2(PEERS)
    knows = [len(peer.directory.table) for peer in honest(world)]
    assert max(knows) < PEERS


def test_a_peer_is_found_by_its_own_word_and_churn_loses_no_record() -> None:
    world = furnished(peers=80)
    provider, key = world.peers[0], blob_key(b"x")
    world.provide(provider, key, place_of(provider.key))
    world.run(60_000)
    keepers = [peer for peer in world.peers[1:] if peer.directory.store.get(key, world.now_ms)]
    for peer in keepers[: len(keepers) // 2] + world.peers[60:70]:
        peer.is_up = False
    assert found_by_a_stranger(world, key, provider)
    search = world.search(world.peers[79], place_of(provider.key), wanted=1, peer=provider.key)
    world.run(60_000, until=lambda: search.is_over)
    assert search.found[0].body.addresses == (provider.address,)


def test_peers_that_know_one_other_get_to_know_enough() -> None:
    world = DirectoryWorld(4)
    for number in range(14):
        world.add(neighbours=min(number, 1))
        world.run(200)
    world.run(20_000)
    assert min(len(peer.directory.table) for peer in world.peers) >= 8


def test_forged_records_are_charged_and_change_nothing() -> None:
    world = furnished(peers=30)
    victim, liar = world.peers[0], world.peers[1]
    victim.charged.clear()
    key = blob_key(b"x")
    good = liar.sign(ProviderRecord(key, world.now_ms, world.now_ms + 1_000, (liar.address,)))
    old = liar.sign(ProviderRecord(key, world.now_ms - 90_000, world.now_ms - 60_000, (liar.address,)))
    foreign = liar.sign(ProviderRecord(key, world.now_ms, world.now_ms + 1_000, (victim.address,)))
    for raw in (good.raw[:-1] + b"\0", old.raw, foreign.raw, b"junk"):
        world.deliver(liar, victim, message_frame(liar.sign(StoreRecord(raw)).raw))
    assert [charge.peer for charge in victim.charged] == [liar.key] * 4
    # Somebody else's question, and an answer to none.
    world.deliver(world.peers[2], victim, message_frame(liar.sign(FindClosest(key, 1, True, b"")).raw))
    assert victim.charged[-1].peer == world.peers[2].key
    world.deliver(liar, victim, message_frame(liar.sign(Closest(bytes(32), b"", (), (good.raw,))).raw))
    assert len(victim.charged) == 5
    assert not len(victim.directory.store)


def test_an_answer_with_records_of_another_key_is_charged_and_counts_as_none() -> None:
    world = furnished(peers=30)
    asker, liar = world.peers[0], world.peers[1]
    other = liar.sign(ProviderRecord(blob_key(b"y"), world.now_ms, world.now_ms + 1_000, (liar.address,)))
    search, _ = asker.directory.search(blob_key(b"x"), world.now_ms)
    question = next(q for q, it in asker.directory._questions.items() if it.search is search)
    asked = world.by_key[asker.directory._questions[question].peer]
    answer = asked.sign(Closest(question, b"", (), (other.raw,)))
    world.deliver(asked, asker, message_frame(answer.raw))
    assert [charge.peer for charge in asker.charged] == [asked.key]
    assert not search.found


def test_a_flood_of_questions_and_keys_is_bounded() -> None:
    world = furnished(peers=100)
    victim, flooder = world.peers[0], world.peers[1]
    before = world.messages
    for number in range(2 * QUESTIONS_PER_PEER_MAX):
        question = FindClosest(blob_key(number.to_bytes(4, "big")), number, True, b"")
        world.deliver(flooder, victim, message_frame(flooder.sign(question).raw))
        record = flooder.sign(
            ProviderRecord(question.key, world.now_ms, world.now_ms + 1_000, (flooder.address,))
        )
        world.deliver(flooder, victim, message_frame(flooder.sign(StoreRecord(record.raw)).raw))
    assert world.messages - before == QUESTIONS_PER_PEER_MAX
    # Keys that are far from the victim are others' to keep.
    assert len(victim.directory.store) < 2 * QUESTIONS_PER_PEER_MAX
