"""Which kinds of work there are; readable without torch."""

from __future__ import annotations

from pathlib import Path

from workloads.blobs import NO_BLOBS, Blobs
from workloads.consistency.kind import TERRAIN
from workloads.diffusion.kind import DIFFUSION
from workloads.embedding.kind import EMBEDDING
from workloads.errors import InputRefused
from workloads.exported.kind import PROGRAM
from workloads.linalg.kind import MATMUL
from workloads.lm.kind import LM
from workloads.plugins import load_plugins
from workloads.render.kind import RENDER
from workloads.speech.kind import SPEECH
from workloads.training.kind import TRAINING
from workloads.vision.kind import VISION
from workloads.workload import Kind, Model, Workload

__all__ = ["KINDS", "PLUGINS", "PLUGIN_FAULTS", "kind_of", "native_kind_of", "open_workload"]

_ALL = (LM, DIFFUSION, RENDER, MATMUL, PROGRAM, TRAINING, EMBEDDING, VISION, SPEECH, TERRAIN)
PLUGINS, PLUGIN_FAULTS = load_plugins(kind.name for kind in _ALL)
"""Kinds of work that other packages add, and why some can't be used."""

KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL} | PLUGINS
"""Kinds of work by the name that jobs carry."""


def kind_of(name: str) -> Kind:
    """The kind of work of this name.

    Raises:
        InputRefused: there is none.
    """
    kind = KINDS.get(name)
    if kind is None:
        raise InputRefused(f"workload {name!r} must be one of {', '.join(KINDS)}")
    return kind


def native_kind_of(model_dir: Path) -> tuple[Kind, Model] | None:
    """The kind with a native profile whose model lies in a directory.

    Raises:
        ModelRefused: as `Kind.read_model`.
    """
    for kind in KINDS.values():
        if "native" in kind.profiles and (model := kind.read_model(model_dir)) is not None:
            return kind, model
    return None


def open_workload(
    name: str,
    model_dir: Path,
    profile: str,
    variant: str | None = None,
    *,
    expected_digest: bytes | None = None,
    blobs: Blobs = NO_BLOBS,
) -> Workload:
    """Load a model to run it or to check it.

    Args:
        name: of the workload, as jobs carry it.
        model_dir: the model's directory; ignored by workloads without weights.
        profile: one of the kind's numerics profiles.
        variant: how to cheat while generating, for hostile test peers; recomputing is always honest.
        expected_digest: what the model must hash to; None to take it as it is.
        blobs: where inputs are read and outputs left that are too large to be words.

    Raises:
        InputRefused: no such workload, profile or variant.
        ModelRefused: the directory is not a model of this workload, or hashes to something else.
    """
    return kind_of(name).open(model_dir, profile, variant, expected_digest, blobs)
