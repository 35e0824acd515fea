"""Live peers under a rain of wrong messages: nothing raises, nothing leaks, honest jobs go on."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from p2p_node.core.node import NodeCore
from p2p_node.core.outbox import ack_frame, message_frame
from p2p_node.core.request import JobState
from p2p_node.sim.crypto import SimCrypto, SimKeys
from p2p_node.sim.invariants import Invariants
from p2p_node.sim.scenario import job_request, sim_capability
from p2p_node.sim.workload import derive_unit
from p2p_node.sim.world import NETWORK, Conditions, Peer, World
from protocols.digest import tagged
from protocols.effects import Penalise
from protocols.envelope import open_envelope
from protocols.errors import PeerFault, UnknownKind
from protocols.limits import (
    EARLY_COMMITMENTS_MAX,
    GOSSIP_BYTES_MAX,
    OPEN_JOBS_MAX,
    OUTBOX_MESSAGES_PER_PEER_MAX,
    RECENT_GOSSIP_BYTES_MAX,
    RECENT_GOSSIP_MAX,
)
from protocols.rulings import Ruling
from tests.support.mutants import Mutator, resigned

ATTACKER = SimKeys(tagged("p2p-node/test-attacker/1"))


def fault_of(data: bytes, bytes_max: int) -> PeerFault | None:
    try:
        open_envelope(data, network=NETWORK, crypto=SimCrypto(), bytes_max=bytes_max)
    except PeerFault as fault:
        return fault
    return None


class Rain(World):
    """With each honest message that arrives, the receiver gets mutants of it from an attacker first."""

    def __init__(self, *, mutants_each: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.mutator = Mutator(arguments["seed"], ATTACKER)
        self.mutants_each = mutants_each
        self.sent: Counter[str] = Counter()
        self.penalised = 0

    def _deliver_frame(self, receiver: Peer, sender: Peer, frame: bytes) -> None:
        if frame[:1] == b"\0":
            for _ in range(self.mutants_each):
                way, data = self.mutator.mutate(frame[1:])
                self.sent[way] += 1
                self.frame(receiver, data)
        super()._deliver_frame(receiver, sender, frame)

    def frame(self, receiver: Peer, data: bytes) -> None:
        fault = fault_of(data, 2**20 - 64)
        acts = receiver.core.frame_received(ATTACKER.public, message_frame(data), self.now_ms)
        self.expect_penalty(fault, acts)
        self._perform(receiver, acts)

    def expect_penalty(self, fault: PeerFault | None, acts: list[Any]) -> None:
        if fault is None:
            return
        assert acts == [Penalise(ATTACKER.public, fault.points, str(fault))]
        assert fault.points > 0 or isinstance(fault, UnknownKind)
        self.penalised += 1

    def _deliver_gossip(self, receiver: Peer, sender: Peer, topic: str, data: bytes) -> None:
        for _ in range(self.mutants_each):
            way, mutant = self.mutator.mutate(data)
            self.sent[way] += 1
            fault = fault_of(mutant, GOSSIP_BYTES_MAX)
            ruling, why = receiver.core.judge(topic, mutant, self.now_ms)
            if fault is not None:
                expected = Ruling.IGNORE if isinstance(fault, UnknownKind) else Ruling.REJECT
                assert (ruling, why) == (expected, str(fault))
                self.penalised += ruling is Ruling.REJECT
            elif ruling is Ruling.ACCEPT:
                # A stranger may gossip on its own behalf; what follows must do no harm.
                acts = receiver.core.gossip_received(topic, mutant, ATTACKER.public, self.now_ms)
                self._perform(receiver, acts)
        super()._deliver_gossip(receiver, sender, topic, data)


def assert_bounded(core: NodeCore) -> None:
    """What a stranger can fill has a lid."""
    gossip = core._gossip
    assert len(gossip._recent) <= RECENT_GOSSIP_MAX
    assert gossip._recent_bytes == sum(len(raw) for _, _, raw in gossip._recent.values())
    assert gossip._recent_bytes <= RECENT_GOSSIP_BYTES_MAX
    assert len(core._direct_seen) <= 4 * OPEN_JOBS_MAX
    assert len(core._early_claims) <= EARLY_COMMITMENTS_MAX
    assert core._due_claims == []
    assert core.outbox._waiting_for[ATTACKER.public] <= OUTBOX_MESSAGES_PER_PEER_MAX
    assert sum(core.outbox._waiting_for.values()) == len(core.outbox)
    assert core.provider.engagements.keys() <= core.provider._taken.keys()


@pytest.fixture(scope="module")
def rain() -> Rain:
    capabilities = [sim_capability(price_micros=50 + i, slots=64) for i in range(8)]
    world = Rain(
        seed=41,
        capabilities=capabilities,
        conditions=Conditions(loss=0.02, duplication=0.02),
        mutants_each=36,
    )
    invariants = Invariants(world)
    world.on_step = invariants.check
    for number in range(4):
        peer = world.peers[number]
        world.at(
            3_000 + 400 * number, lambda peer=peer, n=number: world.submit(peer, job_request(n, units=160))
        )
    jobs = [peer.core.jobs for peer in world.peers[:4]]
    world.run(
        until_ms=300_000,
        stop=lambda: all(book and all(job.is_final for job in book.values()) for book in jobs),
    )
    invariants.check_end()
    return world


def test_twenty_thousand_mutants_of_every_sort_were_sent(rain: Rain) -> None:
    assert sum(rain.sent.values()) >= 20_000
    assert len(rain.sent) == 11 and min(rain.sent.values()) > 1_000, rain.sent


def test_most_of_them_cost_their_sender(rain: Rain) -> None:
    assert rain.penalised > 0.5 * sum(rain.sent.values())


def test_honest_jobs_end_verified_and_right(rain: Rain) -> None:
    for peer in rain.peers[:4]:
        [job] = peer.core.jobs.values()
        assert job.state is JobState.VERIFIED
        assert job.units == tuple(derive_unit(job.request.input, i) for i in range(160))


def test_no_honest_peer_penalised_another(rain: Rain) -> None:
    blamed = {offender for peer in rain.peers for offender, _, _ in peer.penalties}
    assert blamed == {ATTACKER.public}


def test_memory_stays_bounded(rain: Rain) -> None:
    for peer in rain.peers:
        assert_bounded(peer.core)


def test_what_is_too_large_is_refused_unread(rain: Rain) -> None:
    core, data = rain.peers[0].core, rain.mutator.oversized()
    [act] = core.frame_received(ATTACKER.public, message_frame(data), rain.now_ms)
    assert isinstance(act, Penalise) and "exceeds" in act.reason
    ruling, why = core.judge("jobs", data[:70_000], rain.now_ms)
    assert ruling is Ruling.REJECT and "70000 bytes exceeds 65536" in why


@pytest.mark.parametrize("frame", [b"", b"\1", b"\1" + bytes(31), b"\1" + bytes(33), b"\2", b"\xff" * 40])
def test_frames_of_no_sort_cost_their_sender(rain: Rain, frame: bytes) -> None:
    [act] = rain.peers[0].core.frame_received(ATTACKER.public, frame, rain.now_ms)
    assert isinstance(act, Penalise) and act.points == 20


def test_an_acknowledgement_of_nothing_means_nothing(rain: Rain) -> None:
    assert rain.peers[0].core.frame_received(ATTACKER.public, ack_frame(bytes(32)), rain.now_ms) == []


class Betrayal(World):
    """One message in five is altered by its own signer, nested statements included."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.dice = random.Random(arguments["seed"] + 1)
        self.altered = 0

    def _tampered(self, sender: Peer, raw: bytes) -> bytes:
        if self.dice.random() > 0.2:
            return raw
        self.altered += 1
        return resigned(self.dice, raw, {p.core.key: p.core._keys for p in self.peers if p.cheat})

    def _transmit(self, sender: Peer, to: bytes, frame: bytes) -> None:
        if sender.cheat and frame[:1] == b"\0":
            frame = message_frame(self._tampered(sender, frame[1:]))
        super()._transmit(sender, to, frame)

    def _publish(self, sender: Peer, topic: str, data: bytes) -> None:
        super()._publish(sender, topic, self._tampered(sender, data) if sender.cheat else data)


