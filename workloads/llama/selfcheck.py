"""Does this machine reproduce the exact profiles? Asked before it offers to be judged by them.

Broken arithmetic (a BLAS that emulates float64, a library that switches on flush-to-zero, a faulty core)
would make an honest operator's results provably wrong. One case of each exact operator is run, then a small
model with fixed weights every way that must agree, and the bits are held against the published ones.
"""

from __future__ import annotations

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray

from workloads.errors import NumericsRefused
from workloads.exact.kernels import kernels, switch_off, use_kernels
from workloads.exact.published import check_operators
from workloads.exact.quantise import EXACT14, EXACT21, Precision
from workloads.llama.config import LlamaConfig
from workloads.llama.exact_model import ExactDecoder
from workloads.llama.weights import expected_shapes

__all__ = ["EXPECTED", "check_arithmetic", "reference_decoder", "reference_digests"]

EXPECTED = {
    "exact14": "08ddf7d7d98c150d06c7a119a3a1a2985281c616a5ee80249add77d6c6e22243",
    "exact21": "11d6e7fd5a3937654e27ab090556d09597a18d2efc79bc9d046172b0e4a0c6ea",
}
"""Digests of the reference run, by profile."""

_CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    rms_norm_eps=1e-6,
    rope_theta=10_000.0,
    tie_word_embeddings=True,
)
_TOKENS = 72
_SEED = 20


def check_arithmetic() -> None:
    """Run each exact operator and the reference model in both profiles; takes a few tenths of a second.

    Compiled kernels that are what is wrong are switched off.

    Raises:
        NumericsRefused: a digest differs from the published one; the message says of what.
    """
    try:
        _check_digests()
    except NumericsRefused as error:
        if kernels() is None:
            raise
        with use_kernels(None):
            _check_digests()
        switch_off(str(error))


def _check_digests() -> None:
    check_operators()
    for profile, digest in reference_digests().items():
        if digest != EXPECTED[profile]:
            raise NumericsRefused(
                f"this machine does not reproduce {profile}: "
                f"reference digest {digest}, must be {EXPECTED[profile]}"
            )


def reference_digests() -> dict[str, str]:
    """The digest that this machine gives, by profile."""
    return {precision.name: _digest(precision) for precision in (EXACT14, EXACT21)}


def reference_decoder(precision: Precision) -> tuple[ExactDecoder, NDArray[np.int64]]:
    """The reference model and the tokens (2, 72) to run it on."""
    generator = np.random.Generator(np.random.Philox(key=[_SEED, 0]))
    weights = {}
    for name, shape in expected_shapes(_CONFIG).items():
        # Integers over a power of two: exact in float32, with no help from any math library.
        numbers = generator.integers(-255, 256, shape).astype(np.float32)
        weights[name] = torch.from_numpy(numbers / 128 if len(shape) == 1 else numbers / 512)
    tokens = generator.integers(0, _CONFIG.vocab_size, (2, _TOKENS))
    return ExactDecoder(_CONFIG, weights, precision), tokens


def _digest(precision: Precision) -> str:
    decoder, tokens = reference_decoder(precision)
    cache = decoder.new_cache(2, _TOKENS)
    together = decoder.forward(tokens, cache)
    cache = decoder.new_cache(1, _TOKENS)
    first = decoder.forward(tokens[:1, :-8], cache)
    steps = [decoder.forward(tokens[:1, i : i + 1], cache) for i in range(_TOKENS - 8, _TOKENS)]
    alone = np.concatenate((first, *steps), axis=1)
    hasher = blake3(together.astype("<f4").tobytes())
    hasher.update(alone.astype("<f4").tobytes())
    hasher.update(decoder.logits(alone[0]).astype("<f8").tobytes())
    return hasher.hexdigest()
