"""The node's side of tasks over many items: from texts and pictures to inputs, from outputs to files.

Texts become tokens here, by the model's own tokenizer: what peers recompute begins with tokens, so nobody is
convicted for another release of a tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from p2p_node.batchfiles import Item, json_lines, unpack_items
from p2p_node.errors import UserError
from p2p_node.itemspec import ClassifyTask, EmbedTask
from protocols.blobs import parse_blob_name
from workloads.blobs import Blobs
from workloads.embedding import config as bert
from workloads.embedding.input import EmbedInput
from workloads.embedding.kind import EMBEDDING
from workloads.embedding.tokens import pack
from workloads.lm.tokenizer import TextTokenizer
from workloads.vision import config as vision
from workloads.vision.input import ClassifyInput
from workloads.vision.kind import classes
from workloads.workload import Artifact

__all__ = ["classes_file", "embed_input", "image_input", "vectors_file"]

INLINE_BYTES_MAX = 22 * 1024
"""Tokens that travel with a job: with them, its fraud proofs are still gossip (`FRAUD_INPUT_BYTES_MAX`)."""


def embed_input(task: EmbedTask, model_dir: Path, blobs: Blobs) -> EmbedInput:
    """The texts of a task as tokens.

    Args:
        task: of a valid job file.
        model_dir: of the model that it names.
        blobs: where packed texts are, and where tokens are left that are too many to be carried along.

    Raises:
        UserError: a text has no tokens, or its tokens aren't the model's.
        WorkloadRefused: the model or the input breaks a rule.
    """
    config = bert.load_config(model_dir)
    tokenizer = TextTokenizer(model_dir)
    if tokenizer.vocabulary > config.vocab_size:
        raise UserError(
            f"task.model: tokenizer.json has {tokenizer.vocabulary} tokens, the model {config.vocab_size}"
        )
    positions = config.max_position_embeddings
    if task.max_tokens > positions:
        raise UserError(f"task.max_tokens: must be at most the model's {positions}, got {task.max_tokens}")
    items = _items(task, blobs)
    lists = tokenizer.encode_many([item.text for item in items], task.max_tokens or positions)
    for item, tokens in zip(items, lists, strict=True):
        if not tokens:
            raise UserError(f"task.texts: text {item.id!r} has no tokens")
    packed = pack(lists)
    if len(packed) <= INLINE_BYTES_MAX:
        return EmbedInput(task.pooling, task.normalise, 0, len(items), packed)
    return EmbedInput(task.pooling, task.normalise, 0, len(items), blob=blobs.write(packed))


def image_input(task: ClassifyTask, model_dir: Path) -> ClassifyInput:
    """The pictures of a task.

    Raises:
        UserError: they aren't packed, or not as the model takes them.
        WorkloadRefused: the model or the input breaks a rule.
    """
    if not task.images.samples:
        raise UserError("task.images: files must be packed before a node takes them")
    size = vision.load_config(model_dir).image_size
    if task.size != size:
        raise UserError(f"task.size: must be the model's {size}, got {task.size}")
    blob = parse_blob_name(task.images.samples)
    count = blob.size_bytes // (size * size * 3)
    return ClassifyInput(size, 0, count, blob=blob)


def vectors_file(task: EmbedTask, input: bytes, units: Sequence[int], blobs: Blobs) -> Artifact:
    """A finished job's vectors: lines of JSON with ids, or safetensors with ids in the metadata."""
    items = _items(task, blobs)
    found = b"".join(blobs.read(blob) for blob in EMBEDDING.output_blobs(input, units))
    vectors = np.frombuffer(found, dtype="<f4").reshape(len(items), -1)
    what = f"{len(items)} vectors of {vectors.shape[1]} numbers"
    if task.output == "safetensors":
        ids = json.dumps([item.id for item in items], ensure_ascii=False)
        content = save({"embeddings": vectors}, metadata={"ids": ids})
        return Artifact("application/octet-stream", content, f"safetensors file of {what}")
    rows = (
        {"id": item.id, "embedding": [float(str(number)) for number in vector]}
        for item, vector in zip(items, vectors, strict=True)
    )
    return Artifact("application/jsonl", json_lines(rows), f"JSON lines of {what}")


def classes_file(task: ClassifyTask, units: Sequence[int], model_dir: Path, blobs: Blobs) -> Artifact:
    """A finished job's classes: lines of JSON, the likeliest first."""
    labels = vision.load_config(model_dir).labels
    names = [str(json.loads(line)) for line in blobs.read(parse_blob_name(task.images.names)).splitlines()]
    rows = []
    for name, told in zip(names, classes(units), strict=True):
        kept = [
            {"label": labels[number], "class": number, "score": round(chance, 6)}
            for number, chance in told[: task.top]
        ]
        rows.append({"image": name, "classes": kept})
    return Artifact("application/jsonl", json_lines(rows), f"JSON lines of {len(rows)} pictures' classes")


def _items(task: EmbedTask, blobs: Blobs) -> list[Item]:
    texts = task.texts
    if texts.lines:
        return [Item(str(number), line) for number, line in enumerate(texts.lines)]
    if texts.packed:
        return unpack_items(texts.packed)
    if texts.blob:
        return unpack_items(blobs.read(parse_blob_name(texts.blob)))
    raise UserError(f"task.texts: the file {texts.file!r} must be packed before a node takes it")
