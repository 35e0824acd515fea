"""Whisper's encoder and decoder, for whichever operators they are given.

In exact arithmetic the decoder gives the same bits whether tokens come one by one or all at once, since no
position's result depends on how many others are computed with it. So a verifier needs one pass over the
claimed tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from workloads import exact
from workloads.errors import ModelRefused
from workloads.exact.contraction import product, round_along
from workloads.speech.config import WhisperConfig
from workloads.speech.mel import FRAMES, SPECTRUM

__all__ = ["Memory", "Network", "shapes"]

# With fewer rows than this, rounding the weights anew would cost more than the product.
_ROWS_FEW = 16
MEL_FILTERS = "mel_filters"
_EPSILON = 1e-5


def shapes(config: WhisperConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every weight, by its Hugging Face name; ``mel_filters`` is the filter bank."""
    width = config.d_model
    table: dict[str, tuple[int, ...]] = {
        MEL_FILTERS: (config.num_mel_bins, SPECTRUM),
        "model.encoder.conv1.weight": (width, config.num_mel_bins, 3),
        "model.encoder.conv1.bias": (width,),
        "model.encoder.conv2.weight": (width, width, 3),
        "model.encoder.conv2.bias": (width,),
        "model.encoder.embed_positions.weight": (config.max_source_positions, width),
        "model.decoder.embed_positions.weight": (config.max_target_positions, width),
        "model.decoder.embed_tokens.weight": (config.vocab_size, width),
    }
    for part, layers, inner, attentions in (
        ("encoder", config.encoder_layers, config.encoder_ffn_dim, ("self_attn",)),
        ("decoder", config.decoder_layers, config.decoder_ffn_dim, ("self_attn", "encoder_attn")),
    ):
        norms = [f"model.{part}.layer_norm"]
        for layer in range(layers):
            name = f"model.{part}.layers.{layer}"
            for attention in attentions:
                norms.append(f"{name}.{attention}_layer_norm")
                for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    table[f"{name}.{attention}.{projection}.weight"] = (width, width)
                    if projection != "k_proj":
                        table[f"{name}.{attention}.{projection}.bias"] = (width,)
            norms.append(f"{name}.final_layer_norm")
            table |= {
                f"{name}.fc1.weight": (inner, width),
                f"{name}.fc1.bias": (inner,),
                f"{name}.fc2.weight": (width, inner),
                f"{name}.fc2.bias": (width,),
            }
        for norm in norms:
            table |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    return table


