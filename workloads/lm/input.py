"""What a job of the workload ``lm.generate`` asks for; readable without torch.

Everything that decides the output is here or named by the model's digest: the same input, model and exact
profile give the same tokens on every machine.
"""

from __future__ import annotations

from protocols.codec import Wire
from protocols.limits import INPUT_BYTES_MAX, LM_CHUNK_UNITS, PARTS_MAX, UNIT_VALUE_MAX, UNITS_MAX
from workloads.blobs import BLOB_WORDS
from workloads.errors import InputRefused
from workloads.inputs import InputCodec, within

__all__ = ["CODEC", "END_UNIT", "LmInput", "chunk_range", "decode_input", "encode_input"]

END_UNIT = UNIT_VALUE_MAX
"""The last unit of an output with fewer tokens than it could have; no token is called so."""

PROMPTS_MAX = 1_024
PROMPTS_WHOLE_MAX = PARTS_MAX * PROMPTS_MAX
"""Of a job that is yet to be split."""
STOPS_MAX = 16
STOP_BYTES_MAX = 256
EOS_MAX = 8
LOGPROBS_MAX = 20
_SEED_MAX = 2**64 - 1
_TEMPERATURE_MILLI_MAX = 100_000
_REPETITION_MILLI_MIN, _REPETITION_MILLI_MAX = 100, 10_000
TOP_P_MILLI_MAX = 1_000
_NO_PENALTY_MILLI = 1_000
NO_LOGPROBS = -1


class LmInput(Wire, frozen=True):
    """Prompts and how to continue them.

    Args:
        prompts: token ids of each, at least one.
        max_tokens: output tokens of each prompt, unless it ends sooner.
        seed: fixes the sampling noise, in [0, 2**64).
        temperature_milli: 1000 samples from the model's own distribution, 0 always takes the likeliest token.
        top_k: sample among the k likeliest tokens; 0 for all.
        eos: tokens each of which ends its prompt's output, being its last.
        top_p_milli: sample among the fewest likeliest tokens that have this share together; 1000 for all.
        repetition_milli: what logits of tokens that came before are divided by, or multiplied where they are
            negative; 1000 for nothing.
        stop: texts each of which ends its prompt's output once it is complete, in UTF-8.
        logprobs: how many likeliest tokens to name with their log-probabilities, beside the token's own; -1
            for none at all.
        first_prompt: number of the first in the whole that these are a part of; noise goes by it.
    """

    prompts: tuple[tuple[int, ...], ...]
    max_tokens: int
    seed: int
    temperature_milli: int
    top_k: int = 0
    eos: tuple[int, ...] = ()
    top_p_milli: int = TOP_P_MILLI_MAX
    repetition_milli: int = _NO_PENALTY_MILLI
    stop: tuple[bytes, ...] = ()
    logprobs: int = NO_LOGPROBS
    first_prompt: int = 0

    @property
    def tokens_max(self) -> int:
        """Output tokens at most, of all prompts."""
        return len(self.prompts) * self.max_tokens

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a whole chunk: log-probabilities are named by its last words."""
        return LM_CHUNK_UNITS if self.logprobs == NO_LOGPROBS else LM_CHUNK_UNITS - BLOB_WORDS

    @property
    def units_max(self) -> int:
        """Output units at most."""
        chunks, rest = divmod(self.tokens_max, self.chunk_tokens)
        return chunks * LM_CHUNK_UNITS + (rest + LM_CHUNK_UNITS - self.chunk_tokens if rest else 0)

    @property
    def stop_unit(self) -> int:
        """What ends an output sooner; -1 where nothing can."""
        return END_UNIT if self.eos or self.stop else -1

    @property
    def has_penalty(self) -> bool:
        """Whether repeated tokens are made less likely, or more."""
        return self.repetition_milli != _NO_PENALTY_MILLI

    @property
    def positions(self) -> int:
        """Positions that the longest prompt needs with its output."""
        return max(map(len, self.prompts)) + self.max_tokens

    def check(
        self, *, vocabulary: int = UNIT_VALUE_MAX, positions: int = UNITS_MAX, is_whole: bool = False
    ) -> None:
        """Hold the input against the protocol's limits and, where given, a model's.

        Args:
            vocabulary: token ids lie below it.
            positions: each prompt must fit in them together with its output.
            is_whole: it is yet to be split, so it may ask for more than a job can.

        Raises:
            InputRefused: the first field that breaks a rule.
        """
        prompts_max = PROMPTS_WHOLE_MAX if is_whole else PROMPTS_MAX
        if not 1 <= len(self.prompts) <= prompts_max:
            raise InputRefused(f"{len(self.prompts)} prompts must be 1 to {prompts_max}")
        for number, prompt in enumerate(self.prompts):
            if not prompt:
                raise InputRefused(f"prompt {number} must hold at least one token")
            wrong = next((token for token in prompt if not 0 <= token < vocabulary), None)
            if wrong is not None:
                raise InputRefused(f"token {wrong} of prompt {number} must be in [0, {vocabulary})")
        within("max_tokens", self.max_tokens, 1, UNITS_MAX)
        within("seed", self.seed, 0, _SEED_MAX)
        within("temperature_milli", self.temperature_milli, 0, _TEMPERATURE_MILLI_MAX)
        within("top_k", self.top_k, 0, UNIT_VALUE_MAX)
        within("top_p_milli", self.top_p_milli, 1, TOP_P_MILLI_MAX)
        within("repetition_milli", self.repetition_milli, _REPETITION_MILLI_MIN, _REPETITION_MILLI_MAX)
        within("logprobs", self.logprobs, NO_LOGPROBS, min(LOGPROBS_MAX, vocabulary))
        within("first_prompt", self.first_prompt, 0, PROMPTS_WHOLE_MAX - 1)
        within("eos tokens", len(self.eos), 0, EOS_MAX)
        for token in self.eos:
            within("eos token", token, 0, vocabulary - 1)
        within("stop texts", len(self.stop), 0, STOPS_MAX)
        for text in self.stop:
            within("bytes of a stop text", len(text), 1, STOP_BYTES_MAX)
        for number, prompt in enumerate(self.prompts):
            if len(prompt) + self.max_tokens > positions:
                raise InputRefused(
                    f"prompt {number} of {len(prompt)} tokens and max_tokens={self.max_tokens} need "
                    f"{len(prompt) + self.max_tokens} positions, more than {positions}"
                )
        if not is_whole and self.units_max > UNITS_MAX:
            raise InputRefused(
                f"{len(self.prompts)} prompts with max_tokens={self.max_tokens} make up to {self.units_max} "
                f"units, more than {UNITS_MAX}"
            )


CODEC = InputCodec(LmInput, whole_bytes_max=PARTS_MAX * INPUT_BYTES_MAX)
encode_input, decode_input = CODEC.encode, CODEC.decode


def chunk_range(chunk: int, units: int) -> range:
    """Positions in the output that chunk number ``chunk`` of an output of ``units`` units covers.

    Raises:
        InputRefused: there is no such chunk.
    """
    first = chunk * LM_CHUNK_UNITS
    if not 0 <= first < units:
        raise InputRefused(f"chunk {chunk} does not exist in an output of {units} units")
    return range(first, min(first + LM_CHUNK_UNITS, units))
