"""Real peers, real libp2p, a real model: a job is done, a cheater is caught, a dead executor replaced."""

from __future__ import annotations

import time

from p2p_node.swarm import CHEAT_PRICE_MICROS, PRICE_MICROS, Swarm
from protocols.identity import peer_id
from tests.swarm.jobs import Run, peer_named, run_job


def test_a_job_is_done_and_verified(swarm: Swarm, honest_run: Run) -> None:
    assert honest_run.summary["state"] == "verified"
    assert honest_run.summary["units"] == 64
    # All others bid, and one of them got it.
    others = {peer.peer_id for peer in swarm.peers[1:5]}
    assert {event["peer"] for event in honest_run.of("bid")} == others
    (executor,) = honest_run.awarded
    assert executor in others
    # Streamed as it was made, and the stream is the result.
    assert len(honest_run.of("output")) > 1
    assert "".join(event["text"] for event in honest_run.of("output")) == honest_run.summary["text"]
    drawn = {event["peer"] for event in honest_run.of("verifier-drawn")}
    assert drawn
    assert drawn <= others - {executor}
    assert {event["peer"] for event in honest_run.of("verdict")} == drawn
    assert all(event["agrees"] for event in honest_run.of("verdict"))


def test_its_receipt_says_who_earned_what(swarm: Swarm, honest_run: Run) -> None:
    report = honest_run.report
    assert report.state == "verified"
    earned = {peer_id(key): micros for key, micros in report.earnings.items()}
    (executor,) = honest_run.awarded
    assert earned.pop(executor) == 64 * PRICE_MICROS
    assert earned.keys() == {event["peer"] for event in honest_run.of("verdict")}
    with peer_named(swarm, executor).connect() as client:
        assert client.status()["earned_micros"] >= 64 * PRICE_MICROS
        assert client.status()["executed_cpu_us"] > 0


def test_a_cheater_that_underbids_is_convicted_and_the_client_gets_the_right_text(
    swarm: Swarm, honest_run: Run
) -> None:
    cheater = swarm.add(cheat="quantized-weights")
    swarm.wait_until_acquainted()
    run = run_job(swarm)
    assert {e["peer"]: e["price_micros"] for e in run.of("bid")}[cheater.peer_id] == CHEAT_PRICE_MICROS
    assert run.awarded[0] == cheater.peer_id
    (caught,) = [event for event in run.of("segment-verdict") if event["verdict"] != "verified"]
    assert (caught["verdict"], caught["executor"]) == ("fraud", cheater.peer_id)
    assert caught["chunk"] in (0, 1)
    # Somebody else did it again, from the start, with the same bits as when nobody cheated.
    assert run.summary["state"] == "verified"
    assert run.awarded[-1] != cheater.peer_id
    assert run.summary["text"] == honest_run.summary["text"]
    assert run.report.units == honest_run.report.units
    assert cheater.peer_id not in {peer_id(key) for key in run.report.earnings}
    with cheater.connect() as client:
        assert client.status()["earned_micros"] == 0
    for peer in swarm.peers:
        if peer is not cheater:
            assert _convicts(peer, cheater.peer_id), f"peer {peer.index} hasn't convicted the cheater"


def test_an_executor_that_is_killed_is_replaced(swarm: Swarm, honest_run: Run) -> None:
    # It wins by its price, even over cheaters of other tests, so the swarm's own peers live on.
    victim = swarm.add(price_micros=1)
    swarm.wait_until_acquainted()

    def on_event(event: dict[str, object]) -> None:
        if event["event"] == "output" and victim.is_running:
            victim.process.kill()
            victim.process.wait()

    run = run_job(swarm, max_tokens=800, on_event=on_event)
    assert run.awarded[0] == victim.peer_id
    (failed,) = run.of("attempt-failed")
    assert failed["peer"] == victim.peer_id
    assert run.summary["state"] == "verified"
    assert run.summary["units"] == 800
    assert len(run.awarded) == 2
    # The same seed and prompt: what the dead peer was making, the other one made.
    assert run.report.units[:64] == honest_run.report.units


def _convicts(peer, accused: str) -> bool:  # type: ignore[no-untyped-def]
    """Whether a peer shuns the accused; the proof takes a moment to reach it and to be recomputed."""
    with peer.connect() as client:
        for _ in range(100):
            rows = {row["peer_id"]: row for row in client.peers()}
            if rows[accused]["convicted"]:
                return True
            time.sleep(0.1)
    return False
