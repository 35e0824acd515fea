"""``lm.generate`` among the kinds of work; readable without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from protocols.blobs import Blob
from protocols.limits import CHUNKS_PER_SEGMENT, LM_CHUNK_UNITS, UNITS_MAX
from workloads.blobs import Blobs, blob_from_words
from workloads.errors import InputRefused
from workloads.llama.config import is_llama, load_config
from workloads.lm.input import NO_LOGPROBS, LmInput, decode_input, encode_input
from workloads.lm.layout import words_of
from workloads.lm.manifest import builtin_models, load_manifest
from workloads.split import Part, Split
from workloads.workload import ALL_PROFILES, Kind, Model, Workload

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


def _prompts(input: bytes) -> int:
    return len(decode_input(input, is_whole=True).prompts)


def _part(input: bytes, first: int, count: int) -> Part:
    """A job with some of the prompts; each is drawn as in the whole."""
    whole = decode_input(input, is_whole=True)
    if whole.logprobs != NO_LOGPROBS:
        raise InputRefused("a job with logprobs isn't split: its chunks name blobs by their place")
    job = msgspec.structs.replace(
        whole, prompts=whole.prompts[first : first + count], first_prompt=whole.first_prompt + first
    )
    return Part(encode_input(job), max(0, job.positions - job.units_max), job.units_max)


def _output_blobs(input: bytes, units: Sequence[int]) -> tuple[Blob, ...]:
    return tuple(blob_from_words(words) for words in words_of(decode_input(input), units))


def _leaves_blobs(input: bytes) -> bool:
    return decode_input(input, is_whole=True).logprobs != NO_LOGPROBS


LM = Kind(
    name="lm.generate",
    unit="token",
    chunk_units=LM_CHUNK_UNITS,
    segment_chunks=CHUNKS_PER_SEGMENT,
    profiles=ALL_PROFILES,
    variants=("quantized-weights", "skipped-layer", "smaller-model", "spoofed-tokens"),
    models=_models,
    probe=_probe,
    open=_open,
    read_model=_read_model,
    output_blobs=_output_blobs,
    leaves_blobs=_leaves_blobs,
    split=Split("prompt", _prompts, _part),
)
