"""The part of a Hugging Face ``config.json`` that decides what a Whisper model computes. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.errors import ModelRefused
from workloads.modelconfig import integer_field, read_fields

__all__ = ["MODEL_TYPE", "WhisperConfig", "load_config", "parse_config"]

MODEL_TYPE = "whisper"
# Sizes beyond these are mistakes or attacks: they bound what a parsed config can make us allocate.
_SIZES_MAX = {
    "d_model": 1 << 14,
    "encoder_layers": 256,
    "decoder_layers": 256,
    "encoder_attention_heads": 256,
    "decoder_attention_heads": 256,
    "encoder_ffn_dim": 1 << 16,
    "decoder_ffn_dim": 1 << 16,
    "vocab_size": 1 << 20,
    "num_mel_bins": 256,
    "max_source_positions": 1 << 14,
    "max_target_positions": 1 << 14,
}
_TOKENS = ("decoder_start_token_id", "eos_token_id", "no_timestamps_token_id")
_TOKEN_LISTS = ("suppress_tokens", "begin_suppress_tokens", "prompt_tokens")


@dataclass(frozen=True, slots=True)
class WhisperConfig:
    """One model's shape and the tokens that mean something; every field is checked by `parse_config`.

    Args:
        d_model: width of a state.
        encoder_layers: and so on: see the Hugging Face ``WhisperConfig``.
        no_timestamps_token_id: the token before those that stand for times.
        suppress_tokens: never written.
        begin_suppress_tokens: never written first.
        prompt_tokens: what the decoder is given first, before anything is written.
    """

    d_model: int
    encoder_layers: int
    decoder_layers: int
    encoder_attention_heads: int
    decoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_ffn_dim: int
    vocab_size: int
    num_mel_bins: int
    max_source_positions: int
    max_target_positions: int
    decoder_start_token_id: int
    eos_token_id: int
    no_timestamps_token_id: int
    suppress_tokens: tuple[int, ...]
    begin_suppress_tokens: tuple[int, ...]
    prompt_tokens: tuple[int, ...]

    @property
    def first_time_token_id(self) -> int:
        """The token of time 0; each next one is 20 ms later."""
        return self.no_timestamps_token_id + 1


def load_config(model_dir: Path) -> WhisperConfig:
    """Read a model directory's ``config.json``.

    Raises:
        ModelRefused: it can't be read, or as `parse_config`.
    """
    return parse_config(read_fields(model_dir))


def parse_config(fields: dict[str, Any]) -> WhisperConfig:
    """Check a configuration.

    Raises:
        ModelRefused: it is another architecture's, or a field breaks a rule.
    """
    if fields.get("model_type") != MODEL_TYPE:
        raise ModelRefused(f"config.json: model_type={fields.get('model_type')!r} must be {MODEL_TYPE!r}")
    if fields.get("activation_function", "gelu") != "gelu":
        raise ModelRefused(f"config.json: activation_function={fields['activation_function']!r} must be gelu")
    if fields.get("scale_embedding", False) is not False:
        raise ModelRefused("config.json: scale_embedding must be false")
    checked: dict[str, Any] = {
        name: integer_field(fields, name, 1, largest) for name, largest in _SIZES_MAX.items()
    }
    words = checked["vocab_size"] - 1
    checked |= {name: integer_field(fields, name, 0, words) for name in _TOKENS}
    checked |= {name: _tokens(fields, name, words) for name in _TOKEN_LISTS}
    config = WhisperConfig(**checked)
    for part, heads in (
        ("encoder", config.encoder_attention_heads),
        ("decoder", config.decoder_attention_heads),
    ):
        if config.d_model % heads:
            raise ModelRefused(
                f"config.json: {part}_attention_heads={heads} must divide d_model={config.d_model}"
            )
    if config.first_time_token_id >= config.vocab_size:
        raise ModelRefused("config.json: there must be tokens for times after no_timestamps_token_id")
    if not config.prompt_tokens:
        raise ModelRefused("config.json: prompt_tokens must not be empty")
    return config


def _tokens(fields: dict[str, Any], name: str, high: int) -> tuple[int, ...]:
    values = fields.get(name, [])
    if not isinstance(values, list) or any(type(v) is not int or not 0 <= v <= high for v in values):
        raise ModelRefused(f"config.json: {name} must be a list of token ids in [0, {high}]")
    return tuple(values)
