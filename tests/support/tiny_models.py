"""Model directories with small random weights, for kinds of work that ship no model."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from workloads.embedding import config as bert
from workloads.vision import config as vision
from workloads.workload import Kind, Model

__all__ = ["BERT", "VISION", "WORDS", "model_of", "tiny_bert", "tiny_vision", "write_model"]

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "etaoins"))
BERT = {
    "model_type": "bert",
    "vocab_size": len(WORDS),
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "hidden_act": "gelu",
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
VISION = {
    "model_type": "efficientnet-lite",
    "image_size": 32,
    "crop_permille": 875,
    "sample_mean": 127,
    "sample_scale": 128,
    "stem_channels": 6,
    "head_channels": 24,
    "blocks": [[4, 3, 1, 1], [8, 5, 2, 3], [8, 3, 1, 2]],
    "labels": [f"class {number}" for number in range(12)],
}


def write_model(into: Path, fields: dict[str, object], tensors: dict[str, Tensor]) -> Path:
    into.mkdir(parents=True, exist_ok=True)
    (into / "config.json").write_text(json.dumps(fields))
    save_file(tensors, into / "model.safetensors")
    return into


def randoms(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Weights that keep a signal's size: matrices by their inputs, norms around one."""
    made = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        fan_in = torch.Size(shape[1:]).numel() if len(shape) > 1 else 16
        # Whole numbers: the bits of normal ones depend on the processor.
        tensors[name] = torch.randint(-1_024, 1_025, shape, generator=made) / 591.0 / fan_in**0.5
        if "norm" in name.lower() and name.endswith("weight"):
            tensors[name] += 1.0
    return tensors


def word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(WordPiece({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    # As many a file has it, and as no job may: it would cut texts and fill them up.
    tokenizer.enable_truncation(max_length=4)
    tokenizer.enable_padding(length=4)
    return tokenizer


@cache
def tiny_bert() -> Path:
    """An encoder of 24 channels over single letters, called ``tiny-bert``."""
    folder = _folder() / "tiny-bert"
    write_model(folder, dict(BERT), randoms(bert.expected_shapes(bert.parse_config(BERT)), seed=3))
    word_pieces().save(str(folder / "tokenizer.json"))
    return folder


@cache
def tiny_vision(image_size: int = 32) -> Path:
    """A classifier of such images into 12 classes, called ``tiny-vision`` and the size."""
    shapes = vision.expected_shapes(vision.parse_config(dict(VISION)))
    # With half of each signal cut off, images would look alike in the end but for this.
    tensors = {name: x * (2.0 if x.dim() > 1 else 0.3) for name, x in randoms(shapes, seed=5).items()}
    tensors["classifier.weight"] -= tensors["classifier.weight"].double().mean(1, keepdim=True).float()
    fields = VISION | {"image_size": image_size}
    return write_model(_folder() / f"tiny-vision-{image_size}", fields, tensors)


def model_of(kind: Kind) -> Model:
    """The one model that ships for a kind of work, or else a tiny one."""
    if shipped := kind.models():
        (model,) = shipped
        return model
    # They take their weights from here.
    from tests.support.tiny_terrain import tiny_terrain
    from tests.support.tiny_whisper import tiny_whisper

    makers: dict[str, Callable[[], Path]] = {
        "embed.text": tiny_bert,
        "classify.image": tiny_vision,
        "speech.transcribe": lambda: tiny_whisper(_folder() / "tiny-whisper"),
        "diffusion.terrain": lambda: tiny_terrain(_folder() / "tiny-terrain"),
    }
    model = kind.read_model(makers[kind.name]())
    assert model is not None
    return model


@cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="p2p-node-models-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
