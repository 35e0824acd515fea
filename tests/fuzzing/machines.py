"""The state machines as targets: a fuzzer's bytes decide what the hostile ones among the peers do."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from p2p_node.sim.crypto import SimCrypto
from p2p_node.sim.invariants import Invariants
from p2p_node.sim.scenario import job_request, sim_capability
from protocols.envelope import open_envelope, seal
from protocols.errors import PeerFault
from protocols.messages import OperatorFraud
from tests.core.test_node_fuzz import Betrayal, assert_bounded
from tests.fuzzing.luck import SteeredLuck
from tests.partition.test_whole_fuzz import Play
from tests.support.builders import NETWORK as TABLE_NETWORK
from tests.support.builders import keys
from tests.support.disputes import VERIFIER, Table, Worker
from tests.support.jobs import KINDS, finished
from tests.support.keys import CRYPTO, keyring
from tests.support.mutants import altered, resigned
from tests.support.swarm import NETWORK
from verification.dispute_evidence import open_operator_fraud
from verification.receipt import check_receipt

__all__ = ["dispute", "node", "receipt", "seeds", "whole"]


def seeds() -> Iterator[bytes]:
    """Plays to begin with: nobody does wrong, and everybody does."""
    yield b"\0" * 16
    yield bytes(range(256))
    yield b"\xff\xff" + b"\x01\x02\x03\x04" * 64


def node(data: bytes) -> None:
    """A job among five peers, three of them traitors who alter what they sign as ``data`` says."""
    world = Betrayal(
        seed=7,
        capabilities=[sim_capability(price_micros=50 + index, slots=4) for index in range(5)],
        cheats=dict.fromkeys((0, 1, 2), "traitor"),
    )
    world.dice = SteeredLuck(data)
    invariants = Invariants(world)
    world.on_step = invariants.check
    for client in (world.peers[2], world.peers[4]):
        world.at(3_000, lambda client=client: world.submit(client, job_request(client.index, units=64)))
    world.run(
        until_ms=400_000,
        stop=lambda: all(
            peer.core.jobs and all(job.is_final for job in peer.core.jobs.values())
            for peer in (world.peers[2], world.peers[4])
        ),
    )
    invariants.check_end()
    for peer in world.peers:
        assert_bounded(peer.core)


def whole(data: bytes) -> None:
    """A job in parts, whose parts' jobs end as ``data`` says."""
    play = Play(0, SteeredLuck(data))
    for _ in range(4 * len(data)):
        play.step()
        play.check()
        if play.whole.is_over:
            break


@cache
def _proof() -> OperatorFraud:
    proof = Table(executor=Worker(variant=b"cheap")).play().accusation(VERIFIER)
    assert proof is not None
    return proof


def dispute(data: bytes) -> None:
    """A proof against an operator, altered and signed anew by the accuser; a dispute in any order."""
    luck = SteeredLuck(data)
    own = {keys(VERIFIER).public: keys(VERIFIER)}
    proof = _proof()
    guilty = open_operator_fraud(proof, network=TABLE_NETWORK, crypto=SimCrypto()).accused
    body = altered(luck, proof, lambda nested: resigned(luck, nested, own))
    try:
        raw = seal(body, network=TABLE_NETWORK, key=keys(VERIFIER)).raw
        message = open_envelope(raw, network=TABLE_NETWORK, crypto=SimCrypto(), expect=OperatorFraud)
        assert open_operator_fraud(message.body, network=TABLE_NETWORK, crypto=SimCrypto()).accused == guilty
    except PeerFault:
        pass
    table = Table(executor=Worker(variant=b"cheap"), luck=luck).play()
    assert table.accusation(VERIFIER) is not None


def receipt(data: bytes) -> None:
    """A real receipt of any sort, altered by its requester as ``data`` says."""
    luck = SteeredLuck(data)
    real = finished(luck.choice(list(KINDS))).receipt
    assert real is not None
    own = {keyring(0).public: keyring(0)}
    body = altered(luck, real.body, lambda nested: resigned(luck, nested, own))
    check_receipt(seal(body, network=NETWORK, key=keyring(0)).raw, network=NETWORK, crypto=CRYPTO)
