"""One scenario on the runtime: over the simulated network under a mock clock, and over real libp2p."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import trio

from p2p_node.core.keyring import Keyring, RealCrypto
from p2p_node.core.node import NodeCore
from p2p_node.core.request import JobState
from p2p_node.core.requester import Job
from p2p_node.network.port import NetworkOpener
from p2p_node.network.simulated import Conditions, open_internet
from p2p_node.runtime import Runtime, topic_names
from p2p_node.sim.scenario import job_request, sim_capability
from p2p_node.sim.workload import derive_unit
from protocols.digest import tagged
from protocols.effects import Persist
from tests.support.deterministic_trio import run_deterministically
from tests.support.sim_executor import SimExecutor

UNITS = 64
PEERS = 6
CHEATER = 5
NETWORK = "scenario"


class Keeper:
    def __init__(self) -> None:
        self.changes: list[Persist] = []

    def apply(self, changes: Sequence[Persist]) -> None:
        self.changes += changes


class Addresses:
    def __init__(self) -> None:
        self.known: list[str] = []

    def load(self) -> list[str]:
        return list(self.known)

    def remember(self, address: str) -> None:
        self.known.append(address)

    def forget(self, address: str) -> None:
        self.known = [known for known in self.known if known != address]


@dataclass
class Peer:
    runtime: Runtime
    keeper: Keeper

    @property
    def core(self) -> NodeCore:
        return self.runtime.core


async def open_peer(
    stack: AsyncExitStack,
    nursery: trio.Nursery,
    opener: NetworkOpener,
    clock: Callable[[], int],
    *,
    index: int,
    listen: list[str],
    bootstrap: list[str],
    make: Callable[..., NodeCore] = NodeCore,
) -> Peer:
    seed = tagged("scenario-seed", bytes([index]))
    # The cheater asks least, so that it wins.
    price = 10 if index == CHEATER else 100 + index
    core = make(
        keys=Keyring(seed),
        crypto=RealCrypto(),
        secret=tagged("scenario-secret", seed),
        network=NETWORK,
        capability=sim_capability(price_micros=price, serves=index != 0),
        jitter=random.Random(index),
    )
    keeper = Keeper()
    executor = SimExecutor(nursery, units_max=UNITS, is_honest=index != CHEATER)
    runtime = Runtime(core, executor=executor, keeper=keeper, clock=clock)
    network = await stack.enter_async_context(
        opener(
            seed=seed,
            listen=listen,
            topics=topic_names(NETWORK),
            rule=runtime.rule,
            network_name=NETWORK,
            bootstrap=bootstrap,
            address_book=Addresses(),
            mdns=False,
            jitter=random.Random(index),
            clock=clock,
        )
    )
    core.capability = replace(core.capability, addresses=tuple(network.addresses))
    await nursery.start(runtime.run, network)
    bootstrap += network.addresses
    return Peer(runtime, keeper)


async def play(opener: NetworkOpener, clock: Callable[[], int], listen: list[str]) -> list[Job]:
    """Six peers, the cheapest a cheater; three jobs, one of them posted. Returns the finished jobs."""
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        bootstrap: list[str] = []
        peers = [
            await open_peer(stack, nursery, opener, clock, index=index, listen=listen, bootstrap=bootstrap)
            for index in range(PEERS)
        ]
        client = peers[0]
        while len(client.core.registry) < PEERS - 1:
            await trio.sleep(0.05)
        jobs = []
        for number, mode in enumerate(("auction", "posted", "auction")):
            request = job_request(number, units=UNITS, mode=mode)
            job_id = client.runtime.submit(request, nonce=bytes([number]) * 16)
            jobs.append(client.core.jobs[job_id])
            while not jobs[-1].is_final:
                await trio.sleep(0.05)
        # The conviction travels by gossip, and each peer recomputes for itself.
        cheater = peers[CHEATER].core.key
        honest = [peer for peer in peers if peer is not peers[CHEATER]]
        while not all(peer.core.standings.of(cheater).convicted for peer in honest[1:]):
            await trio.sleep(0.05)
        for peer in honest:
            convicted = [key for key, s in peer.core.standings.peers.items() if s.convicted]
            assert convicted == [cheater]
        receipts = [change for change in client.keeper.changes if change.table == "receipts"]
        assert len(receipts) == len(jobs)
        nursery.cancel_scope.cancel()
    return jobs


def check(jobs: list[Job]) -> None:
    for number, job in enumerate(jobs):
        assert job.state is JobState.VERIFIED, job.reason
        data = f"input {number}".encode()
        assert job.units == tuple(derive_unit(data, index) for index in range(UNITS))
    # The cheater won a job, was convicted, and was never asked again.
    assert sorted(len(job.attempts) for job in jobs) == [1, 1, 2]


def simulated(seed: int) -> list[Job]:
    async def main() -> list[Job]:
        conditions = Conditions(delay_ms_min=2, delay_ms_max=40, loss=0.02, duplication=0.02)
        with trio.fail_after(600):
            async with open_internet(seed=seed, conditions=conditions) as internet:
                return await play(
                    internet.open_network,
                    lambda: 1_700_000_000_000 + int(trio.current_time() * 1_000),
                    ["/ip4/127.0.0.1/tcp/0"],
                )

    return run_deterministically(main, seed=seed)


def test_on_the_simulated_network_under_a_mock_clock() -> None:
    jobs = simulated(seed=1)
    check(jobs)
    assert len(jobs[0].attempts) == 2


def test_the_same_seed_gives_the_same_messages() -> None:
    first, second = simulated(seed=7), simulated(seed=7)
    receipts = [[job.receipt.raw for job in jobs if job.receipt] for jobs in (first, second)]
    assert receipts[0] == receipts[1]


async def test_on_real_libp2p() -> None:
    from p2p_node.network.libp2p import open_network

    with trio.fail_after(60):
        jobs = await play(open_network, lambda: time.time_ns() // 1_000_000, ["/ip4/127.0.0.1/tcp/0"])
    check(jobs)
