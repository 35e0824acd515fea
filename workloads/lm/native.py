"""``lm.generate`` in native kernels: with a tolerance anywhere, or bit for bit inside a class of machines.

A native run states fingerprints in place of digests, and its tokens may miss their draw by a calibrated
margin. A homogeneous run has digests like an exact one. Decoding and prefill give different bits in
native kernels, so its hidden states are by definition those of one pass for each chunk, over the keys
and values that the passes before left. The executor drafts a chunk by decoding and then runs its pass;
should a token not be the one drawn from the pass, it is mended and the rest drafted anew. The verifier
runs only the passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.messages import EQUAL_BITS
from workloads.blobs import NO_BLOBS, Blobs
from workloads.errors import InputRefused, ModelRefused, NumericsRefused
from workloads.fingerprint import fingerprint, projection_signs
from workloads.lm.batch import Drawn, wanted_logprobs
from workloads.lm.engine import Decoder, prefill
from workloads.lm.generate import LmExecutor
from workloads.lm.input import LmInput
from workloads.lm.layout import ChunkView, Ending, Output, Slice
from workloads.lm.misses import misses_ppb
from workloads.lm.sampling import noise_position, penalised, sample
from workloads.lm.tolerance import load_tolerance
from workloads.numeric_class import numeric_class
from workloads.numerics import HOMOGENEOUS, NATIVE, REFERENCE

__all__ = ["HomogeneousExecutor", "NativeExecutor", "open_executor"]

_MENDS_MAX = 64


def open_executor(
    model_dir: Path,
    profile: str,
    variant: str | None = None,
    *,
    expected_digest: bytes | None = None,
    blobs: Blobs = NO_BLOBS,
) -> LmExecutor:
    """The executor of a profile; arguments and errors as `LmExecutor`.

    Raises:
        InputRefused: the profile names another class than this machine's.
        ModelRefused: the model isn't calibrated for native runs.
    """
    kinds = {HOMOGENEOUS: HomogeneousExecutor, NATIVE: NativeExecutor, REFERENCE: NativeExecutor}
    kind = kinds.get(profile.partition("/")[0], LmExecutor)
    return kind(model_dir, profile, variant, expected_digest=expected_digest, blobs=blobs)


class NativeExecutor(LmExecutor):
    """Chunks are fingerprints. In the profile `REFERENCE` the exact run judges what native ones state."""

    def __init__(
        self,
        model_dir: Path,
        profile: str,
        variant: str | None = None,
        *,
        expected_digest: bytes | None = None,
        blobs: Blobs = NO_BLOBS,
    ) -> None:
        super().__init__(model_dir, profile, variant, expected_digest=expected_digest, blobs=blobs)
        tolerance = load_tolerance(model_dir)
        if tolerance == EQUAL_BITS:
            raise ModelRefused("the model isn't calibrated for native runs; see: p2p-node model calibrate")
        is_reference = profile == REFERENCE
        self._margin_ppb = tolerance.convict_margin_ppb if is_reference else tolerance.agree_margin_ppb
        self._signs = projection_signs(self.model, self._honest.config.hidden_size)

    def _are_drawn(self, job: LmInput, output: Output, part: Slice, logits: NDArray[np.float64]) -> bool:
        claimed, positions, values = self._to_draw(job, output, part, logits)
        return max(misses_ppb(values, claimed, positions, job)) <= self._margin_ppb

    def _digest(self, chunk: int, units: Sequence[int], states: NDArray[np.float32]) -> bytes:
        return fingerprint(states, self._signs)


class HomogeneousExecutor(LmExecutor):
    """Chunks are digests of passes; the profile is ``homogeneous/`` and this machine's class."""

    def __init__(
        self,
        model_dir: Path,
        profile: str,
        variant: str | None = None,
        *,
        expected_digest: bytes | None = None,
        blobs: Blobs = NO_BLOBS,
    ) -> None:
        name = profile.partition("/")[2]
        if name != numeric_class():
            raise InputRefused(f"class {name!r} isn't this machine's, {numeric_class()!r}")
        super().__init__(model_dir, profile, variant, expected_digest=expected_digest, blobs=blobs)
        self._passes: _Passes | None = None

    def _draw(
        self, job: LmInput, outputs: Sequence[Output], should_stop: Callable[[], bool]
    ) -> Iterator[Drawn]:
        """Tokens a chunk's slice at a time, since a pass may still mend them; prompt after prompt."""
        count = sum(len(output.tokens) for output in outputs)
        begun = {output.prompt: output.tokens for output in outputs if output.reason is None}
        for prompt in range(min(begun, default=len(outputs)), len(job.prompts)):
            output = Output(prompt, [*begun.get(prompt, ())])
            ending = Ending(job, self.pieces_for(job))
            for token in output.tokens:
                ending.feed(token)
            passes = _Passes(self._generating, job, prompt)
            # Prompts that share a chunk each have a pass of their own for it.
            passes.go_over(output.tokens, _slices(job, count - len(output.tokens), len(output.tokens)))
            while output.reason is None:
                room = job.chunk_tokens - count % job.chunk_tokens
                drawn = self._slice(job, passes, output, copy(ending), room, should_stop)
                if drawn is None:
                    return
                for found in drawn:
                    output.tokens.append(found.token)
                    output.reason = ending.feed(found.token)
                count += len(drawn)
                yield from drawn

    def _slice(  # noqa: PLR0917
        self,
        job: LmInput,
        passes: _Passes,
        output: Output,
        ending: Ending,
        room: int,
        should_stop: Callable[[], bool],
    ) -> list[Drawn] | None:
        """The next tokens that share a chunk, or None if it was told to stop."""
        start = len(output.tokens)
        sequence = [*job.prompts[output.prompt], *output.tokens]
        tokens: list[int] = []
        reasons: list[str | None] = []
        for _ in range(_MENDS_MAX):
            while len(tokens) < room and (not reasons or reasons[-1] is None):
                if should_stop():
                    return None
                hidden = passes.decode((sequence[-1], *tokens)[-1], start + len(tokens))
                tokens += self._sampled(job, output, tokens, hidden)
                reasons = _reasons(copy(ending), tokens)
            states = passes.go_over_one((sequence[-1], *tokens[:-1]), start)
            logits = self._generating.logits(states)
            drawn = self._sampled(job, output, tokens, states, logits)
            if drawn == tokens:
                values = wanted_logprobs(job, logits, tokens)
                return [
                    Drawn(output.prompt, *fields)
                    for fields in zip(tokens, states, values, reasons, strict=True)
                ]
            same = next(i for i, pair in enumerate(zip(tokens, drawn, strict=True)) if pair[0] != pair[1])
            tokens = drawn[: same + 1]
            reasons = _reasons(copy(ending), tokens)
        raise NumericsRefused(f"passes and drafts didn't agree after {_MENDS_MAX} mends")

    def _sampled(
        self,
        job: LmInput,
        output: Output,
        tokens: Sequence[int],
        states: NDArray[np.float32],
        logits: NDArray[np.float64] | None = None,
    ) -> list[int]:
        """Tokens drawn from the states after an output and ``tokens``, or before the last of these."""
        values = self._generating.logits(states) if logits is None else logits
        is_draft = logits is None
        before = (*job.prompts[output.prompt], *output.tokens, *(tokens if is_draft else tokens[:-1]))
        first = len(output.tokens) + (len(tokens) if is_draft else 0)
        positions = [noise_position(job, output.prompt, first + i) for i in range(len(values))]
        return sample(penalised(values, before, job), positions, job)

    def _logits(self, states: NDArray[np.float32], view: ChunkView) -> NDArray[np.float64]:
        """See `LmExecutor`; a slice at a time, as the executor does it, or the bits would differ."""
        if not view.slices:
            return super()._logits(states, view)
        cuts = np.cumsum([part.stop - part.start for part in view.slices])[:-1]
        rows = np.split(states[: len(view.tokens)], cuts)
        return np.concatenate([self._honest.logits(part) for part in rows])

    def _states(
        self, job: LmInput, outputs: Sequence[Output], wanted: Sequence[Slice]
    ) -> list[NDArray[np.float32]]:
        found = []
        for part in wanted:
            tokens = outputs[part.prompt].tokens[: part.stop]
            first = sum(len(output.tokens) for output in outputs[: part.prompt])
            # Segments are verified one after another, and each needs all passes before it.
            if self._passes is None or not self._passes.can_go_on(job, part, tokens):
                self._passes = _Passes(self._honest, job, part.prompt)
            done = self._passes.count
            clipped = self._existing(tokens).tolist()
            states = self._passes.go_over(clipped, _slices(job, first, len(tokens)))
            found.append(states[part.start - done :])
        return found


