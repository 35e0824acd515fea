"""A Whisper model of 16 channels, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tests.support.tiny_models import randoms
from workloads.speech.config import WhisperConfig, parse_config
from workloads.speech.network import shapes

__all__ = ["FIELDS", "tiny_whisper", "whisper_tensors"]

FIELDS: dict[str, Any] = {
    "model_type": "whisper",
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "vocab_size": 60,
    "num_mel_bins": 8,
    "max_source_positions": 1500,
    "max_target_positions": 230,
    "decoder_start_token_id": 41,
    "eos_token_id": 40,
    "no_timestamps_token_id": 43,
    "suppress_tokens": [1, 2],
    "begin_suppress_tokens": [3, 40],
    "prompt_tokens": [41],
}
WORDS = [f"w{number}" for number in range(60)]
TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "model": {
        "type": "WordLevel",
        "vocab": {word: number for number, word in enumerate(WORDS)},
        "unk_token": "w0",
    },
}


def whisper_tensors(config: WhisperConfig) -> dict[str, Tensor]:
    table = randoms(shapes(config), seed=7)
    # Words far apart and lively layers: else one word would follow another for ever.
    table["model.decoder.embed_tokens.weight"] *= 6.0
    # The end is likelier than any other word.
    table["model.decoder.embed_tokens.weight"][FIELDS["eos_token_id"]] *= 2.6
    table["mel_filters"] = table["mel_filters"].abs() / 20
    return table


def tiny_whisper(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(FIELDS))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    save_file(whisper_tensors(parse_config(FIELDS)), folder / "model.safetensors")
    return folder
