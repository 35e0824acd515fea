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

from workloads.chunkwise import Chunk
from workloads.diffusion.input import LATENT_UNITS, SIZE, SampleInput, decode_input
from workloads.diffusion.kind import DIFFUSION, FEWER_STEPS, model_digest
from workloads.diffusion.sampler import Sampler, advance, load_weights, noise
from workloads.fingerprint import float_miss_ppb
from workloads.profiled import Profiled

__all__ = ["DiffusionSampler"]


class DiffusionSampler(Profiled[SampleInput]):
    """One loaded sampler in one numerics profile.

    Args:
        model_dir: the model's directory.
        profile: of the kind's.
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
        model = model_digest(model_dir)
        super().__init__(
            DIFFUSION, model, profile, variant, expected_digest=expected_digest, model_dir=model_dir
        )
        self._sampler = Sampler(load_weights(model_dir), self._numerics.precision)

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
        return _chunk(*self._sampler.step(job, job.labels[picture], step, latent))

    def produce(self, job: SampleInput, before: Sequence[int], chunk: int) -> Chunk:
        """See `Chunkwise`; the cheater takes every second step by going on as it went before."""
        step = chunk % job.steps
        if self._variant != FEWER_STEPS or step % 2 == 0:
            return self.derive(job, before, chunk)
        earlier, latent = self._latent(job, before, chunk - 1), self._latent(job, before, chunk)
        guessed = (latent.to(torch.float64) - earlier.to(torch.float64)) * float(job.steps)
        return _chunk(guessed, advance(latent, guessed, job.steps), guessed)

    def miss_ppb(self, job: SampleInput, claimed: Sequence[int], own: Chunk) -> int:
        """See `Profiled`: the latents are compared."""
        return float_miss_ppb(claimed, np.array(own.units, dtype="<u4").view("<f4"))

    def _latent(self, job: SampleInput, before: Sequence[int], chunk: int) -> Tensor:
        """The latent that a step starts from."""
        picture, step = divmod(chunk, job.steps)
        if step == 0:
            return noise(job, picture)
        words = np.array(before[(chunk - 1) * LATENT_UNITS : chunk * LATENT_UNITS], dtype=np.uint32)
        return torch.from_numpy(words.view(np.float32).reshape(SIZE, SIZE))


def _chunk(predicted: Tensor, after: Tensor, hidden: Tensor) -> Chunk:
    units: list[int] = after.flatten().numpy().view(np.uint32).tolist()
    values: list[float] = predicted.flatten().tolist()
    return Chunk(units, struct.pack(f"<{len(values)}d", *values), (predicted, hidden))
