"""What a job of the workload ``training.run`` asks for; readable without torch.

Rates are integers in millionths: a job carries no floats. Data travel inline or as a blob, a byte for each
feature and one or two for each token, so a run is known from its input and the model that it starts from.

The state after a segment is words of the output where it is small. Where it isn't, it is a blob, and the
segment's output is one chunk: the blob's name and the loss before each step. The first segment of a turn
(`workloads.training.rounds`) also names the state that it started from, and the momentum, if there is one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from protocols.blobs import Blob, check_blob
from protocols.codec import Wire, decode, encode
from protocols.errors import PeerFault
from protocols.limits import INPUT_BYTES_MAX, UNITS_MAX, WHOLE_UNITS_MAX
from workloads.blobs import BLOB_WORDS, blob_from_words
from workloads.errors import InputRefused
from workloads.training.rounds import Nesterov, Rounds, Turn
from workloads.training.shapes import Adapters, ClassifierShape, LlamaShape, within

__all__ = [
    "CHUNK_UNITS",
    "Adapters",
    "ClassifierShape",
    "LlamaShape",
    "Nesterov",
    "Rounds",
    "TrainingInput",
    "Turn",
    "decode_input",
    "encode_input",
    "losses",
    "momentum_blob",
    "start_blob",
    "state_blob",
]

CHUNK_UNITS = 2_048
"""Words of one chunk. The state after a segment of optimiser steps takes one or more whole chunks."""

WORDS_PER_PARAMETER = 3
"""The parameter and the optimiser's two moments, float32."""

SEGMENT_WORK_MAX = 2**33
"""Multiply-adds of one segment, roughly: it is the least that a verifier can redo."""

LARGE_SEGMENT_WORK_MAX = 2**39
"""The same where the state is a blob: half a minute of a core."""

STATE_BYTES_MAX = 2**31
DATA_BYTES_MAX = 2**30

