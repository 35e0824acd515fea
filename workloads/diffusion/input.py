"""What a job of the workload ``diffusion.sample`` asks for; readable without torch."""

from __future__ import annotations

from protocols.codec import Wire
from protocols.limits import PARTS_MAX
from workloads.errors import InputRefused
from workloads.inputs import InputCodec, within

__all__ = ["CLASSES", "CODEC", "LATENT_UNITS", "SIZE", "SampleInput", "decode_input", "encode_input"]

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


class SampleInput(Wire, frozen=True):
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

    def check(self, *, is_whole: bool = False) -> None:
        """See `workloads.inputs.JobInput`."""
        pictures_max = PICTURES_WHOLE_MAX if is_whole else PICTURES_MAX
        if not 1 <= len(self.labels) <= pictures_max:
            raise InputRefused(f"{len(self.labels)} labels must be 1 to {pictures_max}")
        for index, label in enumerate(self.labels):
            within(f"labels[{index}]", label, 0, CLASSES - 1)
        within("steps", self.steps, 1, STEPS_MAX)
        within("seed", self.seed, 0, _SEED_MAX)
        within("guidance_milli", self.guidance_milli, 0, GUIDANCE_MILLI_MAX)
        within("first_picture", self.first_picture, 0, PICTURES_WHOLE_MAX - 1)


CODEC = InputCodec(SampleInput)
encode_input, decode_input = CODEC.encode, CODEC.decode
