"""The operators of programs; importing this package registers those that ship with it."""

from workloads.program.operators import digests, elementwise, shapes

__all__ = ["digests", "elementwise", "shapes"]
