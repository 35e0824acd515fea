"""A BERT encoder and the pooling after it, for whichever operators it is given.

Texts of a batch lie one after another: a linear layer takes the rows of all of them at once, and attention
the texts of one length together. So nothing is padded, and in exact arithmetic a text's vector doesn't depend
on the texts around it.
Sources: Devlin et al., "BERT: pre-training of deep bidirectional transformers for language understanding",
2019; Reimers and Gurevych, "Sentence-BERT: sentence embeddings using Siamese BERT-networks", 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from workloads import exact
from workloads.embedding.config import BertConfig
from workloads.errors import InputRefused
from workloads.exact.linear import PackedMatrix

__all__ = ["Encoder", "Exact", "Native", "Operators"]

_LENGTH_MIN = 1e-12
"""As torch's normalize has it."""


class Operators(Protocol):
    """What an encoder is made of; everything in the operators' own dtype."""

    dtype: torch.dtype

    def pack(self, weight: Tensor) -> object:
        """A weight (outputs, inputs) as `linear` takes it, prepared once."""

    def linear(self, x: Tensor, weight: object, bias: Tensor) -> Tensor:
        """x (rows, inputs) · weightᵀ + bias."""

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        """Over the last dimension."""

    def gelu(self, x: Tensor, approximate: str) -> Tensor:
        """Elementwise."""

    def attention(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Each (texts, heads, tokens, width); every token sees all of its text."""

    def mean(self, x: Tensor) -> Tensor:
        """Of rows (rows, width): (width,)."""

    def length(self, x: Tensor) -> Tensor:
        """Of a vector (width,): (1,)."""


class Exact:
    """The operators of one exact precision."""

    dtype = torch.float64

    def __init__(self, precision: exact.Precision) -> None:
        self._precision = precision

    def pack(self, weight: Tensor) -> object:
        """See `Operators`."""
        return PackedMatrix(weight.to(torch.float64).numpy(), self._precision)

    def linear(self, x: Tensor, weight: object, bias: Tensor) -> Tensor:
        """See `Operators`."""
        assert isinstance(weight, PackedMatrix)  # noqa: S101
        return torch.from_numpy(weight.multiply(x.contiguous().numpy())).add_(bias)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        """See `Operators`."""
        return exact.layer_norm(x, weight, bias, epsilon=epsilon)

    def gelu(self, x: Tensor, approximate: str) -> Tensor:
        """See `Operators`."""
        return exact.gelu(x, approximate=approximate)

    def attention(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Operators`."""
        return exact.attention(queries, keys, values, precision=self._precision)

    def mean(self, x: Tensor) -> Tensor:
        """See `Operators`."""
        return exact.mean(x, 0)

    def length(self, x: Tensor) -> Tensor:
        """See `Operators`."""
        return exact.sqrt(exact.sum(x * x, 0, keepdim=True))


class Native:
    """torch's own operators in float32: fast, and different from machine to machine."""

    dtype = torch.float32

    def pack(self, weight: Tensor) -> object:
        """See `Operators`."""
        return weight.to(self.dtype)

    def linear(self, x: Tensor, weight: object, bias: Tensor) -> Tensor:
        """See `Operators`."""
        assert isinstance(weight, Tensor)  # noqa: S101
        return torch.nn.functional.linear(x, weight, bias)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        """See `Operators`."""
        return torch.nn.functional.layer_norm(x, weight.shape, weight, bias, epsilon)

    def gelu(self, x: Tensor, approximate: str) -> Tensor:
        """See `Operators`."""
        return torch.nn.functional.gelu(x, approximate=approximate)

    def attention(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Operators`."""
        return torch.nn.functional.scaled_dot_product_attention(queries, keys, values)

    def mean(self, x: Tensor) -> Tensor:
        """See `Operators`."""
        return x.mean(0)

    def length(self, x: Tensor) -> Tensor:
        """See `Operators`."""
        length: Tensor = torch.linalg.vector_norm(x, dim=0, keepdim=True)
        return length


class Encoder:
    """An encoder with its weights.

    Args:
        config: its shape.
        weights: as `workloads.embedding.config.expected_shapes`, finite.
        operators: the arithmetic.
    """

    def __init__(self, config: BertConfig, weights: Mapping[str, Tensor], operators: Operators) -> None:
        self.config = config
        self._operators = operators
        self._vectors: dict[str, Tensor] = {}
        self._matrices: dict[str, object] = {}
        for name, weight in weights.items():
            if weight.dim() == 1 or name.startswith("embeddings."):
                # The tables stay as they are: of most, a job needs a few rows.
                self._vectors[name] = weight if weight.dim() > 1 else weight.to(operators.dtype)
        for layer in range(config.num_hidden_layers):
            prefix = f"encoder.layer.{layer}."
            for name in ("attention.output.dense", "intermediate.dense", "output.dense"):
                self._matrices[prefix + name] = operators.pack(weights[f"{prefix}{name}.weight"])
            mixed = [f"{prefix}attention.self.{name}" for name in ("query", "key", "value")]
            self._matrices[f"{prefix}attention.self"] = operators.pack(
                torch.cat([weights[f"{name}.weight"] for name in mixed])
            )
            self._vectors[f"{prefix}attention.self.bias"] = torch.cat(
                [self._vectors[f"{name}.bias"] for name in mixed]
            )

    def states(self, texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """The last layer's states of some texts.

        Args:
            texts: tokens of each.

        Returns:
            (tokens, hidden) for each.

        Raises:
            InputRefused: a text is empty or too long, or holds a token that there isn't.
            NumericsRefused: the computation left the range of exact arithmetic.
        """
        self._check(texts)
        # Texts of one length lie together, so that attention takes them as one.
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        lengths = [len(texts[number]) for number in order]
        tokens = torch.tensor([token for number in order for token in texts[number]])
        positions = torch.cat([torch.arange(length) for length in lengths])
        x = (
            self._rows("word_embeddings", tokens)
            + self._rows("position_embeddings", positions)
            + self._rows("token_type_embeddings", torch.zeros_like(positions))
        )
        x = self._norm("embeddings.LayerNorm", x)
        for layer in range(self.config.num_hidden_layers):
            x = self._layer(f"encoder.layer.{layer}.", x, lengths)
        found = dict(zip(order, torch.split(x, lengths), strict=True))
        return [found[number] for number in range(len(texts))]

    def pool(self, states: Tensor, pooling: str) -> Tensor:
        """One vector (hidden,) of a text's states: their ``mean``, or the first one's, ``cls``."""
        return self._operators.mean(states) if pooling == "mean" else states[0]

    def normalise(self, vector: Tensor) -> Tensor:
        """The vector (hidden,) scaled to length 1; zeros stay zeros."""
        return vector / self._operators.length(vector).clamp(min=_LENGTH_MIN)

    def _check(self, texts: Sequence[Sequence[int]]) -> None:
        tokens_max = self.config.max_position_embeddings
        for number, text in enumerate(texts):
            if not 1 <= len(text) <= tokens_max:
                raise InputRefused(f"text {number} of {len(text)} tokens must have 1 to {tokens_max}")
            if not max(text) < self.config.vocab_size:
                raise InputRefused(
                    f"text {number} holds token {max(text)}, must be below {self.config.vocab_size}"
                )

    def _rows(self, table: str, indices: Tensor) -> Tensor:
        return self._vectors[f"embeddings.{table}.weight"][indices].to(self._operators.dtype)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._vectors[f"{name}.weight"], self._vectors[f"{name}.bias"]
        return self._operators.layer_norm(x, weight, bias, self.config.layer_norm_eps)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return self._operators.linear(x, self._matrices[name], self._vectors[f"{name}.bias"])

    def _layer(self, prefix: str, x: Tensor, lengths: Sequence[int]) -> Tensor:
        mixed = self._linear(f"{prefix}attention.self", x)
        attended = self._linear(f"{prefix}attention.output.dense", self._attend(mixed, lengths))
        x = self._norm(f"{prefix}attention.output.LayerNorm", attended + x)
        inner = self._operators.gelu(self._linear(f"{prefix}intermediate.dense", x), self.config.approximate)
        return self._norm(f"{prefix}output.LayerNorm", self._linear(f"{prefix}output.dense", inner) + x)

    def _attend(self, mixed: Tensor, lengths: Sequence[int]) -> Tensor:
        """Attention of (rows, queries, keys and values), text by text; lengths in ascending order."""
        heads = self.config.num_attention_heads
        parts, row = [], 0
        for length in sorted(set(lengths)):
            texts = lengths.count(length)
            rows = mixed[row : row + texts * length]
            # (queries, keys, values; texts, heads, tokens, width)
            apart = rows.view(texts, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
            seen = self._operators.attention(apart[0], apart[1], apart[2])
            parts.append(seen.transpose(1, 2).reshape(texts * length, -1))
            row += texts * length
        return torch.cat(parts)