_BATCH_MAX = 256
_STEPS_MAX = 64
_SEED_MAX = 2**64 - 1
_MICRO = 1_000_000


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
        data: examples of a classifier one after the other, or a decoder's text of which any stretch is one;
            empty if they are a blob.
        data_blob: the data where they are too large to be carried along.
        is_large: states are blobs.
        base: a safetensors file of the decoder to start from, or None; only where states are blobs.
        adapters: what is trained in place of the base's own parameters, or None.
        start: a state to start from, or None; only where states are blobs.
        start_step: steps that led to it.
        rounds: how several peers share the run, or None.
        turn: whose turn this is of a run that is shared; None for all of it, which nobody does alone.
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
    data_blob: Blob | None = None
    is_large: bool = False
    base: Blob | None = None
    adapters: Adapters | None = None
    start: Blob | None = None
    start_step: int = 0
    rounds: Rounds | None = None
    turn: Turn | None = None

    @property
    def shape(self) -> ClassifierShape | LlamaShape:
        """What is trained."""
        found = self.classifier or self.llama
        if found is None or (self.classifier and self.llama):
            raise InputRefused("exactly one of classifier and llama must be given")
        return found

    @property
    def parameters(self) -> int:
        """Numbers to train."""
        if self.adapters is not None and self.llama is not None:
            return self.adapters.parameters(self.llama)
        return self.shape.parameters

    @property
    def segment_chunks(self) -> int:
        """Chunks of a segment; the last is filled up with zeros."""
        return 1 if self.is_large else -(-WORDS_PER_PARAMETER * self.parameters // CHUNK_UNITS)

    @property
    def work(self) -> int:
        """Multiply-adds of a segment, roughly."""
        # Forward and backward contract every parameter with every row three times.
        row_work = 3 * (self.shape.parameters + self.shape.mixing)
        return row_work * self.batch * self.shape.rows * self.segment_steps

    @property
    def data_bytes(self) -> int:
        """How large the data are."""
        return len(self.data) if self.data_blob is None else self.data_blob.size_bytes

    @property
    def is_ending(self) -> bool:
        """Whether nothing is trained any more: the turn after the last round."""
        return self.rounds is not None and self.turn is not None and self.turn.round == self.rounds.rounds

    @property
    def steps_before(self) -> int:
        """Optimiser steps that led to the first state."""
        before = 0 if self.turn is None else self.turn.round * self.segments * self.segment_steps
        return self.start_step + before

    @property
    def units_total(self) -> int:
        """Output units."""
        if self.is_ending:
            return CHUNK_UNITS
        units = self.segments * self.segment_chunks * CHUNK_UNITS
        if self.rounds is None or self.turn is not None:
            return units
        return self.rounds.peers * self.rounds.rounds * units + CHUNK_UNITS

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """What whoever does it needs."""
        is_first = self.turn is None or self.turn.round == 0
        # Adapters lie beside their base throughout; else it is where the first round starts.
        base = self.base if is_first or self.adapters is not None else None
        start = self.start if is_first else None
        named = (self.data_blob, base, start, *(() if self.turn is None else self.turn.blobs))
        return tuple(blob for blob in named if blob is not None)

    @property
    def examples(self) -> int:
        """Examples that the data hold."""
        if self.llama is not None:
            return self.data_bytes // self.llama.token_bytes - self.llama.positions
        return self.data_bytes // self.shape.record_bytes

    def check(self, *, is_whole: bool = False) -> None:
        """Hold every field against its rule.

        Args:
            is_whole: turns are yet to be made of it.

        Raises:
            InputRefused: the first that breaks it.
        """
        self.shape.check()
        within("segments", self.segments, 1, UNITS_MAX)
        within("segment_steps", self.segment_steps, 1, _STEPS_MAX)
        within("batch", self.batch, 1, _BATCH_MAX)
        within("learning_rate_micro", self.learning_rate_micro, 0, _MICRO)
        within("beta1_micro", self.beta1_micro, 0, _MICRO - 1)
        within("beta2_micro", self.beta2_micro, 0, _MICRO - 1)
        within("weight_decay_micro", self.weight_decay_micro, 0, _MICRO)
        within("seed", self.seed, 0, _SEED_MAX)
        self._check_rounds(is_whole=is_whole)
        units_max = WHOLE_UNITS_MAX if is_whole and self.rounds is not None else UNITS_MAX
        if self.units_total > units_max:
            raise InputRefused(
                f"{self.segments} segments of {self.segment_chunks} x {CHUNK_UNITS} words "
                f"must be at most {units_max} words"
            )
        work = self.work
        most = LARGE_SEGMENT_WORK_MAX if self.is_large else SEGMENT_WORK_MAX
        if work > most:
            raise InputRefused(f"a segment is {work} multiply-adds, more than {most}")
        self._check_start()
        self._check_data()

    def _check_rounds(self, *, is_whole: bool) -> None:
        if self.rounds is None:
            if self.turn is not None:
                raise InputRefused("a turn is one of rounds")
            return
        self.rounds.check()
        if not self.is_large:
            raise InputRefused("a run that several peers share keeps its states in blobs")
        if self.segments * CHUNK_UNITS > UNITS_MAX:
            most = UNITS_MAX // CHUNK_UNITS
            raise InputRefused(f"{self.segments} segments of a turn must be at most {most}")
        if self.turn is not None:
            self.turn.check(self.rounds)
        elif not is_whole:
            raise InputRefused("a run that several peers share is done turn by turn")

    def _check_start(self) -> None:
        if 4 * WORDS_PER_PARAMETER * self.parameters > STATE_BYTES_MAX:
            raise InputRefused(
                f"{self.parameters} parameters take more than {STATE_BYTES_MAX} bytes of state"
            )
        if self.base is not None and self.llama is None:
            raise InputRefused("only a decoder can start from a base")
        if self.adapters is not None:
            self.adapters.check()
            if self.base is None:
                raise InputRefused("adapters need a base")
        if not self.is_large and (self.base or self.start):
            raise InputRefused("a run that starts from a base or a state keeps its states in blobs")
        within("start_step", self.start_step, 0, 2**40)
        if (self.start is None) != (self.start_step == 0):
            raise InputRefused("start and start_step go together")
        for blob, most in (
            (self.start, 2 * STATE_BYTES_MAX),
            (self.base, STATE_BYTES_MAX),
            (self.data_blob, DATA_BYTES_MAX),
            *((blob, 2 * STATE_BYTES_MAX) for blob in (() if self.turn is None else self.turn.blobs)),
        ):
            if blob is None:
                continue
            try:
                check_blob(blob)
            except PeerFault as error:
                raise InputRefused(str(error)) from error
            if blob.size_bytes > most:
                raise InputRefused(f"blob of {blob.size_bytes} bytes must have at most {most}")

    def _check_data(self) -> None:
        if bool(self.data) == (self.data_blob is not None):
            raise InputRefused("data must be given either with the input or as a blob")
        if self.examples < 1:
            raise InputRefused(f"data of {self.data_bytes} bytes hold no example")
        width = self.shape.token_bytes if self.llama is not None else self.shape.record_bytes
        if self.data_bytes % width:
            what = "examples" if self.llama is None else "tokens"
            raise InputRefused(f"data of {self.data_bytes} bytes must be whole {what} of {width}")
        if self.data_blob is None:
            self.check_numbers(self.data)

    def check_numbers(self, data: bytes) -> None:
        """Hold what the data say against the shape.

        Raises:
            InputRefused: a token or a class lies outside.
        """
        if self.llama is not None:
            tokens = data if self.llama.token_bytes == 1 else memoryview(data).cast("H")
            if max(tokens) >= self.llama.vocabulary:
                raise InputRefused(f"data hold token {max(tokens)}, must be below {self.llama.vocabulary}")
            return
        classes = self.shape.widths[-1] if isinstance(self.shape, ClassifierShape) else 0
        largest = max(data[self.shape.record_bytes - 1 :: self.shape.record_bytes])
        if largest >= classes:
            raise InputRefused(f"data hold class {largest}, must be below {classes}")


def state_blob(units: Sequence[int], segment: int) -> Blob:
    """The state after a segment of a run that keeps states in blobs.

    Raises:
        InputRefused: the units don't reach that far.
    """
    return blob_from_words(units[segment * CHUNK_UNITS : segment * CHUNK_UNITS + BLOB_WORDS])


def start_blob(job: TrainingInput, units: Sequence[int]) -> Blob:
    """The state that a turn started from.

    Raises:
        InputRefused: the units don't reach that far.
    """
    return blob_from_words(_first_names(job, units)[:BLOB_WORDS])


def momentum_blob(job: TrainingInput, units: Sequence[int]) -> Blob | None:
    """The momentum of the step that led to it, or None if there was none.

    Raises:
        InputRefused: as `start_blob`.
    """
    has_momentum = job.rounds is not None and job.rounds.nesterov is not None
    if not has_momentum or job.turn is None or job.turn.round == 0:
        return None
    return blob_from_words(_first_names(job, units)[BLOB_WORDS:])


def _first_names(job: TrainingInput, units: Sequence[int]) -> Sequence[int]:
    at = BLOB_WORDS + job.segment_steps
    return units[at : at + 2 * BLOB_WORDS]


def losses(job: TrainingInput, units: Sequence[int]) -> list[float]:
    """The loss before each step, as far as the units go, of a run or a turn that keeps states in blobs."""
    found: list[float] = []
    for start in range(0, 0 if job.is_ending else len(units) - CHUNK_UNITS + 1, CHUNK_UNITS):
        words = units[start + BLOB_WORDS : start + BLOB_WORDS + job.segment_steps]
        found += struct.unpack(f"<{len(words)}f", struct.pack(f"<{len(words)}I", *words))
    return found


def encode_input(value: TrainingInput, *, is_whole: bool = False) -> bytes:
    """The canonical bytes of an input, as a job carries it.

    Args:
        value: the input.
        is_whole: turns are yet to be made of it.

    Raises:
        InputRefused: the input breaks a rule.
    """
    value.check(is_whole=is_whole)
    data = encode(value)
    if len(data) > INPUT_BYTES_MAX:
        raise InputRefused(f"input of {len(data)} bytes exceeds {INPUT_BYTES_MAX}")
    return data


def decode_input(data: bytes, *, is_whole: bool = False) -> TrainingInput:
    """Read the bytes of `encode_input`.

    Raises:
        InputRefused: the bytes are not a canonical input that keeps the rules.
    """
    try:
        value = decode(data, TrainingInput, bytes_max=INPUT_BYTES_MAX)
    except PeerFault as error:
        raise InputRefused(str(error)) from error
    value.check(is_whole=is_whole)
    return value
