"""Continuous batching: prompts are decoded together, each leaves when it is done, the next takes its place.

In an exact profile a token doesn't depend on what else is in the batch, so neither the size of the batch nor
who was in it when shows in the output. A prompt enters by a prefill that shares passes with the others'
decoding; nobody waits for the longest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from workloads.llama.spans import Span
from workloads.lm.continued import PASS_TOKENS
from workloads.lm.engine import Decoder
from workloads.lm.input import NO_LOGPROBS, LmInput
from workloads.lm.layout import Ending
from workloads.lm.logprobs import Logprobs, logprobs_of
from workloads.lm.pieces import TokenBytes
from workloads.lm.sampling import noise_position, penalised, sample

__all__ = ["Drawn", "decode", "wanted_logprobs"]

_WAITING_PER_PLACE = 4
"""Prompts that may be done but wait for one before them, for each that is decoded: they hold memory."""


class Drawn(NamedTuple):
    """One token of one prompt's output.

    Args:
        prompt: its number.
        token: that was drawn.
        state: (hidden,), what it was drawn from.
        logprobs: of the token, if the job asks for them.
        reason: why the output ends here, or None.
    """

    prompt: int
    token: int
    state: NDArray[np.float32]
    logprobs: Logprobs | None
    reason: str | None


class _Sequence:
    """A prompt that is being decoded."""

    def __init__(self, job: LmInput, prompt: int, output: Sequence[int], ending: Ending) -> None:
        self.prompt = prompt
        self.tokens = [*job.prompts[prompt], *output]
        self.ending = ending
        for token in output:
            ending.feed(token)
        self.first = len(job.prompts[prompt])
        self.pending = self.tokens

    def take(self, room: int) -> NDArray[np.int64]:
        piece, self.pending = self.pending[:room], self.pending[room:]
        return np.array(piece, dtype=np.int64)


def decode(  # noqa: PLR0917
    decoder: Decoder,
    job: LmInput,
    pieces: TokenBytes | None,
    begun: Sequence[tuple[int, Sequence[int]]],
    places: int,
    should_stop: Callable[[], bool],
) -> Iterator[Drawn]:
    """Decode prompts until all are done or it is told to stop.

    Args:
        decoder: what computes.
        job: what is asked for.
        pieces: bytes of tokens, for stop texts.
        begun: prompts that aren't done, in order, each with what there is of its output.
        places: prompts that are decoded at once, at most.
        should_stop: asked before every step.

    Yields:
        Tokens; those of one prompt in their order, prompts in any.
    """
    waiting = deque(begun)
    places = min(places, len(waiting))
    if not places:
        return
    cache: Any = decoder.new_cache(places, job.positions)
    active: dict[int, _Sequence] = {}
    unfinished = {prompt for prompt, _ in waiting}
    while (active or waiting) and not should_stop():
        for place in range(places):
            oldest = min(unfinished)
            if place in active or not waiting or waiting[0][0] >= oldest + places * (1 + _WAITING_PER_PLACE):
                continue
            prompt, output = waiting.popleft()
            active[place] = _Sequence(job, prompt, output, Ending(job, pieces))
            cache.lengths[place] = 0
        for drawn, place in _step(decoder, job, cache, active):
            if drawn.reason is not None:
                del active[place]
                unfinished.discard(drawn.prompt)
            yield drawn


def _step(
    decoder: Decoder, job: LmInput, cache: Any, active: dict[int, _Sequence]
) -> list[tuple[Drawn, int]]:
    """One pass: a token for everybody who has been read to the end, a piece of the prompt for the others."""
    spans, room = [], PASS_TOKENS
    # Who waits for one token isn't kept waiting by who brings a long prompt.
    for place, sequence in sorted(active.items(), key=lambda item: len(item[1].pending)):
        if room:
            spans.append(Span(place, sequence.take(room)))
            room -= len(spans[-1].tokens)
    hidden = decoder.extend(spans, cache)
    ends = [count - 1 for count in accumulate(len(span.tokens) for span in spans)]
    ready = [
        (span.sequence, active[span.sequence], end)
        for span, end in zip(spans, ends, strict=True)
        if not active[span.sequence].pending
    ]
    if not ready:
        return []
    states = hidden if len(ready) == len(hidden) else hidden[[end for _, _, end in ready]]
    logits = decoder.logits(states)
    drawn_from = logits
    if job.has_penalty:
        rows = [
            penalised(row[None], sequence.tokens, job)
            for row, (_, sequence, _) in zip(logits, ready, strict=True)
        ]
        drawn_from = np.concatenate(rows)
    positions = [
        noise_position(job, sequence.prompt, len(sequence.tokens) - sequence.first)
        for _, sequence, _ in ready
    ]
    found = []
    tokens = sample(drawn_from, positions, job)
    # Now, since tokens may wait long for their turn, and logits are large.
    values = wanted_logprobs(job, logits, tokens)
    for (place, sequence, _), token, state, value in zip(ready, tokens, states, values, strict=True):
        sequence.tokens.append(token)
        sequence.pending = [token]
        found.append((Drawn(sequence.prompt, token, state, value, sequence.ending.feed(token)), place))
    return found


def wanted_logprobs(
    job: LmInput, logits: NDArray[np.float64], tokens: Sequence[int]
) -> Sequence[Logprobs | None]:
    """Log-probabilities of tokens, if the job asks for them."""
    if job.logprobs == NO_LOGPROBS:
        return [None] * len(tokens)
    return logprobs_of(logits, tokens, job.logprobs)
