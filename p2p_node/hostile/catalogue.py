"""Every way to cheat that a test swarm mounts, and the check that is named for it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["ATTACKS", "CHEATS", "Attack", "Role"]


class Role(enum.Enum):
    """From which place a peer cheats."""

    EXECUTOR = "executor"
    VERIFIER = "verifier"
    REQUESTER = "requester"
    STRANGER = "stranger"


@dataclass(frozen=True, slots=True)
class Attack:
    """One way to cheat."""

    kind: str
    role: Role
    does: str
    caught_by: str
    is_provable: bool = False
    """Whether what it signs convicts it, in everybody's eyes. What isn't provable is refused or avoided."""
    is_in_worker: bool = False
    """Whether it is the computation that deviates, not what the peer says."""
    needs_model: bool = False
    """Whether it cheats at work that takes a model which isn't shipped."""


def _in_worker(kind: str, does: str, caught_by: str, *, needs_model: bool = False) -> Attack:
    return Attack(
        kind,
        Role.EXECUTOR,
        does,
        caught_by,
        is_provable=True,
        is_in_worker=True,
        needs_model=needs_model,
    )


_RECOMPUTED = "recomputing a chunk's tokens and hidden states"
_REPLAYED = "replaying a segment from its first state"
_RERUN = "running a chunk's batches again"
_RESAMPLED = "re-sampling a chunk's tokens"
_ENCODED = "encoding a chunk's texts again"
_CLASSIFIED = "classifying a chunk's images again"

_ALL = (
    _in_worker("smaller-model", "runs the first half of the layers", _RECOMPUTED),
    _in_worker("skipped-layer", "leaves a layer out", _RECOMPUTED),
    _in_worker("quantized-weights", "runs int4 weights", _RECOMPUTED),
    _in_worker("spoofed-tokens", "decodes with a cheap model, then one honest prefill", _RESAMPLED),
    _in_worker("fewer-steps", "guesses every second denoise step", "replaying a step from its latent"),
    _in_worker("fabricated-tiles", "copies the tile beside every second one", "rendering a tile again"),
    _in_worker("altered-training-step", "raises the learning rate by a hundredth", _REPLAYED),
    _in_worker("skipped-training-step", "leaves out the last step of each segment", _REPLAYED),
    _in_worker("altered-operator", "runs one operator of a program in another precision", _RERUN),
    _in_worker("skipped-operator", "hands on what an operator takes as what it gives", _RERUN),
    _in_worker("fewer-terms", "leaves a quarter of every sum out", "Freivalds' check of rows of the product"),
    _in_worker("copied-item", "copies half of a chunk's vectors from the others", _ENCODED, needs_model=True),
    _in_worker("quantized-encoder", "encodes with four-bit weights", _ENCODED, needs_model=True),
    _in_worker("copied-image", "classifies every second image as the last", _CLASSIFIED, needs_model=True),
    _in_worker("quantized-classifier", "classifies with four-bit weights", _CLASSIFIED, needs_model=True),
    Attack(
        "equivocation",
        Role.EXECUTOR,
        "commits to one root before the requester and to another before everybody else",
        "comparing the commitments of each segment",
        is_provable=True,
    ),
    Attack(
        "copied-result",
        Role.EXECUTOR,
        "hands in the output and the root of somebody else's contract",
        "the leaf, which names its executor and award, so that no opening leads to the root; the deadline",
    ),
    Attack("withheld-opening", Role.EXECUTOR, "never opens its commitment", "the deadline"),
    Attack(
        "withheld-blob",
        Role.EXECUTOR,
        "commits to output that it names and never serves",
        "fetching the output before it is paid for",
    ),
    Attack(
        "false-verdict",
        Role.VERIFIER,
        "reports a mismatch that isn't there",
        "recomputing the disputed chunk",
        is_provable=True,
    ),
    Attack(
        "rubber-stamp",
        Role.VERIFIER,
        "hides noise and reveals the executor's digests",
        "its blind verdict, which holds other digests",
    ),
    Attack(
        "copied-verdict",
        Role.VERIFIER,
        "hides another verifier's blind verdict as its own",
        "the blind digest, which names its verifier",
    ),
    Attack("silent-verifier", Role.VERIFIER, "claims its draw and never answers", "the deadline"),
    Attack(
        "false-accusation",
        Role.VERIFIER,
        "publishes fraud proofs against honest executors",
        "recomputing the accused chunk",
    ),
    Attack(
        "free-rider", Role.REQUESTER, "takes results and pays nobody", "the credit that each requester has"
    ),
    Attack(
        "over-issued-vouchers",
        Role.REQUESTER,
        "pays ten times what was delivered, to spoil the payee's books",
        "the lane, which knows what was delivered",
    ),
    Attack(
        "sybil-swarm",
        Role.EXECUTOR,
        "fabricates results that its other keys, drawn as verifiers, confirm",
        "any drawn verifier that isn't one of its keys",
        is_provable=True,
    ),
    Attack(
        "eclipse",
        Role.EXECUTOR,
        "is a sybil swarm that surrounds a requester and passes on only its own messages",
        "one honest neighbour, which tells what was missed",
        is_provable=True,
    ),
    Attack(
        "forged-capability",
        Role.STRANGER,
        "advertises a thousand times its speed",
        "the pace that others were seen to deliver at, until it has delivered",
    ),
    Attack(
        "replayed-message",
        Role.STRANGER,
        "says again whatever it heard, to everybody",
        "message ids, sequences and deadlines",
    ),
    Attack(
        "malformed-bytes",
        Role.STRANGER,
        "sends noise, and messages with bits flipped, cut and spliced",
        "the decoder and the signatures; its own standing",
    ),
)

ATTACKS: dict[str, Attack] = {attack.kind: attack for attack in _ALL}
"""By kind."""

CHEATS: dict[str, str] = {
    attack.kind: f"{attack.does}; caught by {attack.caught_by}" for attack in ATTACKS.values()
}
"""Kind to what it does and what catches it."""
