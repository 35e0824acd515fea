"""A segment of a training run as a program, and everything it starts from.

The order of the data and the initial state are functions of the seed and a counter, so any segment can be had
alone: from the state before it, or from the seed if it is the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workloads.blobs import NO_BLOBS, Blobs
from workloads.errors import InputRefused, NumericsRefused
from workloads.llama.config import LlamaConfig
from workloads.philox import philox, uniforms
from workloads.program import JOB, Builder, Value, ValueSpec, spec_of
from workloads.training.classifier import classifier_loss, classifier_shapes
from workloads.training.input import CHUNK_UNITS, TrainingInput, state_blob
from workloads.training.llama import adapter_shapes, llama_loss, llama_shapes
from workloads.training.outer import Merged, merge
from workloads.training.states import read_base, read_state, write_state
from workloads.training.step import Moments, Optimiser, State, training_step

__all__ = ["Material", "Segment", "first_state", "material_of", "segment_inputs", "write_segment"]

_MICRO = 1_000_000
_MILLI = 1_000
_NANO = 1_000_000_000
_EPSILON = 1e-8
_EMBEDDING_WIDTH = 0.05
# The third word of a counter tells apart what random numbers are for.
_DATA, _INITIAL = 0, 1


class Material(NamedTuple):
    """A run with what its input names.

    Args:
        job: the run.
        numbers: the data, uint8 or uint16.
        base: frozen or first parameters by name, float32; empty if there is no base.
        blobs: where states are.
    """

    job: TrainingInput
    numbers: NDArray[np.uint8] | NDArray[np.uint16]
    base: Mapping[str, Tensor]
    blobs: Blobs

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What is trained, sorted by name."""
        if self.job.adapters is not None:
            return adapter_shapes(_config(self.job), self.job.adapters.rank)
        return _model_shapes(self.job)

    @property
    def frozen(self) -> Mapping[str, Tensor]:
        """What isn't trained."""
        return self.base if self.job.adapters is not None else {}


