"""docs/api.md tells of every route, field, event and metric there is, and of no other."""

from __future__ import annotations

import re
from pathlib import Path

from starlette.routing import Route

from p2p_node.api.routes import make_app
from p2p_node.client import NodeClient
from p2p_node.metrics import render
from tests.api.rig import Rig, job_document

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "api.md").read_text()


def section(title: str) -> str:
    """The text below a heading, up to the next one."""
    return re.split(r"^#+ ", DOCUMENT.split(f" {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def names(text: str) -> set[str]:
    return set(re.findall(r"`([a-z_0-9-]+)`", text))


def rows(title: str) -> dict[str, set[str]]:
    """The table below a heading: first column to the names in the others."""
    found = {}
    for line in section(title).splitlines():
        if line.startswith("| `"):
            first, rest = line.strip("|").split("|", 1)
            for name in re.findall(r"`([^`]+)`", first):
                found[name] = names(rest)
    return found


def test_routes(rig: Rig) -> None:
    there = {
        f"{method} {route.path.replace('{prefix}', '{id}')}"
        for route in make_app(rig.node, "token").routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert set(rows("Routes")) == there


def test_fields(client: NodeClient) -> None:
    status = client.status()
    offering = {"workload", "model", "digest", "profiles", "price_micros", "rate_milli", "warm"}
    assert names(section("Status")) == set(status) | offering
    peer = client.peers()[0]
    assert set(peer["offerings"][0]) == offering
    assert names(section("Peers")) == set(peer) | {"inbound", "outbound"}
    job = client.submit(job_document(max_price=1))
    list(client.events(job["id"]))
    assert set(client.job(job["id"])) <= names(section("Jobs"))
    explained = client.explain(job["id"])
    assert names(section("Explain")) == set(explained) | set(explained["declines"][0])


def test_events(client: NodeClient) -> None:
    told = rows("Events")
    for document in (job_document(), job_document(max_price=1, rebids=1)):
        for event in client.events(client.submit(document)["id"]):
            fields = set(event) - {"at_ms", "event"}
            assert fields == told[event["event"]], event["event"]


def test_events_are_those_of_the_core() -> None:
    """Every event that the requester's machines tell about a job."""
    sources = ["p2p_node/core/attempt.py", "p2p_node/core/requester.py", "verification/round.py"]
    sources += ["protocols/auction.py", "p2p_node/core/payouts.py", "p2p_node/core/disputes.py"]
    found = set()
    for source in sources:
        text = (ROOT / source).read_text()
        found |= set(re.findall(r"Notify\(\s*[a-z_.]+,\s*\"([a-z-]+)\"", text))
    assert set(rows("Events")) == found


def test_metrics(rig: Rig) -> None:
    there = set(re.findall(r"^# TYPE p2p_node_(\w+) ", rig.call(render, rig.node).decode(), re.MULTILINE))
    assert set(rows("Metrics")) == there
