"""Which output unit is what: prompts one after another, each as long as it gets, with nothing in between.

An executor may decode as many prompts at once as it likes, and in any order; its units come in the order of
the prompts. So the order of units is no part of how they are made, a check of some chunks needs the outputs
that they belong to and no others, and nobody pays for filling up. Where an output ends follows from its
tokens: after one that ends it, with a stop text, or at ``max_tokens``. All together end with `END_UNIT` if
they have fewer tokens than they could have had.

With log-probabilities a chunk is 22 tokens and the ten words that name a blob of them; otherwise 32 tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from protocols.limits import LM_CHUNK_UNITS
from workloads.blobs import BLOB_WORDS
from workloads.errors import InputRefused
from workloads.lm.input import END_UNIT, NO_LOGPROBS, LmInput
from workloads.lm.pieces import TokenBytes

__all__ = ["ChunkView", "Ending", "Layout", "Output", "Outputs", "Slice", "outputs_of", "words_of"]


class Ending:
    """Says when one prompt's output is over: feed it the output's tokens.

    Args:
        job: what is asked for.
        pieces: bytes of tokens; needed for stop texts only.
    """

    def __init__(self, job: LmInput, pieces: TokenBytes | None) -> None:
        if job.stop and pieces is None:
            raise InputRefused("stop texts need the model's tokenizer")
        self._job = job
        self._pieces = pieces
        self._kept = max(map(len, job.stop), default=1) - 1
        self._tail = b""
        self._count = 0

    def feed(self, token: int) -> str | None:
        """Why the output ends with this token: ``eos``, ``stop`` or ``length``; None if it goes on."""
        self._count += 1
        if token in self._job.eos:
            return "eos"
        if self._pieces is not None and self._job.stop:
            # What came before can't hold a stop text, or it would have ended there.
            seen = self._tail + self._pieces.of(token)
            if any(text in seen for text in self._job.stop):
                return "stop"
            self._tail = seen[len(seen) - min(self._kept, len(seen)) :]
        return "length" if self._count == self._job.max_tokens else None


@dataclass(slots=True)
class Output:
    """One prompt's output, as far as it goes.

    Args:
        prompt: its number in the job.
        tokens: of the output.
        reason: why it is over, or None.
    """

    prompt: int
    tokens: list[int]
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """Some tokens of one prompt's output: ``start`` up to but without ``stop``."""

    prompt: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class ChunkView:
    """What the units of a chunk are.

    Args:
        units: as claimed.
        tokens: those among them.
        slices: which tokens these are, in order.
        words: of the blob with log-probabilities.
        has_end: whether `END_UNIT` ends the chunk.
        is_sound: whether such units may follow those before; if not, slices may be missing.
    """

    units: list[int]
    tokens: list[int]
    slices: list[Slice]
    words: list[int]
    has_end: bool
    is_sound: bool


class Outputs:
    """Prompts' outputs out of a run of tokens, one prompt after another.

    Args:
        job: what is asked for.
        pieces: as for `Ending`.

    Attributes:
        outputs: what each prompt has so far; the last one may be unfinished.
        count: tokens taken.
    """

    def __init__(self, job: LmInput, pieces: TokenBytes | None) -> None:
        self.outputs: list[Output] = []
        self.count = 0
        self._job = job
        self._pieces = pieces
        self._ending = Ending(job, pieces)

    @property
    def is_done(self) -> bool:
        """Whether every prompt's output is over."""
        return len(self.outputs) == len(self._job.prompts) and self.outputs[-1].reason is not None

    def take(self, token: int) -> Output:
        """Add the next token; the output that it belongs to."""
        if not self.outputs or self.outputs[-1].reason is not None:
            self.outputs.append(Output(len(self.outputs), []))
            self._ending = Ending(self._job, self._pieces)
        output = self.outputs[-1]
        output.tokens.append(token)
        output.reason = self._ending.feed(token)
        self.count += 1
        return output


