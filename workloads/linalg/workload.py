"""Running ``linalg.matmul``: a chunk is some rows of the product, checked without multiplying the matrices.

The claimed entries are the very thing that Freivalds' check is about, so a verifier is given them, and a
digest of them alone could be had without work. The digest therefore covers two things that the entries don't
give away: the second factor times the challenge, which the check needs anyway, and another one times the
first factor's rows; both challenges follow from the claimed entries. Whoever states the right digest has read
every number of both factors after the claim was made; all that it could have left out is the last comparison.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from protocols.digest import tagged
from protocols.units import FALSE_UNITS
from workloads.blobs import NO_BLOBS, Blobs
from workloads.chunkwise import Chunk
from workloads.errors import InputRefused
from workloads.exact import freivalds
from workloads.linalg.input import ENTRY_BYTES, MatmulInput, Matrix, decode_input, encode_input
from workloads.linalg.kind import FEWER_TERMS, MATMUL, model_digest
from workloads.philox import philox
from workloads.profiled import Profiled

__all__ = ["MatrixProduct"]


class MatrixProduct(Profiled[MatmulInput]):
    """The matrix multiplier.

    Args:
        profile: names the digests; integers are exact in either.
        variant: how to cheat while generating, or None.
        expected_digest: the digest that a job names, if any.
        blobs: where factors lie that are too large for an input.

    Raises:
        InputRefused: the profile or the variant is unknown.
        ModelRefused: the job names another model.
    """

    def __init__(
        self,
        profile: str,
        variant: str | None = None,
        *,
        expected_digest: bytes | None = None,
        blobs: Blobs = NO_BLOBS,
    ) -> None:
        super().__init__(MATMUL, model_digest(), profile, variant, expected_digest=expected_digest)
        self._blobs = blobs
        self._made: tuple[MatmulInput, Tensor, Tensor] | None = None

    def decode(self, input: bytes) -> MatmulInput:
        """See `Chunkwise`."""
        return decode_input(input)

    def units_total(self, job: MatmulInput) -> int:
        """See `Chunkwise`."""
        return job.units_total

    def derive(self, job: MatmulInput, before: Sequence[int], chunk: int) -> Chunk:
        """See `Chunkwise`; rows of the product need no others."""
        return self._multiplied(job, chunk, job.inner)

    def produce(self, job: MatmulInput, before: Sequence[int], chunk: int) -> Chunk:
        """See `Chunkwise`; the cheater leaves the last quarter of every sum out."""
        is_cheating = self._variant == FEWER_TERMS
        return self._multiplied(job, chunk, job.inner * 3 // 4 if is_cheating else job.inner)

    def check(self, job: MatmulInput, units: Sequence[int], number: int, claimed: list[int]) -> bytes:
        """The digest of a chunk, with its claimed entries checked by Freivalds rather than computed."""
        left, right = self._factors(job)
        rows = left[number * job.chunk_rows : (number + 1) * job.chunk_rows]
        if len(claimed) != rows.shape[0] * job.columns:
            return FALSE_UNITS
        entries = np.array(claimed, dtype=np.uint32).view(np.int32).astype(np.float64)
        product = torch.from_numpy(entries).reshape(-1, job.columns)
        witness = _Witness(job, number, claimed, rows, right)
        if not freivalds.holds(rows, witness.right, product, witness.challenge):
            return FALSE_UNITS
        return self.digest(number, Chunk(claimed, witness.to_bytes()))

    def _multiplied(self, job: MatmulInput, chunk: int, terms: int) -> Chunk:
        left, right = self._factors(job)
        rows = left[chunk * job.chunk_rows : (chunk + 1) * job.chunk_rows]
        # Integers whose sums stay below 2**31: exact in any order.
        product = rows[:, :terms] @ right[:terms]
        units: list[int] = product.to(torch.int32).flatten().numpy().view(np.uint32).tolist()
        return Chunk(units, _Witness(job, chunk, units, rows, right).to_bytes())

    def _factors(self, job: MatmulInput) -> tuple[Tensor, Tensor]:
        if self._made is None or self._made[0] != job:
            left = self._matrix(job.left, 0, job.rows, job.inner, job.bits)
            self._made = (job, left, self._matrix(job.right, 1, job.inner, job.columns, job.bits))
        return self._made[1], self._made[2]

    def _matrix(self, matrix: Matrix, which: int, rows: int, columns: int, bits: int) -> Tensor:
        """A factor as float64 integers (rows, columns)."""
        if matrix.entries:
            return torch.tensor(matrix.entries, dtype=torch.float64).reshape(rows, columns)
        if matrix.blob is None:
            return _drawn(matrix, which, rows, columns, bits)
        first, count = matrix.skip, rows * columns
        data = self._blobs.read_range(matrix.blob, ENTRY_BYTES * first, ENTRY_BYTES * (first + count))
        entries = np.frombuffer(data, dtype="<i2").astype(np.float64)
        if np.abs(entries).max() >= 2**bits:
            raise InputRefused(f"a factor's blob has an entry of magnitude 2**{bits} or more")
        return torch.from_numpy(entries).reshape(rows, columns)


class _Witness:
    """What the claimed entries make a verifier do with the factors."""

    def __init__(
        self, job: MatmulInput, chunk: int, claimed: Sequence[int], rows: Tensor, right: Tensor
    ) -> None:
        number = chunk.to_bytes(8, "little")
        words = np.array(claimed, dtype="<u4").tobytes()
        seed = tagged("p2p-node/matmul/1", encode_input(job), number, words)
        self.challenge = freivalds.challenge(seed, job.columns)
        self.right = freivalds.project(right, self.challenge)
        self._left = freivalds.project(
            rows.t(), freivalds.challenge(tagged("p2p-node/matmul-left/1", seed), rows.shape[0])
        )

    def to_bytes(self) -> bytes:
        both = torch.cat([self.right, self._left]).to(torch.int64)
        return both.numpy().astype("<i8", copy=False).tobytes()


def _drawn(matrix: Matrix, which: int, rows: int, columns: int, bits: int) -> Tensor:
    """A factor drawn from its seed."""
    first_counter, inside = divmod(matrix.skip, 4)
    counters = np.zeros((-(-(inside + rows * columns) // 4), 4), dtype=np.uint64)
    counters[:, 0] = np.arange(first_counter, first_counter + len(counters), dtype=np.uint64)
    counters[:, 1] = which
    words = philox(matrix.seed, counters).flatten()[inside : inside + rows * columns]
    span = 2 ** (bits + 1) - 1
    entries = (words % np.uint64(span)).astype(np.float64) - (2**bits - 1)
    return torch.from_numpy(entries).reshape(rows, columns)
