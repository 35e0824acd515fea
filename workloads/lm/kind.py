"""``lm.generate`` among the kinds of work; readable without torch."""

from __future__ import annotations

from pathlib import Path

from protocols.limits import CHUNKS_PER_SEGMENT, LM_CHUNK_UNITS, UNITS_MAX
from workloads.blobs import Blobs
from workloads.llama.config import is_llama, load_config
from workloads.lm.input import LmInput, encode_input
from workloads.lm.manifest import builtin_models, load_manifest
from workloads.workload import EXACT_PROFILES, Kind, Model, Workload

__all__ = ["LM"]

_PROBE_TOKENS = 24


def _models() -> tuple[Model, ...]:
    return tuple(_model(path) for path in builtin_models().values())


def _model(model_dir: Path) -> Model:
    load_config(model_dir)
    # Each prompt has a context of its own: clients hold it against the model's, since they need the model's
    # tokenizer anyway, and executors do once more.
    return Model(model_dir.name, model_dir, load_manifest(model_dir).digest, UNITS_MAX)


def _read_model(model_dir: Path) -> Model | None:
    return _model(model_dir) if is_llama(model_dir) else None


def _probe() -> bytes:
    return encode_input(
        LmInput(prompts=((1, 2, 3, 4),), max_tokens=_PROBE_TOKENS, seed=0, temperature_milli=1_000)
    )


def _open(
    model_dir: Path, profile: str, variant: str | None, expected_digest: bytes | None, blobs: Blobs
) -> Workload:
    from workloads.lm.workload import LmWorkload

    return LmWorkload(model_dir, profile, variant, expected_digest=expected_digest, blobs=blobs)


LM = Kind(
    name="lm.generate",
    unit="token",
    chunk_units=LM_CHUNK_UNITS,
    segment_chunks=CHUNKS_PER_SEGMENT,
    profiles=(*EXACT_PROFILES, "homogeneous", "native"),
    variants=("quantized-weights", "skipped-layer", "smaller-model", "spoofed-tokens"),
    models=_models,
    probe=_probe,
    open=_open,
    read_model=_read_model,
)
