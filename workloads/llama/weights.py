"""Strict loading of ``model.safetensors``: exactly the tensors the configuration calls for, all finite.

safetensors is a length, a JSON header and raw little-endian numbers, so reading it runs no code.
`workloads.tensorfile` checks the header before the library maps the file.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from workloads.errors import ModelRefused
from workloads.llama.config import LlamaConfig
from workloads.tensorfile import read_places

__all__ = ["expected_shapes", "load_weights"]

WEIGHTS_FILE = "model.safetensors"
_DTYPES = ("bfloat16", "float16", "float32")


def expected_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this configuration holds."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "self_attn.q_proj.weight": (config.query_size, hidden),
            prefix + "self_attn.k_proj.weight": (config.key_value_size, hidden),
            prefix + "self_attn.v_proj.weight": (config.key_value_size, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, config.query_size),
            prefix + "mlp.gate_proj.weight": (inner, hidden),
            prefix + "mlp.up_proj.weight": (inner, hidden),
            prefix + "mlp.down_proj.weight": (hidden, inner),
        }
    return shapes


def load_weights(model_dir: Path, config: LlamaConfig) -> dict[str, Tensor]:
    """Read ``model.safetensors`` as float32.

    Args:
        model_dir: the directory that holds the file.
        config: what the tensors must fit.

    Returns:
        Hugging Face tensor names to contiguous float32 CPU tensors. A tied ``lm_head.weight`` is
        left out even where the file repeats it.

    Raises:
        ModelRefused: the file or its header is malformed, a tensor is missing, unknown, of another
            shape or dtype, or holds NaN or Inf.
    """
    path = model_dir / WEIGHTS_FILE
    shapes = expected_shapes(config)
    _check_places(path, shapes, tied=config.tie_word_embeddings)
    weights: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in shapes:
                weights[name] = _finite(name, file.get_tensor(name).to(torch.float32).contiguous())
            if config.tie_word_embeddings and "lm_head.weight" in file.keys():  # noqa: SIM118
                repeated = file.get_tensor("lm_head.weight").to(torch.float32)
                if not torch.equal(repeated, weights["model.embed_tokens.weight"]):
                    raise ModelRefused(
                        "tie_word_embeddings is true but lm_head.weight differs from the embedding"
                    )
    except SafetensorError as error:
        raise ModelRefused(f"{WEIGHTS_FILE} is malformed: {error}") from error
    return weights


def _finite(name: str, tensor: Tensor) -> Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise ModelRefused(f"tensor {name} holds NaN or Inf")
    return tensor


def _check_places(path: Path, shapes: dict[str, tuple[int, ...]], *, tied: bool) -> None:
    places = {place.name: place for place in read_places(path)}
    missing = sorted(shapes.keys() - places.keys())
    if missing:
        raise ModelRefused(f"{WEIGHTS_FILE} lacks {len(missing)} tensors, first {missing[0]}")
    allowed = shapes | ({"lm_head.weight": shapes["model.embed_tokens.weight"]} if tied else {})
    extra = sorted(places.keys() - allowed.keys())
    if extra:
        raise ModelRefused(f"{WEIGHTS_FILE} holds {len(extra)} unknown tensors, first {extra[0]}")
    for name, place in places.items():
        if place.dtype not in _DTYPES:
            raise ModelRefused(f"tensor {name} has dtype {place.dtype}, must be one of {_DTYPES}")
        if place.shape != allowed[name]:
            raise ModelRefused(f"tensor {name} has shape {place.shape}, must be {allowed[name]}")
