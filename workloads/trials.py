"""Jobs on which a model is calibrated for native runs, and models that cheats would run in its place."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from workloads.lm.manifest import WEIGHTS_FILE

__all__ = ["cheaper_models", "stand_in", "trial_inputs"]

_SEED = 20_240
_WIDE = 2**31 - 1


def trial_inputs(kind: str, model_dir: Path) -> list[bytes]:
    """Inputs of several shapes for a model, in its workload's encoding; none for a kind without trials."""
    return _TRIALS[kind](model_dir) if kind in _TRIALS else []


def _texts(model_dir: Path) -> list[bytes]:
    from workloads.embedding.config import load_config
    from workloads.embedding.input import EmbedInput, encode_input
    from workloads.embedding.tokens import pack

    rng, config = np.random.default_rng(_SEED), load_config(model_dir)
    lengths = rng.integers(1, min(config.max_position_embeddings, 48) + 1, 16)
    packed = pack([[int(token) for token in rng.integers(0, config.vocab_size, n)] for n in lengths])
    return [
        encode_input(EmbedInput(pooling, is_normalised, 0, len(lengths), packed))
        for pooling, is_normalised in (("mean", True), ("cls", False))
    ]


def _images(model_dir: Path) -> list[bytes]:
    from workloads.vision.config import load_config
    from workloads.vision.input import ClassifyInput, encode_input

    rng, count = np.random.default_rng(_SEED), 4
    # As large as the model's, if an input holds that many.
    side = min(load_config(model_dir).image_size, 96)
    # Noise of several grains: one pixel's, up to an eighth of the picture's.
    samples = [
        np.kron(rng.integers(0, 256, (-(-side // grain), -(-side // grain), 3)), np.ones((grain, grain, 1)))
        for grain in (1, 4, 8, 28)
    ]
    data = b"".join(image[:side, :side].astype(np.uint8).tobytes() for image in samples)
    return [encode_input(ClassifyInput(side, 0, count, data))]


def _recording(model_dir: Path) -> list[bytes]:
    from workloads.speech.input import SAMPLE_RATE_HZ, TranscribeInput, encode_input

    rng, seconds = np.random.default_rng(_SEED), 5
    times = np.arange(seconds * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    # Something like vowels: harmonics of a voice that rises and falls, in syllables.
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * times)
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE_HZ
    voice = sum(np.sin(n * phase) / n for n in range(1, 12)) * np.abs(np.sin(2 * np.pi * 2.2 * times))
    sound = 4_000 * voice + rng.normal(size=len(times)) * 200
    return [encode_input(TranscribeInput(sound.astype("<i2").tobytes(), None, 0, (len(sound),)))]


def _pictures(model_dir: Path) -> list[bytes]:
    from workloads.diffusion.input import SampleInput, encode_input

    return [
        encode_input(SampleInput((3, 7), steps, seed, guidance))
        for steps, seed, guidance in ((8, 1, 1_000), (4, 2, 3_000))
    ]


def _maps(model_dir: Path) -> list[bytes]:
    from workloads.consistency.config import load_config
    from workloads.consistency.input import TerrainInput, encode_input

    most = load_config(model_dir).conditions
    return [encode_input(TerrainInput((max(1, most // 2),), (80_000, 2_000), 3))]


_TRIALS: dict[str, Callable[[Path], list[bytes]]] = {
    "embed.text": _texts,
    "classify.image": _images,
    "speech.transcribe": _recording,
    "diffusion.sample": _pictures,
    "diffusion.terrain": _maps,
}


def stand_in(model_dir: Path, into: Path, weights: dict[str, Tensor] | None = None) -> Path:
    """The same model with bounds that bind nobody, and other weights where they are given."""
    into.mkdir()
    for path in model_dir.iterdir():
        if path.is_file() and path.name != "tolerance.json":
            (into / path.name).symlink_to(path.resolve())
    bounds = dict.fromkeys(("agree_steps", "convict_steps", "agree_margin_ppb", "convict_margin_ppb"), _WIDE)
    (into / "tolerance.json").write_text(json.dumps({"bounds": bounds}))
    if weights is not None:
        (into / WEIGHTS_FILE).unlink()
        save_file(weights, into / WEIGHTS_FILE)
    return into


def cheaper_models(model_dir: Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Weights that cost a cheat less, each with what is cheaper about them."""
    weights = load_file(model_dir / WEIGHTS_FILE)
    matrices = {name: x.float() for name, x in weights.items() if x.dim() > 1 and x.is_floating_point()}
    yield "bfloat16 weights", weights | {name: x.bfloat16().float() for name, x in matrices.items()}
    yield "int8 weights", weights | {name: _rounded(x, 127) for name, x in matrices.items()}
    yield "int4 weights", weights | {name: _rounded(x, 7) for name, x in matrices.items()}
    layers = sorted({found[0] for name in weights if (found := re.search(r"^.*?\.\d+\.", name))})
    if len(layers) > 1:
        skipped = layers[len(layers) // 2]
        without = {name: torch.zeros_like(x) for name, x in matrices.items() if name.startswith(skipped)}
        yield "a layer left out", weights | without


def _rounded(weight: Tensor, levels: int) -> Tensor:
    """Each row to that many steps on either side of 0."""
    step = weight.flatten(1).abs().amax(dim=1).clamp(min=1e-30) / levels
    step = step.view(-1, *[1] * (weight.dim() - 1))
    return torch.round(weight / step) * step
