"""Peers that cheat on purpose, so that swarms can be tested against them.

Each kind names the check that catches it. None of this is reachable from an honest node: the kind
has to be given when the node is started.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from p2p_node.core.node import Act, NodeCore
from protocols.effects import Effect, Run
from protocols.envelope import Signed
from protocols.events import RunEvent, RunRecomputed
from protocols.messages import OpeningRequest

__all__ = ["CHEATS", "hostile_core", "worker_variant"]

CHEATS: dict[str, str] = {
    "quantized-weights": "runs int4 weights; caught by recomputing a chunk's tokens and hidden states",
    "skipped-layer": "leaves a layer out; caught by recomputing a chunk's tokens and hidden states",
    "spoofed-tokens": "decodes with a cheap model, then one honest prefill; caught by re-sampling tokens",
    "withheld-opening": "never opens its commitment; caught by the deadline",
    "false-verdict": "reports a mismatch that isn't there; caught by recomputing the disputed chunk",
    "silent-verifier": "claims its draw and never answers; caught by the deadline",
}
"""Kind to what it does and what catches it."""

_WORKER_VARIANTS = frozenset({"quantized-weights", "skipped-layer", "spoofed-tokens"})


def worker_variant(cheat: str) -> str:
    """How the worker of this cheat deviates; empty if it computes honestly."""
    return cheat if cheat in _WORKER_VARIANTS else ""


def hostile_core(cheat: str) -> Callable[..., NodeCore]:
    """The core of a peer that cheats this way; the honest one for ``""``.

    Raises:
        ValueError: no such kind.
    """
    if cheat and cheat not in CHEATS:
        raise ValueError(f"cheat {cheat!r} must be one of {', '.join(CHEATS)}")
    return {
        "withheld-opening": _WithheldOpening,
        "false-verdict": _FalseVerdict,
        "silent-verifier": _SilentVerifier,
    }.get(cheat, NodeCore)


class _WithheldOpening(NodeCore):
    def _hear_direct(self, peer: bytes, message: Signed[Any], now_ms: int) -> list[Effect]:
        if isinstance(message.body, OpeningRequest):
            return []
        return super()._hear_direct(peer, message, now_ms)


class _FalseVerdict(NodeCore):
    def run_event(self, event: RunEvent, now_ms: int) -> list[Act]:
        if isinstance(event, RunRecomputed) and event.key[0] == "verify":
            lies = tuple((chunk, bytes(32)) for chunk, _ in event.digests)
            event = RunRecomputed(event.key, lies, event.cpu_us)
        return super().run_event(event, now_ms)


class _SilentVerifier(NodeCore):
    def frame_received(self, peer: bytes, frame: bytes, now_ms: int) -> list[Act]:
        acts = super().frame_received(peer, frame, now_ms)
        return [act for act in acts if not (isinstance(act, Run) and act.key[0] == "verify")]
