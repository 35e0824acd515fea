"""What a job of the workload ``diffusion.sample`` asks for; readable without torch."""

from __future__ import annotations

from protocols.codec import Wire, decode, encode
from protocols.errors import PeerFault
from protocols.limits import INPUT_BYTES_MAX, PARTS_MAX
from workloads.errors import InputRefused

__all__ = ["CLASSES", "LATENT_UNITS", "SIZE", "SampleInput", "decode_input", "encode_input"]

SIZE = 8
"""Pixels of a side; pictures are grey."""
LATENT_UNITS = SIZE * SIZE
"""A latent is a chunk: its pixels as 32-bit floats."""
CLASSES = 10
"""Digits."""
PICTURES_MAX = 16
PICTURES_WHOLE_MAX = PARTS_MAX * PICTURES_MAX
"""Of a job that is yet to be split."""
STEPS_MAX = 64
GUIDANCE_MILLI_MAX = 20_000
_SEED_MAX = 2**64 - 1


class SampleInput(Wire, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Pictures to draw out of noise.

    Args:
        labels: the class of each picture, in [0, `CLASSES`).
        steps: from noise to picture.
        seed: fixes the noise, in [0, 2**64).
        guidance_milli: how far to go beyond what the class alone suggests; 1000 is not at all.
        first_picture: number of the first in the whole that these are a part of; noise goes by it.
    """

    labels: tuple[int, ...]
    steps: int
    seed: int
    guidance_milli: int = 1_000
    first_picture: int = 0

    @property
    def units_total(self) -> int:
        """Output units: every latent of every picture."""
        return len(self.labels) * self.steps * LATENT_UNITS

    def check(self, *, pictures_max: int = PICTURES_MAX) -> None:
        """Hold every field against its rule.

        Args:
            pictures_max: pictures that it may ask for; a job that is yet to be split may ask for more.

        Raises:
            InputRefused: the first that breaks it.
        """
        if not 1 <= len(self.labels) <= pictures_max:
            raise InputRefused(f"{len(self.labels)} labels must be 1 to {pictures_max}")
        for index, label in enumerate(self.labels):
            _within(f"labels[{index}]", label, 0, CLASSES - 1)
        _within("steps", self.steps, 1, STEPS_MAX)
        _within("seed", self.seed, 0, _SEED_MAX)
        _within("guidance_milli", self.guidance_milli, 0, GUIDANCE_MILLI_MAX)
        _within("first_picture", self.first_picture, 0, PICTURES_WHOLE_MAX - 1)


def encode_input(value: SampleInput, *, is_whole: bool = False) -> bytes:
    """The canonical bytes of an input, as a job carries it.

    Args:
        value: the input.
        is_whole: it is yet to be split, so it may be larger than a job.

    Raises:
        InputRefused: the input breaks a rule.
    """
    value.check(pictures_max=PICTURES_WHOLE_MAX if is_whole else PICTURES_MAX)
    return encode(value)


def decode_input(data: bytes, *, is_whole: bool = False) -> SampleInput:
    """Read the bytes of `encode_input`.

    Raises:
        InputRefused: the bytes are not a canonical input that keeps the rules.
    """
    try:
        value = decode(data, SampleInput, bytes_max=INPUT_BYTES_MAX)
    except PeerFault as error:
        raise InputRefused(str(error)) from error
    value.check(pictures_max=PICTURES_WHOLE_MAX if is_whole else PICTURES_MAX)
    return value


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InputRefused(f"{name}={value} must be in [{low}, {high}]")
