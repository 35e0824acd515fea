"""The same decoder in exact arithmetic: one set of bits, however and wherever it is run.

Decode, prefill, any split, batch, thread count and machine agree.

The profile, so that another implementation can be written:

1. The residual stream is float64. A norm's gain is multiplied into the columns of the projections that follow
   it (exact in float64) before they are quantised; the final norm's gain is applied to its output.
2. Every projection contracts a quantised row (`quantise`) with a quantised weight row. Under a norm the
   division by the root mean square, taken of the same quantised row, follows the contraction.
3. Attention, SwiGLU and rotary tables as in `workloads.exact`.
4. The final hidden state is rounded to float32; logits contract that with the output embedding.

Weights are float32 and a norm bounds what follows it, so the residual stream is the only place where a
magnitude could leave the range in which float64 sums are exact: it is checked at every norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from workloads.errors import NumericsRefused
from workloads.exact.attention import LayerCache, attend, causal_mask, rotate_inplace
from workloads.exact.functions import LOG2_E, root_mean_square, silu_times
from workloads.exact.kernels import kernels
from workloads.exact.linear import PackedMatrix
from workloads.exact.quantise import EXPONENT_MAX, Float64, Precision, quantise
from workloads.exact.rope import RotaryTable
from workloads.llama.config import LlamaConfig
from workloads.llama.fused_model import FusedCache, FusedLayers, LayerPanels
from workloads.llama.spans import Lengths, Span

__all__ = ["ExactCache", "ExactDecoder"]

_CEILING = 2.0**EXPONENT_MAX


class ExactCache(Lengths):
    """Keys and values of all layers for ``batch`` sequences of at most ``capacity`` positions."""

    def __init__(self, config: LlamaConfig, batch: int, capacity: int) -> None:
        super().__init__(batch, capacity)
        heads, width = config.num_key_value_heads, config.head_dim
        self.layers = [
            [LayerCache(1, heads, capacity, width) for _ in range(config.num_hidden_layers)]
            for _ in range(batch)
        ]
        """By sequence, then by layer."""


class ExactDecoder:
    """Decoder over weights with Hugging Face names, in an exact profile.

    Args:
        config: the model's shape.
        weights: tensors as `load_weights` returns them, float32, finite.
        precision: `EXACT14` or `EXACT21`.
    """

    def __init__(self, config: LlamaConfig, weights: Mapping[str, Tensor], precision: Precision) -> None:
        self.config = config
        self._precision = precision
        self._rotary = RotaryTable(config.rope_theta, config.head_dim)
        self._mask = causal_mask()
        arrays = {name: tensor.numpy().astype(np.float64) for name, tensor in weights.items()}
        self._embedding = arrays["model.embed_tokens.weight"]
        head = self._embedding if config.tie_word_embeddings else arrays["lm_head.weight"]
        self._head = PackedMatrix(head, precision)
        self._gain = arrays["model.norm.weight"]
        self._layers = [
            _Layer(config, arrays, f"model.layers.{i}.", precision) for i in range(config.num_hidden_layers)
        ]
        # Queries carry the softmax's base change and scale; values are not rotated.
        heads = np.arange(config.num_attention_heads + 2 * config.num_key_value_heads)
        self._is_query = (heads < config.num_attention_heads)[:, None, None]
        self._is_value = (heads >= len(heads) - config.num_key_value_heads)[:, None, None]
        self._query_scale = LOG2_E / float(np.sqrt(np.float64(config.head_dim)))
        self._fused = self._fuse()

    def new_cache(self, batch: int, capacity: int) -> ExactCache | FusedCache:
        """An empty cache."""
        if self._fused is not None:
            return self._fused.new_cache(batch, capacity)
        return ExactCache(self.config, batch, capacity)

    def forward(self, tokens: NDArray[np.int64], cache: ExactCache | FusedCache) -> NDArray[np.float32]:
        """Final-norm'ed hidden states of ``tokens``, which follow what the cache holds.

        Args:
            tokens: (batch, count) token ids below the vocabulary size.
            cache: extended in place; its capacity must suffice.

        Returns:
            (batch, count, hidden).

        Raises:
            NumericsRefused: the residual stream holds NaN, Inf or more than 2**500.
        """
        spans = [Span(sequence, row) for sequence, row in enumerate(tokens) if len(row)]
        if len(tokens) != cache.batch:
            raise ValueError(f"a cache of {cache.batch} can't take positions of {len(tokens)} sequences")
        return self.extend(spans, cache).reshape(*tokens.shape, -1)

    def extend(self, spans: Sequence[Span], cache: ExactCache | FusedCache) -> NDArray[np.float32]:
        """Final-norm'ed hidden states of pieces of several sequences.

        Args:
            spans: each a piece of another sequence of the cache.
            cache: extended in place; its capacity must suffice.

        Returns:
            (positions of all spans, hidden), span after span.

        Raises:
            NumericsRefused: as `forward`.
            ValueError: as `Lengths.check`.
        """
        if not spans:
            return np.empty((0, self.config.hidden_size), dtype=np.float32)
        tokens = spans[0].tokens if len(spans) == 1 else np.concatenate([span.tokens for span in spans])
        if isinstance(cache, FusedCache):
            return self._extend_fused(tokens, spans, cache)
        cache.check(spans)
        starts = [cache.lengths[span.sequence] for span in spans]
        rotations = [
            self._rotation(start, len(span.tokens)) for start, span in zip(starts, spans, strict=True)
        ]
        with np.errstate(all="ignore"):
            stream: Float64 = self._embedding.take(tokens, axis=0)
            for index, layer in enumerate(self._layers):
                projected = layer.project(stream, f"layer {index} attention")
                seen = self._attend(projected, index, spans, starts, rotations, cache)
                stream += layer.output.apply(quantise(seen, self._precision.bits))
                stream += layer.transform(stream, f"layer {index} feed-forward")
            hidden = self._final_norm(stream)
        cache.extend(spans)
        return hidden

    def _attend(  # noqa: PLR0917
        self,
        projected: Float64,
        index: int,
        spans: Sequence[Span],
        starts: Sequence[int],
        rotations: Sequence[tuple[Float64, Float64]],
        cache: ExactCache,
    ) -> Float64:
        """Each span's rows attend to its own sequence."""
        rows, first = [], 0
        for (sequence, tokens), start, (cosines, sines) in zip(spans, starts, rotations, strict=True):
            stop = first + len(tokens)
            mixed = projected[first:stop].reshape(1, len(tokens), -1, self.config.head_dim)
            rotate_inplace(mixed, cosines, sines)
            layer = cache.layers[sequence][index]
            rows.append(
                attend(mixed, layer, start, self.config.num_attention_heads, self._precision, self._mask)
            )
            first = stop
        return np.concatenate(rows)

    def logits(self, hidden: NDArray[np.float32]) -> Float64:
        """Unnormalised log-probabilities (rows, vocab) of final hidden states (rows, hidden)."""
        return self._head.multiply(hidden.astype(np.float64))

    def _fuse(self) -> FusedLayers | None:
        loaded = kernels()
        layers = [panels for layer in self._layers if (panels := layer.panels()) is not None]
        if loaded is None or len(layers) < len(self._layers):
            return None
        return FusedLayers(loaded, self.config, layers, self._gain, self._query_scale)

    def _extend_fused(
        self, tokens: NDArray[np.int64], spans: Sequence[Span], cache: FusedCache
    ) -> NDArray[np.float32]:
        if self._fused is None:
            raise TypeError("a fused cache belongs to a decoder with kernels")
        stream = self._embedding.take(tokens, axis=0)
        rows = [self._rotary.rows(cache.lengths[sequence], len(piece)) for sequence, piece in spans]
        cosines, sines = rows[0]
        if len(rows) > 1:
            cosines = np.concatenate([cosine for cosine, _ in rows])
            sines = np.concatenate([sine for _, sine in rows])
        hidden, status = self._fused.run(stream, cosines, sines, spans, cache)
        if status:
            index, part = divmod(status - 1, 2)
            is_final = index == self.config.num_hidden_layers
            block = "feed-forward" if part else "attention"
            raise _out_of_range("final norm" if is_final else f"layer {index} {block}")
        return hidden

    def _final_norm(self, stream: Float64) -> NDArray[np.float32]:
        quantised = _checked(quantise(stream, self._precision.bits), "final norm")
        stream /= root_mean_square(quantised, self.config.rms_norm_eps, self._precision.inner_max)
        stream *= self._gain
        return stream.astype(np.float32)

    def _rotation(self, start: int, count: int) -> tuple[Float64, Float64]:
        """Tables for all heads: cosines (count, heads, 1, half) and sines (count, heads, 2, half)."""
        cosines, sines = (rows[:, None, None, :] for rows in self._rotary.rows(start, count))
        factors = np.where(self._is_query, self._query_scale, 1.0)
        signs = np.array([-1.0, 1.0])[:, None]
        turned = np.where(self._is_value, 0.0, sines * factors * signs)
        return np.where(self._is_value, 1.0, cosines * factors), turned


