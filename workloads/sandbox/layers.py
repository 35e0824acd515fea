"""What a layer of the sandbox is called, and how it tells whether it holds."""

from __future__ import annotations

import msgspec

__all__ = ["LAYERS", "LayerReport"]

LAYERS = ("limits", "namespaces", "privileges", "landlock", "seccomp")
"""In the order in which they are applied."""


class LayerReport(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One layer of one process.

    Args:
        name: one of `LAYERS`.
        holds: whether the kernel enforces it.
        detail: what it enforces, or why it doesn't.
    """

    name: str
    holds: bool
    detail: str
