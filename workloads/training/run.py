"""A segment of a training run as a program, and everything it starts from.

The order of the data and the initial state are functions of the seed and a counter, so any segment can be had
alone: from the words of the state before it, or from the seed if it is the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workloads.errors import InputRefused
from workloads.llama.config import LlamaConfig
from workloads.philox import philox, uniforms
from workloads.program import JOB, Builder, Value, ValueSpec, spec_of
from workloads.training.classifier import classifier_loss, classifier_shapes
from workloads.training.input import CHUNK_UNITS, TrainingInput
from workloads.training.llama import llama_loss, llama_shapes
from workloads.training.step import Moments, Optimiser, State, training_step

__all__ = ["Segment", "segment_inputs", "write_segment"]

_MICRO = 1_000_000
_EPSILON = 1e-8
_NORM_EPSILON = 1e-5
_THETA = 10_000.0
_EMBEDDING_WIDTH = 0.05
# The last word of a counter tells apart what random numbers are for.
_DATA, _INITIAL = 0, 1


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment's program, still open at its end.

    Args:
        builder: holds it.
        words: the state after the segment as float32 (chunks * `CHUNK_UNITS`,), filled up with zeros.
        losses: float64 (steps,), the loss before each step.
        gradients: the digest of the last step's gradients.
    """

    builder: Builder
    words: Value
    losses: Value
    gradients: Value


def _optimiser_of(job: TrainingInput) -> Optimiser:
    """The settings that a job asks for."""
    return Optimiser(
        learning_rate=job.learning_rate_micro / _MICRO,
        beta1=job.beta1_micro / _MICRO,
        beta2=job.beta2_micro / _MICRO,
        epsilon=_EPSILON,
        weight_decay=job.weight_decay_micro / _MICRO,
    )


def write_segment(job: TrainingInput, segment: int, profile: str) -> Segment:
    """The program of a segment.

    Args:
        job: the run.
        segment: its number.
        profile: an exact one.
    """
    optimiser = _optimiser_of(job)
    builder = Builder()
    state: State = {
        name: Moments(
            *(builder.input(f"{kind} {name}", ValueSpec("float32", shape), JOB) for kind in Moments._fields)
        )
        for name, shape in _shapes(job).items()
    }
    specs = [spec_of(tensor) for tensor in _batch(job, 0)]
    batches = [
        [builder.input(f"{name} {step}", spec, JOB) for name, spec in zip(("x", "y"), specs, strict=True)]
        for step in range(job.segment_steps)
    ]
    losses: list[Value] = []
    slopes: list[Value] = []
    for step, (x, y) in enumerate(batches):

        def loss(builder: Builder, parameters: Mapping[str, Value], x: Value = x, y: Value = y) -> Value:
            return _loss(builder, job, parameters, x, y, profile)

        number = segment * job.segment_steps + step + 1
        state, total, slopes = training_step(builder, state, loss, optimiser, number)
        losses.append(builder.apply("reshape", total, shape=[1]))
    return Segment(
        builder,
        _flat(builder, state, job.segment_chunks * CHUNK_UNITS),
        builder.apply("concat", *losses, dim=0),
        builder.apply("digest", *slopes, header=b"gradients"),
    )


def segment_inputs(job: TrainingInput, before: Sequence[int], segment: int) -> list[Tensor]:
    """The values of a segment's inputs.

    Args:
        job: the run.
        before: the output words before the segment, at least.
        segment: its number.

    Raises:
        InputRefused: there are fewer words.
    """
    size = job.segment_chunks * CHUNK_UNITS
    if segment == 0:
        values = _initial_state(job)
    else:
        words = np.array(before[(segment - 1) * size : segment * size], dtype=np.uint32)
        if len(words) != size:
            raise InputRefused(f"{len(words)} words before segment {segment} must be {size}")
        values = _state_of(job, words)
    first = segment * job.segment_steps
    for step in range(first, first + job.segment_steps):
        values += _batch(job, step)
    return values


