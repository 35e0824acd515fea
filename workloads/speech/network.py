"""Whisper's encoder and decoder in exact arithmetic.

The decoder gives the same bits whether tokens come one by one or all at once, since no position's result
depends on how many others are computed with it. So a verifier needs one pass over the claimed tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
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
    """One loaded model in one exact precision.

    Args:
        config: its shape.
        weights: as `shapes`.
        precision: of all products but the spectrogram's.

    Raises:
        ModelRefused: a weight is missing, surplus or of another shape.
        NumericsRefused: a weight is NaN, Inf or too large.
    """

    def __init__(
        self, config: WhisperConfig, weights: Mapping[str, Tensor], precision: exact.Precision
    ) -> None:
        wanted = shapes(config)
        for name in sorted(wanted.keys() ^ weights.keys()):
            raise ModelRefused(f"tensor {name!r} is {'missing' if name in wanted else 'not one of Whisper'}")
        for name, shape in wanted.items():
            if tuple(weights[name].shape) != shape:
                raise ModelRefused(f"tensor {name!r} of shape {tuple(weights[name].shape)} must have {shape}")
        self.config = config
        self.filters = weights[MEL_FILTERS].to(torch.float64)
        self._precision = precision
        self._weights = weights
        self._layers = {
            name.removesuffix(".weight"): _Linear(
                weight, weights.get(name.removesuffix(".weight") + ".bias"), precision
            )
            for name, weight in weights.items()
            if name.endswith(("_proj.weight", ".fc1.weight", ".fc2.weight"))
        }
        self._vocabulary = _Linear(weights["model.decoder.embed_tokens.weight"], None, precision)

    def encode(self, spectrogram: Tensor) -> Tensor:
        """(bins, `FRAMES`) to (positions, width)."""
        config = self.config
        x = spectrogram.unsqueeze(0)
        for name, stride in (("conv1", 1), ("conv2", 2)):
            weight, bias = (self._weights[f"model.encoder.{name}.{each}"] for each in ("weight", "bias"))
            x = exact.gelu(exact.conv1d(x, weight, bias, stride=stride, padding=1, precision=self._precision))
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
        states = exact.embedding(self._weights["model.decoder.embed_tokens.weight"], tokens) + positions
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
        return exact.layer_norm(
            x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], epsilon=1e-5
        )

    def _see(self, name: str, x: Tensor, heads: int) -> _Seen:
        return _Seen(
            _split(self._layers[f"{name}.k_proj"](x), heads), _split(self._layers[f"{name}.v_proj"](x), heads)
        )

    def _attend(self, name: str, x: Tensor, seen: _Seen, *, causal: bool) -> Tensor:
        queries = _split(self._layers[f"{name}.q_proj"](x), len(seen.keys))
        mixed = exact.attention(queries, seen.keys, seen.values, causal=causal, precision=self._precision)
        return self._layers[f"{name}.out_proj"](mixed.transpose(0, 1).reshape(x.shape))

    def _feed_forward(self, name: str, states: Tensor) -> Tensor:
        normal = self._norm(f"{name}.final_layer_norm", states)
        inner = exact.gelu(self._layers[f"{name}.fc1"](normal))
        return states + self._layers[f"{name}.fc2"](inner)


def _split(x: Tensor, heads: int) -> Tensor:
    """(count, width) to (heads, count, width of a head)."""
    return x.view(len(x), heads, -1).transpose(0, 1).contiguous()
