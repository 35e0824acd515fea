"""What a job of the workload ``linalg.matmul`` asks for; readable without torch."""

from __future__ import annotations

from protocols.blobs import Blob
from protocols.codec import Wire
from protocols.limits import UNITS_MAX, WHOLE_UNITS_MAX
from workloads.errors import InputRefused
from workloads.inputs import InputCodec, blob_rule, within

__all__ = [
    "BLOB_ENTRIES_MAX",
    "CHUNK_UNITS",
    "CODEC",
    "ENTRY_BYTES",
    "MatmulInput",
    "Matrix",
    "decode_input",
    "encode_input",
    "input_blobs",
]

CHUNK_UNITS = 16_384
"""Entries of the product in a chunk, as many whole rows as they make. The check of a chunk multiplies one of
the factors by a few vectors, so a chunk must have many more rows than there are vectors to be worth it."""
INNER_MAX = 2_048
COLUMNS_MAX = 256
BITS_MAX = 10
"""Entries below 2**10: sums of 2,048 products fit in 32 bits."""

ENTRY_BYTES = 2
"""Of an entry in a blob."""

BLOB_ENTRIES_MAX = 2**24
"""Of a factor in one job that comes as a blob: 32 MiB, and 128 MiB in memory."""

_SEED_MAX = 2**64 - 1


class Matrix(Wire, frozen=True):
    """A matrix of integers, row by row.

    Args:
        entries: all of them, or none: then they lie in the blob, or are drawn.
        seed: what they are drawn from.
        skip: entries drawn, or in the blob, before the first; where rows of a larger matrix begin.
        blob: 16-bit integers, little-endian.
    """

    entries: tuple[int, ...] = ()
    seed: int = 0
    skip: int = 0
    blob: Blob | None = None

    def check(self, name: str, size: int, bits: int) -> None:
        """Hold every field against its rule.

        Args:
            name: of the factor.
            size: entries that it has.
            bits: entries are below 2**bits in magnitude; those of a blob are looked at by whoever reads it.

        Raises:
            InputRefused: the first that breaks it.
        """
        within(f"{name}.seed", self.seed, 0, _SEED_MAX)
        within(f"{name}.skip", self.skip, 0, 0 if self.entries else WHOLE_UNITS_MAX * INNER_MAX)
        if self.blob is not None:
            blob_rule(self.blob)
            if self.entries:
                raise InputRefused(f"{name} must be given by its entries or as a blob, got both")
            if self.blob.size_bytes < (needed := ENTRY_BYTES * (self.skip + size)):
                raise InputRefused(
                    f"{name} is a blob of {self.blob.size_bytes} bytes, must have {needed} at least"
                )
        if self.entries and len(self.entries) != size:
            raise InputRefused(f"{name} has {len(self.entries)} entries, must have {size}")
        if self.entries and max(map(abs, self.entries)) >= 2**bits:
            raise InputRefused(f"{name} has an entry of magnitude 2**{bits} or more")


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
        # What a verifier makes from seeds costs it, whatever the output's size; what it reads, its memory.
        entries_max = COLUMNS_MAX * INNER_MAX if self.left.blob is None else BLOB_ENTRIES_MAX
        if not is_whole and self.rows * self.inner > entries_max:
            raise InputRefused(f"rows x inner = {self.rows * self.inner} must be at most {entries_max}")
        self.left.check("left", self.rows * self.inner, self.bits)
        self.right.check("right", self.inner * self.columns, self.bits)


CODEC = InputCodec(MatmulInput)
encode_input, decode_input = CODEC.encode, CODEC.decode


def input_blobs(data: bytes) -> tuple[Blob, ...]:
    """The blobs that an input names."""
    job = decode_input(data, is_whole=True)
    return tuple(matrix.blob for matrix in (job.left, job.right) if matrix.blob is not None)
