"""Disputes in whole worlds: requesters without the model, on bad networks, among cheats."""

from __future__ import annotations

from functools import cache

import pytest

from p2p_node.core.request import JobState
from p2p_node.core.requester import Job
from p2p_node.sim.crypto import SimCrypto
from p2p_node.sim.invariants import Invariants
from p2p_node.sim.scenario import job_request, sim_capability
from p2p_node.sim.work import Workshop
from p2p_node.sim.world import NETWORK, Conditions, Peer, World
from protocols.effects import Judge, OpenValues, Trace
from tests.sim.worlds import Play
from verification.receipt import check_receipt
from verification.round import Verdict

CLIENTS = range(6, 8)
"""Peers that ask, and have no model."""


def play(
    seed: int,
    cheats: dict[int, str],
    *,
    conditions: Conditions | None = None,
    jobs: int = 4,
    verifiers: int = 4,
) -> Play:
    capabilities = [sim_capability(price_micros=50 + i, slots=4, serves=i < 6) for i in range(9)]
    world = World(
        seed=seed,
        capabilities=capabilities,
        conditions=conditions,
        cheats=cheats,
        neighbours=8,
        without_model=frozenset(range(6, 9)),
    )
    invariants = Invariants(world)
    world.on_step = invariants.check
    run = Play(world, invariants)

    def submit(number: int) -> None:
        peer = world.peers[CLIENTS[number % len(CLIENTS)]]
        job_id = world.submit(peer, job_request(number, mode="posted", verifiers=verifiers))
        run.jobs.append((peer, peer.core.jobs[job_id]))

    for number in range(jobs):
        world.at(2_500 + 1_500 * number, lambda number=number: submit(number))
    world.run(
        until_ms=500_000,
        stop=lambda: len(run.jobs) == jobs and all(job.is_final for _, job in run.jobs),
    )
    invariants.check_end()
    # Whatever is left of disputes ends by its own deadlines.
    world.run(until_ms=(world.now_ms - 1_700_000_000_000) + 32 * 8_000)
    return run


def assert_receipts_hold(run: Play) -> None:
    for _, job in run.jobs:
        assert job.receipt is not None
        check_receipt(job.receipt.raw, network=NETWORK, crypto=SimCrypto())


@cache
def quiet(cheat: str) -> Play:
    return play(7, {0: cheat})


def proofs(peer: Peer) -> list[bytes]:
    return [raw for (table, _), raw in peer.store.items() if table == "frauds"]


def rounds(job: Job) -> list[Verdict | None]:
    return [r.verdict for attempt in job.attempts for r in attempt.rounds.values()]


@pytest.mark.parametrize("cheat", ["wrong-result", "false-unit"])
def test_a_requester_without_the_model_convicts_by_one_operator(cheat: str) -> None:
    run = quiet(cheat)
    assert run.states == {JobState.VERIFIED: 4} and run.has_right_units()
    client, job = run.jobs[0]
    assert Verdict.FRAUD in rounds(job)
    cheater = run.world.peers[0].core.key
    assert client.core.standings.of(cheater).convicted
    assert proofs(client)
    ended = [note.details for _, _, note in run.world.notes if note.event == "dispute-ended"]
    assert {note["loser"] for note in ended} == {cheater}
    assert all(note["rounds"] <= 4 for note in ended)


def test_every_peer_judges_the_proof_for_itself_and_keeps_away() -> None:
    run = quiet("wrong-result")
    cheater = run.world.peers[0]
    for peer in run.world.peers[1:]:
        assert peer.core.standings.of(cheater.core.key).convicted
        assert ("convictions", cheater.core.key) in peer.store
    # Peer 8 has neither a model nor a job: it fetched the proof and ran one operator.
    stranger = run.world.peers[8]
    assert not proofs(stranger)
    assert stranger.core.disputes.archive.fetching == 0
    # The second job of each client goes elsewhere at once.
    assert [len(job.attempts) for _, job in run.jobs][2:] == [1, 1]


def test_the_loser_is_not_paid_and_the_others_are() -> None:
    run = quiet("wrong-result")
    cheater = run.world.peers[0].core.key
    _, job = run.jobs[0]
    first = job.attempts[0]
    assert first.candidate.peer == cheater
    assert (next(iter(first.rounds)), cheater) not in first.payouts.vouchers
    assert_receipts_hold(run)
    [round_] = first.rounds.values()
    for key, entry in round_.entries.items():
        assert entry.reveal is None or (round_.commitment.id, key) in first.payouts.vouchers
    assert job.receipt is not None


def test_a_false_verdict_is_convicted_and_the_result_stands() -> None:
    run = play(11, {5: "false-verdict"}, verifiers=6)
    liar = run.world.peers[5].core.key
    assert run.states == {JobState.VERIFIED: 4} and run.has_right_units()
    drawn = [
        (job, r) for _, job in run.jobs for a in job.attempts for r in a.rounds.values() if liar in r.entries
    ]
    assert drawn
    job, round_ = drawn[0]
    assert round_.verdict is Verdict.VERIFIED
    assert round_.entries[liar].false_verdict
    assert (round_.commitment.id, liar) not in job.attempts[0].payouts.vouchers
    assert all(peer.core.standings.of(liar).convicted for peer in run.world.peers if peer.core.key != liar)


BAD = Conditions(latency_ms=(5, 900), loss=0.1, duplication=0.1, gossip_loss=0.1)


@pytest.mark.parametrize("seed", range(8))
def test_on_a_bad_network_every_dispute_ends_and_nobody_honest_is_convicted(seed: int) -> None:
    cheats = {seed % 3: "wrong-result", 3 + seed % 2: "false-verdict", 5: ("false-unit", "")[seed % 2]}
    run = play(seed, {i: cheat for i, cheat in cheats.items() if cheat}, conditions=BAD, jobs=3)
    assert run.has_right_units()
    assert_receipts_hold(run)
    for peer in run.world.peers:
        disputes = peer.core.disputes
        assert not disputes.umpires and not disputes.parties
        assert disputes.archive.fetching == 0
    assert run.notes("dispute-opened") == run.notes("dispute-ended") > 0


def test_disputes_that_need_the_same_trace_share_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[int] = []
    run_dispute = Workshop.run_dispute

    def counting(
        shop: Workshop, world: World, peer: Peer, key: tuple[str, ...], task: Trace | OpenValues | Judge
    ) -> None:
        if isinstance(task, Trace):
            traced.append(peer.index)
        run_dispute(shop, world, peer, key, task)

    monkeypatch.setattr(Workshop, "run_dispute", counting)
    run = play(7, {0: "wrong-result"}, jobs=1)
    assert run.notes("dispute-opened") > 1
    assert traced.count(0) == 1
    assert all(peer.core.disputes._runs == {} for peer in run.world.peers)
