"""Ten thousand mutated messages to a live peer on libp2p, which goes on working and charges the sender."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from p2p_node.core.keyring import Keyring
from p2p_node.core.node import Act
from p2p_node.core.outbox import ack_frame, message_frame
from p2p_node.core.request import JobState
from p2p_node.network.libp2p import open_network
from p2p_node.runtime import topic_names
from p2p_node.sim.scenario import job_request
from protocols.digest import tagged
from protocols.effects import Penalise
from protocols.envelope import Signed, seal
from protocols.limits import EVENTS_MAX
from protocols.rulings import Ruling
from tests.runtime.test_scenario import NETWORK, UNITS, Addresses, Peer, open_peer
from tests.vectors.examples import examples

# A twentieth is left as it is, so that over ten thousand of all are mutated.
FRAMES = 10_000
GOSSIP = 1_000
ATTACKER_SEED = tagged("fuzz-attacker")


def clock() -> int:
    return time.time_ns() // 1_000_000


def mutated(raw: bytes, luck: random.Random, others: list[bytes]) -> bytes:
    """``raw`` with bits flipped, cut, doubled, spliced or grown."""
    data = bytearray(raw)
    match luck.randrange(6):
        case 0:
            for _ in range(luck.randint(1, 8)):
                data[luck.randrange(len(data))] ^= 1 << luck.randrange(8)
        case 1:
            del data[luck.randrange(len(data)) :]
        case 2:
            at = luck.randrange(len(data))
            data[at:at] = luck.randbytes(luck.randint(1, 64))
        case 3:
            other = luck.choice(others)
            data[luck.randrange(len(data)) :] = other[luck.randrange(len(other)) :]
        case 4:
            data *= 2
        case 5:
            return luck.randbytes(luck.randint(0, 400))
    return bytes(data)


def hostile_messages() -> list[bytes]:
    """One message of every kind, signed by the attacker for this network, and one for another."""
    keys = Keyring(ATTACKER_SEED)
    raws: list[bytes] = []
    for _, message in examples().values():
        signed: Signed[Any] = seal(message.body, network=NETWORK, key=keys)
        raws += [signed.raw, message.raw]
    return raws


async def attack(address: str, attacker: Any, heard: Callable[[], int]) -> None:
    luck = random.Random(20)
    raws = hostile_messages()
    victim = await attacker.dial(address)
    for number in range(FRAMES):
        raw = luck.choice(raws)
        # Some are well-formed and merely out of place.
        data = raw if luck.random() < 0.05 else mutated(raw, luck, raws)
        frame = luck.choice((message_frame(data), data, ack_frame(tagged("ack", data))))
        # What waits beyond its queue is dropped unheard, on a machine that is busy with something else.
        while number - heard() > EVENTS_MAX // 2 or not await attacker.send(victim, frame):
            await trio.sleep(0.01)
        if number % (FRAMES // GOSSIP) == 0:
            topic = luck.choice(topic_names(NETWORK))
            await attacker.publish(topic, mutated(raw, luck, raws)[:60_000])


async def test_a_live_peer_survives_and_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    # Otherwise the first handful would end the attack: here the victim must hear all of it.
    monkeypatch.setattr("p2p_node.network.standing.GRAYLIST_POINTS", 10**9)
    with trio.fail_after(150):
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            bootstrap: list[str] = []
            peers: list[Peer] = [
                await open_peer(
                    stack,
                    nursery,
                    open_network,
                    clock,
                    index=index,
                    listen=["/ip4/127.0.0.1/tcp/0"],
                    bootstrap=bootstrap,
                )
                for index in range(4)
            ]
            client, victim = peers[0], peers[1]
            attacker = await stack.enter_async_context(
                open_network(
                    seed=ATTACKER_SEED,
                    listen=["/ip4/127.0.0.1/tcp/0"],
                    topics=topic_names(NETWORK),
                    rule=lambda topic, data, forwarder: Ruling.IGNORE,
                    network_name=NETWORK,
                    bootstrap=[],
                    address_book=Addresses(),
                    mdns=False,
                    jitter=random.Random(0),
                    clock=clock,
                )
            )
            while len(client.core.registry) < 3:
                await trio.sleep(0.05)
            heard, charged = 0, 0
            receive = victim.core.frame_received

            def counted(peer: bytes, frame: bytes, now_ms: int) -> list[Act]:
                nonlocal heard, charged
                acts = receive(peer, frame, now_ms)
                if peer == attacker.local_key:
                    heard += 1
                    charged += any(isinstance(act, Penalise) and act.peer == peer for act in acts)
                return acts

            monkeypatch.setattr(victim.core, "frame_received", counted)
            # In the middle of the attack a job runs, and the victim is one of its three servers.
            async with trio.open_nursery() as fight:
                fight.start_soon(attack, victim.core.capability.addresses[0], attacker, lambda: heard)
                job_id = client.runtime.submit(job_request(1, units=UNITS), nonce=bytes(16))
            job = client.core.jobs[job_id]
            while not job.is_final:
                await trio.sleep(0.05)
            assert job.state is JobState.VERIFIED, job.reason
            while heard < FRAMES:
                await trio.sleep(0.05)
            assert heard == FRAMES
            # Nearly every frame broke a rule, and its sender paid.
            assert charged > FRAMES // 2
            assert len(victim.core.outbox) < 64
            assert len(victim.core.registry) <= 4
            assert not any(standing.convicted for standing in victim.core.standings.peers.values())
            nursery.cancel_scope.cancel()
