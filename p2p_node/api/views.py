"""A node and its peers as plain data, for the API."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from p2p_node.activity import idle_reason
from p2p_node.jobspec import JobSpec
from p2p_node.network.port import PeerStatus
from protocols.envelope import Signed
from protocols.identity import peer_id
from protocols.messages import Advert, Offering

if TYPE_CHECKING:
    from p2p_node.node import Node

__all__ = ["described_spec", "peer_rows", "status"]


def status(node: Node) -> dict[str, Any]:
    """What the node is, has and does now."""
    core, now_ms = node.core, node.runtime.clock()
    capacity = core.provider.capacity(now_ms)
    running = len(core.provider.running())
    connected = len(node.network.peers())
    measuring = node.catalogue.measuring if node.catalogue is not None else []
    return {
        "peer_id": peer_id(core.key),
        "key": core.key.hex(),
        "network": core.network,
        "addresses": list(node.network.addresses),
        "version": metadata.version("p2p-node"),
        "uptime_ms": now_ms - node.started_ms,
        "connected": connected,
        "convicted_peers": sum(standing.convicted for standing in core.standings.peers.values()),
        "known_peers": sum(message.signer != core.key for message in core.registry.current(now_ms)),
        "jobs_open": sum(not job.is_final for job in core.jobs.values()),
        "engagements_running": running,
        "engagements_total": node.activity.engagements,
        "slots_total": capacity.slots_total,
        "slots_free": capacity.slots_free,
        "earned_micros": sum(node.earned.values()),
        "executed_cpu_us": node.executor.executed_cpu_us,
        "recomputed_cpu_us": node.executor.recomputed_cpu_us,
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "paused": sorted(node.pausing.paused),
        "idle_reason": idle_reason(
            node.activity,
            models=len(core.capability.abilities),
            connected=connected,
            running=running,
            is_stopping=core.provider.is_paused and not node.pausing.paused,
            paused=node.pausing.paused,
            is_in_use=node.pausing.is_in_use,
            measuring=measuring,
        ),
        "measuring": measuring,
        "offerings": _offerings(node, (ability.offering for ability in core.capability.abilities)),
        "measured": dict(node.measured),
    }


def peer_rows(node: Node) -> list[dict[str, Any]]:
    """Every peer that is connected or has advertised itself, connected ones first."""
    core, now_ms = node.core, node.runtime.clock()
    adverts = {message.signer: message for message in core.registry.current(now_ms)}
    links = {link.key: link for link in node.network.peers()}
    keys = (adverts.keys() | links.keys()) - {core.key}
    return [
        _peer_row(node, key, adverts.get(key), links.get(key), now_ms)
        for key in sorted(keys, key=lambda key: (key not in links, peer_id(key)))
    ]


def described_spec(spec: JobSpec) -> dict[str, Any]:
    """A job file as plain data, with every default filled in."""
    fields: dict[str, Any] = msgspec.to_builtins(spec)
    fields["placement"]["exclude"] = [peer_id(key) for key in spec.placement.exclude]
    return fields


def _peer_row(
    node: Node, key: bytes, advert: Signed[Advert] | None, link: PeerStatus | None, now_ms: int
) -> dict[str, Any]:
    standing = node.core.standings.of(key)
    row: dict[str, Any] = {
        "peer_id": peer_id(key),
        "address": link.address if link else None,
        "connected": link is not None,
        "direction": link.direction if link else None,
        "rtt_ms": round(link.rtt_ms, 3) if link and link.rtt_ms is not None else None,
        "points": link.points if link else 0,
        "reputation_ppm": standing.reputation_ppm,
        "convicted": standing.convicted,
    }
    if advert is None:
        return row | dict.fromkeys(_ADVERTISED)
    body = advert.body
    if row["address"] is None and body.addresses:
        row["address"] = body.addresses[0]
    return row | {
        "expires_in_ms": body.expires_ms - now_ms,
        "software": body.software,
        "slots_free": body.slots_free,
        "slots_total": body.slots_total,
        "cores": body.cores,
        "ram_bytes": body.ram_bytes,
        "gemm_fp32_mflops": body.gemm_fp32_mflops,
        "gemm_bf16_mflops": body.gemm_bf16_mflops,
        "memory_mib_per_s": body.memory_mib_per_s,
        "disk_mib_per_s": body.disk_mib_per_s,
        "accelerators": [msgspec.structs.asdict(device) for device in body.accelerators],
        "offerings": _offerings(node, body.offerings),
    }


_ADVERTISED = (
    "expires_in_ms",
    "software",
    "slots_free",
    "slots_total",
    "cores",
    "ram_bytes",
    "gemm_fp32_mflops",
    "gemm_bf16_mflops",
    "memory_mib_per_s",
    "disk_mib_per_s",
    "accelerators",
    "offerings",
)
"""What only a peer's advert tells."""


def _offerings(node: Node, offerings: Iterable[Offering]) -> list[dict[str, Any]]:
    names = {place.digest: name for name, place in node.models.items()}
    return [
        {
            "workload": offering.workload,
            "model": names.get(offering.model),
            "digest": offering.model.hex(),
            "profiles": list(offering.profiles),
            "price_micros": offering.price_micros,
            "rate_milli": offering.rate_milli,
            "warm": offering.warm,
        }
        for offering in offerings
    ]
