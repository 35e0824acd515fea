"""Metrics: what Prometheus reads, and that nothing secret is in it."""

from __future__ import annotations

import json

import httpx
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from p2p_node.client import NodeClient
from p2p_node.errors import UserError
from p2p_node.metrics import render, serve_metrics
from tests.api.rig import PEERS, Rig, job_document


def read(text: str) -> dict[str, dict[str, float]]:
    """Values by name, then by the only label's value (empty without one)."""
    values: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            label = next(iter(sample.labels.values()), "")
            values.setdefault(sample.name, {})[label] = sample.value
    return values


def test_what_is_counted(rig: Rig, client: NodeClient) -> None:
    before = read(rig.call(render, rig.node).decode())
    list(client.events(client.submit(job_document())["id"]))
    list(client.events(client.submit(job_document(max_price=1))["id"]))
    after = read(rig.call(render, rig.node).decode())
    for state in ("verified", "no_bids"):
        assert after["p2p_node_jobs"][state] == before["p2p_node_jobs"][state] + 1
    assert after["p2p_node_messages_total"]["direct"] > before["p2p_node_messages_total"]["direct"]
    assert after["p2p_node_messages_total"]["gossip"] > before["p2p_node_messages_total"]["gossip"]
    assert after["p2p_node_peers_connected"][""] == after["p2p_node_peers_known"][""] == PEERS - 1
    for name in ("frames_dropped", "penalties", "worker_restarts", "earned_micros", "bids"):
        assert after[f"p2p_node_{name}_total"][""] == 0


def test_a_worker_counts_its_bids_declines_and_earnings(rig: Rig, client: NodeClient) -> None:
    before = [read(rig.call(render, node).decode()) for node in rig.others]
    events = list(client.events(client.submit(job_document())["id"]))
    list(client.events(client.submit(job_document(max_price=1))["id"]))
    after = [read(rig.call(render, node).decode()) for node in rig.others]

    def gained(name: str, label: str = "") -> list[float]:
        return [
            new[name].get(label, 0) - old.get(name, {}).get(label, 0)
            for old, new in zip(before, after, strict=True)
        ]

    assert gained("p2p_node_bids_total") == [1, 1, 1]
    assert gained("p2p_node_declines_total", "price") == [1, 1, 1]
    assert sorted(gained("p2p_node_engagements_total")) == [0, 0, 1]
    # Who is drawn is chance, and weighs what a peer did in jobs before.
    drawn = {event["peer"] for event in events if event["event"] == "verifier-drawn"}
    assert drawn
    assert sum(earned > 0 for earned in gained("p2p_node_earned_micros_total")) == 1 + len(drawn)


def test_served_as_text_without_secrets(rig: Rig) -> None:
    token = json.loads((rig.datadir / "api.json").read_text())["token"]

    async def main() -> tuple[httpx.Response, httpx.Response]:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_metrics, rig.node, "127.0.0.1:19464")
            async with httpx.AsyncClient(trust_env=False) as http:
                answers = (
                    await http.get("http://127.0.0.1:19464/metrics"),
                    await http.get("http://127.0.0.1:19464/v1/status"),
                )
            nursery.cancel_scope.cancel()
        return answers

    metrics, other = trio.run(main)
    assert metrics.status_code == 200
    assert metrics.headers["content-type"].startswith("text/plain")
    assert "p2p_node_uptime_seconds" in read(metrics.text)
    assert token not in metrics.text
    assert "12D3KooW" not in metrics.text
    assert other.status_code == 404


async def test_a_malformed_address_is_refused(rig: Rig) -> None:
    with pytest.raises(UserError, match="--metrics 'here' must be host:port"):
        await serve_metrics(rig.node, "here")
