"""``speech.transcribe`` among the kinds of work; readable without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

from protocols.blobs import Blob
from protocols.limits import UNITS_MAX
from workloads.blobs import Blobs
from workloads.lm.manifest import load_manifest
from workloads.modelconfig import has_model_type
from workloads.speech.config import MODEL_TYPE, load_config
from workloads.speech.input import (
    PADDING,
    SAMPLE_BYTES,
    WINDOW_TOKENS,
    TranscribeInput,
    decode_input,
    encode_input,
)
from workloads.split import Part, Split
from workloads.workload import EXACT_PROFILES, Artifact, Kind, Model, Workload

__all__ = ["NAME", "SHORT_HEARING", "SPEECH"]

NAME = "speech.transcribe"
SHORT_HEARING = "short-hearing"
_SEGMENT_WINDOWS = 4
_PROBE_SAMPLES = 8_000


def _models() -> tuple[Model, ...]:
    return ()


def _read_model(model_dir: Path) -> Model | None:
    if not has_model_type(model_dir, MODEL_TYPE):
        return None
    load_config(model_dir)
    return Model(model_dir.name, model_dir, load_manifest(model_dir).digest, UNITS_MAX)


def _probe() -> bytes:
    # A rising saw: it takes no library to make, and isn't silence.
    saw = (place * place // 64 % 8_192 - 4_096 for place in range(_PROBE_SAMPLES))
    samples = struct.pack(f"<{_PROBE_SAMPLES}h", *saw)
    return encode_input(TranscribeInput(samples, None, 0, (_PROBE_SAMPLES,)))


def _open(
    model_dir: Path, profile: str, variant: str | None, expected_digest: bytes | None, blobs: Blobs
) -> Workload:
    from workloads.speech.workload import Transcriber

    return Transcriber(model_dir, profile, variant, expected_digest=expected_digest, blobs=blobs)


def _windows(input: bytes) -> int:
    return len(decode_input(input, is_whole=True).ends)


def _part(input: bytes, first: int, count: int) -> Part:
    whole = decode_input(input, is_whole=True)
    start, ends = whole.window(first).start, whole.ends[first : first + count]
    if whole.blob is not None:
        part = TranscribeInput(b"", whole.blob, start, ends)
    else:
        samples = whole.samples[start * SAMPLE_BYTES : ends[-1] * SAMPLE_BYTES]
        part = TranscribeInput(samples, None, 0, tuple(end - start for end in ends))
    return Part(encode_input(part), 0, part.units_total)


def _present(input: bytes, units: Sequence[int]) -> Artifact:
    """The tokens of each window; whoever has the model's tokenizer makes more of it."""
    rows = []
    for number in range(len(units) // WINDOW_TOKENS):
        window = units[number * WINDOW_TOKENS : (number + 1) * WINDOW_TOKENS]
        rows.append([unit for unit in window if unit != PADDING])
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return Artifact("application/jsonl", content, f"JSON lines of the tokens of {len(rows)} windows")


def _input_blobs(input: bytes) -> tuple[Blob, ...]:
    blob = decode_input(input, is_whole=True).blob
    return () if blob is None else (blob,)


SPEECH = Kind(
    name=NAME,
    unit="token",
    chunk_units=WINDOW_TOKENS,
    segment_chunks=_SEGMENT_WINDOWS,
    profiles=EXACT_PROFILES,
    variants=(SHORT_HEARING,),
    models=_models,
    probe=_probe,
    open=_open,
    read_model=_read_model,
    present=_present,
    input_blobs=_input_blobs,
    split=Split("window", _windows, _part),
)