class _Layer:
    def __init__(
        self, config: LlamaConfig, arrays: Mapping[str, Float64], prefix: str, precision: Precision
    ) -> None:
        self._bits = precision.bits
        self._inner_max = precision.inner_max
        self._epsilon = config.rms_norm_eps
        self._inner = config.intermediate_size
        attention_gain = arrays[prefix + "input_layernorm.weight"]
        mlp_gain = arrays[prefix + "post_attention_layernorm.weight"]
        attention = np.concatenate([arrays[f"{prefix}self_attn.{name}_proj.weight"] for name in "qkv"])
        gate_up = np.concatenate([arrays[f"{prefix}mlp.{name}_proj.weight"] for name in ("gate", "up")])
        self._query_key_value = PackedMatrix(attention * attention_gain, precision)
        self._gate_up = PackedMatrix(gate_up * mlp_gain, precision)
        self.output = PackedMatrix(arrays[prefix + "self_attn.o_proj.weight"], precision)
        self._down = PackedMatrix(arrays[prefix + "mlp.down_proj.weight"], precision)

    def panels(self) -> LayerPanels | None:
        """The projections as the kernels take them, or None if they don't."""
        matrices = (self._query_key_value, self.output, self._gate_up, self._down)
        panels = [matrix.panels for matrix in matrices if matrix.panels is not None]
        return LayerPanels(*panels) if len(panels) == len(matrices) else None

    def project(self, stream: Float64, name: str) -> Float64:
        """Norm and the query, key and value projections of (rows, hidden)."""
        return self._normed(stream, self._query_key_value, name)

    def transform(self, stream: Float64, name: str) -> Float64:
        """Norm and the SwiGLU block."""
        both = self._normed(stream, self._gate_up, name)
        inner = silu_times(both[:, : self._inner], both[:, self._inner :])
        return self._down.apply(quantise(inner, self._bits))

    def _normed(self, stream: Float64, matrix: PackedMatrix, name: str) -> Float64:
        quantised = _checked(quantise(stream, self._bits), name)
        product = matrix.apply(quantised)
        product /= root_mean_square(quantised, self._epsilon, self._inner_max)
        return product


def _checked(quantised: Float64, name: str) -> Float64:
    # Written so that NaN fails too.
    if not (
        np.minimum.reduce(quantised, axis=None) >= -_CEILING
        and np.maximum.reduce(quantised, axis=None) <= _CEILING
    ):
        raise _out_of_range(name)
    return quantised


def _out_of_range(name: str) -> NumericsRefused:
    return NumericsRefused(
        f"hidden state entering {name} holds NaN, Inf or a magnitude above 2**{EXPONENT_MAX}"
    )
