"""Running ``lm.generate``: streaming tokens with a digest for every 32 units, and deriving those again.

A chunk's digest covers its units and the final hidden state each token was drawn from. Whoever recomputes a
chunk runs one prefill over each prompt and claimed output in it and draws every token anew. So a cheap model
shows in the hidden states, and tokens of a cheap model under honest hidden states show in the draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocols.limits import LM_CHUNK_UNITS
from protocols.units import FALSE_UNITS
from workloads.blobs import NO_BLOBS, Blobs, blob_words
from workloads.errors import InputRefused, ModelRefused
from workloads.lm.batch import Drawn, decode
from workloads.lm.continued import ContinuedPrefill, Wanted, sequences_at_once
from workloads.lm.digest import chunk_digest
from workloads.lm.engine import EXACT_PROFILES, build_decoder, load_model, prefill
from workloads.lm.hostile import SPOOFED_TOKENS, cheaper_model
from workloads.lm.input import END_UNIT, NO_LOGPROBS, LmInput, chunk_range
from workloads.lm.layout import ChunkView, Layout, Output, Slice
from workloads.lm.logprobs import logprobs_blob, logprobs_of
from workloads.lm.manifest import load_manifest
from workloads.lm.pieces import TokenBytes
from workloads.lm.sampling import noise_position, penalised, sample
from workloads.numerics import NATIVE, REFERENCE
from workloads.workload import Outcome

__all__ = ["LmExecutor", "Outcome"]


class LmExecutor:
    """One loaded model in one numerics profile.

    Args:
        model_dir: a directory in Hugging Face layout.
        profile: one of `workloads.lm.engine.PROFILES`.
        variant: how to cheat while generating (`workloads.lm.hostile`); recomputing is always honest.
        expected_digest: what the files must hash to; None to take them as they are.
        blobs: where log-probabilities are left.

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
        blobs: Blobs = NO_BLOBS,
    ) -> None:
        self.model = load_manifest(model_dir).digest
        if expected_digest is not None and self.model != expected_digest:
            raise ModelRefused(f"model digest {self.model.hex()} must be {expected_digest.hex()}")
        self.profile = profile
        self._variant = variant
        self._blobs = blobs
        self._tokenizer_path = model_dir / "tokenizer.json"
        self._pieces: TokenBytes | None = None
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
        """Continue the prompts, token by token.

        Args:
            job: what to generate.
            prefix: output units that exist already, whole chunks of them; the output goes on after them as
                if it had never stopped.
            on_units: called with the position of the first new unit and the new units.
            on_chunk: called with a chunk's number and digest once its last unit is out.
            should_stop: asked before every token.

        Raises:
            InputRefused: the job or the prefix doesn't fit the model or the limits.
            NumericsRefused: the computation left the range of exact arithmetic.
        """
        layout = self._resumed(job, prefix)
        writer = _Writer(self, job, layout, len(prefix), on_units, on_chunk)
        if not layout.is_done:
            for drawn in _in_order(self._draw(job, layout.outputs, should_stop), layout.outputs):
                writer.add(drawn)
        if not layout.is_done and not writer.is_done:
            return Outcome(writer.units_told, "cancelled")
        writer.finish()
        return Outcome(writer.units_total, "stop" if writer.has_ended_early else "length")

    def recompute(self, job: LmInput, units: Sequence[int], chunks: Iterable[int]) -> dict[int, bytes]:
        """Digests of some chunks of a claimed output, by one prefill over what the last call didn't see.

        Args:
            job: what was generated.
            units: the claimed output, at least as far as the last chunk wanted.
            chunks: their numbers.

        Returns:
            Each chunk's number and the digest it should have, given all tokens before each of its tokens;
            `FALSE_UNITS` where the claimed units aren't the ones that follow.

        Raises:
            InputRefused: the job doesn't fit the model or the limits, or a chunk doesn't exist.
            NumericsRefused: the computation left the range of exact arithmetic.
        """
        self._check(job)
        ranges = {chunk: chunk_range(chunk, len(units)) for chunk in sorted(set(chunks))}
        if not ranges:
            return {}
        layout = Layout(job, self.pieces_for(job))
        layout.read_all(units[: max(positions.stop for positions in ranges.values())])
        views = {chunk: layout.views[chunk] for chunk in ranges}
        states = self._chunk_states(
            job, layout.outputs, {chunk: view for chunk, view in views.items() if view.is_sound}
        )
        return {
            chunk: self._judged(job, layout.outputs, chunk, view, states[chunk])
            if view.is_sound
            else FALSE_UNITS
            for chunk, view in views.items()
        }

    def forget(self) -> None:
        """Remember nothing of outputs that were recomputed: the next one is done from its start."""
        if self._continued is not None:
            self._continued = ContinuedPrefill(self._honest)

    def _judged(
        self,
        job: LmInput,
        outputs: Sequence[Output],
        chunk: int,
        view: ChunkView,
        states: NDArray[np.float32],
    ) -> bytes:
        """The digest of a chunk if its tokens are those drawn from its states."""
        row = 0
        logits = self._logits(states, view)
        for part in view.slices:
            rows = logits[row : row + part.stop - part.start]
            if not self._are_drawn(job, outputs[part.prompt], part, rows):
                return FALSE_UNITS
            row += len(rows)
        if view.words and view.words != self._logprob_words(job, logits, view.tokens):
            return FALSE_UNITS
        return self._digest(chunk, view.units, states)

    def _logits(self, states: NDArray[np.float32], view: ChunkView) -> NDArray[np.float64]:
        """Logits of a chunk's tokens."""
        return self._honest.logits(states[: len(view.tokens)])

    def _are_drawn(self, job: LmInput, output: Output, part: Slice, logits: NDArray[np.float64]) -> bool:
        """Whether claimed tokens are those that their logits give."""
        claimed, positions, values = self._to_draw(job, output, part, logits)
        return sample(values, positions, job) == claimed

    def _to_draw(
        self, job: LmInput, output: Output, part: Slice, logits: NDArray[np.float64]
    ) -> tuple[list[int], list[int], NDArray[np.float64]]:
        """Claimed tokens, where their noise is, and penalised logits."""
        positions = [noise_position(job, part.prompt, i) for i in range(part.start, part.stop)]
        before = self._existing((*job.prompts[part.prompt], *output.tokens[: part.stop - 1]))
        return output.tokens[part.start : part.stop], positions, penalised(logits, before, job)

    def _chunk_states(
        self, job: LmInput, outputs: Sequence[Output], views: dict[int, ChunkView]
    ) -> dict[int, NDArray[np.float32]]:
        """What the tokens of chunks were drawn from, and what an end goes with: (rows, hidden) for each."""
        parts = {chunk: _parts(outputs, view) for chunk, view in views.items()}
        # Of each prompt all that lies between the first and the last token wanted: one prefill gives them.
        spans: dict[int, Slice] = {}
        for part in (part for of_chunk in parts.values() for part in of_chunk):
            known = spans.get(part.prompt, part)
            spans[part.prompt] = Slice(part.prompt, min(known.start, part.start), max(known.stop, part.stop))
        wanted = [spans[prompt] for prompt in sorted(spans)]
        states = dict(zip(sorted(spans), self._states(job, outputs, wanted), strict=True))

        def rows(part: Slice) -> NDArray[np.float32]:
            start = spans[part.prompt].start
            return states[part.prompt][part.start - start : part.stop - start]

        return {chunk: np.concatenate([rows(part) for part in of_chunk]) for chunk, of_chunk in parts.items()}

    def _states(
        self, job: LmInput, outputs: Sequence[Output], wanted: Sequence[Slice]
    ) -> list[NDArray[np.float32]]:
        """What slices of several outputs were drawn from: (tokens of the slice, hidden) for each."""
        sequences = [
            Wanted(
                # Output token i is drawn from the hidden state of the token before it.
                self._existing((*job.prompts[part.prompt], *outputs[part.prompt].tokens[: part.stop - 1])),
                len(job.prompts[part.prompt]) - 1 + part.start,
            )
            for part in wanted
        ]
        if self._continued is not None:
            return self._continued.states(sequences, job.positions) if sequences else []
        return [
            prefill(self._honest, tokens, self._honest.new_cache(1, len(tokens)))[first:]
            for tokens, first in sequences
        ]

    def _existing(self, tokens: Sequence[int]) -> NDArray[np.int64]:
        """Token ids as the model takes them.

        A token that doesn't exist is false by itself; its chunk must still be judged, not refused.
        """
        return np.minimum(np.array(tokens, dtype=np.int64), self._honest.config.vocab_size - 1)

    def _draw(
        self, job: LmInput, outputs: Sequence[Output], should_stop: Callable[[], bool]
    ) -> Iterator[Drawn]:
        """Tokens of the prompts that aren't done."""
        begun = {output.prompt: output.tokens for output in outputs if output.reason is None}
        first = min(begun, default=len(outputs))
        waiting = [(prompt, begun.get(prompt, [])) for prompt in range(first, len(job.prompts))]
        places = sequences_at_once(self._generating, job.positions)
        return decode(self._generating, job, self.pieces_for(job), waiting, places, should_stop)

    def _resumed(self, job: LmInput, prefix: Sequence[int]) -> Layout:
        """A prefix, read.

        Raises:
            InputRefused: it can't be gone on from.
        """
        self._check(job)
        if len(prefix) > job.units_max:
            raise InputRefused(f"output of {len(prefix)} units exceeds the {job.units_max} there can be")
        vocabulary = self._honest.config.vocab_size
        layout = Layout(job, self.pieces_for(job))
        layout.read_all(prefix)
        if len(prefix) % LM_CHUNK_UNITS and not (layout.is_complete and layout.views[-1].is_sound):
            raise InputRefused(f"prefix of {len(prefix)} units must be whole chunks of {LM_CHUNK_UNITS}")
        for chunk, view in enumerate(layout.views):
            if not view.is_sound:
                raise InputRefused(f"prefix: chunk {chunk} can't follow the ones before it")
            for token in view.tokens:
                if not 0 <= token < vocabulary:
                    raise InputRefused(f"prefix: token {token} must be in [0, {vocabulary})")
        return layout

    def _check(self, job: LmInput) -> None:
        config = self._honest.config
        job.check(vocabulary=config.vocab_size, positions=config.max_position_embeddings)
        if job.logprobs != NO_LOGPROBS and self.profile in (NATIVE, REFERENCE):
            raise InputRefused(f"profile {self.profile} has no logprobs: they would differ by machine")

    def pieces_for(self, job: LmInput) -> TokenBytes | None:
        """Bytes of the model's tokens, if the job needs them."""
        if job.stop and self._pieces is None:
            self._pieces = TokenBytes(self._tokenizer_path.read_bytes())
        return self._pieces

    def _logprob_words(self, job: LmInput, logits: NDArray[np.float64], tokens: Sequence[int]) -> list[int]:
        """The words that name a chunk's log-probabilities."""
        return blob_words(
            logprobs_blob(logprobs_of(logits, self._existing(tokens).tolist(), job.logprobs))[0]
        )

    def _digest(self, chunk: int, units: Sequence[int], states: NDArray[np.float32]) -> bytes:
        return chunk_digest(model=self.model, profile=self.profile, chunk=chunk, units=units, states=states)


