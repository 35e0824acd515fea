"""What a classifier's ``config.json`` says: how images enter, which blocks follow, what classes are called.

Batch normalisation is folded into the convolutions, so a network is convolutions with biases. Needs no torch.
Source: Tan and Le, "EfficientNet: rethinking model scaling for convolutional neural networks", 2019, without
squeeze-and-excite and with ReLU6.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.errors import ModelRefused
from workloads.modelconfig import CONFIG_FILE, integer_field, read_fields
from workloads.vision.input import SIDE_MAX, TOP

__all__ = ["MODEL_TYPE", "Block", "VisionConfig", "expected_shapes", "load_config", "parse_config"]

MODEL_TYPE = "efficientnet-lite"
_CHANNELS_MAX = 1 << 14
_BLOCKS_MAX = 256
_CLASSES_MAX = 1 << 16
_LABEL_CHARACTERS_MAX = 256
_STRIDES = (1, 2)
_KERNELS = (1, 3, 5, 7)


@dataclass(frozen=True, slots=True)
class Block:
    """One inverted residual block.

    Args:
        channels: that come out.
        kernel: side of the depthwise convolution.
        stride: of that.
        expansion: how many times the channels that come in it works on; 1 has no convolution for it.
    """

    channels: int
    kernel: int
    stride: int
    expansion: int


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """One network; every field is checked by `parse_config`.

    Args:
        image_size: pixels of a side.
        crop_permille: how much of an image's shorter side is looked at; the client crops.
        sample_mean: a sample enters as (sample - mean) / scale.
        sample_scale: see there.
        stem_channels: out of the first convolution.
        head_channels: out of the last.
        blocks: between them.
        labels: what the classes are called, in order.
    """

    image_size: int
    crop_permille: int
    sample_mean: int
    sample_scale: int
    stem_channels: int
    head_channels: int
    blocks: tuple[Block, ...]
    labels: tuple[str, ...]


def load_config(model_dir: Path) -> VisionConfig:
    """The configuration of a model directory.

    Raises:
        ModelRefused: the file is missing, too large, not JSON, or breaks a rule of `parse_config`.
    """
    return parse_config(read_fields(model_dir))


def parse_config(fields: dict[str, Any]) -> VisionConfig:
    """Check the object of a ``config.json``.

    Raises:
        ModelRefused: it is another type of model, or a field is missing or breaks its rule.
    """
    if fields.get("model_type") != MODEL_TYPE:
        raise ModelRefused(f"{CONFIG_FILE}: model_type={fields.get('model_type')!r} must be {MODEL_TYPE!r}")
    blocks = fields.get("blocks")
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= _BLOCKS_MAX:
        raise ModelRefused(f"{CONFIG_FILE}: blocks must be a list of 1 to {_BLOCKS_MAX}")
    labels = fields.get("labels")
    if not isinstance(labels, list) or not TOP <= len(labels) <= _CLASSES_MAX:
        raise ModelRefused(f"{CONFIG_FILE}: labels must be a list of {TOP} to {_CLASSES_MAX}")
    for index, label in enumerate(labels):
        if not isinstance(label, str) or not 1 <= len(label) <= _LABEL_CHARACTERS_MAX:
            raise ModelRefused(
                f"{CONFIG_FILE}: labels[{index}] must be text of 1 to {_LABEL_CHARACTERS_MAX} characters"
            )
    return VisionConfig(
        image_size=integer_field(fields, "image_size", 1, SIDE_MAX),
        crop_permille=integer_field(fields, "crop_permille", 1, 1_000),
        sample_mean=integer_field(fields, "sample_mean", 0, 255),
        sample_scale=integer_field(fields, "sample_scale", 1, 255),
        stem_channels=integer_field(fields, "stem_channels", 1, _CHANNELS_MAX),
        head_channels=integer_field(fields, "head_channels", 1, _CHANNELS_MAX),
        blocks=tuple(_block(index, block) for index, block in enumerate(blocks)),
        labels=tuple(labels),
    )


def _block(index: int, block: object) -> Block:
    if not isinstance(block, list) or len(block) != 4 or any(type(number) is not int for number in block):
        raise ModelRefused(
            f"{CONFIG_FILE}: blocks[{index}] must be [channels, kernel, stride, expansion], got {block!r}"
        )
    channels, kernel, stride, expansion = block
    if not (
        1 <= channels <= _CHANNELS_MAX
        and kernel in _KERNELS
        and stride in _STRIDES
        and 1 <= expansion * channels <= _CHANNELS_MAX
    ):
        raise ModelRefused(
            f"{CONFIG_FILE}: blocks[{index}]={block} must have up to {_CHANNELS_MAX} channels, a kernel of "
            f"{_KERNELS} and a stride of {_STRIDES}"
        )
    return Block(channels, kernel, stride, expansion)


def expected_shapes(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by name."""
    table: dict[str, tuple[int, ...]] = {"stem.weight": (config.stem_channels, 3, 3, 3)}
    channels = config.stem_channels
    for number, block in enumerate(config.blocks):
        prefix, wide = f"blocks.{number}.", channels * block.expansion
        if block.expansion != 1:
            table[f"{prefix}expand.weight"] = (wide, channels, 1, 1)
        table[f"{prefix}depthwise.weight"] = (wide, 1, block.kernel, block.kernel)
        table[f"{prefix}project.weight"] = (block.channels, wide, 1, 1)
        channels = block.channels
    table["head.weight"] = (config.head_channels, channels, 1, 1)
    table["classifier.weight"] = (len(config.labels), config.head_channels)
    biases = {name.replace(".weight", ".bias"): shape[:1] for name, shape in table.items()}
    return table | biases
