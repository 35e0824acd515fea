"""The operator that holds claimed output against what was computed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from protocols.digest import DIGEST_BYTES
from protocols.units import FALSE_UNITS, units_digest
from workloads.program.operators.digests import digest_tensor
from workloads.program.operators.registry import data, operator, require
from workloads.program.program import DIGEST_SPEC, ValueSpec

__all__: list[str] = []


def _claim_spec(digest: ValueSpec, words: ValueSpec, *, claimed: bytes) -> ValueSpec:
    require(digest == DIGEST_SPEC, f"digest must be {DIGEST_SPEC}")
    require(words.dtype == "float32" and len(words.shape) == 1, "words must be float32 of one dimension")
    require(len(claimed) == DIGEST_BYTES, f"claimed must be {DIGEST_BYTES} bytes")
    return DIGEST_SPEC


@operator("claim", 2, _claim_spec, claimed=data(DIGEST_BYTES))
def _claim(digest: Tensor, words: Tensor, *, claimed: bytes) -> Tensor:
    """The chunk's digest if the units that have the digest ``claimed`` are its words; else `FALSE_UNITS`."""
    units = words.contiguous().view(torch.int32).numpy().view(np.uint32).tolist()
    return digest.clone() if units_digest(units) == claimed else digest_tensor(FALSE_UNITS)