class _Writer:
    """Puts tokens into chunks, with what ends them, and tells of both."""

    def __init__(  # noqa: PLR0917
        self,
        executor: LmExecutor,
        job: LmInput,
        layout: Layout,
        units_total: int,
        on_units: Callable[[int, list[int]], None],
        on_chunk: Callable[[int, bytes], None],
    ) -> None:
        self.units_total = units_total
        self.is_done = layout.is_done
        self._executor = executor
        self._job = job
        self._layout = layout
        self._on_units = on_units
        self._on_chunk = on_chunk
        self._open: list[Drawn] = []
        self._last: NDArray[np.float32] | None = None

    @property
    def units_told(self) -> int:
        """Units that are out, those of the open chunk included."""
        return self.units_total + (len(self._open) if self._job.logprobs == NO_LOGPROBS else 0)

    @property
    def has_ended_early(self) -> bool:
        """Whether the output ends with `END_UNIT`."""
        return bool(self._layout.views) and self._layout.views[-1].has_end

    def add(self, drawn: Drawn) -> None:
        """Take the next token in the order of the output."""
        self._open.append(drawn)
        if self._job.logprobs == NO_LOGPROBS:
            self._on_units(self.units_told - 1, [drawn.token])
        self.is_done = drawn.reason is not None and drawn.prompt == len(self._job.prompts) - 1
        if len(self._open) == self._job.chunk_tokens:
            self._close(has_end=False)

    def finish(self) -> None:
        """The last token is out: close what is open, and end the output if it ends early."""
        count = sum(len(output.tokens) for output in self._layout.outputs) + len(self._open)
        has_end = count < self._job.tokens_max
        if self._open:
            self._close(has_end=has_end)
        if has_end and not self._layout.is_complete:
            self._close(has_end=True)

    def _close(self, *, has_end: bool) -> None:
        tokens = [drawn.token for drawn in self._open]
        units = list(tokens)
        if self._job.logprobs != NO_LOGPROBS and tokens:
            blob, data = logprobs_blob([drawn.logprobs for drawn in self._open if drawn.logprobs])
            self._executor._blobs.write(data)
            units += blob_words(blob)
        if has_end and len(units) < LM_CHUNK_UNITS:
            units.append(END_UNIT)
        told = len(tokens) if self._job.logprobs == NO_LOGPROBS else 0
        if units[told:]:
            self._on_units(self.units_total + told, units[told:])
        number = self.units_total // LM_CHUNK_UNITS
        self._on_chunk(number, self._executor._digest(number, units, self._states(number, units)))
        self.units_total += len(units)
        self._open = []

    def _states(self, number: int, units: list[int]) -> NDArray[np.float32]:
        view = self._layout.read(units)
        if not self._open or self._executor._variant == SPOOFED_TOKENS:
            # An end alone goes with the last token's state; a cheat's states come of an honest prefill.
            return self._executor._chunk_states(self._job, self._layout.outputs, {number: view})[number]
        states = [drawn.state for drawn in self._open]
        return np.stack(states + states[-1:] if view.has_end else states)


def _parts(outputs: Sequence[Output], view: ChunkView) -> list[Slice]:
    """The slices whose states a chunk's digest covers: its tokens, and the last token again for an end."""
    if not view.has_end:
        return view.slices
    last = outputs[-1]
    return [*view.slices, Slice(last.prompt, len(last.tokens) - 1, len(last.tokens))]


def _in_order(tokens: Iterator[Drawn], outputs: Sequence[Output]) -> Iterator[Drawn]:
    """Tokens prompt by prompt; those of later prompts are held back until it is their turn."""
    held: dict[int, list[Drawn]] = {}
    turn = next((output.prompt for output in outputs if output.reason is None), len(outputs))
    for drawn in tokens:
        held.setdefault(drawn.prompt, []).append(drawn)
        while ready := held.pop(turn, None):
            yield from ready
            if ready[-1].reason is None:
                break
            turn += 1
