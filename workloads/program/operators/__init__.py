"""The operators of programs; importing this package registers those that ship with it."""

from workloads.program.operators import (
    claims,
    contractions,
    digests,
    elementwise,
    llama,
    lm,
    norms,
    reductions,
    shapes,
    training,
    transformer,
    vision,
)

__all__ = [
    "claims",
    "contractions",
    "digests",
    "elementwise",
    "llama",
    "lm",
    "norms",
    "reductions",
    "shapes",
    "training",
    "transformer",
    "vision",
]
