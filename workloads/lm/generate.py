"""Running ``lm.generate``: streaming tokens with a digest for every 32 of them, and deriving those again.

A chunk's digest covers its tokens and the final hidden state each was drawn from. Whoever recomputes a
chunk runs one prefill over prompt and claimed output and draws every token of it anew. So a cheap model shows
in the hidden states, and tokens of a cheap model under honest hidden states show in the draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocols.limits import LM_CHUNK_UNITS
from protocols.units import FALSE_UNITS
from workloads.errors import InputRefused, ModelRefused
from workloads.lm.continued import ContinuedPrefill
from workloads.lm.digest import chunk_digest
from workloads.lm.engine import EXACT_PROFILES, Decoder, build_decoder, load_model, prefill
from workloads.lm.hostile import SPOOFED_TOKENS, cheaper_model
from workloads.lm.input import LmInput, chunk_range, finish_reason
from workloads.lm.manifest import load_manifest
from workloads.lm.sampling import sample
from workloads.workload import Outcome

__all__ = ["LmExecutor", "Outcome"]


class LmExecutor:
    """One loaded model in one numerics profile.

    Args:
        model_dir: a directory in Hugging Face layout.
        profile: one of `workloads.lm.engine.PROFILES`.
        variant: how to cheat while generating (`workloads.lm.hostile`); recomputing is always honest.
        expected_digest: what the files must hash to; None to take them as they are.

    Raises:
        ModelRefused: the directory is not a model we run, or hashes to something else.
        InputRefused: the profile or the variant is unknown.
    """

    def __init__(
        self,
        model_dir: Path,
        profile: str,
        variant: str | None = None,
        *,
        expected_digest: bytes | None = None,
    ) -> None:
        self.model = load_manifest(model_dir).digest
        if expected_digest is not None and self.model != expected_digest:
            raise ModelRefused(f"model digest {self.model.hex()} must be {expected_digest.hex()}")
        self.profile = profile
        self._variant = variant
        config, weights = load_model(model_dir)
        self._honest = build_decoder(config, weights, profile)
        self._continued = ContinuedPrefill(self._honest) if profile in EXACT_PROFILES else None
        self._generating = self._honest
        if variant is not None:
            self._generating = build_decoder(*cheaper_model(config, weights, variant), profile)

    def generate(
        self,
        job: LmInput,
        prefix: Sequence[int],
        on_units: Callable[[int, list[int]], None],
        on_chunk: Callable[[int, bytes], None],
        should_stop: Callable[[], bool],
    ) -> Outcome:
        """Continue the prompt, token by token.

        Args:
            job: what to generate.
            prefix: output tokens that exist already, whole chunks of them; the output goes on after them as
                if it had never stopped.
            on_units: called with the position of the first new token and the new tokens.
            on_chunk: called with a chunk's number and digest once its last token is out.
            should_stop: asked before every token.

        Raises:
            InputRefused: the job or the prefix doesn't fit the model or the limits.
            NumericsRefused: the computation left the range of exact arithmetic.
        """
        self._check(job, prefix)
        if len(prefix) % LM_CHUNK_UNITS:
            raise InputRefused(f"prefix of {len(prefix)} tokens must be whole chunks of {LM_CHUNK_UNITS}")
        ended = finish_reason(job, prefix)
        if ended is not None:
            return Outcome(len(prefix), ended)
        decoder = self._generating
        witness = _HonestWitness(self._honest, job, prefix) if self._variant == SPOOFED_TOKENS else None
        cache = decoder.new_cache(1, len(job.prompt) + job.max_tokens)
        hidden = prefill(decoder, np.array((*job.prompt, *prefix), dtype=np.int64), cache)[-1:]
        chunk = _OpenChunk(len(prefix) // LM_CHUNK_UNITS)
        position = len(prefix)
        while not should_stop():
            token = sample(decoder.logits(hidden), [position], job)[0]
            on_units(position, [token])
            chunk.append(token, hidden)
            position += 1
            reason = "stop" if token == job.stop_token else "length" if position == job.max_tokens else None
            if reason or len(chunk.tokens) == LM_CHUNK_UNITS:
                states = np.concatenate(chunk.states)
                if witness is not None:
                    states = witness.states(chunk.tokens)
                on_chunk(chunk.number, self._digest(chunk.number, chunk.tokens, states))
                chunk = _OpenChunk(chunk.number + 1)
            if reason:
                return Outcome(position, reason)
            hidden = decoder.forward(np.array([[token]], dtype=np.int64), cache)[0]
        return Outcome(position, "cancelled")

    def recompute(self, job: LmInput, units: Sequence[int], chunks: Iterable[int]) -> dict[int, bytes]:
        """Digests of some chunks of a claimed output, by one prefill over what the last call didn't see.

        Args:
            job: what was generated.
            units: the claimed output, at least as far as the last chunk wanted.
            chunks: their numbers.

        Returns:
            Each chunk's number and the digest it should have, given all tokens before each of its tokens;
            `FALSE_UNITS` where the claimed tokens aren't the ones drawn.

        Raises:
            InputRefused: the job doesn't fit the model or the limits, or a chunk doesn't exist.
            NumericsRefused: the computation left the range of exact arithmetic.
        """
        self._check(job, ())
        ranges = {chunk: chunk_range(chunk, len(units)) for chunk in sorted(set(chunks))}
        if not ranges:
            return {}
        stop = max(positions.stop for positions in ranges.values())
        # Output token i is drawn from the hidden state of the token before it.
        sequence = np.array((*job.prompt, *units[: stop - 1]), dtype=np.int64)
        # A token that doesn't exist is false by itself; its chunk must still be judged, not refused.
        np.minimum(sequence, self._honest.config.vocab_size - 1, out=sequence)
        start = min(positions.start for positions in ranges.values())
        hidden = self._states(sequence, start, job)
        digests = {}
        for chunk, positions in ranges.items():
            states = hidden[positions.start - start : positions.stop - start]
            claimed = units[positions.start : positions.stop]
            is_true = self._are_drawn(claimed, positions, states, job)
            digests[chunk] = self._digest(chunk, claimed, states) if is_true else FALSE_UNITS
        return digests

    def _states(self, tokens: NDArray[np.int64], start: int, job: LmInput) -> NDArray[np.float32]:
        """Hidden states that output tokens from ``start`` on are drawn from, (count, hidden).

        Args:
            tokens: prompt and output but for the last token that is wanted.
            start: of a chunk.
            job: what was generated.
        """
        first = len(job.prompt) - 1 + start
        if self._continued is not None:
            return self._continued.states(tokens, first, len(job.prompt) + job.max_tokens)
        return prefill(self._honest, tokens, self._honest.new_cache(1, len(tokens)))[first:]

    def _are_drawn(
        self, claimed: Sequence[int], positions: range, states: NDArray[np.float32], job: LmInput
    ) -> bool:
        """Whether claimed tokens are those that the states (count, hidden) give."""
        return sample(self._honest.logits(states), positions, job) == list(claimed)

    def _check(self, job: LmInput, units: Sequence[int]) -> None:
        config = self._honest.config
        job.check(vocabulary=config.vocab_size, positions=config.max_position_embeddings)
        if len(units) > job.max_tokens:
            raise InputRefused(f"output of {len(units)} tokens exceeds max_tokens={job.max_tokens}")
        for index, token in enumerate(units):
            if not 0 <= token < config.vocab_size:
                raise InputRefused(f"output[{index}]={token} must be in [0, {config.vocab_size})")

    def _digest(self, chunk: int, tokens: Sequence[int], states: NDArray[np.float32]) -> bytes:
        return chunk_digest(model=self.model, profile=self.profile, chunk=chunk, tokens=tokens, states=states)


class _OpenChunk:
    """The chunk being generated: its tokens and the hidden states (1, hidden) they were drawn from."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.tokens: list[int] = []
        self.states: list[NDArray[np.float32]] = []

    def append(self, token: int, state: NDArray[np.float32]) -> None:
        self.tokens.append(token)
        self.states.append(state)


class _HonestWitness:
    """A cheater's honest prefill over its cheap model's tokens, so that its hidden states look right."""

    def __init__(self, decoder: Decoder, job: LmInput, prefix: Sequence[int]) -> None:
        self._decoder = decoder
        self._cache = decoder.new_cache(1, len(job.prompt) + job.max_tokens)
        self._last = prefill(decoder, np.array((*job.prompt, *prefix), dtype=np.int64), self._cache)[-1:]

    def states(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        following = self._decoder.forward(np.array([tokens], dtype=np.int64), self._cache)[0]
        states = np.concatenate((self._last, following[:-1]))
        self._last = following[-1:]
        return states
