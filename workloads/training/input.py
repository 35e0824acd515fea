"""What a job of the workload ``training.run`` asks for; readable without torch.

Rates are integers in millionths: a job carries no floats. The data travel inline, a byte for each token or
feature, so a run is known from its input alone.
"""

from __future__ import annotations

from protocols.codec import Wire, decode, encode
from protocols.errors import PeerFault
from protocols.limits import INPUT_BYTES_MAX, UNITS_MAX
from workloads.errors import InputRefused

__all__ = ["CHUNK_UNITS", "ClassifierShape", "LlamaShape", "TrainingInput", "decode_input", "encode_input"]

CHUNK_UNITS = 2_048
"""Words of one chunk. The state after a segment of optimiser steps takes one or more whole chunks."""

WORDS_PER_PARAMETER = 3
"""The parameter and the optimiser's two moments, float32."""

SEGMENT_WORK_MAX = 2**33
"""Multiply-adds of one segment, roughly: it is the least that a verifier can redo."""

_BATCH_MAX = 256
_STEPS_MAX = 64
_SEED_MAX = 2**64 - 1
_BYTE_VALUES = 256
_MICRO = 1_000_000


class ClassifierShape(Wire, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A multilayer perceptron with ReLUs.

    Args:
        widths: features, hidden layers and classes.
    """

    widths: tuple[int, ...]

    @property
    def record_bytes(self) -> int:
        """Bytes of one example: its features, then its class."""
        return self.widths[0] + 1

    @property
    def rows(self) -> int:
        """Rows that one example makes."""
        return 1

    @property
    def parameters(self) -> int:
        """Numbers to train."""
        pairs = zip(self.widths, self.widths[1:], strict=False)
        return sum((inputs + 1) * outputs for inputs, outputs in pairs)

    @property
    def mixing(self) -> int:
        """Multiply-adds between rows, for each row."""
        return 0

    def check(self) -> None:
        """Hold every field against its rule.

        Raises:
            InputRefused: the first that breaks it.
        """
        if not 2 <= len(self.widths) <= 8:
            raise InputRefused(f"widths of {len(self.widths)} layers must be 2 to 8")
        for width in self.widths:
            _within("widths", width, 1, UNITS_MAX)
        _within("classes", self.widths[-1], 2, _BYTE_VALUES)


class LlamaShape(Wire, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A Llama-family decoder over bytes.

    Args:
        vocabulary: token ids lie below it, 256 at most.
        hidden: width of the stream.
        inner: width of the SwiGLU blocks.
        layers: of the decoder.
        heads: of queries, a multiple of ``key_value_heads``.
        key_value_heads: of keys and values.
        head_width: even.
        positions: tokens of one example that are predicted from.
        tied: the output matrix is the embedding.
    """

    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    key_value_heads: int
    head_width: int
    positions: int
    tied: bool = True

    @property
    def record_bytes(self) -> int:
        """Bytes of one example: its tokens and the one after them."""
        return self.positions + 1

    @property
    def rows(self) -> int:
        """Rows that one example makes."""
        return self.positions

    @property
    def parameters(self) -> int:
        """Numbers to train."""
        attention = 2 * self.hidden * self.head_width * (self.heads + self.key_value_heads)
        layer = attention + 3 * self.hidden * self.inner + 2 * self.hidden
        tables = 1 if self.tied else 2
        return tables * self.vocabulary * self.hidden + self.layers * layer + self.hidden

    @property
    def mixing(self) -> int:
        """Multiply-adds between rows, for each row: scores, their softmax and their mix."""
        return self.layers * self.heads * self.positions * (2 * self.head_width + 32)

    def check(self) -> None:
        """Hold every field against its rule.

        Raises:
            InputRefused: the first that breaks it.
        """
        _within("vocabulary", self.vocabulary, 2, _BYTE_VALUES)
        for name in ("hidden", "inner", "layers", "heads", "key_value_heads", "head_width"):
            _within(name, getattr(self, name), 1, 1_024)
        _within("positions", self.positions, 1, 1_024)
        if self.heads % self.key_value_heads:
            raise InputRefused(f"heads={self.heads} must be a multiple of {self.key_value_heads}")
        if self.head_width % 2:
            raise InputRefused(f"head_width={self.head_width} must be even")


class TrainingInput(Wire, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A run of AdamW from a seeded initial state.

    Args:
        classifier: what is trained, or None.
        llama: what is trained, or None; exactly one of both is given.
        segments: of the run; the state after each is output.
        segment_steps: optimiser steps of a segment.
        batch: examples of a step.
        learning_rate_micro: in millionths, and so are the next three.
        beta1_micro: decay of the mean of gradients.
        beta2_micro: decay of the mean of their squares.
        weight_decay_micro: times the learning rate.
        seed: fixes the initial state and the order of the data.
        data: examples of a classifier one after the other, or a decoder's text of which any stretch is one.
    """

    classifier: ClassifierShape | None
    llama: LlamaShape | None
    segments: int
    segment_steps: int
    batch: int
    learning_rate_micro: int
    beta1_micro: int
    beta2_micro: int
    weight_decay_micro: int
    seed: int
    data: bytes

    @property
    def shape(self) -> ClassifierShape | LlamaShape:
        """What is trained."""
        found = self.classifier or self.llama
        if found is None or (self.classifier and self.llama):
            raise InputRefused("exactly one of classifier and llama must be given")
        return found

    @property
    def segment_chunks(self) -> int:
        """Chunks that the state after a segment takes; the last is filled up with zeros."""
        return -(-WORDS_PER_PARAMETER * self.shape.parameters // CHUNK_UNITS)

    @property
    def units_total(self) -> int:
        """Output units."""
        return self.segments * self.segment_chunks * CHUNK_UNITS

    @property
    def examples(self) -> int:
        """Examples that the data hold."""
        if self.llama is not None:
            return len(self.data) - self.llama.positions
        return len(self.data) // self.shape.record_bytes

    def check(self) -> None:
        """Hold every field against its rule.

        Raises:
            InputRefused: the first that breaks it.
        """
        self.shape.check()
        _within("segments", self.segments, 1, UNITS_MAX)
        _within("segment_steps", self.segment_steps, 1, _STEPS_MAX)
        _within("batch", self.batch, 1, _BATCH_MAX)
        _within("learning_rate_micro", self.learning_rate_micro, 0, _MICRO)
        _within("beta1_micro", self.beta1_micro, 0, _MICRO - 1)
        _within("beta2_micro", self.beta2_micro, 0, _MICRO - 1)
        _within("weight_decay_micro", self.weight_decay_micro, 0, _MICRO)
        _within("seed", self.seed, 0, _SEED_MAX)
        if self.units_total > UNITS_MAX:
            raise InputRefused(
                f"{self.segments} segments of {self.segment_chunks} x {CHUNK_UNITS} words "
                f"must be at most {UNITS_MAX} words"
            )
        # Forward and backward contract every parameter with every row three times.
        row_work = 3 * (self.shape.parameters + self.shape.mixing)
        work = row_work * self.batch * self.shape.rows * self.segment_steps
        if work > SEGMENT_WORK_MAX:
            raise InputRefused(f"a segment is {work} multiply-adds, more than {SEGMENT_WORK_MAX}")
        self._check_data()

    def _check_data(self) -> None:
        if self.examples < 1:
            raise InputRefused(f"data of {len(self.data)} bytes hold no example")
        if self.llama is not None and max(self.data) >= self.llama.vocabulary:
            raise InputRefused(f"data hold token {max(self.data)}, must be below {self.llama.vocabulary}")
        if self.classifier is None:
            return
        size, classes = self.classifier.record_bytes, self.classifier.widths[-1]
        if len(self.data) % size:
            raise InputRefused(f"data of {len(self.data)} bytes must be whole examples of {size}")
        largest = max(self.data[size - 1 :: size])
        if largest >= classes:
            raise InputRefused(f"data hold class {largest}, must be below {classes}")


def encode_input(value: TrainingInput) -> bytes:
    """The canonical bytes of an input, as a job carries it.

    Raises:
        InputRefused: the input breaks a rule.
    """
    value.check()
    data = encode(value)
    if len(data) > INPUT_BYTES_MAX:
        raise InputRefused(f"input of {len(data)} bytes exceeds {INPUT_BYTES_MAX}")
    return data


def decode_input(data: bytes) -> TrainingInput:
    """Read the bytes of `encode_input`.

    Raises:
        InputRefused: the bytes are not a canonical input that keeps the rules.
    """
    try:
        value = decode(data, TrainingInput, bytes_max=INPUT_BYTES_MAX)
    except PeerFault as error:
        raise InputRefused(str(error)) from error
    value.check()
    return value


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InputRefused(f"{name}={value} must be in [{low}, {high}]")
