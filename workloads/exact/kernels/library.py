"""The compiled kernels behind numpy arrays: quantise and multiply, in 16-bit integers.

Everything here gives the bits of `workloads.exact.quantise` and `workloads.exact.linear`, which define them.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workloads.exact.functions import fraction_table
from workloads.exact.quantise import Float64

__all__ = ["INPUTS_MAX", "KERNEL_BITS", "Kernels", "MatrixStruct", "Panels", "aligned_zeros"]

KERNEL_BITS = (13, 21)
"""Magnitude bits that the kernels are written for."""

# The upper parts of sums of narrow digits, 2**15 for every 30 inputs, fit int32.
INPUTS_MAX = 1 << 20
_LINE_BYTES = 64


class MatrixStruct(ctypes.Structure):
    """``Matrix`` of ``product.hpp``."""

    _fields_ = (
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("panel", ctypes.c_int64),
        ("high", ctypes.c_void_p),
        ("low", ctypes.c_void_p),
        ("grains", ctypes.c_void_p),
    )


class Panels:
    """A quantised matrix in the layout of the kernels.

    Args:
        outputs: rows.
        inputs: columns.
        columns: `Kernels.columns`.
        bits: one of `KERNEL_BITS`.
    """

    def __init__(self, outputs: int, inputs: int, columns: int, bits: int) -> None:
        self.bits = bits
        self.outputs = outputs
        self.inputs = inputs
        self._columns = columns
        panel = (inputs + 1) // 2 * 2 * columns
        count = -(-outputs // columns)
        self._high = aligned_zeros(count * panel)
        self._low = aligned_zeros(count * panel) if bits > KERNEL_BITS[0] else None
        self._grains = np.zeros(count * columns)
        self.struct = MatrixStruct(
            outputs,
            inputs,
            panel,
            self._high.ctypes.data,
            None if self._low is None else self._low.ctypes.data,
            self._grains.ctypes.data,
        )
        self.pointer = ctypes.byref(self.struct)

    def unpack(self) -> Float64:
        """The quantised matrix (outputs, inputs) at its true scale, as `quantise` gives it."""
        digits = self._high.astype(np.float64)
        if self._low is not None:
            digits *= 2048.0
            digits += self._low
        pairs = digits.reshape(-1, (self.inputs + 1) // 2, self._columns, 2)
        rows = pairs.transpose(0, 2, 1, 3).reshape(len(self._grains), -1)
        quantised: Float64 = rows[: self.outputs, : self.inputs] * self._grains[: self.outputs, None]
        return quantised


class Kernels:
    """A loaded library.

    Args:
        path: of the library.

    Raises:
        OSError: it cannot be loaded.
        AttributeError: it lacks a function.

    Attributes:
        library: it; `workloads.exact.kernels.training` calls the rest of its functions.
        columns: outputs that lie side by side in a panel.
        instructions: ``avx512``, ``avx2`` or ``plain``.
    """

    def __init__(self, path: Path) -> None:
        integer, pointer = ctypes.c_int64, ctypes.c_void_p
        library = ctypes.CDLL(str(path))
        for name, result, arguments in (
            ("columns", integer, ()),
            ("instructions", ctypes.c_char_p, ()),
            ("set_table", None, (pointer,)),
            ("pack", integer, (pointer, integer, integer, integer, pointer)),
            ("multiply", integer, (pointer, integer, integer, integer, pointer, pointer)),
            ("forward", integer, (pointer, pointer)),
            ("weights", None, (pointer, pointer, integer, integer, ctypes.c_double, pointer)),
        ):
            function = getattr(library, f"p2p_{name}")
            function.restype, function.argtypes = result, arguments
        self.path = path
        self.library = library
        self.columns: int = library.p2p_columns()
        self.instructions: str = library.p2p_instructions().decode()
        self._pack = library.p2p_pack
        self._multiply = library.p2p_multiply
        self._forward = library.p2p_forward
        self._weights = library.p2p_weights
        self._table = fraction_table()
        library.p2p_set_table(self._table.ctypes.data)

    def pack(self, matrix: Float64, bits: int) -> Panels | None:
        """Quantise the rows of a matrix (outputs, inputs), which may be a transposed view.

        Returns:
            The panels; None where the kernels don't apply: more than `INPUTS_MAX` inputs, NaN, Inf or a
            magnitude above 2**500.
        """
        outputs, inputs = matrix.shape
        if bits not in KERNEL_BITS or not 0 < inputs <= INPUTS_MAX or not outputs:
            return None
        if matrix.dtype != np.float64 or any(step % 8 or step < 0 for step in matrix.strides):
            matrix = np.ascontiguousarray(matrix, dtype=np.float64)
        panels = Panels(outputs, inputs, self.columns, bits)
        output_step, input_step = (step // 8 for step in matrix.strides)
        status = self._pack(matrix.ctypes.data, output_step, input_step, bits, panels.pointer)
        return panels if _is_good(status) else None

    def multiply(self, rows: Float64, panels: Panels) -> Float64 | None:
        """Quantise rows (count, inputs) and multiply them by the matrix.

        Returns:
            (count, outputs); None where a row holds NaN, Inf or a magnitude above 2**500.
        """
        count, inputs = rows.shape
        if inputs != panels.inputs:
            raise ValueError(f"rows of {inputs} numbers must have {panels.inputs}")
        if rows.dtype != np.float64 or rows.strides[1] != 8 or rows.strides[0] % 8 or rows.strides[0] < 0:
            rows = np.ascontiguousarray(rows, dtype=np.float64)
        out = np.empty((count, panels.outputs))
        if not count:
            return out
        step = rows.strides[0] // 8
        status = self._multiply(rows.ctypes.data, count, step, panels.bits, panels.pointer, out.ctypes.data)
        return out if _is_good(status) else None

    def weights(self, logits: Float64, best: Float64, scale: float) -> NDArray[np.int64]:
        """How likely each token is drawn, in units of 2**-30 of a row's best.

        Args:
            logits: (rows, columns), none of them NaN.
            best: (rows, 1), the largest of each row, finite.
            scale: of the logits' distance to the best, to powers of two.
        """
        logits = np.ascontiguousarray(logits, dtype=np.float64)
        best = np.ascontiguousarray(best, dtype=np.float64)
        found = np.empty(logits.shape, dtype=np.int64)
        rows, columns = logits.shape
        self._weights(logits.ctypes.data, best.ctypes.data, rows, columns, scale, found.ctypes.data)
        return found

    def forward(self, decoder: ctypes.Structure, run: ctypes.Structure) -> int:
        """``p2p_forward`` of ``kernels.cpp``: 0, or one more than the number of the norm that refused."""
        status: int = self._forward(ctypes.byref(decoder), ctypes.byref(run))
        if status < 0:
            raise MemoryError("no memory for a decoder's scratch arrays")
        return status


def aligned_zeros(count: int) -> NDArray[np.int16]:
    """Zeros that begin on a cache line: vectors loaded across two lines cost twice."""
    room = np.zeros(count + _LINE_BYTES // 2, dtype=np.int16)
    start = -room.ctypes.data % _LINE_BYTES // 2
    return room[start : start + count]


def _is_good(status: int) -> bool:
    if status < 0:
        raise MemoryError("no memory for quantised rows")
    return status == 0
