"""A Llama-family decoder in plain torch kernels: the reference, the trainer's forward pass, and the
``native`` numerics profile. Its bits depend on the machine; `workloads.exact` has the ones that don't.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from workloads.exact.rope import RotaryTable
from workloads.llama.config import LlamaConfig

__all__ = ["KeyValueCache", "NativeDecoder"]


class KeyValueCache:
    """Keys and values of the positions seen so far, preallocated for a whole job."""

    def __init__(self, config: LlamaConfig, batch: int, capacity: int) -> None:
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, capacity, config.head_dim)
        self.keys = torch.empty(shape)
        self.values = torch.empty(shape)
        self.length = 0


class NativeDecoder:
    """Decoder over weights with Hugging Face names; differentiable in them.

    Args:
        config: the model's shape.
        weights: tensors as `load_weights` returns them, float32.
    """

    def __init__(
        self, config: LlamaConfig, weights: Mapping[str, Tensor], rotary: RotaryTable | None = None
    ) -> None:
        self.config = config
        self._rotary = rotary or RotaryTable(config.rope_theta, config.head_dim)
        self._embedding = weights["model.embed_tokens.weight"]
        self._head = self._embedding if config.tie_word_embeddings else weights["lm_head.weight"]
        self._norm = weights["model.norm.weight"]
        self._layers = [
            _Layer(config, weights, f"model.layers.{i}.") for i in range(config.num_hidden_layers)
        ]

    def new_cache(self, batch: int, capacity: int) -> KeyValueCache:
        """An empty cache for ``batch`` sequences of at most ``capacity`` positions."""
        return KeyValueCache(self.config, batch, capacity)

    def forward(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Final-norm'ed hidden states of ``tokens``, which follow what the cache holds.

        Args:
            tokens: (batch, count) int64 token ids.
            cache: extended in place; None for a sequence that stands alone.

        Returns:
            (batch, count, hidden) float32.
        """
        start = 0 if cache is None else cache.length
        count = tokens.shape[1]
        cosines, sines = (torch.from_numpy(table).float() for table in self._rotary.rows(start, count))
        # A mask is needed only where new positions follow cached ones.
        mask = _causal_mask(start, count) if start and count > 1 else None
        hidden = F.embedding(tokens, self._embedding)
        for index, layer in enumerate(self._layers):
            hidden = hidden + layer.attend(hidden, cosines, sines, mask, cache, index)
            hidden = hidden + layer.transform(hidden)
        if cache is not None:
            cache.length += count
        return F.rms_norm(hidden, (self.config.hidden_size,), self._norm, self.config.rms_norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Unnormalised log-probabilities, (..., vocab) float32, of final hidden states (..., hidden)."""
        return F.linear(hidden, self._head)


class _Layer:
    def __init__(self, config: LlamaConfig, weights: Mapping[str, Tensor], prefix: str) -> None:
        self._config = config
        attention = [weights[f"{prefix}self_attn.{name}_proj.weight"] for name in "qkv"]
        self._query_key_value = torch.cat(attention)
        self._output = weights[prefix + "self_attn.o_proj.weight"]
        self._gate_up = torch.cat(
            [weights[prefix + "mlp.gate_proj.weight"], weights[prefix + "mlp.up_proj.weight"]]
        )
        self._down = weights[prefix + "mlp.down_proj.weight"]
        self._attention_norm = weights[prefix + "input_layernorm.weight"]
        self._mlp_norm = weights[prefix + "post_attention_layernorm.weight"]

    def attend(  # noqa: PLR0917
        self,
        hidden: Tensor,
        cosines: Tensor,
        sines: Tensor,
        mask: Tensor | None,
        cache: KeyValueCache | None,
        index: int,
    ) -> Tensor:
        c = self._config
        batch, count, _ = hidden.shape
        normed = F.rms_norm(hidden, (c.hidden_size,), self._attention_norm, c.rms_norm_eps)
        mixed = F.linear(normed, self._query_key_value).view(batch, count, -1, c.head_dim).transpose(1, 2)
        queries, keys = c.num_attention_heads, c.num_key_value_heads
        query, key, value = torch.split(mixed, [queries, keys, keys], dim=1)
        query, key = _rotate(query, cosines, sines), _rotate(key, cosines, sines)
        if cache is not None:
            stop = cache.length + count
            cache.keys[index, :, :, cache.length : stop] = key
            cache.values[index, :, :, cache.length : stop] = value
            key, value = cache.keys[index, :, :, :stop], cache.values[index, :, :, :stop]
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None and count > 1,
            enable_gqa=c.num_key_value_heads != c.num_attention_heads,
        )
        return F.linear(mixed.transpose(1, 2).reshape(batch, count, c.query_size), self._output)

    def transform(self, hidden: Tensor) -> Tensor:
        c = self._config
        normed = F.rms_norm(hidden, (c.hidden_size,), self._mlp_norm, c.rms_norm_eps)
        gate, up = F.linear(normed, self._gate_up).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self._down)


def _causal_mask(start: int, count: int) -> Tensor:
    return torch.ones(count, start + count, dtype=torch.bool).tril(start)


def _rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    # Hugging Face pairs element i with i + head_dim / 2, not with its neighbour.
    low, high = heads.chunk(2, dim=-1)
    return torch.cat((low * cosines - high * sines, high * cosines + low * sines), dim=-1)
