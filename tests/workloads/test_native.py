"""The native decoder is the Llama that everybody else means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig as HuggingFaceConfig
from transformers import LlamaForCausalLM

from tests.workloads.conftest import TINY, random_weights
from workloads.llama.config import parse_config
from workloads.llama.model import NativeDecoder
from workloads.lm.engine import build_decoder

TOKENS = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (2, 70)))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"tie_word_embeddings": False},
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1, "head_dim": 16},
        {"rope_theta": 500_000.0, "rms_norm_eps": 1e-5},
    ],
)
def test_logits_equal_those_of_transformers(change: dict[str, Any], tmp_path: Path) -> None:
    fields = TINY | change
    weights = random_weights(fields)
    reference = LlamaForCausalLM(HuggingFaceConfig(**fields)).eval()
    loaded = dict(weights)
    loaded.setdefault("lm_head.weight", loaded["model.embed_tokens.weight"])
    reference.load_state_dict(loaded)
    decoder = NativeDecoder(parse_config(fields), weights)
    with torch.inference_mode():
        expected = reference(input_ids=TOKENS, use_cache=False).logits
        torch.testing.assert_close(decoder.logits(decoder.forward(TOKENS)), expected, rtol=1e-4, atol=1e-5)
        exact = build_decoder(parse_config(fields), weights, "exact21")
        hidden = exact.forward(TOKENS.numpy(), exact.new_cache(2, 70))
        logits = torch.from_numpy(exact.logits(hidden.reshape(140, -1))).view(2, 70, -1)
        torch.testing.assert_close(logits.float(), expected, rtol=1e-3, atol=1e-4)

    # The configuration that transformers itself writes must be one we read.
    reference.config.save_pretrained(tmp_path)
    saved = HuggingFaceConfig.from_pretrained(tmp_path).to_dict()
    assert parse_config(saved | {"architectures": ["LlamaForCausalLM"]}) == parse_config(fields)


def test_cached_steps_equal_one_pass() -> None:
    decoder = NativeDecoder(parse_config(TINY), random_weights(TINY))
    with torch.inference_mode():
        whole = decoder.forward(TOKENS)
        cache = decoder.new_cache(2, 70)
        steps = [decoder.forward(TOKENS[:, a:b], cache) for a, b in ((0, 20), (20, 21), (21, 22), (22, 70))]
        torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-5)
