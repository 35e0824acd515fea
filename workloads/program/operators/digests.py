"""Operators that end a program: the digest of its chunk."""

from __future__ import annotations

import torch
from torch import Tensor

from protocols.digest import tagged
from workloads.program.limits import STEP_INPUTS_MAX
from workloads.program.operators.registry import data, operator
from workloads.program.program import DIGEST_SPEC, ValueSpec, value_digest

__all__ = ["digest_of_values", "digest_tensor"]


def digest_of_values(header: bytes, digests: list[bytes]) -> bytes:
    """The digest of a chunk: what names it, and the value digests of all that it covers, in order."""
    return tagged("p2p-node/chunk-values/1", header, *digests)


def digest_tensor(digest: bytes) -> Tensor:
    """A digest as the value that ends a program."""
    return torch.frombuffer(bytearray(digest), dtype=torch.uint8)


def _digest_spec(*_: ValueSpec, header: bytes) -> ValueSpec:
    del header
    return DIGEST_SPEC


@operator("digest", (1, STEP_INPUTS_MAX), _digest_spec, header=data())
def _digest(*inputs: Tensor, header: bytes) -> Tensor:
    return digest_tensor(digest_of_values(header, [value_digest(value) for value in inputs]))
