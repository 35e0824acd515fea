"""What a job of the workload ``lm.generate`` asks for; readable without torch.

Everything that decides the output is here or named by the model's digest: the same input, model and exact
profile give the same tokens on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

from protocols.codec import Wire, decode, encode
from protocols.errors import PeerFault
from protocols.limits import INPUT_BYTES_MAX, LM_CHUNK_UNITS, UNIT_VALUE_MAX, UNITS_MAX
from workloads.errors import InputRefused

__all__ = ["LmInput", "chunk_range", "decode_input", "encode_input", "finish_reason"]

_SEED_MAX = 2**64 - 1
_TEMPERATURE_MILLI_MAX = 100_000
_NO_STOP_TOKEN = -1


class LmInput(Wire, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A prompt and how to continue it.

    Args:
        prompt: token ids, at least one.
        max_tokens: output tokens, unless the stop token comes first.
        seed: fixes the sampling noise, in [0, 2**64).
        temperature_milli: 1000 samples from the model's own distribution, 0 always takes the likeliest token.
        top_k: sample among the k likeliest tokens; 0 for all.
        stop_token: ends the output, of which it is the last token; -1 for none.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    seed: int
    temperature_milli: int
    top_k: int = 0
    stop_token: int = _NO_STOP_TOKEN

    def check(self, *, vocabulary: int = UNIT_VALUE_MAX + 1, positions: int = UNITS_MAX) -> None:
        """Hold the input against the protocol's limits and, where given, a model's.

        Args:
            vocabulary: token ids lie below it.
            positions: prompt and output together must fit in them.

        Raises:
            InputRefused: the first field that breaks a rule.
        """
        if not self.prompt:
            raise InputRefused("prompt must hold at least one token")
        for index, token in enumerate(self.prompt):
            if not 0 <= token < vocabulary:
                raise InputRefused(f"prompt[{index}]={token} must be in [0, {vocabulary})")
        _within("max_tokens", self.max_tokens, 1, UNITS_MAX)
        _within("seed", self.seed, 0, _SEED_MAX)
        _within("temperature_milli", self.temperature_milli, 0, _TEMPERATURE_MILLI_MAX)
        _within("top_k", self.top_k, 0, UNIT_VALUE_MAX)
        _within("stop_token", self.stop_token, _NO_STOP_TOKEN, vocabulary - 1)
        total = len(self.prompt) + self.max_tokens
        if total > positions:
            raise InputRefused(
                f"prompt of {len(self.prompt)} and max_tokens={self.max_tokens} need {total} positions, "
                f"more than {positions}"
            )


def encode_input(value: LmInput) -> bytes:
    """The canonical bytes of an input, as a job carries it.

    Raises:
        InputRefused: the input breaks a limit.
    """
    value.check()
    data = encode(value)
    if len(data) > INPUT_BYTES_MAX:
        raise InputRefused(f"input of {len(data)} bytes exceeds {INPUT_BYTES_MAX}")
    return data


def decode_input(data: bytes) -> LmInput:
    """Read the bytes of `encode_input`.

    Raises:
        InputRefused: the bytes are not a canonical input within the limits.
    """
    try:
        value = decode(data, LmInput, bytes_max=INPUT_BYTES_MAX)
    except PeerFault as error:
        raise InputRefused(str(error)) from error
    value.check()
    return value


def finish_reason(value: LmInput, units: Sequence[int]) -> str | None:
    """Why ``units`` are a whole output: ``"stop"``, ``"length"``, or None if they are not one.

    They are not if they end early, run past ``max_tokens`` or past the stop token.
    """
    if not units or len(units) > value.max_tokens:
        return None
    if value.stop_token != _NO_STOP_TOKEN and value.stop_token in units:
        return "stop" if units.index(value.stop_token) == len(units) - 1 else None
    return "length" if len(units) == value.max_tokens else None


def chunk_range(chunk: int, units: int) -> range:
    """Positions in the output that chunk number ``chunk`` of an output of ``units`` tokens covers.

    Raises:
        InputRefused: there is no such chunk.
    """
    first = chunk * LM_CHUNK_UNITS
    if not 0 <= first < units:
        raise InputRefused(f"chunk {chunk} does not exist in an output of {units} tokens")
    return range(first, min(first + LM_CHUNK_UNITS, units))


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InputRefused(f"{name}={value} must be in [{low}, {high}]")
