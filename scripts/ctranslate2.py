"""Reading the model files of CTranslate2 as data, and naming a Whisper model's tensors as Hugging Face does.

A file is: u32 version, text specification, u32 revision, u32 count, then for each tensor text name, u8 rank,
u32 sizes, u8 type, u32 bytes, the numbers; text is u16 length with a final zero byte. All is little-endian.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

_TYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}


def read_tensors(data: bytes) -> dict[str, NDArray[np.generic]]:
    """Every tensor of a CTranslate2 model file, by name.

    Raises:
        ValueError: the file is truncated or malformed.
    """
    place = 0

    def take(count: int) -> bytes:
        nonlocal place
        if place + count > len(data):
            raise ValueError(f"model ends at byte {len(data)}, {place + count} are announced")
        place += count
        return data[place - count : place]

    def number(code: str) -> int:
        return int(struct.unpack(f"<{code}", take(struct.calcsize(code)))[0])

    def text() -> str:
        return take(number("H"))[:-1].decode()

    number("I")
    text()
    number("I")
    tensors: dict[str, NDArray[np.generic]] = {}
    for _ in range(number("I")):
        name = text()
        sizes = [number("I") for _ in range(number("B"))]
        kind = number("B")
        if kind not in _TYPES:
            raise ValueError(f"tensor {name} has type {kind}, must be one of {sorted(_TYPES)}")
        tensors[name] = np.frombuffer(take(number("I")), _TYPES[kind]).reshape(sizes)
    return tensors


def whisper_tensors(found: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    """A Whisper model's tensors by their Hugging Face names."""
    named: dict[str, NDArray[np.generic]] = {
        "model.encoder.embed_positions.weight": found["encoder/position_encodings/encodings"],
        "model.decoder.embed_positions.weight": found["decoder/position_encodings/encodings"],
        "model.decoder.embed_tokens.weight": found["decoder/embeddings/weight"],
    }

    def linear(name: str, source: str) -> None:
        named[f"{name}.weight"], named[f"{name}.bias"] = found[f"{source}/weight"], found[f"{source}/bias"]

    def norm(name: str, source: str) -> None:
        named[f"{name}.weight"], named[f"{name}.bias"] = found[f"{source}/gamma"], found[f"{source}/beta"]

    def split(name: str, projections: str, source: str) -> None:
        parts = len(projections)
        weights = np.split(found[f"{source}/weight"], parts)
        biases = np.split(found[f"{source}/bias"], parts)
        for letter, weight, bias in zip(projections, weights, biases, strict=True):
            named[f"{name}.{letter}_proj.weight"] = weight
            if letter != "k":
                named[f"{name}.{letter}_proj.bias"] = bias

    for number in (1, 2):
        linear(f"model.encoder.conv{number}", f"encoder/conv{number}")
    for part in ("encoder", "decoder"):
        norm(f"model.{part}.layer_norm", f"{part}/layer_norm")
        layer = 0
        while f"{part}/layer_{layer}/ffn/linear_0/weight" in found:
            name, source = f"model.{part}.layers.{layer}", f"{part}/layer_{layer}"
            split(f"{name}.self_attn", "qkv", f"{source}/self_attention/linear_0")
            linear(f"{name}.self_attn.out_proj", f"{source}/self_attention/linear_1")
            norm(f"{name}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
            if part == "decoder":
                linear(f"{name}.encoder_attn.q_proj", f"{source}/attention/linear_0")
                split(f"{name}.encoder_attn", "kv", f"{source}/attention/linear_1")
                linear(f"{name}.encoder_attn.out_proj", f"{source}/attention/linear_2")
                norm(f"{name}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
            norm(f"{name}.final_layer_norm", f"{source}/ffn/layer_norm")
            linear(f"{name}.fc1", f"{source}/ffn/linear_0")
            linear(f"{name}.fc2", f"{source}/ffn/linear_1")
            layer += 1
    return named


def mel_filters(bins: int, *, rate_hz: int = 16_000, width: int = 400) -> NDArray[np.float32]:
    """Slaney's triangular filter bank, each of area one: (bins, width // 2 + 1).

    Source: Slaney 1998, "Auditory Toolbox", as librosa and Whisper use it.
    """

    def to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(
            mel < 15.0, mel * (200.0 / 3.0), 1_000.0 * np.exp((mel - 15.0) * (np.log(6.4) / 27.0))
        )

    highest_mel = 15.0 + np.log(rate_hz / 2 / 1_000.0) / (np.log(6.4) / 27.0)
    corners = to_hz(np.linspace(0.0, highest_mel, bins + 2))
    frequencies = np.arange(width // 2 + 1) * (rate_hz / width)
    rising = (frequencies - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - frequencies) / (corners[2:] - corners[1:-1])[:, None]
    filters = np.maximum(0.0, np.minimum(rising, falling))
    filters *= (2.0 / (corners[2:] - corners[:-2]))[:, None]
    return filters.astype(np.float32)