def material_of(job: TrainingInput, blobs: Blobs = NO_BLOBS) -> Material:
    """Read what a run's input names.

    Raises:
        InputRefused: a blob isn't here, or isn't what it must be.
    """
    data = job.data if job.data_blob is None else blobs.read(job.data_blob)
    numbers = np.frombuffer(data, dtype=np.uint8 if job.shape.token_bytes == 1 else "<u2")
    if job.llama is not None and int(numbers.max()) >= job.llama.vocabulary:
        raise InputRefused(f"data hold token {numbers.max()}, must be below {job.llama.vocabulary}")
    if job.llama is None and job.data_blob is not None:
        job.check_numbers(data)
    base = read_base(blobs.read(job.base), _model_shapes(job)) if job.base in job.blobs else {}
    return Material(job, numbers, base, blobs)


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment's program, still open at its end.

    Args:
        builder: holds it.
        state: parameter, mean and variance of each name after the segment.
        words: these as float32 (chunks * `CHUNK_UNITS`,), filled up with zeros; None where they are a blob.
        losses: float64 (steps,), the loss before each step.
        gradients: the digest of the last step's gradients.
    """

    builder: Builder
    state: tuple[Value, ...]
    words: Value | None
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


def write_segment(material: Material, segment: int, profile: str) -> Segment:
    """The program of a segment.

    Args:
        material: of the run.
        segment: its number.
        profile: an exact one.
    """
    job = material.job
    optimiser = _optimiser_of(job)
    builder = Builder()
    state: State = {
        name: Moments(
            *(builder.input(f"{kind} {name}", ValueSpec("float32", shape), JOB) for kind in Moments._fields)
        )
        for name, shape in material.shapes.items()
    }
    frozen = {
        name: builder.input(f"base {name}", spec_of(tensor), JOB) for name, tensor in material.frozen.items()
    }
    specs = [spec_of(tensor) for tensor in _batch(material, 0)]
    batches = [
        [builder.input(f"{name} {step}", spec, JOB) for name, spec in zip(("x", "y"), specs, strict=True)]
        for step in range(job.segment_steps)
    ]
    losses: list[Value] = []
    slopes: list[Value] = []
    for step, (x, y) in enumerate(batches):

        def loss(builder: Builder, parameters: Mapping[str, Value], x: Value = x, y: Value = y) -> Value:
            return _loss(builder, job, {**frozen, **parameters}, x, y, profile)

        number = job.steps_before + segment * job.segment_steps + step + 1
        state, total, slopes = training_step(builder, state, loss, optimiser, number)
        losses.append(builder.apply("reshape", total, shape=[1]))
    values = tuple(value for moments in state.values() for value in moments)
    return Segment(
        builder,
        values,
        None if job.is_large else _flat(builder, values, job.segment_chunks * CHUNK_UNITS),
        builder.apply("concat", *losses, dim=0),
        builder.apply("digest", *slopes, header=b"gradients"),
    )


def segment_inputs(
    material: Material, before: Sequence[int], segment: int, start: bytes = b""
) -> list[Tensor]:
    """The values of a segment's inputs.

    Args:
        material: of the run.
        before: the output words before the segment, at least.
        segment: its number.
        start: the state before the first one, where it has been put together already.

    Raises:
        InputRefused: there are fewer words, or the state isn't here.
        NumericsRefused: the words name a blob that is no state.
    """
    job = material.job
    first = segment * job.segment_steps
    values = [*_state_before(material, before, segment, start), *material.frozen.values()]
    for step in range(first, first + job.segment_steps):
        values += _batch(material, job.steps_before + step)
    return values


def first_state(material: Material) -> Merged:
    """What a turn starts from, as files.

    Raises:
        InputRefused: a state isn't here, or isn't one.
        NumericsRefused: a number leaves float32.
    """
    job = material.job
    if job.rounds is None or job.turn is None or job.turn.round == 0:
        values = _state_before(material, (), 0, b"")
        return Merged(write_state(values, material.shapes, job.steps_before), b"", b"")
    return merge(
        job.turn,
        job.rounds,
        material.shapes,
        steps=job.steps_before,
        round_steps=job.segments * job.segment_steps,
        blobs=material.blobs,
    )


def _state_before(material: Material, before: Sequence[int], segment: int, start: bytes) -> list[Tensor]:
    job = material.job
    steps = job.steps_before + segment * job.segment_steps
    if segment == 0 and start:
        return read_state(start, material.shapes, steps)
    if segment == 0 and job.start is not None:
        try:
            return read_state(material.blobs.read(job.start), material.shapes, steps)
        except NumericsRefused as error:
            raise InputRefused(f"start: {error}") from error
    if segment == 0:
        return _initial_state(material)
    size = job.segment_chunks * CHUNK_UNITS
    words = np.array(before[(segment - 1) * size : segment * size], dtype=np.uint32)
    if len(words) != size:
        raise InputRefused(f"{len(words)} words before segment {segment} must be {size}")
    if job.is_large:
        return read_state(material.blobs.read(state_blob(before, segment - 1)), material.shapes, steps)
    return _state_of(material.shapes, words)


def _flat(builder: Builder, values: Sequence[Value], size: int) -> Value:
    """All of a state in one row, filled up with zeros."""
    parts = [builder.apply("reshape", value, shape=[builder.specs[value].elements]) for value in values]
    whole = builder.apply("concat", *parts, dim=0)
    missing = size - builder.specs[whole].elements
    return builder.apply("pad", whole, before=[0], after=[missing], value=0.0)


def _model_shapes(job: TrainingInput) -> dict[str, tuple[int, ...]]:
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
        rms_norm_eps=shape.norm_epsilon_nano / _NANO,
        rope_theta=float(shape.theta),
        tie_word_embeddings=shape.tied,
    )


def _loss(  # noqa: PLR0917
    builder: Builder, job: TrainingInput, parameters: Mapping[str, Value], x: Value, y: Value, profile: str
) -> Value:
    if job.classifier is not None:
        return classifier_loss(builder, job.classifier.widths, parameters, x, y, precision=profile)
    scale = 0.0 if job.adapters is None else job.adapters.alpha_milli / (_MILLI * job.adapters.rank)
    return llama_loss(builder, _config(job), parameters, x, y, precision=profile, adapter_scale=scale)


def _state_of(shapes: Mapping[str, tuple[int, ...]], words: NDArray[np.uint32]) -> list[Tensor]:
    """Parameter, mean and variance of each name, out of the words of `_flat`."""
    values, start = [], 0
    flat = torch.from_numpy(words.view(np.float32))
    for shape in shapes.values():
        for _ in Moments._fields:
            stop = start + math.prod(shape)
            values.append(flat[start:stop].reshape(shape).clone())
            start = stop
    return values


def _initial_state(material: Material) -> list[Tensor]:
    """The base; else uniform weights of variance 1 / inputs, a narrower embedding, gains of one, zero biases.

    An adapter's second matrix is zero, so that training begins at the base itself.
    """
    values = []
    for place, (name, shape) in enumerate(material.shapes.items()):
        if name in material.base:
            parameter = material.base[name]
        elif len(shape) == 1:
            parameter = torch.full(shape, 0.0 if name.endswith("bias") else 1.0)
        elif "lora_B" in name:
            parameter = torch.zeros(shape)
        else:
            width = _EMBEDDING_WIDTH if "embed" in name else 1.0 / math.sqrt(shape[1])
            words = _words(material.job.seed, math.prod(shape), place, _INITIAL)
            spread = (uniforms(words) * 2.0 - 1.0) * (width * math.sqrt(3.0))
            parameter = torch.from_numpy(spread.astype(np.float32)).reshape(shape)
        values += [parameter, torch.zeros(shape), torch.zeros(shape)]
    return values


def _batch(material: Material, step: int) -> list[Tensor]:
    """The examples of a step, drawn with replacement: inputs, and what to predict."""
    job, data = material.job, material.numbers
    draws = _words(job.seed, job.batch, step, _DATA, peer=0 if job.turn is None else job.turn.peer)
    picked = ((draws * np.uint64(job.examples)) >> np.uint64(32)).astype(np.int64)
    if job.classifier is not None:
        records = data.reshape(-1, job.classifier.record_bytes)[picked]
        # Times a power of two: exact.
        features = records[:, :-1].astype(np.float64) * 2.0**-8
        return [torch.from_numpy(features), torch.from_numpy(records[:, -1].astype(np.int64))]
    windows = data[picked[:, None] + np.arange(job.shape.rows + 1)].astype(np.int64)
    return [
        torch.from_numpy(windows[:, :-1].copy()),
        torch.from_numpy(windows[:, 1:].reshape(-1).copy()),
    ]


def _words(seed: int, count: int, place: int, purpose: int, *, peer: int = 0) -> NDArray[np.uint64]:
    """``count`` words below 2**32 that only these numbers decide."""
    counters = np.zeros((-(-count // 4), 4), dtype=np.uint64)
    counters[:, 0] = np.arange(len(counters))
    counters[:, 1] = place
    counters[:, 2] = purpose
    counters[:, 3] = peer
    return philox(seed, counters).reshape(-1)[:count]
