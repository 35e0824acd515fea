"""``lm.generate`` in native kernels: with a tolerance anywhere, or bit for bit inside a class of machines.

A native run states fingerprints in place of digests, and its tokens may miss their draw by a calibrated
margin. A homogeneous run has digests like an exact one. Decoding and prefill give different bits in
native kernels, so its hidden states are by definition those of one pass for each chunk, over the keys
and values that the passes before left. The executor drafts a chunk by decoding and then runs its pass;
should a token not be the one drawn from the pass, it is mended and the rest drafted anew. The verifier
runs only the passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.limits import LM_CHUNK_UNITS
from protocols.messages import EQUAL_BITS
from workloads.errors import InputRefused, ModelRefused, NumericsRefused
from workloads.lm.engine import HOMOGENEOUS, NATIVE, REFERENCE, Decoder, prefill
from workloads.lm.fingerprint import fingerprint, misses_ppb, projection_signs
from workloads.lm.generate import LmExecutor
from workloads.lm.input import LmInput, finish_reason
from workloads.lm.sampling import sample
from workloads.lm.tolerance import load_tolerance
from workloads.numeric_class import numeric_class
from workloads.workload import Outcome

__all__ = ["HomogeneousExecutor", "NativeExecutor", "open_executor"]

_MENDS_MAX = 64


def open_executor(
    model_dir: Path, profile: str, variant: str | None = None, *, expected_digest: bytes | None = None
) -> LmExecutor:
    """The executor of a profile; arguments and errors as `LmExecutor`.

    Raises:
        InputRefused: the profile names another class than this machine's.
        ModelRefused: the model isn't calibrated for native runs.
    """
    kinds = {HOMOGENEOUS: HomogeneousExecutor, NATIVE: NativeExecutor, REFERENCE: NativeExecutor}
    kind = kinds.get(profile.partition("/")[0], LmExecutor)
    return kind(model_dir, profile, variant, expected_digest=expected_digest)


class NativeExecutor(LmExecutor):
    """Chunks are fingerprints. In the profile `REFERENCE` the exact run judges what native ones state."""

    def __init__(
        self,
        model_dir: Path,
        profile: str,
        variant: str | None = None,
        *,
        expected_digest: bytes | None = None,
    ) -> None:
        super().__init__(model_dir, profile, variant, expected_digest=expected_digest)
        tolerance = load_tolerance(model_dir)
        if tolerance == EQUAL_BITS:
            raise ModelRefused("the model isn't calibrated for native runs; see: p2p-node model calibrate")
        is_reference = profile == REFERENCE
        self._margin_ppb = tolerance.convict_margin_ppb if is_reference else tolerance.agree_margin_ppb
        self._signs = projection_signs(self.model, self._honest.config.hidden_size)

    def _are_drawn(
        self, claimed: Sequence[int], positions: range, states: NDArray[np.float32], job: LmInput
    ) -> bool:
        misses = misses_ppb(self._honest.logits(states), claimed, positions, job)
        return max(misses) <= self._margin_ppb

    def _digest(self, chunk: int, tokens: Sequence[int], states: NDArray[np.float32]) -> bytes:
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
    ) -> None:
        name = profile.partition("/")[2]
        if name != numeric_class():
            raise InputRefused(f"class {name!r} isn't this machine's, {numeric_class()!r}")
        super().__init__(model_dir, profile, variant, expected_digest=expected_digest)
        self._passes: _Passes | None = None

    def generate(
        self,
        job: LmInput,
        prefix: Sequence[int],
        on_units: Callable[[int, list[int]], None],
        on_chunk: Callable[[int, bytes], None],
        should_stop: Callable[[], bool],
    ) -> Outcome:
        """See `LmExecutor.generate`; tokens come a chunk at a time, since a pass may still mend them."""
        self._check(job, prefix)
        if len(prefix) % LM_CHUNK_UNITS:
            raise InputRefused(f"prefix of {len(prefix)} tokens must be whole chunks of {LM_CHUNK_UNITS}")
        reason = finish_reason(job, prefix)
        passes = _Passes(self._generating, job)
        passes.go_over(prefix, len(prefix))
        position, last = len(prefix), (*job.prompt, *prefix)[-1]
        while reason is None:
            chunk = self._chunk(job, passes, last, position, should_stop)
            if chunk is None:
                return Outcome(position, "cancelled")
            tokens, states = chunk
            on_units(position, tokens)
            on_chunk(position // LM_CHUNK_UNITS, self._digest(position // LM_CHUNK_UNITS, tokens, states))
            position, last = position + len(tokens), tokens[-1]
            if last == job.stop_token:
                reason = "stop"
            elif position == job.max_tokens:
                reason = "length"
        return Outcome(position, reason)

    def _chunk(
        self, job: LmInput, passes: _Passes, last: int, position: int, should_stop: Callable[[], bool]
    ) -> tuple[list[int], NDArray[np.float32]] | None:
        """The next chunk's tokens and states, or None if it was told to stop."""
        room = min(LM_CHUNK_UNITS, job.max_tokens - position)
        tokens: list[int] = []
        for _ in range(_MENDS_MAX):
            while len(tokens) < room and (not tokens or tokens[-1] != job.stop_token):
                if should_stop():
                    return None
                hidden = passes.decode((last, *tokens)[-1], position + len(tokens))
                tokens += sample(self._generating.logits(hidden), [position + len(tokens)], job)
            states = passes.go_over_one((last, *tokens[:-1]), position)
            positions = range(position, position + len(tokens))
            drawn = sample(self._generating.logits(states), positions, job)
            if drawn == tokens:
                return tokens, states
            same = next(i for i, pair in enumerate(zip(tokens, drawn, strict=True)) if pair[0] != pair[1])
            tokens = drawn[: same + 1]
        raise NumericsRefused(f"passes and drafts didn't agree after {_MENDS_MAX} mends")

    def _states(self, tokens: NDArray[np.int64], start: int, job: LmInput) -> NDArray[np.float32]:
        output = tokens[len(job.prompt) :].tolist()
        # Segments are verified one after another, and each needs all passes before it.
        if self._passes is None or not self._passes.can_go_on(job, output, start):
            self._passes = _Passes(self._honest, job)
        return self._passes.go_over(output, len(output) + 1)[-(len(output) + 1 - start) :]


