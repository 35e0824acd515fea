"""The part of a Hugging Face ``config.json`` that decides what a Llama decoder computes.

A field that would change the computation and that we do not implement is refused, never ignored:
a peer that silently computed something else would be convicted for it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.errors import ModelRefused

__all__ = ["CONFIG_BYTES_MAX", "LlamaConfig", "is_llama", "load_config", "parse_config", "read_config"]

CONFIG_BYTES_MAX = 1 << 20
_ARCHITECTURE = "LlamaForCausalLM"
# Sizes beyond these are mistakes or attacks: they bound what a parsed config can make us allocate.
_SIZE_MAX = {
    "vocab_size": 1 << 20,
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 18,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 10,
    "num_key_value_heads": 1 << 10,
    "head_dim": 1 << 10,
    "max_position_embeddings": 1 << 20,
}


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Shape of one Llama-family decoder; every field is checked by `parse_config`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool

    @property
    def query_size(self) -> int:
        """Width of the concatenated query heads."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of the concatenated key (or value) heads."""
        return self.num_key_value_heads * self.head_dim


def load_config(model_dir: Path) -> LlamaConfig:
    """Read and check ``config.json`` of a model directory.

    Raises:
        ModelRefused: the file is missing, too large, not JSON, or breaks a rule of `parse_config`.
    """
    return read_config(_read_file(model_dir))


def is_llama(model_dir: Path) -> bool:
    """Whether a directory's ``config.json`` says that it is a Llama decoder, be it right or broken.

    Raises:
        ModelRefused: there is such a file, and it can't be read, is too large or isn't a JSON object.
    """
    if not (model_dir / "config.json").is_file():
        return False
    fields = _parse_json(_read_file(model_dir))
    if not isinstance(fields, dict):
        raise ModelRefused(f"config.json must hold an object, got {type(fields).__name__}")
    return fields.get("model_type") == "llama" or fields.get("architectures") == [_ARCHITECTURE]


def _read_file(model_dir: Path) -> bytes:
    try:
        with (model_dir / "config.json").open("rb") as file:
            raw = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise ModelRefused(f"config.json cannot be read: {error.strerror}") from error
    if len(raw) > CONFIG_BYTES_MAX:
        raise ModelRefused(f"config.json is larger than {CONFIG_BYTES_MAX} bytes")
    return raw


def _parse_json(raw: bytes) -> object:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ModelRefused(f"config.json is not JSON: {error}") from error


def read_config(raw: bytes) -> LlamaConfig:
    """Check the content of a ``config.json``.

    Raises:
        ModelRefused: it is not JSON, or breaks a rule of `parse_config`.
    """
    return parse_config(_parse_json(raw))


def parse_config(fields: object) -> LlamaConfig:
    """Check the fields of a Hugging Face Llama configuration.

    Args:
        fields: the parsed JSON object.

    Raises:
        ModelRefused: a field is missing, has the wrong type or range, contradicts another one, or
            asks for something this decoder does not implement.
    """
    if not isinstance(fields, dict):
        raise ModelRefused(f"config.json must hold an object, got {type(fields).__name__}")
    _refuse_unimplemented(fields)
    hidden_size = _size(fields, "hidden_size")
    heads = _size(fields, "num_attention_heads")
    key_value_heads = _size(fields, "num_key_value_heads", default=heads)
    if heads % key_value_heads:
        raise ModelRefused(
            f"num_attention_heads={heads} must be a multiple of num_key_value_heads={key_value_heads}"
        )
    if fields.get("head_dim") is None and hidden_size % heads:
        raise ModelRefused(f"hidden_size={hidden_size} must be a multiple of num_attention_heads={heads}")
    head_dim = _size(fields, "head_dim", default=hidden_size // heads)
    if head_dim % 2:
        raise ModelRefused(f"head_dim={head_dim} must be even for rotary embeddings")
    return LlamaConfig(
        vocab_size=_size(fields, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_size(fields, "intermediate_size"),
        num_hidden_layers=_size(fields, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        max_position_embeddings=_size(fields, "max_position_embeddings"),
        rms_norm_eps=_real(fields, "rms_norm_eps", default=1e-6, low=1e-12, high=1.0),
        rope_theta=_rope_theta(fields),
        tie_word_embeddings=_flag(fields, "tie_word_embeddings"),
    )


def _refuse_unimplemented(fields: dict[str, Any]) -> None:
    architectures = fields.get("architectures")
    if architectures != [_ARCHITECTURE]:
        raise ModelRefused(f"architectures must be [{_ARCHITECTURE!r}], got {architectures!r}")
    if fields.get("hidden_act", "silu") != "silu":
        raise ModelRefused(f"hidden_act must be 'silu', got {fields['hidden_act']!r}")
    for name in ("attention_bias", "mlp_bias"):
        if fields.get(name):
            raise ModelRefused(f"{name}={fields[name]!r} is not implemented")
    if fields.get("quantization_config") is not None:
        raise ModelRefused("quantization_config is not implemented: publish fp16, bf16 or fp32 weights")
    # transformers 5 writes rope_parameters, earlier releases rope_scaling and rope_theta.
    for name in ("rope_scaling", "rope_parameters"):
        scaling = fields.get(name)
        if scaling is None:
            continue
        if not isinstance(scaling, dict):
            raise ModelRefused(f"{name} must be an object, got {type(scaling).__name__}")
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind != "default":
            raise ModelRefused(f"{name} kind {kind!r} is not implemented, only 'default'")
        if scaling.get("partial_rotary_factor", 1.0) != 1.0:
            raise ModelRefused(
                f"{name}.partial_rotary_factor={scaling['partial_rotary_factor']!r} is not implemented"
            )


def _rope_theta(fields: dict[str, Any]) -> float:
    parameters = fields.get("rope_parameters") or {}
    source = parameters if "rope_theta" in parameters else fields
    return _real(source, "rope_theta", default=10_000.0, low=1.0, high=1e9)


def _size(fields: dict[str, Any], name: str, default: int | None = None) -> int:
    value = fields.get(name)
    if value is None:
        value = default
    if type(value) is not int or not 1 <= value <= _SIZE_MAX[name]:
        raise ModelRefused(f"{name} must be an integer in [1, {_SIZE_MAX[name]}], got {value!r}")
    return value


def _real(fields: dict[str, Any], name: str, *, default: float, low: float, high: float) -> float:
    value = fields.get(name, default)
    if type(value) not in (int, float) or not low <= value <= high:
        raise ModelRefused(f"{name} must be a number in [{low:g}, {high:g}], got {value!r}")
    return float(value)


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if type(value) is not bool:
        raise ModelRefused(f"{name} must be true or false, got {value!r}")
    return value
