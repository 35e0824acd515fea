"""A small random model in Hugging Face layout, for tests that need some model but no sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from workloads.llama.config import parse_config
from workloads.llama.weights import expected_shapes

TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 320,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}

torch.set_num_threads(1)


def random_weights(fields: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights that keep activations near one, so that layers and positions matter."""
    generator = np.random.Generator(np.random.Philox(key=[seed, 0]))
    weights = {}
    for name, shape in expected_shapes(parse_config(fields)).items():
        # From integers, because normal deviates need a math library, and those differ.
        noise = torch.from_numpy(generator.integers(-255, 256, shape).astype(np.float32) / 128)
        weights[name] = 1 + 0.2 * noise if len(shape) == 1 else noise * (1.5 / shape[1] ** 0.5)
    return weights


def write_model(folder: Path, fields: dict[str, Any], weights: dict[str, torch.Tensor]) -> Path:
    """A model directory with a byte-level tokenizer that has no merges."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    save_file(weights, folder / "model.safetensors")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a random model of 3 layers."""
    return write_model(tmp_path_factory.mktemp("model"), TINY, random_weights(TINY))
