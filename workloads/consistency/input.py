"""What a job of the workload ``diffusion.terrain`` asks for; readable without torch."""

from __future__ import annotations

from protocols.codec import Wire, decode, encode
from protocols.errors import PeerFault
from protocols.limits import INPUT_BYTES_MAX, UNITS_MAX, WHOLE_UNITS_MAX
from workloads.consistency.config import SIDE
from workloads.errors import InputRefused

__all__ = ["LATENT_UNITS", "SIGMA_MILLI_MAX", "STEPS_MAX", "TerrainInput", "decode_input", "encode_input"]

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
        """Hold every field against its rule.

        Args:
            is_whole: it is yet to be split, so it may be larger than a job.

        Raises:
            InputRefused: the first that breaks it.
        """
        if not 1 <= len(self.sigmas_milli) <= STEPS_MAX:
            raise InputRefused(f"{len(self.sigmas_milli)} sigmas must be 1 to {STEPS_MAX}")
        before = SIGMA_MILLI_MAX + 1
        for index, sigma in enumerate(self.sigmas_milli):
            if not 1 <= sigma < before:
                raise InputRefused(f"sigmas_milli[{index}]={sigma} must be from 1 to below {before}")
            before = sigma
        for index, condition in enumerate(self.conditions):
            if not 1 <= condition <= _CONDITION_MAX:
                raise InputRefused(f"conditions[{index}]={condition} must be in [1, {_CONDITION_MAX}]")
        if not 0 <= self.seed <= _SEED_MAX:
            raise InputRefused(f"seed={self.seed} must be in [0, {_SEED_MAX}]")
        if not 0 <= self.first_map <= WHOLE_UNITS_MAX:
            raise InputRefused(f"first_map={self.first_map} must be in [0, {WHOLE_UNITS_MAX}]")
        units_max = WHOLE_UNITS_MAX if is_whole else UNITS_MAX
        if not 1 <= self.units_total <= units_max:
            raise InputRefused(f"maps x steps x {LATENT_UNITS} = {self.units_total} must be 1 to {units_max}")


def encode_input(value: TerrainInput, *, is_whole: bool = False) -> bytes:
    """The canonical bytes of an input, as a job carries it.

    Raises:
        InputRefused: the input breaks a rule.
    """
    value.check(is_whole=is_whole)
    return encode(value)


def decode_input(data: bytes, *, is_whole: bool = False) -> TerrainInput:
    """Read the bytes of `encode_input`.

    Raises:
        InputRefused: the bytes are not a canonical input that keeps the rules.
    """
    try:
        value = decode(data, TerrainInput, bytes_max=INPUT_BYTES_MAX)
    except PeerFault as error:
        raise InputRefused(str(error)) from error
    value.check(is_whole=is_whole)
    return value
