"""What a job of the workload ``diffusion.sample`` asks for; readable without torch."""

from __future__ import annotations

from protocols.codec import Wire, decode, encode
from protocols.errors import PeerFault
from protocols.limits import INPUT_BYTES_MAX
from workloads.errors import InputRefused

__all__ = ["CLASSES", "LATENT_UNITS", "SIZE", "SampleInput", "decode_input", "encode_input"]

SIZE = 8
"""Pixels of a side; pictures are grey."""
LATENT_UNITS = SIZE * SIZE
"""A latent is a chunk: its pixels as 32-bit floats."""
CLASSES = 10
"""Digits."""
PICTURES_MAX = 16
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
    """

    labels: tuple[int, ...]
    steps: int
    seed: int
    guidance_milli: int = 1_000

    @property
    def units_total(self) -> int:
        """Output units: every latent of every picture."""
        return len(self.labels) * self.steps * LATENT_UNITS

    def check(self) -> None:
        """Hold every field against its rule.

        Raises:
            InputRefused: the first that breaks it.
        """
        if not 1 <= len(self.labels) <= PICTURES_MAX:
            raise InputRefused(f"{len(self.labels)} labels must be 1 to {PICTURES_MAX}")
        for index, label in enumerate(self.labels):
            _within(f"labels[{index}]", label, 0, CLASSES - 1)
        _within("steps", self.steps, 1, STEPS_MAX)
        _within("seed", self.seed, 0, _SEED_MAX)
        _within("guidance_milli", self.guidance_milli, 0, GUIDANCE_MILLI_MAX)


def encode_input(value: SampleInput) -> bytes:
    """The canonical bytes of an input, as a job carries it.

    Raises:
        InputRefused: the input breaks a rule.
    """
    value.check()
    return encode(value)


def decode_input(data: bytes) -> SampleInput:
    """Read the bytes of `encode_input`.

    Raises:
        InputRefused: the bytes are not a canonical input that keeps the rules.
    """
    try:
        value = decode(data, SampleInput, bytes_max=INPUT_BYTES_MAX)
    except PeerFault as error:
        raise InputRefused(str(error)) from error
    value.check()
    return value


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InputRefused(f"{name}={value} must be in [{low}, {high}]")
