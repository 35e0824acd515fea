"""What a job of the workload ``linalg.matmul`` asks for; readable without torch."""

from __future__ import annotations

from protocols.codec import Wire
from protocols.limits import UNITS_MAX, WHOLE_UNITS_MAX
from workloads.errors import InputRefused
from workloads.inputs import InputCodec, within

__all__ = ["CHUNK_UNITS", "CODEC", "MatmulInput", "Matrix", "decode_input", "encode_input"]

CHUNK_UNITS = 16_384
"""Entries of the product in a chunk, as many whole rows as they make. The check of a chunk multiplies one of
the factors by a few vectors, so a chunk must have many more rows than there are vectors to be worth it."""
INNER_MAX = 2_048
COLUMNS_MAX = 256
BITS_MAX = 10
"""Entries below 2**10: sums of 2,048 products fit in 32 bits."""
_SEED_MAX = 2**64 - 1


class Matrix(Wire, frozen=True):
    """A matrix of integers, row by row.

    Args:
        entries: all of them, or none: then they are drawn.
        seed: what they are drawn from.
        skip: entries drawn before the first; where rows of a larger matrix begin.
    """

    entries: tuple[int, ...] = ()
    seed: int = 0
    skip: int = 0


class MatmulInput(Wire, frozen=True):
    """The product of a (rows x inner) and a (inner x columns) matrix.

    Args:
        rows: of the product.
        inner: of both factors.
        columns: of the product; they divide `CHUNK_UNITS`.
        bits: entries are below 2**bits in magnitude.
        left: the first factor.
        right: the second.
    """

    rows: int
    inner: int
    columns: int
    bits: int
    left: Matrix
    right: Matrix

    @property
    def units_total(self) -> int:
        """Output units: one for each entry of the product."""
        return self.rows * self.columns

    @property
    def chunk_rows(self) -> int:
        """Rows of the product in a chunk."""
        return CHUNK_UNITS // self.columns

    def check(self, *, is_whole: bool = False) -> None:
        """See `workloads.inputs.JobInput`."""
        units_max = WHOLE_UNITS_MAX if is_whole else UNITS_MAX
        within("rows", self.rows, 1, units_max)
        within("inner", self.inner, 1, INNER_MAX)
        within("columns", self.columns, 1, COLUMNS_MAX)
        within("bits", self.bits, 1, BITS_MAX)
        if CHUNK_UNITS % self.columns:
            raise InputRefused(f"columns={self.columns} must divide {CHUNK_UNITS}")
        if self.units_total > units_max:
            raise InputRefused(f"rows x columns = {self.units_total} must be at most {units_max}")
        # What a verifier makes from seeds costs it, whatever the output's size.
        if not is_whole and self.rows * self.inner > COLUMNS_MAX * INNER_MAX:
            raise InputRefused(
                f"rows x inner = {self.rows * self.inner} must be at most {COLUMNS_MAX * INNER_MAX}"
            )
        for name, matrix, size in (
            ("left", self.left, self.rows * self.inner),
            ("right", self.right, self.inner * self.columns),
        ):
            within(f"{name}.seed", matrix.seed, 0, _SEED_MAX)
            within(f"{name}.skip", matrix.skip, 0, 0 if matrix.entries else WHOLE_UNITS_MAX * INNER_MAX)
            if matrix.entries and len(matrix.entries) != size:
                raise InputRefused(f"{name} has {len(matrix.entries)} entries, must have {size}")
            if matrix.entries and max(map(abs, matrix.entries)) >= 2**self.bits:
                raise InputRefused(f"{name} has an entry of magnitude 2**{self.bits} or more")


CODEC = InputCodec(MatmulInput)
encode_input, decode_input = CODEC.encode, CODEC.decode
