"""A chunkwise workload in every numerics profile.

In ``native`` a chunk's finding is a fingerprint of its inner values, and its units may miss those that a
verifier finds by a calibrated margin. Elsewhere findings are digests.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from protocols.messages import EQUAL_BITS
from protocols.units import FALSE_UNITS
from workloads.chunkwise import Chunk, Chunkwise
from workloads.errors import InputRefused, ModelRefused, NumericsRefused
from workloads.fingerprint import PPB, fingerprint, projection_signs
from workloads.numerics import numerics_of
from workloads.workload import Kind

__all__ = ["Profiled"]

JobT = TypeVar("JobT")


class Profiled(Chunkwise[JobT]):
    """See the module.

    Args:
        kind: of work.
        model: the model's digest.
        profile: of the kind's.
        variant: how to cheat while generating, or None.
        expected_digest: the digest that a job names, if any.
        model_dir: where its calibrated bounds lie.

    Raises:
        InputRefused: the profile or the variant is unknown.
        ModelRefused: the job names another model, or it isn't calibrated for native runs.
    """

    def __init__(
        self,
        kind: Kind,
        model: bytes,
        profile: str,
        variant: str | None = None,
        *,
        expected_digest: bytes | None = None,
        model_dir: Path = Path(),
    ) -> None:
        super().__init__(kind.name, model, profile, kind.chunk_units)
        if expected_digest not in (None, model):
            raise ModelRefused(f"model digest {model.hex()} must be {bytes(expected_digest or b'').hex()}")
        self._numerics = numerics_of(profile, kind.profiles)
        if variant not in (None, *kind.variants):
            raise InputRefused(f"variant {variant!r} must be one of {kind.variants}")
        self._variant = variant
        self._margin_ppb = 0
        self.missed_ppb = 0
        """By how much the units of the chunk that was checked last missed this machine's."""
        if self._numerics.has_fingerprints:
            bounds = kind.tolerance(model_dir)
            if bounds == EQUAL_BITS:
                raise ModelRefused(
                    "the model isn't calibrated for native runs; see: p2p-node model calibrate"
                )
            is_reference = self._numerics.is_reference
            self._margin_ppb = bounds.convict_margin_ppb if is_reference else bounds.agree_margin_ppb

    def miss_ppb(self, job: JobT, claimed: Sequence[int], own: Chunk) -> int:
        """How far a chunk's claimed units lie from this machine's, in parts per billion.

        Args:
            job: what is asked for.
            claimed: any words, as many as the chunk has.
            own: the chunk, derived from the same units before it.
        """
        return 0 if list(claimed) == own.units else PPB

    def check(self, job: JobT, units: Sequence[int], number: int, claimed: list[int]) -> bytes:
        """See `Chunkwise`."""
        if not self._numerics.has_fingerprints:
            return super().check(job, units, number, claimed)
        # What a native run overflows in, another may not: such a chunk is false to nobody.
        own = self.derive(job, units, number)
        self.missed_ppb = self.miss_ppb(job, claimed, own) if len(claimed) == len(own.units) else PPB
        if self.missed_ppb > self._margin_ppb:
            return FALSE_UNITS
        return self.digest(number, own)

    def digest(self, number: int, chunk: Chunk) -> bytes:
        """See `Chunkwise`: a digest, or a fingerprint of the chunk's states."""
        if not self._numerics.has_inner_states:
            return super().digest(number, chunk)
        if not self._numerics.has_fingerprints:
            # What an exact run keeps of its inner values in float64, float32 units would give away.
            inner = b"".join(
                state.float().numpy().astype("<f4", copy=False).tobytes() for state in chunk.states
            )
            return super().digest(number, Chunk(chunk.units, inner))
        prints = []
        for state in chunk.states:
            row = state.double().reshape(1, -1).numpy()
            if not np.isfinite(row).all():
                raise NumericsRefused("the computation left the range of float32")
            prints.append(fingerprint(row, projection_signs(self.model, row.shape[-1])))
        return b"".join(prints)
