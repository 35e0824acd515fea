"""What a job of the workload ``linalg.matmul`` asks for; readable without torch."""

from __future__ import annotations

from protocols.codec import Wire, decode, encode
from protocols.errors import PeerFault
from protocols.limits import INPUT_BYTES_MAX, UNITS_MAX, WHOLE_UNITS_MAX
from workloads.errors import InputRefused

__all__ = ["CHUNK_UNITS", "MatmulInput", "Matrix", "decode_input", "encode_input"]

CHUNK_UNITS = 16_384
"""Entries of the product in a chunk, as many whole rows as they make. The check of a chunk multiplies one of
the factors by a few vectors, so a chunk must have many more rows than there are vectors to be worth it."""
INNER_MAX = 2_048
COLUMNS_MAX = 256
BITS_MAX = 10
"""Entries below 2**10: sums of 2,048 products fit in 32 bits."""
_SEED_MAX = 2**64 - 1


class Matrix(Wire, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A matrix of integers, row by row.

    Args:
        entries: all of them, or none: then they are drawn.
        seed: what they are drawn from.
        skip: entries drawn before the first; where rows of a larger matrix begin.
    """

    entries: tuple[int, ...] = ()
    seed: int = 0
    skip: int = 0


class MatmulInput(Wire, frozen=True, array_like=True, forbid_unknown_fields=True):
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
        """Hold every field against its rule.

        Args:
            is_whole: it is yet to be split, so it may be larger than a job.

        Raises:
            InputRefused: the first that breaks it.
        """
        units_max = WHOLE_UNITS_MAX if is_whole else UNITS_MAX
        _within("rows", self.rows, 1, units_max)
        _within("inner", self.inner, 1, INNER_MAX)
        _within("columns", self.columns, 1, COLUMNS_MAX)
        _within("bits", self.bits, 1, BITS_MAX)
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
            _within(f"{name}.seed", matrix.seed, 0, _SEED_MAX)
            _within(f"{name}.skip", matrix.skip, 0, 0 if matrix.entries else WHOLE_UNITS_MAX * INNER_MAX)
            if matrix.entries and len(matrix.entries) != size:
                raise InputRefused(f"{name} has {len(matrix.entries)} entries, must have {size}")
            if matrix.entries and max(map(abs, matrix.entries)) >= 2**self.bits:
                raise InputRefused(f"{name} has an entry of magnitude 2**{self.bits} or more")


def encode_input(value: MatmulInput, *, is_whole: bool = False) -> bytes:
    """The canonical bytes of an input, as a job carries it.

    Args:
        value: the input.
        is_whole: it is yet to be split, so it may be larger than a job.

    Raises:
        InputRefused: the input breaks a rule.
    """
    value.check(is_whole=is_whole)
    data = encode(value)
    if len(data) > INPUT_BYTES_MAX:
        raise InputRefused(f"input of {len(data)} bytes exceeds {INPUT_BYTES_MAX}")
    return data


def decode_input(data: bytes, *, is_whole: bool = False) -> MatmulInput:
    """Read the bytes of `encode_input`.

    Raises:
        InputRefused: the bytes are not a canonical input that keeps the rules.
    """
    try:
        value = decode(data, MatmulInput, bytes_max=INPUT_BYTES_MAX)
    except PeerFault as error:
        raise InputRefused(str(error)) from error
    value.check(is_whole=is_whole)
    return value


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InputRefused(f"{name}={value} must be in [{low}, {high}]")