def _reasons(ending: Ending, tokens: Sequence[int]) -> list[str | None]:
    return [ending.feed(token) for token in tokens]


def _slices(job: LmInput, first: int, count: int) -> list[range]:
    """The parts of one prompt's output that lie in different chunks.

    Args:
        job: what is asked for.
        first: tokens of all outputs before it.
        count: tokens of the output.
    """
    cuts = [0]
    while cuts[-1] < count:
        room = job.chunk_tokens - (first + cuts[-1]) % job.chunk_tokens
        cuts.append(min(count, cuts[-1] + room))
    return [range(*pair) for pair in pairwise(cuts)]


class _Passes:
    """The fixed sequence of passes over one prompt and its output.

    The prompt but for its last token; then what chunk by chunk is the output's.
    """

    def __init__(self, decoder: Decoder, job: LmInput, prompt: int) -> None:
        self.job = job
        self.prompt = prompt
        self._decoder = decoder
        self._tokens = job.prompts[prompt]
        self._cache: Any = decoder.new_cache(1, len(self._tokens) + job.max_tokens)
        self._first = len(self._tokens) - 1
        self._done: list[int] = []
        """Output tokens whose passes are done."""
        if self._first:
            prefill(decoder, np.array(self._tokens[:-1], dtype=np.int64), self._cache)

    @property
    def count(self) -> int:
        """Output tokens whose passes are done."""
        return len(self._done)

    def can_go_on(self, job: LmInput, part: Slice, tokens: Sequence[int]) -> bool:
        """Whether passes of a claimed output up to a slice's start, and none beyond, are done already."""
        is_same = (job, part.prompt) == (self.job, self.prompt)
        return is_same and self.count <= part.start and self._done == list(tokens[: self.count])

    def go_over(self, output: Sequence[int], slices: Sequence[range]) -> NDArray[np.float32]:
        """Do the passes of an output's slices that aren't done.

        Args:
            output: its tokens, those of the last slice included.
            slices: as `_slices`; all but the last one are remembered, since it may be a part only.

        Returns:
            (tokens not done before, hidden).
        """
        states = [np.empty((0, self._decoder.config.hidden_size), dtype=np.float32)]
        sequence = (self._tokens[-1], *output)
        for part in slices:
            if part.start >= self.count:
                states.append(self.go_over_one(sequence[part.start : part.stop], part.start))
                self._done = list(output[: part.start])
        return np.concatenate(states)

    def go_over_one(self, inputs: Sequence[int], position: int) -> NDArray[np.float32]:
        """One slice's pass: states (count, hidden) of the tokens that its own are drawn after."""
        self._cache.length = self._first + position
        states: NDArray[np.float32] = self._decoder.forward(np.array([inputs], dtype=np.int64), self._cache)[
            0
        ]
        return states

    def decode(self, token: int, position: int) -> NDArray[np.float32]:
        """The state (1, hidden) that the output token at ``position`` is drafted from."""
        return self.go_over_one((token,), position)
