"""Which token follows: the likeliest that the rules of time tokens allow.

The rules are those of OpenAI's decoder: times come in pairs around what was said, never go back, the first is
within a second, and a time is written wherever times together are likelier than every word. All of it follows
from logits and the tokens so far, so a verifier derives each choice anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from workloads import exact
from workloads.speech.config import WhisperConfig

__all__ = ["choose", "miss"]

_FIRST_TIME_MAX = 50
"""In steps of 20 ms."""


def choose(config: WhisperConfig, logits: Tensor, written: Sequence[int]) -> int:
    """The next token.

    Args:
        config: the model's.
        logits: (vocabulary,) float64.
        written: the tokens so far, without the prompt.
    """
    allowed, times = _allowed(config, written), config.first_time_token_id
    word, time = _likeliest(logits[:times], allowed[:times]), _likeliest(logits[times:], allowed[times:])
    if time is None:
        return config.eos_token_id if word is None else word
    together = exact.logsumexp(logits[times:][allowed[times:]])
    if word is None or bool(together > logits[word]):
        return times + time
    return word


def miss(config: WhisperConfig, logits: Tensor, written: Sequence[int], token: int) -> float:
    """By how much probability a token misses being chosen: 0 if it is, 1 if the rules forbid it.

    Args:
        config: the model's.
        logits: (vocabulary,) float64.
        written: the tokens so far, without the prompt.
        token: claimed.
    """
    if token == choose(config, logits, written):
        return 0.0
    allowed, times = _allowed(config, written), config.first_time_token_id
    if not allowed[token]:
        return 1.0
    is_time = token >= times
    halves = zip(logits.tensor_split([times]), allowed.tensor_split([times]), strict=True)
    words, moments = (values[kept] for values, kept in halves)
    gaps = [float((moments if is_time else words).max() - logits[token])]
    if len(words) and len(moments):
        ahead = float(words.max() - torch.logsumexp(moments, 0))
        gaps.append(ahead if is_time else -ahead)
    return -math.expm1(-max(0.0, *gaps))


def _allowed(config: WhisperConfig, written: Sequence[int]) -> Tensor:
    allowed = torch.ones(config.vocab_size, dtype=torch.bool)
    allowed[list(config.suppress_tokens)] = False
    times, end = config.first_time_token_id, config.eos_token_id
    allowed[config.no_timestamps_token_id] = False
    # Besides words and times there are only tokens that steer the model.
    allowed[end + 1 : times] = False
    if not written:
        allowed[list(config.begin_suppress_tokens)] = False
        allowed[:times] = False
        allowed[times + _FIRST_TIME_MAX + 1 :] = False
    else:
        _pair(allowed, written, times, end)
    return allowed


def _pair(allowed: Tensor, written: Sequence[int], times: int, end: int) -> None:
    is_time = [token >= times for token in written[-2:]]
    if is_time[-1]:
        if len(is_time) < 2 or is_time[0]:
            # A pair is complete, or the first time is written: words follow.
            allowed[times:] = False
        else:
            # A time ends what was said, and begins what is said next.
            allowed[:end] = False
    earlier = [token for token in written if token >= times]
    if earlier:
        is_open = is_time[-1] and not (len(is_time) < 2 or is_time[0])
        allowed[times : earlier[-1] + (not is_open)] = False


def _likeliest(logits: Tensor, allowed: Tensor) -> int | None:
    if not bool(allowed.any()):
        return None
    return int(exact.argmax(torch.where(allowed, logits, -(2.0**499))))