def _shapes(job: TrainingInput) -> dict[str, tuple[int, ...]]:
    if job.classifier is not None:
        return classifier_shapes(job.classifier.widths)
    return llama_shapes(_config(job))


def _config(job: TrainingInput) -> LlamaConfig:
    shape = job.llama
    assert shape is not None  # noqa: S101
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_width,
        max_position_embeddings=shape.positions,
        rms_norm_eps=_NORM_EPSILON,
        rope_theta=_THETA,
        tie_word_embeddings=shape.tied,
    )


def _loss(  # noqa: PLR0917
    builder: Builder, job: TrainingInput, parameters: Mapping[str, Value], x: Value, y: Value, profile: str
) -> Value:
    if job.classifier is not None:
        return classifier_loss(builder, job.classifier.widths, parameters, x, y, precision=profile)
    return llama_loss(builder, _config(job), parameters, x, y, precision=profile)


def _flat(builder: Builder, state: State, size: int) -> Value:
    """All of a state in one row, filled up with zeros."""
    parts = [
        builder.apply("reshape", value, shape=[builder.specs[value].elements])
        for moments in state.values()
        for value in moments
    ]
    whole = builder.apply("concat", *parts, dim=0)
    missing = size - builder.specs[whole].elements
    return builder.apply("pad", whole, before=[0], after=[missing], value=0.0)


def _state_of(job: TrainingInput, words: NDArray[np.uint32]) -> list[Tensor]:
    """Parameter, mean and variance of each name, out of the words of `_flat`."""
    values, start = [], 0
    flat = torch.from_numpy(words.view(np.float32))
    for shape in _shapes(job).values():
        for _ in Moments._fields:
            stop = start + math.prod(shape)
            values.append(flat[start:stop].reshape(shape).clone())
            start = stop
    return values


def _initial_state(job: TrainingInput) -> list[Tensor]:
    """Uniform weights of variance 1 / inputs, a narrower embedding, gains of one and zero biases."""
    values = []
    for place, (name, shape) in enumerate(_shapes(job).items()):
        if len(shape) == 1:
            parameter = torch.full(shape, 0.0 if name.endswith("bias") else 1.0)
        else:
            width = _EMBEDDING_WIDTH if "embed" in name else 1.0 / math.sqrt(shape[1])
            words = _words(job.seed, math.prod(shape), place, _INITIAL)
            spread = (uniforms(words) * 2.0 - 1.0) * (width * math.sqrt(3.0))
            parameter = torch.from_numpy(spread.astype(np.float32)).reshape(shape)
        values += [parameter, torch.zeros(shape), torch.zeros(shape)]
    return values


def _batch(job: TrainingInput, step: int) -> list[Tensor]:
    """The examples of a step, drawn with replacement: inputs, and what to predict."""
    draws = _words(job.seed, job.batch, step, _DATA)
    picked = ((draws * np.uint64(job.examples)) >> np.uint64(32)).astype(np.int64)
    data = np.frombuffer(job.data, dtype=np.uint8)
    if job.classifier is not None:
        records = data.reshape(-1, job.classifier.record_bytes)[picked]
        # Times a power of two: exact.
        features = records[:, :-1].astype(np.float64) * 2.0**-8
        return [torch.from_numpy(features), torch.from_numpy(records[:, -1].astype(np.int64))]
    windows = data[picked[:, None] + np.arange(job.shape.record_bytes)].astype(np.int64)
    return [
        torch.from_numpy(windows[:, :-1].copy()),
        torch.from_numpy(windows[:, 1:].reshape(-1).copy()),
    ]


def _words(seed: int, count: int, place: int, purpose: int) -> NDArray[np.uint64]:
    """``count`` words below 2**32 that only these numbers decide."""
    counters = np.zeros((-(-count // 4), 4), dtype=np.uint64)
    counters[:, 0] = np.arange(len(counters))
    counters[:, 1] = place
    counters[:, 2] = purpose
    return philox(seed, counters).reshape(-1)[:count]