class _Passes:
    """The fixed sequence of passes over one job: the prompt but for its last token, then chunk by chunk."""

    def __init__(self, decoder: Decoder, job: LmInput) -> None:
        self.job = job
        self._decoder = decoder
        self._cache: Any = decoder.new_cache(1, len(job.prompt) + job.max_tokens)
        self._first = len(job.prompt) - 1
        self._done: list[int] = []
        """Output tokens whose chunks' passes are done."""
        if self._first:
            prefill(decoder, np.array(job.prompt[:-1], dtype=np.int64), self._cache)

    def can_go_on(self, job: LmInput, output: list[int], start: int) -> bool:
        """Whether the passes of a claimed output up to a chunk's start are done already."""
        return job == self.job and len(self._done) <= start and self._done == output[: len(self._done)]

    def go_over(self, output: Sequence[int], count: int) -> NDArray[np.float32]:
        """Do the passes of the first ``count`` output tokens that aren't done.

        Args:
            output: at least all of these tokens but the last.
            count: how many; whole chunks of them are remembered as done.

        Returns:
            (tokens not done before, hidden).
        """
        states = [np.empty((0, self._decoder.config.hidden_size), dtype=np.float32)]
        for position in range(len(self._done), count, LM_CHUNK_UNITS):
            stop = min(position + LM_CHUNK_UNITS, count)
            sequence = (self.job.prompt[-1], *output)
            states.append(self.go_over_one(sequence[position:stop], position))
            if stop - position == LM_CHUNK_UNITS and stop <= len(output):
                self._done = list(output[:stop])
        return np.concatenate(states)

    def go_over_one(self, inputs: Sequence[int], position: int) -> NDArray[np.float32]:
        """One chunk's pass: states (count, hidden) of the tokens that its own are drawn after."""
        self._cache.length = self._first + position
        states: NDArray[np.float32] = self._decoder.forward(np.array([inputs], dtype=np.int64), self._cache)[
            0
        ]
        return states

    def decode(self, token: int, position: int) -> NDArray[np.float32]:
        """The state (1, hidden) that the output token at ``position`` is drafted from."""
        return self.go_over_one((token,), position)
