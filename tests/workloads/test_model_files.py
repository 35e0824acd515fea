"""A model directory is either one we compute faithfully, or refused with the rule and the value."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.workloads.conftest import TINY, random_weights, write_model
from workloads.errors import ModelRefused
from workloads.llama.config import load_config, parse_config
from workloads.llama.weights import load_weights
from workloads.lm.engine import build_decoder, load_model
from workloads.lm.manifest import builtin_models, load_manifest
from workloads.lm.tokenizer import TextTokenizer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures must be"),
        ({"hidden_size": 0}, "hidden_size must be an integer in [1,"),
        ({"hidden_size": "48"}, "hidden_size must be an integer"),
        ({"hidden_size": True}, "hidden_size must be an integer"),
        ({"vocab_size": 1 << 40}, "vocab_size must be an integer"),
        ({"num_key_value_heads": 4}, "must be a multiple of num_key_value_heads=4"),
        ({"head_dim": 7}, "head_dim=7 must be even"),
        ({"head_dim": None, "hidden_size": 50}, "hidden_size=50 must be a multiple"),
        ({"rms_norm_eps": -1}, "rms_norm_eps must be a number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number"),
        ({"rope_theta": 0}, "rope_theta must be a number"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "rope_scaling kind 'llama3'"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling kind 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters kind 'yarn'"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu'"),
        ({"attention_bias": True}, "attention_bias=True is not implemented"),
        ({"mlp_bias": True}, "mlp_bias=True is not implemented"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is not implemented"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false"),
    ],
)
def test_a_config_we_would_compute_differently_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelRefused, match=re.escape(message)):
        parse_config(TINY | change)


def test_config_defaults_follow_hugging_face() -> None:
    fields = {k: v for k, v in TINY.items() if k not in ("num_key_value_heads", "head_dim", "rope_theta")}
    config = parse_config(fields)
    assert (config.num_key_value_heads, config.head_dim, config.rope_theta) == (6, 8, 10_000.0)
    assert parse_config(fields | {"rope_parameters": {"rope_theta": 5e5}}).rope_theta == 5e5


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b" " * ((1 << 20) + 1)])
def test_a_config_file_that_is_no_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelRefused, match=r"config\.json"):
        load_config(tmp_path)


def test_weights_come_back_as_float32_from_every_dtype(tmp_path: Path) -> None:
    config, weights = parse_config(TINY), random_weights(TINY)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        folder = write_model(tmp_path / str(dtype), TINY, {k: v.to(dtype) for k, v in weights.items()})
        loaded = load_weights(folder, config)
        assert all(torch.equal(loaded[name], weights[name].to(dtype).float()) for name in weights)


def test_a_tied_head_that_is_repeated_must_be_the_embedding(tmp_path: Path) -> None:
    config, weights = parse_config(TINY), random_weights(TINY)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    assert "lm_head.weight" not in load_weights(write_model(tmp_path / "same", TINY, weights), config)
    weights["lm_head.weight"][3, 4] += 1
    with pytest.raises(ModelRefused, match=r"lm_head\.weight differs"):
        load_weights(write_model(tmp_path / "other", TINY, weights), config)


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (Q, None, "lacks 1 tensors, first " + Q),
        ("model.extra.weight", torch.ones(1), "holds 1 unknown tensors, first model.extra.weight"),
        (Q, torch.ones(48, 47), f"tensor {Q} has shape (48, 47), must be (48, 48)"),
        (Q, torch.ones(48, 48, dtype=torch.float64), f"tensor {Q} has dtype float64"),
        (Q, torch.ones(48, 48, dtype=torch.int8), f"tensor {Q} has dtype 'I8'"),
        (Q, torch.full((48, 48), float("nan")), f"tensor {Q} holds NaN or Inf"),
        (Q, torch.full((48, 48), float("inf")), f"tensor {Q} holds NaN or Inf"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused(
    tmp_path: Path, name: str, tensor: torch.Tensor | None, message: str
) -> None:
    weights = random_weights(TINY)
    if tensor is None:
        del weights[name]
    else:
        weights[name] = tensor
    with pytest.raises(ModelRefused, match=re.escape(message)):
        load_weights(write_model(tmp_path, TINY, weights), parse_config(TINY))


def test_malformed_safetensors_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    good = (tiny_model / "model.safetensors").read_bytes()
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    header[Q]["data_offsets"] = [0, 1 << 40]
    wild = json.dumps(header).encode()
    for bad in (
        b"",
        (1 << 60).to_bytes(8, "little") + good[8:],
        good[:8] + b"x" * length + good[8 + length :],
        good[:-100],
        len(wild).to_bytes(8, "little") + wild + good[8 + length :],
    ):
        (tmp_path / "model.safetensors").write_bytes(bad)
        with pytest.raises(ModelRefused, match=r"model\.safetensors"):
            load_weights(tmp_path, parse_config(TINY))
    with pytest.raises(ModelRefused, match="cannot be read"):
        load_weights(tmp_path / "nowhere", parse_config(TINY))


def test_the_manifest_changes_with_every_file(tiny_model: Path, tmp_path: Path) -> None:
    digests = {load_manifest(tiny_model).digest}
    for changed in ("config.json", "model.safetensors", "tokenizer.json"):
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            data = (tiny_model / name).read_bytes()
            (tmp_path / name).write_bytes(data[:-1] + b"\x20" if name == changed else data)
        digests.add(load_manifest(tmp_path).digest)
    assert len(digests) == 4
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelRefused, match=r"tokenizer\.json cannot be read"):
        load_manifest(tmp_path)


HELD_OUT = """And he shewed me a pure river of water of life, clear as crystal, proceeding out of the \
throne of God and of the Lamb.
And the Spirit and the bride say, Come. And let him that heareth say, Come. And let him that is athirst \
come. And whosoever will, let him take the water of life freely.
He which testifieth these things saith, Surely I come quickly. Amen. Even so, come, Lord Jesus.
The grace of our Lord Jesus Christ be with you all. Amen.
"""


def test_the_model_that_ships_has_learnt_its_text() -> None:
    folder = builtin_models()["kjv-2m"]
    tokens = np.array(TextTokenizer(folder).encode(HELD_OUT))
    decoder = build_decoder(*load_model(folder), "exact14")
    hidden = decoder.forward(tokens[None, :-1], decoder.new_cache(1, len(tokens)))[0]
    logits = decoder.logits(hidden)
    likelihood = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -likelihood[np.arange(len(tokens) - 1), tokens[1:]].mean()
    assert loss < 3.2


def test_the_model_that_ships_is_whole_and_has_a_card() -> None:
    folder = builtin_models()["kjv-2m"]
    config = load_config(folder)
    weights = load_weights(folder, config)
    assert 2_000_000 < sum(tensor.numel() for tensor in weights.values()) < 2_500_000
    assert load_file(folder / "model.safetensors")["model.norm.weight"].dtype == torch.float16
    card = (folder / "README.md").read_text(encoding="utf-8")
    loss = re.search(r"\*\*([\d.]+) nats per token\*\*", card)
    assert loss is not None
    assert float(loss.group(1)) <= 3.2
    for word in ("public domain", "apache-2.0", "scripts/train_kjv.py"):
        assert word in card
