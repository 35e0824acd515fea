"""Hostile cores behind the runtime and a network with links, gossip by hops and a standing of its own."""

from __future__ import annotations

from contextlib import AsyncExitStack

import trio

from p2p_node.core.request import JobState
from p2p_node.hostile import hostile_core
from p2p_node.network.simulated import Conditions, open_internet
from p2p_node.sim.scenario import job_request
from tests.runtime.test_scenario import CHEATER, PEERS, UNITS, Peer, open_peer
from tests.support.deterministic_trio import run_deterministically

KINDS = {CHEATER: "equivocation", 4: "malformed-bytes", 3: "replayed-message"}


def test_an_equivocator_is_convicted_and_a_loudmouth_cut_off() -> None:
    async def main() -> None:
        def clock() -> int:
            return 1_700_000_000_000 + int(trio.current_time() * 1_000)

        conditions = Conditions(delay_ms_min=2, delay_ms_max=40, loss=0.01, duplication=0.01)
        with trio.fail_after(600):
            async with (
                open_internet(seed=3, conditions=conditions) as internet,
                trio.open_nursery() as nursery,
                AsyncExitStack() as stack,
            ):
                bootstrap: list[str] = []
                peers: list[Peer] = [
                    await open_peer(
                        stack,
                        nursery,
                        internet.open_network,
                        clock,
                        index=index,
                        listen=[],
                        bootstrap=bootstrap,
                        make=hostile_core(KINDS.get(index, "")),
                    )
                    for index in range(PEERS)
                ]
                honest = [peer for index, peer in enumerate(peers) if index not in KINDS]
                client, cheat, loud = peers[0], peers[CHEATER].core.key, peers[4].core.key
                while len(client.core.registry) < PEERS - 1:
                    await trio.sleep(0.05)
                for number in range(2):
                    request = job_request(number, units=UNITS)
                    job = client.core.jobs[client.runtime.submit(request, nonce=bytes([number]) * 16)]
                    while not job.is_final:
                        await trio.sleep(0.05)
                    assert job.state is JobState.VERIFIED, job.reason
                    assert job.attempts[-1].candidate.peer != cheat
                while not all(peer.core.standings.of(cheat).convicted for peer in honest):
                    await trio.sleep(0.05)
                for peer in honest:
                    convicted = {key for key, s in peer.core.standings.peers.items() if s.convicted}
                    assert convicted == {cheat}
                    # Rubbish ended its sender's links.
                    assert loud not in {link.key for link in _links(peer)}
                nursery.cancel_scope.cancel()

    def _links(peer: Peer):  # type: ignore[no-untyped-def]
        assert peer.runtime._network is not None
        return peer.runtime._network.peers()

    run_deterministically(main, seed=3)
