"""Products of rounded matrices in float64 by compiled code, which rounds while it packs.

The bits are those of `workloads.exact.contraction`. A side of a product is packed once, also where several
products take it.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from workloads.exact.kernels.library import Kernels
from workloads.exact.quantise import EXPONENT_MAX, Precision
from workloads.exact.slices import blocks, left_to_right
from workloads.exact.tensors import check_magnitudes, convert

__all__ = ["Packed", "Products", "check_bits"]

_CEILING_BITS = int(torch.tensor(2.0**EXPONENT_MAX, dtype=torch.float64).view(torch.int64))


class Packed(NamedTuple):
    """One side of a product, rounded, as the kernels take it.

    Args:
        room: holds it.
        outers: rows of a left side, columns of a right one.
        inner: what is contracted.
    """

    room: Tensor
    outers: int
    inner: int


class Products:
    """Packs and multiplies matrices on the CPU.

    Args:
        loaded: the library.
    """

    def __init__(self, loaded: Kernels) -> None:
        library, integer, pointer = loaded.library, ctypes.c_int64, ctypes.c_void_p
        library.p2p_packed_size.restype = integer
        library.p2p_packed_size.argtypes = (integer,) * 3
        library.p2p_pack_side.restype = ctypes.c_uint64
        library.p2p_pack_side.argtypes = (pointer, *[integer] * 7, pointer)
        library.p2p_multiply_sides.restype = None
        library.p2p_multiply_sides.argtypes = (*[pointer] * 2, *[integer] * 5, pointer)
        self._library = library

    def pack_left(self, name: str, x: Tensor, bits: int, room: Tensor | None = None) -> Packed:
        """Round rows and pack them.

        Args:
            name: what to call ``x`` in a refusal.
            x: (rows, inner), not empty.
            bits: magnitude bits.
            room: float64 to pack into, if it is large enough.

        Raises:
            NumericsRefused: as `workloads.exact.contraction.round_along`.
        """
        return self._pack(name, x, bits, room, is_left=True)

    def pack_right(self, name: str, x: Tensor, bits: int, room: Tensor | None = None) -> Packed:
        """The same for columns of ``x`` (inner, columns)."""
        return self._pack(name, x.mT, bits, room, is_left=False)

    def _pack(self, name: str, x: Tensor, bits: int, room: Tensor | None, *, is_left: bool) -> Packed:
        if x.dtype != torch.float32:
            x = convert(name, x)
        if 1 not in x.stride():
            x = x.contiguous()
        outers, inner = x.shape
        size = self._library.p2p_packed_size(is_left, outers, inner)
        if room is None or len(room) < size:
            room = torch.empty(size, dtype=torch.float64)
        outer_step, inner_step = x.stride()
        # What the step along one element is doesn't matter, and needn't be 1.
        if inner == 1:
            inner_step = 1
        largest = self._library.p2p_pack_side(
            x.data_ptr(),
            x.dtype == torch.float32,
            is_left,
            *(outers, inner, outer_step, inner_step, bits),
            room.data_ptr(),
        )
        check_bits(name, largest)
        return Packed(room, outers, inner)

    def multiply(self, left: Packed, right: Packed, precision: Precision) -> Tensor:
        """`workloads.exact.contraction.product` of packed sides: (rows, columns)."""
        sizes = left.outers, right.outers, left.inner

        def part(start: int, stop: int) -> Tensor:
            out = torch.empty(sizes[:2], dtype=torch.float64)
            self._library.p2p_multiply_sides(
                left.room.data_ptr(), right.room.data_ptr(), *sizes, start, stop, out.data_ptr()
            )
            return out

        return left_to_right(part(*ends) for ends in blocks(left.inner, precision.inner_max))

    def contract(self, left: tuple[str, Tensor], right: tuple[str, Tensor], precision: Precision) -> Tensor:
        """`workloads.exact.contraction.contract` of two matrices, not empty."""
        rows = self.pack_left(*left, precision.bits)
        return self.multiply(rows, self.pack_right(*right, precision.bits), precision)


def check_bits(name: str, largest: int) -> None:
    """Refuse a tensor by the bits of its largest magnitude.

    Raises:
        NumericsRefused: as `workloads.exact.tensors.check_magnitudes`.
    """
    if largest > _CEILING_BITS:
        check_magnitudes(name, torch.tensor([largest]).view(torch.float64))
