"""Content too large for messages, between real processes: a job's output, and a model."""

from __future__ import annotations

from click.testing import CliRunner

from p2p_node.cli import cli
from p2p_node.executor import builtin_places
from p2p_node.models import read_model
from p2p_node.swarm import Swarm
from tests.swarm.jobs import DOCUMENT


def test_output_that_is_blobs_comes_before_it_is_paid(swarm: Swarm) -> None:
    document = DOCUMENT.replace("seed: 7", "seed: 8\n  logprobs: 2").format(max_tokens=40)
    with swarm.requester.connect() as client:
        before = {row["blob"] for row in client.blobs()}
        job_id = client.submit(document.encode())["id"]
        events = list(client.events(job_id))
        assert events[-1]["state"] == "verified"
        came = {row["blob"] for row in client.blobs()} - before
    (executor,) = {event["peer"] for event in events if event["event"] == "awarded"}
    with next(peer for peer in swarm.peers if peer.peer_id == executor).connect() as other:
        assert came <= {row["blob"] for row in other.blobs()}
    assert came


def test_a_model_is_shared_and_pulled(swarm: Swarm) -> None:
    owner, taker = swarm.peers[0], swarm.peers[1]
    shared = CliRunner().invoke(cli, ["model", "share", "digits-8x8", "--datadir", str(owner.datadir)])
    arguments = ["model", "pull", shared.stdout.strip(), "--name", "numbers", "--datadir", str(taker.datadir)]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    found = read_model(taker.datadir / "models" / "numbers")
    assert found is not None
    assert found[1].digest == builtin_places()["digits-8x8"].digest
    assert "is there already" in str(CliRunner().invoke(cli, arguments).exception)
