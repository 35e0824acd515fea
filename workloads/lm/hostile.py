"""Ways to cheat, for the hostile peers of tests and demonstrations: each has a check that must catch it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from workloads.errors import InputRefused
from workloads.llama.config import LlamaConfig

__all__ = ["QUANTIZED_WEIGHTS", "SKIPPED_LAYER", "SPOOFED_TOKENS", "VARIANTS", "cheaper_model"]

QUANTIZED_WEIGHTS = "quantized-weights"
SKIPPED_LAYER = "skipped-layer"
SPOOFED_TOKENS = "spoofed-tokens"
VARIANTS = (QUANTIZED_WEIGHTS, SKIPPED_LAYER, SPOOFED_TOKENS)
_LEVELS = 7


def cheaper_model(
    config: LlamaConfig, weights: dict[str, Tensor], variant: str
) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """The model that a cheater runs in place of the promised one.

    Args:
        config: of the promised model.
        weights: of the promised model, left as they are.
        variant: one of `VARIANTS`; ``spoofed-tokens`` decodes with int4 weights too.

    Raises:
        InputRefused: the variant is unknown.
    """
    if variant in {QUANTIZED_WEIGHTS, SPOOFED_TOKENS}:
        return config, {name: _four_bits(tensor) for name, tensor in weights.items()}
    if variant == SKIPPED_LAYER:
        return _without_middle_layer(config, weights)
    raise InputRefused(f"variant {variant!r} must be one of {VARIANTS}")


def _four_bits(tensor: Tensor) -> Tensor:
    if tensor.dim() == 1:
        return tensor
    step = tensor.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / _LEVELS
    return torch.round(tensor / step) * step


def _without_middle_layer(
    config: LlamaConfig, weights: dict[str, Tensor]
) -> tuple[LlamaConfig, dict[str, Tensor]]:
    skipped = config.num_hidden_layers // 2
    kept: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not name.startswith("model.layers."):
            kept[name] = tensor
            continue
        layer, rest = name.removeprefix("model.layers.").split(".", 1)
        if int(layer) != skipped:
            kept[f"model.layers.{int(layer) - (int(layer) > skipped)}.{rest}"] = tensor
    return replace(config, num_hidden_layers=config.num_hidden_layers - 1), kept