class Layout:
    """Reads an output chunk by chunk, as claimed: whatever units there are, they are read in one way.

    Args:
        job: what is asked for.
        pieces: as for `Ending`.

    Attributes:
        views: of the chunks read so far.
    """

    def __init__(self, job: LmInput, pieces: TokenBytes | None) -> None:
        self.job = job
        self.views: list[ChunkView] = []
        self._outputs = Outputs(job, pieces)
        self._is_closed = False

    @property
    def outputs(self) -> list[Output]:
        """What each prompt has so far; the last one may be unfinished."""
        return self._outputs.outputs

    @property
    def is_done(self) -> bool:
        """Whether every prompt's output is over."""
        return self._outputs.is_done

    @property
    def needs_end(self) -> bool:
        """Whether the output, being over, ends with `END_UNIT`."""
        return self.is_done and self._outputs.count < self.job.tokens_max

    @property
    def is_complete(self) -> bool:
        """Whether nothing follows the chunks read so far."""
        return self.is_done and (self._is_closed or not self.needs_end)

    def read(self, units: Sequence[int]) -> ChunkView:
        """Take the next chunk: all of its units."""
        has_end = self.job.stop_unit == END_UNIT and bool(units) and units[-1] == END_UNIT
        rest = list(units[:-1] if has_end else units)
        cut = len(rest) if self.job.logprobs == NO_LOGPROBS else max(0, len(rest) - BLOB_WORDS)
        tokens, words = rest[:cut], rest[cut:]
        is_sound = not self.is_complete and (not words or bool(tokens))
        slices: list[Slice] = []
        for token in tokens:
            if self.is_done:
                is_sound = False
                break
            output = self._outputs.take(token)
            stop = len(output.tokens)
            if slices and slices[-1].prompt == output.prompt:
                slices[-1] = Slice(output.prompt, slices[-1].start, stop)
            else:
                slices.append(Slice(output.prompt, stop - 1, stop))
        # A chunk that isn't whole is the last one, and an end that has room isn't left to another chunk.
        has_room = len(units) < LM_CHUNK_UNITS
        is_sound &= has_end == (self.needs_end and (has_end or has_room)) and (self.is_done or not has_room)
        self._is_closed |= has_end
        self.views.append(ChunkView(list(units), tokens, slices, words, has_end, is_sound))
        return self.views[-1]

    def read_all(self, units: Sequence[int]) -> None:
        """Take chunk after chunk of an output."""
        for start in range(0, len(units), LM_CHUNK_UNITS):
            self.read(units[start : start + LM_CHUNK_UNITS])


def outputs_of(job: LmInput, units: Sequence[int], pieces: TokenBytes | None) -> list[Output]:
    """What each prompt was given, of a whole output or of its beginning.

    Args:
        job: what was asked for; a whole that was split, too.
        units: of the output; a part's may end with `END_UNIT` before the next part's begin.
        pieces: as for `Ending`.
    """
    found = Outputs(job, pieces)
    for start in range(0, len(units), LM_CHUNK_UNITS):
        chunk = [unit for unit in units[start : start + LM_CHUNK_UNITS] if unit != END_UNIT]
        if job.logprobs != NO_LOGPROBS:
            chunk = chunk[:-BLOB_WORDS]
        for token in chunk:
            if not found.is_done:
                found.take(token)
    return found.outputs


def words_of(job: LmInput, units: Sequence[int]) -> Iterator[list[int]]:
    """The words of an output's chunks that name blobs of log-probabilities."""
    if job.logprobs == NO_LOGPROBS:
        return
    for start in range(0, len(units), LM_CHUNK_UNITS):
        chunk = list(units[start : start + LM_CHUNK_UNITS])
        if job.stop_unit == END_UNIT and chunk[-1] == END_UNIT:
            chunk.pop()
        if len(chunk) > BLOB_WORDS:
            yield chunk[-BLOB_WORDS:]
