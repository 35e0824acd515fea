"""One way to run a model, whatever the numerics profile: tokens in, hidden states and logits out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workloads.errors import InputRefused
from workloads.exact.quantise import EXACT14, EXACT21
from workloads.llama.config import LlamaConfig, load_config
from workloads.llama.exact_model import ExactDecoder
from workloads.llama.model import NativeDecoder
from workloads.llama.spans import Lengths, Span
from workloads.llama.weights import load_weights
from workloads.numerics import HOMOGENEOUS, NATIVE, REFERENCE

__all__ = [
    "EXACT_PROFILES",
    "PROFILES",
    "Decoder",
    "build_decoder",
    "load_model",
    "prefill",
]

EXACT_PROFILES = ("exact14", "exact21")
PROFILES = (*EXACT_PROFILES, HOMOGENEOUS, NATIVE, REFERENCE)
"""A class of machines follows ``homogeneous/``; the last is the exact run that judges native ones."""
# Any split gives the same bits in an exact profile; this one bounds memory.
_PREFILL_TOKENS = 256


class Decoder(Protocol):
    """A model in one numerics profile."""

    config: LlamaConfig

    def new_cache(self, batch: int, capacity: int) -> Any:
        """An empty cache for ``batch`` sequences of at most ``capacity`` positions."""

    def forward(self, tokens: NDArray[np.int64], cache: Any) -> NDArray[np.float32]:
        """Final hidden states (batch, count, hidden) of the tokens (batch, count) that follow the cache."""

    def extend(self, spans: Sequence[Span], cache: Any) -> NDArray[np.float32]:
        """Final hidden states (positions of all spans, hidden) of pieces of several sequences."""

    def logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits (rows, vocabulary) of final hidden states (rows, hidden)."""


class _NativeCache(Lengths):
    """A cache for each sequence: in native kernels a batch would change the bits of what is in it."""

    def __init__(self, decoder: NativeDecoder, batch: int, capacity: int) -> None:
        super().__init__(batch, capacity)
        self.caches = [decoder.new_cache(1, capacity) for _ in range(batch)]


class _Native:
    """`NativeDecoder` behind the numpy interface."""

    def __init__(self, config: LlamaConfig, weights: dict[str, Tensor]) -> None:
        self.config = config
        self._decoder = NativeDecoder(config, weights)

    def new_cache(self, batch: int, capacity: int) -> _NativeCache:
        return _NativeCache(self._decoder, batch, capacity)

    def forward(self, tokens: NDArray[np.int64], cache: _NativeCache) -> NDArray[np.float32]:
        spans = [Span(sequence, row) for sequence, row in enumerate(tokens)]
        return self.extend(spans, cache).reshape(*tokens.shape, -1)

    def extend(self, spans: Sequence[Span], cache: _NativeCache) -> NDArray[np.float32]:
        cache.check(spans)
        states = []
        with torch.inference_mode():
            for sequence, tokens in spans:
                held = cache.caches[sequence]
                held.length = cache.lengths[sequence]
                states.append(self._decoder.forward(torch.from_numpy(tokens[None]), held)[0].numpy())
        cache.extend(spans)
        return np.concatenate(states)

    def logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float64]:
        with torch.inference_mode():
            logits: NDArray[np.float64] = self._decoder.logits(torch.from_numpy(hidden)).double().numpy()
        return logits


def load_model(model_dir: Path) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """Configuration and float32 weights of a model directory.

    Raises:
        ModelRefused: as `load_config` and `load_weights`.
    """
    config = load_config(model_dir)
    return config, load_weights(model_dir, config)


def build_decoder(config: LlamaConfig, weights: dict[str, Tensor], profile: str) -> Decoder:
    """A decoder in one of `PROFILES`.

    Raises:
        InputRefused: the profile is unknown.
    """
    match profile.partition("/")[0]:
        case "exact14":
            return ExactDecoder(config, weights, EXACT14)
        case "exact21" | "native-reference":
            return ExactDecoder(config, weights, EXACT21)
        case "native" | "homogeneous":
            return _Native(config, weights)
    raise InputRefused(f"profile {profile!r} must be one of {PROFILES}")


def prefill(decoder: Decoder, tokens: NDArray[np.int64], cache: Any) -> NDArray[np.float32]:
    """Hidden states (count, hidden) of one sequence of token ids (count,), piece by piece."""
    pieces = [
        decoder.forward(tokens[None, start : start + _PREFILL_TOKENS], cache)[0]
        for start in range(0, len(tokens), _PREFILL_TOKENS)
    ]
    return np.concatenate(pieces)
