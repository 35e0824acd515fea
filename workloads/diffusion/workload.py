"""Running ``diffusion.sample``: a chunk is one step of one picture, and its units are the latent after it.

A chunk's digest covers the predicted velocity too, in float64, of which the latents keep only a rounded
fraction. The cheap check takes the claimed latent before a step as it is and does this one step again; so any
steps can be checked in any order, one at a time, and a latent that was guessed rather than computed shows.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workloads import exact
from workloads.chunkwise import Chunk, Chunkwise
from workloads.diffusion.input import LATENT_UNITS, SIZE, SampleInput, decode_input
from workloads.diffusion.kind import FEWER_STEPS, NAME, model_digest
from workloads.diffusion.sampler import Sampler, advance, load_weights, noise
from workloads.errors import InputRefused, ModelRefused

__all__ = ["DiffusionSampler"]

_PRECISIONS = {"exact14": exact.EXACT14, "exact21": exact.EXACT21}


class DiffusionSampler(Chunkwise[SampleInput]):
    """One loaded sampler in one numerics profile.

    Args:
        model_dir: the model's directory.
        profile: ``exact14`` or ``exact21``.
        variant: how to cheat while generating, or None.
        expected_digest: what the files must hash to, if known.

    Raises:
        InputRefused: the profile or the variant is unknown.
        ModelRefused: the directory is not this model, or hashes to something else.
    """

    def __init__(
        self,
        model_dir: Path,
        profile: str,
        variant: str | None = None,
        *,
        expected_digest: bytes | None = None,
    ) -> None:
        super().__init__(NAME, model_digest(model_dir), profile, LATENT_UNITS)
        if expected_digest is not None and self.model != expected_digest:
            raise ModelRefused(f"model digest {self.model.hex()} must be {expected_digest.hex()}")
        if profile not in _PRECISIONS:
            raise InputRefused(f"profile {profile!r} must be one of {tuple(_PRECISIONS)}")
        if variant not in (None, FEWER_STEPS):
            raise InputRefused(f"variant {variant!r} must be {FEWER_STEPS!r}")
        self._variant = variant
        self._sampler = Sampler(load_weights(model_dir), _PRECISIONS[profile])

    def decode(self, input: bytes) -> SampleInput:
        """See `Chunkwise`."""
        return decode_input(input)

    def units_total(self, job: SampleInput) -> int:
        """See `Chunkwise`."""
        return job.units_total

    def derive(self, job: SampleInput, before: Sequence[int], chunk: int) -> Chunk:
        """See `Chunkwise`; of what came before, a step needs the one latent that it starts from."""
        picture, step = divmod(chunk, job.steps)
        latent = self._latent(job, before, chunk)
        predicted, after = self._sampler.step(job, job.labels[picture], step, latent)
        return _chunk(predicted, after)

    def produce(self, job: SampleInput, before: Sequence[int], chunk: int) -> Chunk:
        """See `Chunkwise`; the cheater takes every second step by going on as it went before."""
        step = chunk % job.steps
        if self._variant != FEWER_STEPS or step % 2 == 0:
            return self.derive(job, before, chunk)
        earlier, latent = self._latent(job, before, chunk - 1), self._latent(job, before, chunk)
        guessed = (latent.to(torch.float64) - earlier.to(torch.float64)) * float(job.steps)
        return _chunk(guessed, advance(latent, guessed, job.steps))

    def _latent(self, job: SampleInput, before: Sequence[int], chunk: int) -> Tensor:
        """The latent that a step starts from."""
        picture, step = divmod(chunk, job.steps)
        if step == 0:
            return noise(job, picture)
        words = np.array(before[(chunk - 1) * LATENT_UNITS : chunk * LATENT_UNITS], dtype=np.uint32)
        return torch.from_numpy(words.view(np.float32).reshape(SIZE, SIZE))


def _chunk(predicted: Tensor, after: Tensor) -> Chunk:
    units: list[int] = after.flatten().numpy().view(np.uint32).tolist()
    values: list[float] = predicted.flatten().tolist()
    return Chunk(units, struct.pack(f"<{len(values)}d", *values))
