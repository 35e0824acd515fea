"""What peers found when they dialled us back, and what follows from it. Pure."""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from p2p_node.network.port import PeerKey

__all__ = ["DialledBack", "Found", "Verdict", "conclude", "is_unreachable"]


class Verdict(enum.IntEnum):
    """What came of one dial; the value is on the wire."""

    UNREACHABLE = 0
    REACHABLE = 1
    REFUSED = 2
    """The peer didn't try: it was asked too often, or sees us through a relay."""


@dataclass(frozen=True, slots=True)
class DialledBack:
    """One peer's answer about one port of ours."""

    peer: PeerKey
    host: str
    """The address that it sees us at; empty if it didn't try."""
    port: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Found:
    """What all answers about one address amount to."""

    address: str
    """``host:port`` as others see it; ``?`` for a host that nobody saw."""
    state: str
    """``reachable``, ``not reachable`` or ``unknown``."""
    reason: str
    remedy: str
    """What to do about it; empty if there is nothing to do."""


def conclude(answers: Sequence[DialledBack], ports: Sequence[int]) -> list[Found]:
    """What holds of each address, as far as somebody tried; of each port, at least."""
    found = []
    for port in ports:
        tried = [
            answer for answer in answers if answer.port == port and answer.verdict is not Verdict.REFUSED
        ]
        hosts = sorted({answer.host for answer in tried})
        for host in hosts:
            found.append(_about(host, port, [answer for answer in tried if answer.host == host]))
        if not hosts:
            refused = any(answer.port == port for answer in answers)
            reason = "peers were asked too often" if refused else "no peer could be asked to dial back"
            remedy = "ask again in a minute" if refused else "connect to peers: --bootstrap"
            found.append(Found(f"?:{port}", "unknown", reason, remedy))
    return found


def _about(host: str, port: int, tried: Sequence[DialledBack]) -> Found:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    yes = sum(answer.verdict is Verdict.REACHABLE for answer in tried)
    counted = f"{yes} of {len(tried)} peers that dialled back got through"
    is_local = not ipaddress.ip_address(host).is_global
    if yes:
        where = "; they are on the same network, others were not asked" if is_local else ""
        return Found(address, "reachable", counted + where, "")
    return Found(
        address,
        "not reachable",
        counted,
        f"forward TCP port {port} of the router to this machine and let it through the firewall, or be "
        f"reached through relays",
    )


def is_unreachable(found: Sequence[Found]) -> bool:
    """Whether somebody tried, and nobody got through anywhere."""
    states = {entry.state for entry in found}
    return "not reachable" in states and "reachable" not in states
