"""What Prometheus may know of a node: numbers read from it when they are asked for.

Nothing here names a peer, a job or a token, so unlike the API it may listen on any address that
the operator names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import structlog
import trio
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from p2p_node.api.serving import listening, run_app, url_of
from p2p_node.core.request import JobState
from p2p_node.listening import host_and_port

if TYPE_CHECKING:
    # libp2p brings stubs that hide trio's own types, and these that go with them.
    from trio_typing import TaskStatus

    from p2p_node.node import Node

__all__ = ["render", "serve_metrics"]

log = structlog.get_logger(__name__)


async def serve_metrics(
    node: Node, address: str, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve ``/metrics`` until cancelled.

    Args:
        node: what is measured.
        address: ``host:port``; port 0 lets the system choose.
        task_status: told when requests are answered.

    Raises:
        UserError: the address is malformed or taken.
    """

    async def metrics(request: Request) -> Response:
        return Response(render(node), media_type=CONTENT_TYPE_LATEST)

    host, port = host_and_port(address, flag="--metrics")
    with listening(host, port, flag="--metrics") as sock:
        log.info("metrics are up", url=f"{url_of(sock)}/metrics")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_app, Starlette(routes=[Route("/metrics", metrics)]), sock)
            task_status.started()


def render(node: Node) -> bytes:
    """All metrics of a node in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Collector(node))
    return generate_latest(registry)


class _Collector:
    def __init__(self, node: Node) -> None:
        self._node = node

    def collect(self) -> Iterator[Metric]:
        node, core, now_ms = self._node, self._node.core, self._node.runtime.clock()
        runtime, activity = node.runtime, node.activity
        yield _gauge("peers_connected", "Peers with a link to this node.", len(node.network.peers()))
        yield _gauge(
            "peers_known", "Peers with a current advert.", sum(1 for _ in core.registry.current(now_ms))
        )
        yield _gauge("uptime_seconds", "Time since the node started.", (now_ms - node.started_ms) / 1_000)
        capacity = core.provider.capacity(now_ms)
        yield _gauge("slots", "Jobs this node can work on at once.", capacity.slots_total)
        yield _gauge("slots_free", "Slots neither working nor reserved.", capacity.slots_free)

        messages = CounterMetricFamily(
            "p2p_node_messages", "Messages received from peers, by how they came.", labels=["path"]
        )
        messages.add_metric(["direct"], runtime.frames_received)
        messages.add_metric(["gossip"], runtime.gossip_received)
        yield messages
        yield _counter("bugs_met", "Events from the network that met a bug of this node.", runtime.bugs_met)
        yield _counter("frames_dropped", "Outgoing messages dropped by a full queue.", runtime.frames_dropped)
        yield _counter("penalties", "Faults of peers that were counted against them.", runtime.penalties)
        yield _counter("worker_restarts", "Worker processes that died.", activity.worker_deaths)

        jobs = GaugeMetricFamily(
            "p2p_node_jobs", "Jobs asked for through this node, by state.", labels=["state"]
        )
        states = Counter(record.state for record in node.book.records())
        for state in JobState:
            jobs.add_metric([state.value], states[state.value])
        yield jobs
        yield _counter("bids", "Bids on others' offers.", activity.bids)
        yield _counter("engagements", "Contracts taken on.", activity.engagements)
        declines = CounterMetricFamily(
            "p2p_node_declines", "Offers not bid on, by reason.", labels=["reason"]
        )
        for reason, count in sorted(activity.declines.items()):
            declines.add_metric([reason], count)
        yield declines
        yield _counter("earned_micros", "Micro-units settled to this node, ever.", sum(node.earned.values()))


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"p2p_node_{name}", help_text, value=value)


def _counter(name: str, help_text: str, value: float) -> Metric:
    return CounterMetricFamily(f"p2p_node_{name}", help_text, value=value)
