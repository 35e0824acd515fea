"""What a job of the workload ``diffusion.terrain`` asks for; readable without torch."""

from __future__ import annotations

from protocols.codec import Wire
from protocols.limits import UNITS_MAX, WHOLE_UNITS_MAX
from workloads.consistency.config import SIDE
from workloads.errors import InputRefused
from workloads.inputs import InputCodec, within

__all__ = [
    "CODEC",
    "LATENT_UNITS",
    "SIGMA_MILLI_MAX",
    "STEPS_MAX",
    "TerrainInput",
    "decode_input",
    "encode_input",
]

LATENT_UNITS = SIDE * SIDE
"""A map after one step is a chunk: its points as 32-bit floats."""
STEPS_MAX = UNITS_MAX // LATENT_UNITS
SIGMA_MILLI_MAX = 1_000_000
_SEED_MAX = 2**64 - 1
_CONDITION_MAX = 10_000


class TerrainInput(Wire, frozen=True):
    """Maps to draw out of noise.

    Args:
        conditions: of each map, from 1.
        sigmas_milli: noise that each step begins with, in thousandths, falling.
        seed: fixes the noise, in [0, 2**64).
        first_map: the place of the first map in a whole that was split.
    """

    conditions: tuple[int, ...]
    sigmas_milli: tuple[int, ...]
    seed: int
    first_map: int = 0

    @property
    def units_total(self) -> int:
        """Output units: every map after every step."""
        return len(self.conditions) * len(self.sigmas_milli) * LATENT_UNITS

    def check(self, *, is_whole: bool = False) -> None:
        """See `workloads.inputs.JobInput`."""
        if not 1 <= len(self.sigmas_milli) <= STEPS_MAX:
            raise InputRefused(f"{len(self.sigmas_milli)} sigmas must be 1 to {STEPS_MAX}")
        before = SIGMA_MILLI_MAX + 1
        for index, sigma in enumerate(self.sigmas_milli):
            if not 1 <= sigma < before:
                raise InputRefused(f"sigmas_milli[{index}]={sigma} must be from 1 to below {before}")
            before = sigma
        for index, condition in enumerate(self.conditions):
            within(f"conditions[{index}]", condition, 1, _CONDITION_MAX)
        within("seed", self.seed, 0, _SEED_MAX)
        within("first_map", self.first_map, 0, WHOLE_UNITS_MAX)
        units_max = WHOLE_UNITS_MAX if is_whole else UNITS_MAX
        if not 1 <= self.units_total <= units_max:
            raise InputRefused(f"maps x steps x {LATENT_UNITS} = {self.units_total} must be 1 to {units_max}")


CODEC = InputCodec(TerrainInput)
encode_input, decode_input = CODEC.encode, CODEC.decode
