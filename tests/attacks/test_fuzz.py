"""Evidence that is late, repeated, for another job, contradictory, altered by its own signer, or huge.

A world with cheaters in it makes every message there is about fraud: openings, reveals, fraud proofs,
equivocations, disputes and their moves. All of it is kept, and thrown at peers again.
"""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import pytest

from p2p_node.core.node import Act
from p2p_node.core.outbox import message_frame
from p2p_node.sim.invariants import Invariants
from p2p_node.sim.scenario import job_request, sim_capability
from p2p_node.sim.world import START_MS, Conditions, Peer, World
from protocols.effects import Penalise, Run
from protocols.envelope import seal
from protocols.limits import ENVELOPE_BYTES_MAX
from protocols.rulings import Ruling
from tests.core.test_node_fuzz import ATTACKER, Rain, assert_bounded
from tests.support.builders import NETWORK
from tests.support.mutants import opened, resigned

CHEATS = {0: "wrong-result", 1: "equivocation", 2: "spoofed-tokens", 8: "false-verdict", 9: "rubber-stamp"}
FRAUD_KINDS = {
    "opening",
    "reveal",
    "fraud-proof",
    "equivocation",
    "dispute",
    "trace-root",
    "trace-children",
    "operator-fraud",
}


class Tape(World):
    """Keeps every message that is delivered."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.heard: dict[bytes, tuple[str, str]] = {}

    def _deliver_frame(self, receiver: Peer, sender: Peer, frame: bytes) -> None:
        if frame[:1] == b"\0":
            self._keep("", frame[1:])
        super()._deliver_frame(receiver, sender, frame)

    def _deliver_gossip(self, receiver: Peer, sender: Peer, topic: str, data: bytes) -> None:
        self._keep(topic, data)
        super()._deliver_gossip(receiver, sender, topic, data)

    def _keep(self, topic: str, raw: bytes) -> None:
        if raw not in self.heard:
            message = opened(raw)
            self.heard[raw] = (topic, message.body.KIND if message else "")


def played(world: World, *, jobs: int = 6) -> Invariants:
    invariants = Invariants(world)
    world.on_step = invariants.check
    clients = [world.peers[index] for index in (3, 4, 5)]
    for number in range(jobs):
        request = job_request(number, units=96, mode="auction" if number % 2 else "posted", verifiers=5)
        client = clients[number % 3]
        world.at(2_500 + 900 * number, lambda c=client, r=request: world.submit(c, r))
    world.run(
        until_ms=200_000,
        stop=lambda: (
            all(len(c.core.jobs) >= jobs // 3 for c in clients)
            and all(job.is_final for c in clients for job in c.core.jobs.values())
        ),
    )
    run_for(world, 15_000)
    return invariants


def run_for(world: World, duration_ms: int) -> None:
    world.run(until_ms=world.now_ms - START_MS + duration_ms)


def capabilities(count: int = 10) -> list[Any]:
    return [sim_capability(price_micros=50 + index, slots=8) for index in range(count)]


@pytest.fixture(scope="module")
def tape() -> Tape:
    world = Tape(seed=77, capabilities=capabilities(), cheats=CHEATS)
    played(world).check_end()
    return world


def honest(world: World) -> list[Peer]:
    return [peer for peer in world.peers if not peer.cheat]


def convicted(world: World) -> set[bytes]:
    return {
        key
        for peer in honest(world)
        for key, standing in peer.core.standings.peers.items()
        if standing.convicted
    }


def throw(world: World, receiver: Peer, topic: str, raw: bytes) -> list[Act]:
    """As the network would deliver it, from a stranger; what follows is performed."""
    core, now_ms = receiver.core, world.now_ms
    if topic:
        ruling, _ = core.judge(topic, raw, now_ms)
        acts = core.gossip_received(topic, raw, ATTACKER.public, now_ms) if ruling is Ruling.ACCEPT else []
    else:
        acts = core.frame_received(ATTACKER.public, message_frame(raw), now_ms)
    world._perform(receiver, acts)
    return acts


def test_the_tape_holds_every_message_about_fraud(tape: Tape) -> None:
    kinds = {kind for _, kind in tape.heard.values()}
    # An operator fraud proof may be too large to gossip, and then travels in parts.
    assert kinds >= FRAUD_KINDS - {"operator-fraud"}
    assert kinds & {"operator-fraud", "evidence-part"}
    guilty = {tape.peers[index].core.key for index in (0, 1, 2, 8)}
    assert convicted(tape) == guilty


def test_what_is_late_and_repeated_changes_nobodys_mind(tape: Tape) -> None:
    luck, before = random.Random(1), convicted(tape)
    messages = list(tape.heard.items())
    luck.shuffle(messages)
    runs = 0
    for raw, (topic, _) in messages:
        acts = throw(tape, luck.choice(honest(tape)), topic, raw)
        runs += sum(isinstance(act, Run) for act in acts)
    run_for(tape, 60_000)
    assert convicted(tape) == before
    # Whoever was convicted is not tried again, and contracts that ran aren't run again.
    assert runs < 20
    for peer in honest(tape):
        assert_bounded(peer.core)


def test_evidence_of_another_world_convicts_nobody_of_this_one(tape: Tape) -> None:
    world = World(seed=78, capabilities=capabilities(6), conditions=Conditions())
    invariants = Invariants(world)
    world.on_step = invariants.check
    world.run(until_ms=2_500)
    luck = random.Random(2)
    for raw, (topic, _) in tape.heard.items():
        throw(world, luck.choice(world.peers), topic, raw)
    world.run(until_ms=120_000)
    # The proofs are as good here as there, since nobody's word is in them; they are about those cheats.
    assert convicted(world) <= {tape.peers[index].core.key for index in CHEATS}
    for peer in world.peers:
        assert_bounded(peer.core)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_cheats_sign_anew_convicts_no_honest_peer(tape: Tape, seed: int) -> None:
    luck = random.Random(seed)
    keys = {peer.core.key: peer.core._keys for peer in tape.peers if peer.cheat}
    keys[ATTACKER.public] = ATTACKER
    signed: list[tuple[str, bytes]] = []
    for raw, (topic, kind) in tape.heard.items():
        message = opened(raw)
        if message is None or kind not in FRAUD_KINDS:
            continue
        # Under its own name if it is a cheat's, else stolen.
        own = raw if message.signer in keys else seal(message.body, network=NETWORK, key=ATTACKER).raw
        signed += [(topic, resigned(luck, own, keys)) for _ in range(4)]
    assert len(signed) > 200
    innocent = {peer.core.key for peer in honest(tape)}
    world = World(seed=90 + seed, capabilities=capabilities(5))
    world.run(until_ms=1_000)
    for topic, raw in signed:
        throw(tape, luck.choice(honest(tape)), topic, raw)
        throw(world, luck.choice(world.peers), topic, raw)
    run_for(tape, 20_000)
    world.run(until_ms=20_000)
    assert convicted(tape).isdisjoint(innocent)
    assert convicted(world).isdisjoint(innocent)


def test_huge_evidence_is_refused_before_it_is_read(tape: Tape) -> None:
    receiver = honest(tape)[0]
    for topic in ("", "convictions"):
        data = b"\xc4" * (ENVELOPE_BYTES_MAX + 1)
        tracemalloc.start()
        if topic:
            ruling, why = receiver.core.judge(topic, data, tape.now_ms)
            assert ruling is Ruling.REJECT and "exceeds" in why
        else:
            [act] = receiver.core.frame_received(ATTACKER.public, message_frame(data), tape.now_ms)
            assert isinstance(act, Penalise) and "exceeds" in act.reason
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # The frame, and a copy to cut the frame's first byte off.
        assert peak < 3 * len(data)


def test_mutants_rain_on_peers_that_try_cheats() -> None:
    world = Rain(
        seed=43,
        capabilities=capabilities(),
        cheats=CHEATS,
        conditions=Conditions(loss=0.02, duplication=0.02),
        mutants_each=3,
    )
    invariants = played(world, jobs=3)
    invariants.check_end()
    assert sum(world.sent.values()) > 2_000
    assert world.penalised > 0.4 * sum(world.sent.values())
    innocent = {peer.core.key for peer in honest(world)}
    blamed = {key for peer in honest(world) for key, points, _ in peer.penalties if points}
    assert blamed.isdisjoint(innocent)
    assert {world.peers[index].core.key for index in (0, 1)} <= convicted(world)
    for peer in honest(world):
        assert_bounded(peer.core)