@pytest.mark.parametrize("seed", range(24))
def test_whatever_insiders_sign_every_job_ends_and_nobody_honest_is_convicted(seed: int) -> None:
    """Requesters, executors and verifiers among the traitors; `Invariants` watches the honest ones."""
    capabilities = [sim_capability(price_micros=50 + i, slots=16) for i in range(9)]
    world = Betrayal(seed=seed, capabilities=capabilities, cheats=dict.fromkeys((0, 1, 2, 3), "traitor"))
    invariants = Invariants(world)
    world.on_step = invariants.check
    clients = [world.peers[index] for index in (2, 3, 7, 8)]
    for number, client in enumerate(clients):
        request = job_request(number, units=160, mode="auction" if number % 2 else "posted")
        world.at(3_000 + 300 * number, lambda client=client, request=request: world.submit(client, request))
    world.run(
        until_ms=400_000,
        stop=lambda: all(c.core.jobs and all(j.is_final for j in c.core.jobs.values()) for c in clients),
    )
    invariants.check_end()
    assert world.altered > 20
    for client in clients[2:]:
        [job] = client.core.jobs.values()
        assert job.units == tuple(derive_unit(job.request.input, i) for i in range(len(job.units)))
    for peer in world.peers:
        assert_bounded(peer.core)
