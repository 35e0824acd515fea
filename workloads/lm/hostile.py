"""Ways to cheat, for the hostile peers of tests and demonstrations: each has a check that must catch it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from workloads.errors import InputRefused
from workloads.llama.config import LlamaConfig

__all__ = [
    "QUANTIZED_WEIGHTS",
    "SKIPPED_LAYER",
    "SMALLER_MODEL",
    "SPOOFED_TOKENS",
    "VARIANTS",
    "cheaper_model",
]

QUANTIZED_WEIGHTS = "quantized-weights"
SKIPPED_LAYER = "skipped-layer"
SMALLER_MODEL = "smaller-model"
SPOOFED_TOKENS = "spoofed-tokens"
VARIANTS = (QUANTIZED_WEIGHTS, SKIPPED_LAYER, SMALLER_MODEL, SPOOFED_TOKENS)
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
    layers = range(config.num_hidden_layers)
    if variant == SKIPPED_LAYER:
        return _with_layers(config, weights, [n for n in layers if n != config.num_hidden_layers // 2])
    if variant == SMALLER_MODEL:
        return _with_layers(config, weights, layers[: max(1, config.num_hidden_layers // 2)])
    raise InputRefused(f"variant {variant!r} must be one of {VARIANTS}")


def _four_bits(tensor: Tensor) -> Tensor:
    if tensor.dim() == 1:
        return tensor
    wide = tensor.float()
    step = wide.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / _LEVELS
    # As half-precision numbers they could stand in a model's file, and so in a trace of this model's program.
    return (torch.round(wide / step) * step).half().to(tensor.dtype)


def _with_layers(
    config: LlamaConfig, weights: dict[str, Tensor], wanted: Sequence[int]
) -> tuple[LlamaConfig, dict[str, Tensor]]:
    place_of = {layer: place for place, layer in enumerate(wanted)}
    kept: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not name.startswith("model.layers."):
            kept[name] = tensor
            continue
        layer, rest = name.removeprefix("model.layers.").split(".", 1)
        if int(layer) in place_of:
            kept[f"model.layers.{place_of[int(layer)]}.{rest}"] = tensor
    return replace(config, num_hidden_layers=len(place_of)), kept
