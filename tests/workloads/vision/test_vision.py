"""Classes of images: near what float64 gives, the same whatever images are around, and checked."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from protocols.units import FALSE_UNITS
from tests.support.tiny_models import VISION as FIELDS
from tests.support.tiny_models import randoms, tiny_vision, write_model
from workloads import exact
from workloads.blobs import MemoryBlobs
from workloads.errors import InputRefused, ModelRefused
from workloads.vision.config import VisionConfig, expected_shapes, load_config, parse_config
from workloads.vision.input import CHUNK_IMAGES, TOP, ClassifyInput, decode_input, encode_input
from workloads.vision.kind import COPIED_IMAGE, QUANTIZED_CLASSIFIER, VISION
from workloads.vision.network import Classifier, Exact, Native
from workloads.vision.workload import ImageClassifier, likeliest
from workloads.weightsfile import load_tensors

CONFIG = parse_config(dict(FIELDS))
COUNT = 2 * CHUNK_IMAGES + 1
SIDE = CONFIG.image_size


def pictures(count: int = COUNT, seed: int = 1) -> Tensor:
    """Noise of several sizes, so that images differ in more than their grain."""
    made = torch.Generator().manual_seed(seed)
    grains = [torch.rand(1, 3, 2**n, 2**n, generator=made) for _ in range(count) for n in range(5)]
    large = [functional.interpolate(grain, (SIDE, SIDE))[0] for grain in grains]
    mixed = [torch.stack([large[5 * n + k] * 2.0**-k for k in range(5)]).sum(0) / 2 for n in range(count)]
    return (torch.stack(mixed) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


IMAGES = pictures()
SAMPLES = IMAGES.numpy().tobytes()
JOB = encode_input(ClassifyInput(SIDE, 0, COUNT, SAMPLES))


def classifier(variant: str | None = None, profile: str = "exact14", *contents: bytes) -> ImageClassifier:
    return ImageClassifier(tiny_vision(), profile, variant, blobs=MemoryBlobs(*contents))


class Done:
    def __init__(self, job: bytes, *contents: bytes, variant: str | None = None) -> None:
        self.units: list[int] = []
        self.digests: dict[int, bytes] = {}
        classifier(variant, "exact14", *contents).generate(
            job, (), lambda _, new: self.units.extend(new), self.digests.__setitem__, lambda: False
        )


def weights() -> dict[str, Tensor]:
    return load_tensors(tiny_vision(), expected_shapes(CONFIG), lambda _: False)


def by_torch(config: VisionConfig, table: dict[str, Tensor], images: Tensor) -> Tensor:
    """The network once more, plainly: float64, with TensorFlow's padding written out."""
    table = {name: weight.double() for name, weight in table.items()}

    def convolve(name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = table[f"{name}.weight"]
        both = max(weight.shape[-1] - stride, 0) if x.shape[-1] % stride == 0 else weight.shape[-1] - 1
        x = functional.pad(x, (both // 2, both - both // 2) * 2)
        return functional.conv2d(x, weight, table[f"{name}.bias"], stride=stride, groups=groups)

    x = functional.relu6(convolve("stem", (images.double().permute(0, 3, 1, 2) - 127) / 128, 2))
    for number, block in enumerate(config.blocks):
        before = x
        if block.expansion > 1:
            x = functional.relu6(convolve(f"blocks.{number}.expand", x))
        x = functional.relu6(convolve(f"blocks.{number}.depthwise", x, block.stride, x.shape[1]))
        x = convolve(f"blocks.{number}.project", x)
        x = x + before if block.stride == 1 and x.shape == before.shape else x
    x = functional.relu6(convolve("head", x)).mean((2, 3))
    return functional.linear(x, table["classifier.weight"], table["classifier.bias"])


@pytest.mark.parametrize(("precision", "least"), [(exact.EXACT14, 0.9999), (exact.EXACT21, 0.99999999)])
def test_strengths_are_close_to_float64s_and_the_first_class_is_the_same(
    precision: exact.Precision, least: float
) -> None:
    expected = by_torch(CONFIG, weights(), IMAGES)
    found = Classifier(CONFIG, weights(), Exact(precision)).logits(IMAGES)
    assert float(functional.cosine_similarity(found, expected).min()) > least
    assert torch.equal(found.argmax(1), expected.argmax(1))
    assert len(set(found.argmax(1).tolist())) > 1


def test_native_operators_run_the_same_network() -> None:
    native = Classifier(CONFIG, weights(), Native()).logits(IMAGES)
    assert torch.allclose(native.double(), by_torch(CONFIG, weights(), IMAGES), atol=1e-4)


def test_units_are_the_likeliest_classes_with_their_chances() -> None:
    units = Done(JOB).units
    logits = Classifier(CONFIG, weights(), Exact(exact.EXACT14)).logits(IMAGES)
    for number in range(COUNT):
        words = units[number * 2 * TOP : (number + 1) * 2 * TOP]
        chances = struct.unpack(f"<{TOP}f", struct.pack(f"<{TOP}I", *words[1::2]))
        expected = torch.softmax(logits[number], 0).sort(descending=True)
        assert words[::2] == expected.indices[:TOP].tolist()
        assert chances == pytest.approx(expected.values[:TOP].tolist())


def test_of_equally_likely_classes_the_first_is_told_first() -> None:
    numbers, chances = likeliest(torch.tensor([[0.1, 0.2, 0.2, 0.2, 0.1, 0.1, 0.1]]))
    assert numbers.tolist() == [[1, 2, 3, 0, 4]]
    assert chances.dtype == np.float32


def test_an_images_classes_depend_on_no_other_image() -> None:
    backwards = encode_input(ClassifyInput(SIDE, 0, COUNT, IMAGES.flip(0).contiguous().numpy().tobytes()))
    units, turned = Done(JOB).units, Done(backwards).units
    assert [turned[-10 * (n + 1) :][:10] for n in range(COUNT)] == [
        units[10 * n :][:10] for n in range(COUNT)
    ]


def test_a_verifier_derives_the_digests() -> None:
    done = Done(JOB)
    assert len(done.units) == COUNT * 10
    assert classifier().recompute(JOB, done.units, range(3)) == done.digests
    assert classifier().recompute(JOB, done.units[:80], [1]) == {1: done.digests[1]}
    other = [*done.units[:-1], done.units[-1] ^ 1]
    assert classifier().recompute(JOB, other, [2]) == {2: FALSE_UNITS}


@pytest.mark.parametrize("variant", [COPIED_IMAGE, QUANTIZED_CLASSIFIER])
def test_a_cheater_is_caught(variant: str) -> None:
    done = Done(JOB, variant=variant)
    truth = classifier(variant).recompute(JOB, done.units, range(3))
    # One image alone can't be copied.
    caught = [chunk for chunk in range(3) if truth[chunk] != done.digests[chunk]]
    assert caught == ([0, 1] if variant == COPIED_IMAGE else [0, 1, 2])


def test_images_may_be_a_blob_and_parts_give_the_whole() -> None:
    blob = MemoryBlobs().write(SAMPLES)
    job = encode_input(ClassifyInput(SIDE, 0, COUNT, blob=blob))
    assert VISION.input_blobs(job) == (blob,)
    assert VISION.input_blobs(JOB) == ()
    split = VISION.split
    assert split is not None
    assert split.items(job) == 3
    for whole in (job, JOB):
        parts = [split.part(whole, 0, 1), split.part(whole, 1, 2)]
        assert [part.units_max for part in parts] == [40, 50]
        units = [unit for part in parts for unit in Done(part.input, SAMPLES).units]
        assert units == Done(JOB).units
    with pytest.raises(InputRefused, match="must lie in"):
        split.part(job, 2, 2)
    with pytest.raises(InputRefused, match="isn't here"):
        Done(job)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"side": 0}, r"side=0 must be in \[1, 1024\]"),
        ({"count": 0}, "0 images must be 1 to 6553"),
        ({"count": 3}, "24 bytes must be whole images of 12, at least 3"),
        ({"first": 1, "count": 2}, "at least 3"),
        ({"first": -1}, "first=-1"),
        ({"samples": bytes(25)}, "25 bytes must be whole images"),
        ({"samples": b""}, "either with the input or as a blob"),
    ],
)
def test_inputs_that_break_a_rule_are_refused(fields: dict[str, Any], rule: str) -> None:
    plain: dict[str, Any] = {"side": 2, "first": 0, "count": 2, "samples": bytes(24)}
    with pytest.raises(InputRefused, match=rule):
        encode_input(ClassifyInput(**plain | fields))


