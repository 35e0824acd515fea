"""The part of a Hugging Face ``config.json`` that decides what a BERT encoder computes. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.errors import ModelRefused
from workloads.modelconfig import CONFIG_FILE, integer_field, read_fields

__all__ = ["MODEL_TYPE", "BertConfig", "expected_shapes", "load_config", "parse_config"]

MODEL_TYPE = "bert"
# Sizes beyond these are mistakes or attacks: they bound what a parsed config can make us allocate.
_SIZES_MAX = {
    "vocab_size": 1 << 20,
    "hidden_size": 1 << 14,
    "num_hidden_layers": 256,
    "num_attention_heads": 256,
    "intermediate_size": 1 << 16,
    "max_position_embeddings": 1 << 14,
    "type_vocab_size": 16,
}
_ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


@dataclass(frozen=True, slots=True)
class BertConfig:
    """One encoder's shape; every field is checked by `parse_config`.

    Args:
        vocab_size: and so on: see the Hugging Face ``BertConfig``.
        approximate: torch's word for the form of GELU.
        layer_norm_eps: added to variances.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    approximate: str
    layer_norm_eps: float


def load_config(model_dir: Path) -> BertConfig:
    """The configuration of a model directory.

    Raises:
        ModelRefused: the file is missing, too large, not JSON, or breaks a rule of `parse_config`.
    """
    return parse_config(read_fields(model_dir))


def parse_config(fields: dict[str, Any]) -> BertConfig:
    """Check the object of a ``config.json``.

    Raises:
        ModelRefused: it is another type of model, a size is missing or out of range, or it asks for what this
            code doesn't compute.
    """
    if fields.get("model_type") != MODEL_TYPE:
        raise ModelRefused(f"{CONFIG_FILE}: model_type={fields.get('model_type')!r} must be {MODEL_TYPE!r}")
    sizes = {name: integer_field(fields, name, 1, high) for name, high in _SIZES_MAX.items()}
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise ModelRefused(
            f"{CONFIG_FILE}: num_attention_heads={sizes['num_attention_heads']} "
            f"must divide hidden_size={sizes['hidden_size']}"
        )
    activation = fields.get("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise ModelRefused(f"{CONFIG_FILE}: hidden_act={activation!r} must be one of {sorted(_ACTIVATIONS)}")
    position = fields.get("position_embedding_type", "absolute")
    if position != "absolute":
        raise ModelRefused(f"{CONFIG_FILE}: position_embedding_type={position!r} must be 'absolute'")
    if fields.get("is_decoder") or fields.get("add_cross_attention"):
        raise ModelRefused(f"{CONFIG_FILE}: is_decoder and add_cross_attention must be false")
    epsilon = fields.get("layer_norm_eps", 1e-12)
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise ModelRefused(f"{CONFIG_FILE}: layer_norm_eps={epsilon!r} must be in (0, 1)")
    return BertConfig(**sizes, approximate=_ACTIVATIONS[activation], layer_norm_eps=epsilon)


def expected_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that is used, by its Hugging Face name."""
    hidden, inner = config.hidden_size, config.intermediate_size
    table: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config.vocab_size, hidden),
        "embeddings.position_embeddings.weight": (config.max_position_embeddings, hidden),
        "embeddings.token_type_embeddings.weight": (config.type_vocab_size, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    for layer in range(config.num_hidden_layers):
        prefix = f"encoder.layer.{layer}."
        for name, (outputs, inputs) in {
            "attention.self.query": (hidden, hidden),
            "attention.self.key": (hidden, hidden),
            "attention.self.value": (hidden, hidden),
            "attention.output.dense": (hidden, hidden),
            "intermediate.dense": (inner, hidden),
            "output.dense": (hidden, inner),
        }.items():
            table[f"{prefix}{name}.weight"] = (outputs, inputs)
            table[f"{prefix}{name}.bias"] = (outputs,)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            table[f"{prefix}{name}.weight"] = table[f"{prefix}{name}.bias"] = (hidden,)
    return table
