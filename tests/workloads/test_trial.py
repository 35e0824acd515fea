"""Models are tried before they are taken: what a header can't tell is named by its rule."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from workloads.errors import WorkloadRefused
from workloads.registry import KINDS
from workloads.trial import try_model

MODEL = next(model.path for model in KINDS["lm.generate"].models())


def tensors(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        change(held)
        save_file(held, folder / "model.safetensors")

    return spoil


def not_a_number(held: dict[str, Any]) -> None:
    held["model.norm.weight"] = np.full_like(held["model.norm.weight"], np.nan)


def other_shape(held: dict[str, Any]) -> None:
    held["model.norm.weight"] = held["model.norm.weight"][:-1].copy()


def larger_vocabulary(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["a word of another model"] = 10**6
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (tensors(not_a_number), "tensor model.norm.weight holds NaN or Inf"),
        (tensors(other_shape), r"tensor model.norm.weight has shape \(191,\), must be \(192,\)"),
        (tensors(lambda held: held.pop("model.norm.weight")), "lacks 1 tensors, first model.norm.weight"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json is malformed"),
        (larger_vocabulary, "tokenizer.json has 1025 tokens, and the model's vocab_size is 1024"),
        (lambda folder: (folder / "config.json").unlink(), "no kind of work reads it"),
    ],
)
def test_a_spoilt_model_is_refused(tmp_path: Path, spoil: Callable[[Path], Any], rule: str) -> None:
    shutil.copytree(MODEL, tmp_path / "spoilt")
    spoil(tmp_path / "spoilt")
    with pytest.raises(WorkloadRefused, match=rule):
        try_model(tmp_path / "spoilt")


def test_a_sound_one_runs() -> None:
    try_model(MODEL)
