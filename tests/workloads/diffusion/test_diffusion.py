"""diffusion.sample: what is asked, what comes of it, and that every guessed step shows."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from protocols.codec import encode
from protocols.units import FALSE_UNITS
from workloads import exact
from workloads.diffusion.input import LATENT_UNITS, SampleInput, decode_input, encode_input
from workloads.diffusion.kind import DIFFUSION, FEWER_STEPS, sheet
from workloads.diffusion.network import FREQUENCIES, NO_CLASS, velocity
from workloads.diffusion.sampler import Sampler, load_weights, noise
from workloads.diffusion.workload import DiffusionSampler
from workloads.errors import InputRefused, ModelRefused

(MODEL,) = DIFFUSION.models()
JOB = SampleInput((8, 1), 4, 11, 2_000)


def run(job: SampleInput, variant: str | None = None) -> tuple[list[int], dict[int, bytes]]:
    units: list[int] = []
    digests: dict[int, bytes] = {}
    DiffusionSampler(MODEL.path, "exact14", variant).generate(
        encode_input(job), (), lambda _, new: units.extend(new), digests.__setitem__, lambda: False
    )
    return units, digests


def floats(units: list[int]) -> list[float]:
    return list(struct.unpack(f"<{len(units)}f", struct.pack(f"<{len(units)}I", *units)))


def test_it_draws_the_digits_it_is_asked_for() -> None:
    units, _ = run(SampleInput((0, 1), 8, 3, 2_000))
    zero, one = (np.array(floats(units[end - 64 : end])).reshape(8, 8) for end in (8 * 64, 16 * 64))
    # The middle of a zero is empty, and of a one it is not.
    assert zero[3:5, 3:5].mean() < -0.5
    assert one[3:5, 3:5].mean() > 0.3
    assert zero[0, 0] < -0.5


def test_exact_arithmetic_computes_what_native_arithmetic_does() -> None:
    class Native:
        conv2d = staticmethod(lambda x, w, b, padding: torch.conv2d(x, w, b, padding=padding))
        linear = staticmethod(torch.nn.functional.linear)
        group_norm = staticmethod(torch.nn.functional.group_norm)
        silu = staticmethod(torch.nn.functional.silu)

    weights = load_weights(MODEL.path)
    latent = noise(JOB, 0)
    angles = torch.tensor([0.25]) * torch.pi * 2.0 ** torch.arange(-1, FREQUENCIES - 1)
    waves = torch.cat([angles.sin(), angles.cos()]).expand(2, -1)
    labels = torch.tensor([8, NO_CLASS])
    given, free = velocity(Native(), weights, latent.expand(2, 1, 8, 8), waves, labels)[0][:, 0]
    native = free + (given - free) * 2
    for precision, error in ((exact.EXACT14, 0.05), (exact.EXACT21, 1e-4)):
        predicted, after, _ = Sampler(weights, precision).step(JOB, 8, 1, latent)
        assert float((predicted - native).abs().max()) < error
        assert after.dtype == torch.float32
        assert torch.allclose(after, latent + native / 4, atol=error)


def test_noise_is_normal_and_differs_by_seed_and_picture() -> None:
    drawn = torch.cat([noise(JOB, picture).flatten() for picture in range(16)])
    assert abs(float(drawn.mean())) < 0.1
    assert abs(float(drawn.std()) - 1) < 0.1
    assert len(set(drawn.tolist())) == len(drawn)
    assert not torch.equal(noise(JOB, 0), noise(replace(JOB, seed=12), 0))


def test_a_step_needs_only_the_latent_before_it() -> None:
    units, digests = run(JOB)
    forgotten = [0] * LATENT_UNITS + units[LATENT_UNITS:]
    verifier = DiffusionSampler(MODEL.path, "exact14")
    # Step 1 starts from the latent that was overwritten; the second picture starts from noise of its own.
    found = verifier.recompute(encode_input(JOB), forgotten, [1, 2, 4])
    assert found == {1: FALSE_UNITS, 2: digests[2], 4: digests[4]}


def test_guessed_steps_are_false_and_the_computed_ones_between_them_true() -> None:
    units, digests = run(JOB, FEWER_STEPS)
    truth = DiffusionSampler(MODEL.path, "exact14").recompute(encode_input(JOB), units, range(8))
    assert [truth[chunk] == digests[chunk] for chunk in range(8)] == [True, False] * 4
    # A digest of the claimed latents alone would have let them pass.
    assert all(truth[chunk] == FALSE_UNITS for chunk in (1, 3, 5, 7))


@pytest.mark.parametrize("word", [0x7F800000, 0x7FC00000, 0xFF7FFFFF])
def test_latents_that_no_step_can_start_from_convict_rather_than_stop_the_check(word: int) -> None:
    units, digests = run(JOB)
    units[0] = word
    found = DiffusionSampler(MODEL.path, "exact14").recompute(encode_input(JOB), units, [0, 1, 2])
    assert found == {0: FALSE_UNITS, 1: FALSE_UNITS, 2: digests[2]}


def test_pictures_come_side_by_side_and_even_nan_has_a_colour() -> None:
    job = SampleInput((0,) * 12, 1, 0)
    words = struct.pack(f"<{12 * 64}f", *([float("nan"), 9.0, -9.0, 0.0] * 3 * 64))
    artifact = sheet(encode_input(job), struct.unpack(f"<{12 * 64}I", words))
    assert artifact.description == "PNG image of 640 x 128 pixels: 12 of 8 x 8, 1 steps each"
    assert artifact.content.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"labels": ()}, r"0 labels must be 1 to 16"),
        ({"labels": (1,) * 17}, r"17 labels must be 1 to 16"),
        ({"labels": (1, 10)}, r"labels\[1\]=10 must be in \[0, 9\]"),
        ({"steps": 0}, r"steps=0"),
        ({"steps": 65}, r"steps=65"),
        ({"seed": 2**64}, r"seed=18446744073709551616|malformed|not a SampleInput"),
        ({"guidance_milli": -1}, r"guidance_milli=-1"),
    ],
)
def test_what_breaks_a_rule_is_refused(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputRefused, match=rule):
        encode_input(replace(JOB, **changes))
    if "seed" not in changes:
        with pytest.raises(InputRefused, match=rule):
            decode_input(encode(replace(JOB, **changes)))


def test_directories_that_are_not_this_model_are_refused(tmp_path: Path) -> None:
    weights = load_file(MODEL.path / "model.safetensors")

    def written(changed: dict[str, torch.Tensor]) -> Path:
        shutil.copytree(MODEL.path, tmp_path / "model", dirs_exist_ok=True)
        save_file(changed, tmp_path / "model" / "model.safetensors")
        return tmp_path / "model"

    missing = {name: weight for name, weight in weights.items() if name != "time.bias"}
    with pytest.raises(ModelRefused, match=r"time\.bias has shape None, must be \(64,\)"):
        load_weights(written(missing))
    with pytest.raises(ModelRefused, match=r"label\.weight has shape \(10, 64\), must be \(11, 64\)"):
        load_weights(written(weights | {"label.weight": weights["label.weight"][:10].clone()}))
    with pytest.raises(ModelRefused, match=r"time\.bias holds NaN or Inf"):
        load_weights(written(weights | {"time.bias": torch.full((64,), torch.nan)}))
    folder = written(weights)
    (folder / "sampler.json").write_text('{"architecture": "another"}')
    with pytest.raises(ModelRefused, match=r"sampler\.json must be"):
        DiffusionSampler(folder, "exact14")
    (folder / "sampler.json").unlink()
    with pytest.raises(ModelRefused, match=r"sampler\.json cannot be read"):
        DiffusionSampler(folder, "exact14")
