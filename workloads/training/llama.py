"""The loss of a Llama-family decoder as steps of a program, for training it in exact arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping

from workloads.llama.config import LlamaConfig
from workloads.llama.weights import expected_shapes
from workloads.program import Builder, Value

__all__ = ["adapter_shapes", "llama_loss", "llama_shapes"]

_ADAPTED = ("self_attn.q", "self_attn.v")


def llama_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Hugging Face's names and shapes of the parameters, sorted by name."""
    return dict(sorted(expected_shapes(config).items()))


def adapter_shapes(config: LlamaConfig, rank: int) -> dict[str, tuple[int, ...]]:
    """PEFT's names and shapes of the adapters beside a decoder, sorted by name."""
    whole = llama_shapes(config)
    shapes: dict[str, tuple[int, ...]] = {}
    for index in range(config.num_hidden_layers):
        for projection in _ADAPTED:
            outputs, inputs = whole[f"model.layers.{index}.{projection}_proj.weight"]
            shapes[_adapter(index, projection, "A")] = (rank, inputs)
            shapes[_adapter(index, projection, "B")] = (outputs, rank)
    return dict(sorted(shapes.items()))


def _adapter(layer: int, projection: str, side: str) -> str:
    return f"base_model.model.model.layers.{layer}.{projection}_proj.lora_{side}.weight"


def llama_loss(
    builder: Builder,
    config: LlamaConfig,
    parameters: Mapping[str, Value],
    tokens: Value,
    targets: Value,
    *,
    precision: str,
    adapter_scale: float = 0.0,
) -> Value:
    """Mean cross-entropy of the next token.

    Args:
        builder: takes the steps.
        config: the model's shape.
        parameters: a value for each name of `llama_shapes`, and of `adapter_shapes` if there are adapters.
        tokens: (batch, positions) int64.
        targets: (batch * positions,) int64, the token after each.
        precision: an exact profile.
        adapter_scale: what the adapters add is multiplied by this.

    Returns:
        A scalar.
    """
    batch, count = builder.shape(tokens)
    gains = {"epsilon": config.rms_norm_eps}

    def heads(rows: Value, number: int) -> Value:
        split = builder.apply("reshape", rows, shape=[batch, count, number, config.head_dim])
        return builder.apply("permute", split, order=[0, 2, 1, 3])

    def rotated(value: Value) -> Value:
        return builder.apply("rotary", value, theta=config.rope_theta, start=0, inverse=False)

    embedding = parameters["model.embed_tokens.weight"]
    rows = builder.apply("embedding", embedding, tokens)
    stream = builder.apply("reshape", rows, shape=[batch * count, config.hidden_size])
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}."

        def project(x: Value, name: str, index: int = index, layer: str = layer) -> Value:
            whole = builder.apply("linear", x, parameters[f"{layer}{name}_proj.weight"], precision=precision)
            narrowing = parameters.get(_adapter(index, name, "A"))
            if narrowing is None:
                return whole
            narrow = builder.apply("linear", x, narrowing, precision=precision)
            added = builder.apply(
                "linear", narrow, parameters[_adapter(index, name, "B")], precision=precision
            )
            return builder.apply("add", whole, builder.apply("scale", added, factor=adapter_scale))

        normed = builder.apply("rms_norm", stream, parameters[layer + "input_layernorm.weight"], **gains)
        queries = rotated(heads(project(normed, "self_attn.q"), config.num_attention_heads))
        keys = rotated(heads(project(normed, "self_attn.k"), config.num_key_value_heads))
        values = heads(project(normed, "self_attn.v"), config.num_key_value_heads)
        seen = builder.apply(
            "attention",
            queries,
            keys,
            values,
            causal=True,
            scale=1.0 / math.sqrt(config.head_dim),
            precision=precision,
        )
        mixed = builder.apply(
            "reshape",
            builder.apply("permute", seen, order=[0, 2, 1, 3]),
            shape=[batch * count, config.query_size],
        )
        stream = builder.apply("add", stream, project(mixed, "self_attn.o"))
        normed = builder.apply(
            "rms_norm", stream, parameters[layer + "post_attention_layernorm.weight"], **gains
        )
        gate = builder.apply("silu", project(normed, "mlp.gate"))
        inner = builder.apply("multiply", gate, project(normed, "mlp.up"))
        stream = builder.apply("add", stream, project(inner, "mlp.down"))
    hidden = builder.apply("rms_norm", stream, parameters["model.norm.weight"], **gains)
    head = embedding if config.tie_word_embeddings else parameters["lm_head.weight"]
    logits = builder.apply("linear", hidden, head, precision=precision)
    return builder.apply("cross_entropy", logits, targets)
