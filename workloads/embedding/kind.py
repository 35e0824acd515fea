"""``embed.text`` among the kinds of work; readable without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec

from protocols.blobs import Blob
from protocols.limits import CHUNKS_PER_SEGMENT
from workloads.blobs import BLOB_WORDS, Blobs, blob_from_words
from workloads.embedding.config import MODEL_TYPE, load_config
from workloads.embedding.input import CHUNK_TEXTS, CODEC, EmbedInput, decode_input, encode_input
from workloads.embedding.tokens import pack
from workloads.inputs import items_split
from workloads.modelfiles import model_reader
from workloads.workload import ALL_PROFILES, Artifact, Kind, Workload

__all__ = ["COPIED_ITEM", "EMBEDDING", "NAME", "QUANTIZED_ENCODER"]

NAME = "embed.text"
COPIED_ITEM = "copied-item"
"""The second half of a chunk's texts gets the vectors of the first."""
QUANTIZED_ENCODER = "quantized-encoder"
"""The weights have four bits."""
_PROBE_TEXTS = 2 * CHUNK_TEXTS
_PROBE_TOKENS = 8
_CHUNK_BYTES_MAX = 1 << 20


def _probe() -> bytes:
    # Tokens that every vocabulary has.
    texts = [[(number + place) % 2 for place in range(_PROBE_TOKENS)] for number in range(_PROBE_TEXTS)]
    return encode_input(EmbedInput("mean", True, 0, len(texts), pack(texts)))


def _open(
    model_dir: Path, profile: str, variant: str | None, expected_digest: bytes | None, blobs: Blobs
) -> Workload:
    from workloads.embedding.workload import TextEmbedder

    return TextEmbedder(model_dir, profile, variant, expected_digest=expected_digest, blobs=blobs)


def _chunk_blob(input: bytes, units: Sequence[int], chunk: int) -> tuple[Blob, ...]:
    blob = blob_from_words(units[chunk * BLOB_WORDS : (chunk + 1) * BLOB_WORDS])
    # No verifier fetches what can't be a chunk's vectors.
    return (blob,) if blob.size_bytes <= _CHUNK_BYTES_MAX else ()


def _output_blobs(input: bytes, units: Sequence[int]) -> tuple[Blob, ...]:
    return tuple(
        blob_from_words(units[start : start + BLOB_WORDS]) for start in range(0, len(units), BLOB_WORDS)
    )


def _present(input: bytes, units: Sequence[int]) -> Artifact:
    """Which blob holds the vectors of which texts; whoever has the blobs makes more of it."""
    job = decode_input(input, is_whole=True)
    rows = [
        {"first": number * CHUNK_TEXTS, "blob": blob.digest.hex(), "bytes": blob.size_bytes}
        for number, blob in enumerate(_output_blobs(input, units))
    ]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return Artifact("application/jsonl", content, f"JSON lines that name the blobs of {job.count} vectors")


def _narrowed(whole: EmbedInput, first: int, count: int) -> EmbedInput:
    begin = first * CHUNK_TEXTS
    texts = min(count * CHUNK_TEXTS, whole.count - begin)
    return msgspec.structs.replace(whole, first=whole.first + begin, count=texts)


EMBEDDING = Kind(
    name=NAME,
    unit="word",
    chunk_units=BLOB_WORDS,
    segment_chunks=CHUNKS_PER_SEGMENT,
    profiles=ALL_PROFILES,
    variants=(COPIED_ITEM, QUANTIZED_ENCODER),
    models=tuple,
    probe=_probe,
    open=_open,
    present=_present,
    split=items_split(CODEC, "chunk of texts", lambda job: job.chunks, _narrowed),
    input_blobs=CODEC.blobs,
    output_blobs=_output_blobs,
    native_blobs=_chunk_blob,
    read_model=model_reader(MODEL_TYPE, load_config),
)
