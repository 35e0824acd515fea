"""The node's side of training jobs: from a task to an input, and the text file that it names.

Text for a base's decoder becomes tokens here, by its own tokenizer: what peers recompute begins with tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from p2p_node.errors import UserError
from p2p_node.executor import ModelPlace
from p2p_node.taskspec import TrainingTask
from p2p_node.yamltree import parse
from protocols.blobs import blob_name, parse_blob_name
from protocols.limits import UNITS_MAX
from workloads.blobs import Blobs
from workloads.llama.config import is_llama, load_config
from workloads.lm.manifest import WEIGHTS_FILE
from workloads.lm.tokenizer import TextTokenizer
from workloads.training.input import (
    SEGMENT_WORK_MAX,
    Adapters,
    ClassifierShape,
    LlamaShape,
    Nesterov,
    Rounds,
    TrainingInput,
)

__all__ = ["pack_text_file", "training_input"]

INLINE_BYTES_MAX = 22 * 1024
"""Data that travel with a job: with them, its fraud proofs are still gossip (`FRAUD_INPUT_BYTES_MAX`)."""

TEXT_BYTES_MAX = 1 << 28
_NANO = 1_000_000_000


def training_input(task: TrainingTask, models: Mapping[str, ModelPlace], blobs: Blobs) -> TrainingInput:
    """What a task asks for.

    Args:
        task: of a valid job file.
        models: local models by name.
        blobs: where a text is, and where data and a base are left that are too large to be carried along.

    Raises:
        UserError: the base isn't known here, or data are missing, or there are too many.
    """
    if sum(map(bool, (task.text, task.text_blob, task.data))) != 1:
        raise UserError("task: exactly one of text, text_file and data must be given")
    if bool(task.base) + (task.classifier is not None) + (task.llama is not None) != 1:
        raise UserError("task: exactly one of base, llama and classifier must be given")
    if not task.base and (task.scratch or task.lora_rank):
        raise UserError("task: scratch and lora_rank need a base")
    if task.scratch and task.lora_rank:
        raise UserError("task.lora_rank: adapters can't be trained from scratch")
    llama = None if task.llama is None else LlamaShape(**msgspec.structs.asdict(task.llama))
    data, base, adapters = task.data or _text(task, blobs), None, None
    if task.base:
        place = _base_of(task.base, models)
        llama, data = _shape_of(place, task.positions), _tokens(place, data)
        if not task.scratch:
            base = blobs.write((place / WEIGHTS_FILE).read_bytes())
    if task.lora_rank:
        adapters = Adapters(task.lora_rank, task.lora_alpha_milli or 2_000 * task.lora_rank)
    is_named = len(data) > INLINE_BYTES_MAX and bool(task.base or task.text_blob)
    job = TrainingInput(
        classifier=None if task.classifier is None else ClassifierShape(task.classifier.widths),
        llama=llama,
        segments=task.segments,
        segment_steps=task.segment_steps,
        batch=task.batch,
        learning_rate_micro=task.learning_rate_micro,
        beta1_micro=task.beta1_micro,
        beta2_micro=task.beta2_micro,
        weight_decay_micro=task.weight_decay_micro,
        seed=task.seed,
        data=b"" if is_named else data,
        data_blob=blobs.write(data) if is_named else None,
        base=base,
        adapters=adapters,
        start=parse_blob_name(task.start) if task.start else None,
        start_step=task.start_step,
        rounds=_rounds(task),
    )
    is_large = (
        bool(task.base or task.start or job.rounds)
        or job.units_total > UNITS_MAX
        or job.work > SEGMENT_WORK_MAX
    )
    return msgspec.structs.replace(job, is_large=is_large)


def _rounds(task: TrainingTask) -> Rounds | None:
    if task.peers == 1:
        return None
    nesterov = Nesterov(task.outer_rate_micro, task.outer_momentum_micro)
    return Rounds(task.peers, task.rounds, nesterov if task.outer == "nesterov" else None)


def pack_text_file(task: TrainingTask, document: bytes, folder: Path, blobs: Blobs) -> bytes:
    """A job file with the blob that holds its text in place of the text file's name.

    Args:
        task: of the job file.
        document: the job file's content.
        folder: that the file's name is relative to.
        blobs: where the text is left.

    Raises:
        UserError: the file can't be read, is too large, or isn't UTF-8.
    """
    path = folder / task.text_file
    try:
        with path.open("rb") as opened:
            content = opened.read(TEXT_BYTES_MAX + 1)
        content.decode("utf-8")
    except OSError as error:
        raise UserError(f"task.text_file: can't read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"task.text_file: {path} must be UTF-8: {error.reason}") from error
    if not 0 < len(content) <= TEXT_BYTES_MAX:
        raise UserError(f"task.text_file: {path} must have 1 to {TEXT_BYTES_MAX} bytes")
    text = document.decode("utf-8")
    root = parse(document)
    fields = next(value for key, value in root.value if key.value == "task")
    key, value = next(pair for pair in fields.value if pair[0].value == "text_file")
    written = f"text_blob: {json.dumps(blob_name(blobs.write(content)))}"
    return (text[: key.start_mark.index] + written + text[value.end_mark.index :]).encode()


def _text(task: TrainingTask, blobs: Blobs) -> bytes:
    if task.text_file:
        raise UserError("task.text_file: is read where the job file is: here its text is needed")
    return blobs.read(parse_blob_name(task.text_blob)) if task.text_blob else task.text.encode()


def _base_of(name: str, models: Mapping[str, ModelPlace]) -> Path:
    place = models.get(name)
    if place is None or not is_llama(place.path):
        known = sorted(other for other, found in models.items() if is_llama(found.path))
        raise UserError(f"task.base: {name!r} isn't a decoder known here; known: {', '.join(known)}")
    return place.path


def _shape_of(model_dir: Path, positions: int) -> LlamaShape:
    config = load_config(model_dir)
    if positions > config.max_position_embeddings:
        raise UserError(f"task.positions: must be at most {config.max_position_embeddings}, got {positions}")
    return LlamaShape(
        vocabulary=config.vocab_size,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        key_value_heads=config.num_key_value_heads,
        head_width=config.head_dim,
        positions=positions,
        tied=config.tie_word_embeddings,
        norm_epsilon_nano=round(config.rms_norm_eps * _NANO),
        theta=round(config.rope_theta),
    )


def _tokens(model_dir: Path, text: bytes) -> bytes:
    try:
        tokens = TextTokenizer(model_dir).encode(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"task.data: a base's data must be text, as UTF-8: {error.reason}") from error
    return np.array(tokens, dtype="<u2" if load_config(model_dir).vocab_size > 1 << 8 else np.uint8).tobytes()