class Operators(Protocol):
    """What the network is made of; everything in the operators' own dtype."""

    dtype: torch.dtype

    def layer(self, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        """A linear layer, prepared once: rows (count, inputs) to x · weightᵀ + bias."""

    def conv1d(self, x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        """Cross-correlation with a margin of one."""

    def gelu(self, x: Tensor) -> Tensor:
        """Elementwise."""

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Over the last dimension."""

    def attention(self, queries: Tensor, keys: Tensor, values: Tensor, causal: bool) -> Tensor:
        """Each (heads, positions, width); a causal one ends at the last key."""


class _Exact:
    """The operators of one exact precision."""

    dtype = torch.float64

    def __init__(self, precision: exact.Precision) -> None:
        self._precision = precision

    def layer(self, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        return _Linear(weight, bias, self._precision)

    def conv1d(self, x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        return exact.conv1d(x, weight, bias, stride=stride, padding=1, precision=self._precision)

    def gelu(self, x: Tensor) -> Tensor:
        return exact.gelu(x)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return exact.layer_norm(x, weight, bias, epsilon=_EPSILON)

    def attention(self, queries: Tensor, keys: Tensor, values: Tensor, causal: bool) -> Tensor:
        return exact.attention(queries, keys, values, causal=causal, precision=self._precision)


class _Native:
    """torch's own operators in float32."""

    dtype = torch.float32

    def layer(self, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        weight, bias = weight.to(self.dtype), None if bias is None else bias.to(self.dtype)
        return lambda x: F.linear(x, weight, bias)

    def conv1d(self, x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        return F.conv1d(x, weight.to(self.dtype), bias.to(self.dtype), stride=stride, padding=1)

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, weight.shape, weight.to(self.dtype), bias.to(self.dtype), _EPSILON)

    def attention(self, queries: Tensor, keys: Tensor, values: Tensor, causal: bool) -> Tensor:
        count, length = queries.shape[1], keys.shape[1]
        mask = torch.ones(count, length, dtype=torch.bool).tril(length - count) if causal else None
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)


class _Linear:
    """A layer whose weights are rounded once."""

    def __init__(self, weight: Tensor, bias: Tensor | None, precision: exact.Precision) -> None:
        self._weight = weight.to(torch.float64)
        self._bias = None if bias is None else bias.to(torch.float64)
        self._precision = precision
        self._rounded = round_along("weight", self._weight, -1, precision.bits).transpose()

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) >= _ROWS_FEW:
            return exact.linear(x, self._weight, self._bias, precision=self._precision)
        result = product(round_along("x", x, -1, self._precision.bits), self._rounded, self._precision)
        if self._bias is not None:
            result += self._bias
        return result


@dataclass(slots=True)
class _Seen:
    """Keys and values of one layer: (heads, positions, width of a head)."""

    keys: Tensor
    values: Tensor


@dataclass(slots=True)
class Memory:
    """What the decoder keeps of a window: the encoder's keys and values, and those of the tokens so far."""

    heard: list[_Seen]
    written: list[_Seen]
    count: int = 0


class Network:
    """One loaded model.

    Args:
        config: its shape.
        weights: as `shapes`.
        precision: of all products but the spectrogram's; None for torch's own kernels.

    Raises:
        ModelRefused: a weight is missing, surplus or of another shape.
        NumericsRefused: a weight is NaN, Inf or too large.
    """

    def __init__(
        self, config: WhisperConfig, weights: Mapping[str, Tensor], precision: exact.Precision | None
    ) -> None:
        wanted = shapes(config)
        for name in sorted(wanted.keys() ^ weights.keys()):
            raise ModelRefused(f"tensor {name!r} is {'missing' if name in wanted else 'not one of Whisper'}")
        for name, shape in wanted.items():
            if tuple(weights[name].shape) != shape:
                raise ModelRefused(f"tensor {name!r} of shape {tuple(weights[name].shape)} must have {shape}")
        self.config = config
        self.filters = weights[MEL_FILTERS].to(torch.float64)
        self._operators: Operators = _Native() if precision is None else _Exact(precision)
        self._weights = weights
        self._layers = {
            name.removesuffix(".weight"): self._operators.layer(
                weight, weights.get(name.removesuffix(".weight") + ".bias")
            )
            for name, weight in weights.items()
            if name.endswith(("_proj.weight", ".fc1.weight", ".fc2.weight"))
        }
        self._vocabulary = self._operators.layer(weights["model.decoder.embed_tokens.weight"], None)

    def encode(self, spectrogram: Tensor) -> Tensor:
        """(bins, `FRAMES`) to (positions, width)."""
        config = self.config
        x = spectrogram.to(self._operators.dtype).unsqueeze(0)
        for name, stride in (("conv1", 1), ("conv2", 2)):
            weight, bias = (self._weights[f"model.encoder.{name}.{each}"] for each in ("weight", "bias"))
            x = self._operators.gelu(self._operators.conv1d(x, weight, bias, stride))
        states = x.squeeze(0).T.contiguous()
        states = states + self._weights["model.encoder.embed_positions.weight"][: FRAMES // 2]
        for layer in range(config.encoder_layers):
            name = f"model.encoder.layers.{layer}"
            normal = self._norm(f"{name}.self_attn_layer_norm", states)
            seen = self._see(f"{name}.self_attn", normal, config.encoder_attention_heads)
            states = states + self._attend(f"{name}.self_attn", normal, seen, causal=False)
            states = self._feed_forward(name, states)
        return self._norm("model.encoder.layer_norm", states)

    def listen(self, heard: Tensor) -> Memory:
        """What the decoder needs of the encoder's states."""
        config = self.config
        heads = config.decoder_attention_heads
        names = [f"model.decoder.layers.{layer}" for layer in range(config.decoder_layers)]
        nothing = heard.new_empty((heads, 0, config.d_model // heads))
        return Memory(
            [self._see(f"{name}.encoder_attn", heard, heads) for name in names],
            [_Seen(nothing, nothing) for _ in names],
        )

    def decode(self, tokens: Tensor, memory: Memory) -> Tensor:
        """The states from which the tokens after ``tokens`` are chosen: (count, width).

        Args:
            tokens: (count,) int64, after those that ``memory`` knows.
            memory: knows these too afterwards.
        """
        config = self.config
        first, memory.count = memory.count, memory.count + len(tokens)
        positions = self._weights["model.decoder.embed_positions.weight"][first : memory.count]
        words = exact.embedding(self._weights["model.decoder.embed_tokens.weight"], tokens)
        states = words.to(self._operators.dtype) + positions
        for layer in range(config.decoder_layers):
            name = f"model.decoder.layers.{layer}"
            normal = self._norm(f"{name}.self_attn_layer_norm", states)
            new = self._see(f"{name}.self_attn", normal, config.decoder_attention_heads)
            old = memory.written[layer]
            seen = _Seen(torch.cat([old.keys, new.keys], 1), torch.cat([old.values, new.values], 1))
            memory.written[layer] = seen
            states = states + self._attend(f"{name}.self_attn", normal, seen, causal=True)
            normal = self._norm(f"{name}.encoder_attn_layer_norm", states)
            states = states + self._attend(f"{name}.encoder_attn", normal, memory.heard[layer], causal=False)
            states = self._feed_forward(name, states)
        return self._norm("model.decoder.layer_norm", states)

    def logits(self, states: Tensor) -> Tensor:
        """(count, vocabulary)."""
        return self._vocabulary(states)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return self._operators.layer_norm(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _see(self, name: str, x: Tensor, heads: int) -> _Seen:
        return _Seen(
            _split(self._layers[f"{name}.k_proj"](x), heads), _split(self._layers[f"{name}.v_proj"](x), heads)
        )

    def _attend(self, name: str, x: Tensor, seen: _Seen, *, causal: bool) -> Tensor:
        queries = _split(self._layers[f"{name}.q_proj"](x), len(seen.keys))
        mixed = self._operators.attention(queries, seen.keys, seen.values, causal)
        return self._layers[f"{name}.out_proj"](mixed.transpose(0, 1).reshape(x.shape))

    def _feed_forward(self, name: str, states: Tensor) -> Tensor:
        normal = self._norm(f"{name}.final_layer_norm", states)
        inner = self._operators.gelu(self._layers[f"{name}.fc1"](normal))
        return states + self._layers[f"{name}.fc2"](inner)


def _split(x: Tensor, heads: int) -> Tensor:
    """(count, width) to (heads, count, width of a head)."""
    return x.view(len(x), heads, -1).transpose(0, 1).contiguous()
