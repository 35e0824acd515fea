"""``speech.transcribe`` among the kinds of work; readable without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

from workloads.blobs import Blobs
from workloads.inputs import items_split
from workloads.modelfiles import model_reader
from workloads.speech.config import MODEL_TYPE, load_config
from workloads.speech.input import (
    CODEC,
    PADDING,
    SAMPLE_BYTES,
    WINDOW_TOKENS,
    TranscribeInput,
    encode_input,
)
from workloads.workload import ALL_PROFILES, Artifact, Kind, Workload

__all__ = ["NAME", "SHORT_HEARING", "SPEECH"]

NAME = "speech.transcribe"
SHORT_HEARING = "short-hearing"
_SEGMENT_WINDOWS = 4
_PROBE_SAMPLES = 8_000


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


def _narrowed(whole: TranscribeInput, first: int, count: int) -> TranscribeInput:
    start, ends = whole.window(first).start, whole.ends[first : first + count]
    if whole.blob is not None:
        return TranscribeInput(b"", whole.blob, start, ends)
    samples = whole.samples[start * SAMPLE_BYTES : ends[-1] * SAMPLE_BYTES]
    return TranscribeInput(samples, None, 0, tuple(end - start for end in ends))


def _present(input: bytes, units: Sequence[int]) -> Artifact:
    """The tokens of each window; whoever has the model's tokenizer makes more of it."""
    rows = []
    for number in range(len(units) // WINDOW_TOKENS):
        window = units[number * WINDOW_TOKENS : (number + 1) * WINDOW_TOKENS]
        rows.append([unit for unit in window if unit != PADDING])
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return Artifact("application/jsonl", content, f"JSON lines of the tokens of {len(rows)} windows")


SPEECH = Kind(
    name=NAME,
    unit="token",
    chunk_units=WINDOW_TOKENS,
    segment_chunks=_SEGMENT_WINDOWS,
    profiles=ALL_PROFILES,
    variants=(SHORT_HEARING,),
    models=tuple,
    probe=_probe,
    open=_open,
    read_model=model_reader(MODEL_TYPE, load_config),
    present=_present,
    input_blobs=CODEC.blobs,
    split=items_split(CODEC, "window", lambda job: len(job.ends), _narrowed),
)