def test_rubbish_is_no_input() -> None:
    with pytest.raises(InputRefused):
        decode_input(b"rubbish")


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("image_size", 0, "image_size=0"),
        ("blocks", [], "blocks must be a list"),
        ("blocks", [[8, 4, 1, 1]], r"blocks\[0\]=\[8, 4, 1, 1\]"),
        ("blocks", [[8, 3, 1]], r"blocks\[0\] must be \[channels"),
        ("blocks", [[8, 3, 3, 1]], "a stride of"),
        ("blocks", [[8, 3, 1, 1 << 20]], "channels"),
        ("labels", ["one"], "labels must be a list of 5"),
        ("labels", [*"abcde", 6], r"labels\[5\] must be text"),
    ],
)
def test_configurations_that_break_a_rule_are_refused(field: str, value: Any, rule: str) -> None:
    with pytest.raises(ModelRefused, match=rule):
        parse_config(FIELDS | {field: value})


def test_a_directory_is_this_kinds_model_another_kinds_or_broken(tmp_path: Path) -> None:
    model = VISION.read_model(tiny_vision())
    assert model is not None
    assert model.name == "tiny-vision-32"
    assert VISION.read_model(tmp_path) is None
    tensors = randoms(expected_shapes(CONFIG), seed=5)
    other = write_model(tmp_path / "other", FIELDS | {"model_type": "resnet"}, tensors)
    assert VISION.read_model(other) is None
    tensors["head.bias"][0] = torch.nan
    broken = write_model(tmp_path / "broken", dict(FIELDS), tensors)
    with pytest.raises(ModelRefused, match=r"head\.bias holds NaN or Inf"):
        ImageClassifier(broken, "exact14", blobs=MemoryBlobs())
    (broken / "config.json").write_text(json.dumps(FIELDS | {"labels": "many"}))
    with pytest.raises(ModelRefused, match="labels"):
        VISION.read_model(broken)
    assert load_config(tiny_vision()) == CONFIG
