"""Every message of a dispute, altered by strangers and by the parties themselves."""

from __future__ import annotations

import random
from typing import Any

import pytest

from p2p_node.core.outbox import message_frame, split_frame
from p2p_node.core.request import JobState
from p2p_node.sim import program
from p2p_node.sim.crypto import SimCrypto
from p2p_node.sim.invariants import Invariants
from p2p_node.sim.scenario import job_request, sim_capability
from p2p_node.sim.world import NETWORK, START_MS, Conditions, Peer, World
from protocols.envelope import open_envelope, seal
from protocols.errors import PeerFault
from protocols.events import Finding
from protocols.limits import DISPUTES_MAX, EVIDENCE_FETCHES_MAX, EVIDENCE_KEPT_BYTES_MAX
from protocols.messages import (
    Dispute,
    DisputeDeclined,
    EvidencePart,
    EvidenceWant,
    FraudNotice,
    OperatorFraud,
    TraceChildren,
    TraceRoot,
)
from tests.core.test_node_fuzz import ATTACKER, Rain
from tests.support.builders import NOW_MS, keys
from tests.support.disputes import VERIFIER, Table, Worker
from tests.support.mutants import altered, opened, resigned
from verification.dispute_evidence import open_operator_fraud

KINDS = (
    Dispute,
    DisputeDeclined,
    TraceRoot,
    TraceChildren,
    FraudNotice,
    EvidenceWant,
    EvidencePart,
)
CHEATS = {0: "wrong-result", 5: "false-verdict"}
CLIENT = 6


def is_dispute(frame: bytes) -> bool:
    is_ack, raw = split_frame(frame)
    message = None if is_ack else opened(raw)
    return message is not None and isinstance(message.body, KINDS)


class DisputeRain(Rain):
    """Mutants of disputes' messages only, and what was said in a dispute, said again by a stranger."""

    def _deliver_frame(self, receiver: Peer, sender: Peer, frame: bytes) -> None:
        if is_dispute(frame):
            super()._deliver_frame(receiver, sender, frame)
        else:
            World._deliver_frame(self, receiver, sender, frame)

    def _deliver_gossip(self, receiver: Peer, sender: Peer, topic: str, data: bytes) -> None:
        if topic == "convictions":
            super()._deliver_gossip(receiver, sender, topic, data)
        else:
            World._deliver_gossip(self, receiver, sender, topic, data)


class Turncoats(World):
    """The parties that cheat alter half of what they say in disputes, and sign it."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.dice = random.Random(arguments["seed"])
        self.altered = 0

    def _transmit(self, sender: Peer, to: bytes, frame: bytes) -> None:
        if sender.cheat and is_dispute(frame) and self.dice.random() < 0.5:
            traitors = {p.core.key: p.core._keys for p in self.peers if p.cheat}
            frame = message_frame(resigned(self.dice, frame[1:], traitors))
            self.altered += 1
        super()._transmit(sender, to, frame)


def fight(kind: type[World], seed: int, **arguments: Any) -> World:
    capabilities = [sim_capability(price_micros=50 + i, slots=8, serves=i < 6) for i in range(8)]
    world = kind(
        seed=seed,
        capabilities=capabilities,
        cheats=CHEATS,
        neighbours=7,
        without_model=frozenset({CLIENT, 7}),
        **arguments,
    )
    invariants = Invariants(world)
    world.on_step = invariants.check
    client = world.peers[CLIENT]
    for number in range(2):
        request = job_request(number, mode="posted", verifiers=5)
        world.at(2_500 + 2_000 * number, lambda request=request: world.submit(client, request))
    jobs = client.core.jobs
    world.run(until_ms=400_000, stop=lambda: len(jobs) == 2 and all(j.is_final for j in jobs.values()))
    invariants.check_end()
    world.run(until_ms=world.now_ms - START_MS + 32 * 8_000)
    return world


def assert_tidy(world: World) -> None:
    """Every dispute ended, nothing is left of it, and no limit was passed."""
    for peer in world.peers:
        disputes = peer.core.disputes
        assert not disputes.umpires and not disputes.parties and not disputes.archive.fetching
        assert len(disputes.archive._fetches) <= 2 * EVIDENCE_FETCHES_MAX
        assert disputes.archive._kept_bytes <= EVIDENCE_KEPT_BYTES_MAX
        assert len(disputes._played) <= DISPUTES_MAX * 64


# With seed 3 a stranger's copy of a notice comes before the notice, and its proof never does.
@pytest.mark.parametrize("seed", [3])
def test_a_rain_of_mutants_leaves_disputes_as_they_are(seed: int) -> None:
    world = fight(DisputeRain, seed, mutants_each=10, conditions=Conditions(loss=0.02, duplication=0.02))
    assert isinstance(world, DisputeRain)
    assert sum(world.sent.values()) > 2_000
    assert world.penalised > 0.4 * sum(world.sent.values())
    assert all(job.state is JobState.VERIFIED for job in world.peers[CLIENT].core.jobs.values())
    cheater = world.peers[0].core.key
    assert all(peer.core.standings.of(cheater).convicted for peer in world.peers[1:])
    blamed = {offender for peer in world.peers for offender, _, _ in peer.penalties}
    assert blamed <= {ATTACKER.public}
    assert_tidy(world)


@pytest.mark.parametrize("seed", range(5))
def test_parties_that_twist_their_own_moves_only_hurt_themselves(seed: int) -> None:
    world = fight(Turncoats, seed)
    assert isinstance(world, Turncoats)
    assert world.altered > 0
    for job in world.peers[CLIENT].core.jobs.values():
        assert job.state is JobState.VERIFIED
    assert_tidy(world)


def test_no_altered_proof_convicts_anybody_else() -> None:
    """Fields of a proof changed and signed again by the accuser: it is refused, or convicts the guilty."""
    proof = Table(executor=Worker(variant=b"cheap")).play().accusation(VERIFIER)
    assert proof is not None
    luck = random.Random(5)
    guilty = open_operator_fraud(proof, network=NETWORK, crypto=SimCrypto()).accused
    own = {keys(VERIFIER).public: keys(VERIFIER)}
    refused = judged = 0
    for _ in range(600):
        raw = seal(altered(luck, proof, lambda nested: resigned(luck, nested, own)), network=NETWORK,
                   key=keys(VERIFIER)).raw  # fmt: skip
        try:
            message = open_envelope(raw, network=NETWORK, crypto=SimCrypto(), expect=OperatorFraud)
            accusation = open_operator_fraud(message.body, network=NETWORK, crypto=SimCrypto())
        except PeerFault:
            refused += 1
            continue
        judged += 1
        assert accusation.accused == guilty
        if accusation.case is not None:
            assert program.judge(accusation.case, chunk_units=32)[0] in Finding
    assert refused > 300 and judged > 0, (refused, judged, NOW_MS)
