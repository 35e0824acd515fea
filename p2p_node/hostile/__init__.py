"""Peers that cheat on purpose, so that swarms can be tested against them.

Each kind names the check that catches it. None of this is reachable from an honest node: the kind
has to be given when the node is started.
"""

from __future__ import annotations

from collections.abc import Callable

from p2p_node.core.node import NodeCore
from p2p_node.hostile.catalogue import ATTACKS, CHEATS, Attack, Role
from p2p_node.hostile.executors import CopiedResult, Equivocation, WithheldOpening
from p2p_node.hostile.requesters import FreeRider, OverIssuedVouchers
from p2p_node.hostile.ring import Eclipse, SybilSwarm
from p2p_node.hostile.strangers import ForgedCapability, MalformedBytes, ReplayedMessage
from p2p_node.hostile.verifiers import (
    CopiedVerdict,
    FalseAccusation,
    FalseVerdict,
    RubberStamp,
    SilentVerifier,
)

__all__ = ["ATTACKS", "CHEATS", "Attack", "Role", "hostile_core", "worker_variant"]

_CORES: dict[str, Callable[..., NodeCore]] = {
    "withheld-opening": WithheldOpening,
    "equivocation": Equivocation,
    "copied-result": CopiedResult,
    "false-verdict": FalseVerdict,
    "silent-verifier": SilentVerifier,
    "rubber-stamp": RubberStamp,
    "copied-verdict": CopiedVerdict,
    "false-accusation": FalseAccusation,
    "free-rider": FreeRider,
    "over-issued-vouchers": OverIssuedVouchers,
    "sybil-swarm": SybilSwarm,
    "eclipse": Eclipse,
    "forged-capability": ForgedCapability,
    "replayed-message": ReplayedMessage,
    "malformed-bytes": MalformedBytes,
}


def worker_variant(cheat: str) -> str:
    """How the worker of this cheat deviates; empty if it computes honestly."""
    return cheat if cheat in ATTACKS and ATTACKS[cheat].is_in_worker else ""


def hostile_core(cheat: str) -> Callable[..., NodeCore]:
    """The core of a peer that cheats this way; the honest one for ``""``.

    Raises:
        ValueError: no such kind.
    """
    if cheat and cheat not in CHEATS:
        raise ValueError(f"cheat {cheat!r} must be one of {', '.join(CHEATS)}")
    return _CORES.get(cheat, NodeCore)
