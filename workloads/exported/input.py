"""What a job of ``program.run`` asks for: a program and the values it is run on; readable without torch.

The program is the client's: it lies in the input, or in a blob that the input names. Its *identity* covers
its steps and its tensors. The shapes of what goes in and comes out stand in the input too, so that a job's
size is known to everybody before anything is read of the program. A *batch* is one run of it; outputs are the
batches' outputs as float32, one after the other.
"""

from __future__ import annotations

import math

from protocols.blobs import Blob
from protocols.codec import Wire
from protocols.digest import DIGEST_BYTES
from protocols.limits import INPUT_BYTES_MAX, UNITS_MAX
from protocols.values import ELEMENT_BYTES, value_bytes
from workloads.errors import InputRefused
from workloads.inputs import InputCodec, blob_rule, content_rule, within

__all__ = [
    "BATCHES_MAX",
    "CHUNK_UNITS",
    "CODEC",
    "CONTENT_BYTES_MAX",
    "FILES",
    "Kept",
    "Port",
    "RunInput",
    "decode_input",
    "encode_input",
]

CHUNK_UNITS = 1_024
"""Words of one chunk: it may hold many batches, or be part of one."""

BATCHES_MAX = 4_096
PORTS_MAX = 64
CONTENT_BYTES_MAX = 512 << 20
"""A program with its tensors. All of it is held in memory by whoever runs it."""

FILES = ("npz", "safetensors")
"""What the output can be written as."""

_NAME_BYTES_MAX = 256
_WHOLE_BYTES_MAX = 64 << 20


class Port(Wire, frozen=True):
    """A tensor that goes into a graph or comes out of it.

    Args:
        name: as the graph has it.
        dtype: one of `protocols.values.ELEMENT_BYTES`.
        shape: of one batch.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Numbers of one batch."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of one batch."""
        return self.elements * ELEMENT_BYTES[self.dtype]

    def check(self) -> None:
        """Hold every field against its rule.

        Raises:
            InputRefused: the first that breaks it.
        """
        if not 1 <= len(self.name.encode()) <= _NAME_BYTES_MAX:
            raise InputRefused(f"a tensor's name must have 1 to {_NAME_BYTES_MAX} bytes")
        try:
            value_bytes(self.dtype, self.shape)
        except ValueError as error:
            raise InputRefused(f"tensor {self.name!r}: {error}") from error


class Kept(Wire, frozen=True):
    """Values that lie in a blob, one batch after another.

    Whoever judges an operator has no blob: digests stand for the values there, and whoever runs the program
    holds what it reads against them.

    Args:
        blob: where they lie.
        start: the byte at which those of this job begin.
        digests: the value digest of each batch, or of one for all of them.
    """

    blob: Blob
    start: int
    digests: tuple[bytes, ...]


class RunInput(Wire, frozen=True):
    """A program, and values for some runs of it.

    Args:
        identity: 32 bytes that name the program with its tensors.
        content: the program (`workloads.exported.content`), empty if it lies in a blob.
        blob: where it lies otherwise, or None.
        inputs: of the graph, in its order.
        outputs: of the graph, in its order.
        batches: runs.
        values: little-endian elements for each of ``inputs``: of all batches, or of one for all of them; or
            where they lie.
        file: what the output is to be, one of `FILES`.
    """

    identity: bytes
    content: bytes
    blob: Blob | None
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    batches: int
    values: tuple[bytes | Kept, ...]
    file: str

    @property
    def batch_words(self) -> int:
        """Output words of one batch."""
        return sum(port.elements for port in self.outputs)

    @property
    def units_total(self) -> int:
        """Output words of the job."""
        return self.batches * self.batch_words

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """All that the input names, each once."""
        named = [self.blob, *(data.blob for data in self.values if isinstance(data, Kept))]
        return tuple(dict.fromkeys(blob for blob in named if blob is not None))

    def value(self, number: int, batch: int) -> bytes | Kept:
        """What a batch takes as an input; of kept values those of this batch alone."""
        data, size = self.values[number], self.inputs[number].size_bytes
        if isinstance(data, Kept):
            place = batch if len(data.digests) > 1 else 0
            return Kept(data.blob, data.start + place * size, data.digests[place : place + 1])
        return data if len(data) == size else data[batch * size : (batch + 1) * size]

    def check(self, *, is_whole: bool = False) -> None:
        """See `workloads.inputs.JobInput`."""
        if len(self.identity) != DIGEST_BYTES:
            raise InputRefused(f"identity of {len(self.identity)} bytes must have {DIGEST_BYTES}")
        content_rule("program", self.content, self.blob, CONTENT_BYTES_MAX)
        bytes_max = _WHOLE_BYTES_MAX if is_whole else INPUT_BYTES_MAX
        values = sum(len(data) for data in self.values if isinstance(data, bytes))
        if len(self.content) + values > bytes_max:
            raise InputRefused(
                f"{len(self.content)} bytes of program and {values} of values exceed {bytes_max}"
            )
        if self.file not in FILES:
            raise InputRefused(f"file {self.file!r} must be one of {', '.join(FILES)}")
        if len(self.inputs) > PORTS_MAX or not 1 <= len(self.outputs) <= PORTS_MAX:
            raise InputRefused(
                f"{len(self.inputs)} inputs and {len(self.outputs)} outputs must be at most {PORTS_MAX}"
            )
        for port in (*self.inputs, *self.outputs):
            port.check()
        batches_max = UNITS_MAX if is_whole else BATCHES_MAX
        within("batches", self.batches, 1, batches_max)
        if not 1 <= self.batch_words <= UNITS_MAX or (self.units_total > UNITS_MAX and not is_whole):
            raise InputRefused(
                f"{self.batches} batches of {self.batch_words} output words must be 1 to {UNITS_MAX} words"
            )
        if len(self.values) != len(self.inputs):
            raise InputRefused(f"input of {len(self.values)} values must have {len(self.inputs)}")
        for port, data in zip(self.inputs, self.values, strict=True):
            if isinstance(data, Kept):
                self._check_kept(port, data)
            elif len(data) not in {port.size_bytes, self.batches * port.size_bytes}:
                raise InputRefused(
                    f"{port.name!r} of {len(data)} bytes must have {port.size_bytes}, or that for each of "
                    f"{self.batches} batches"
                )
        if (size := sum(blob.size_bytes for blob in self.blobs)) > 2 * CONTENT_BYTES_MAX:
            raise InputRefused(f"blobs of {size} bytes must have at most {2 * CONTENT_BYTES_MAX} together")

    def _check_kept(self, port: Port, kept: Kept) -> None:
        blob_rule(kept.blob, CONTENT_BYTES_MAX)
        if len(kept.digests) not in {1, self.batches}:
            raise InputRefused(
                f"{port.name!r} has digests of {len(kept.digests)} batches, must have one or {self.batches}"
            )
        if any(len(digest) != DIGEST_BYTES for digest in kept.digests):
            raise InputRefused(f"{port.name!r}: digests must have {DIGEST_BYTES} bytes")
        stop = kept.start + len(kept.digests) * port.size_bytes
        if not 0 <= kept.start <= stop <= kept.blob.size_bytes:
            raise InputRefused(
                f"{port.name!r} at bytes {kept.start} to {stop} must lie within {kept.blob.size_bytes}"
            )


CODEC = InputCodec(RunInput, whole_bytes_max=_WHOLE_BYTES_MAX)
encode_input, decode_input = CODEC.encode, CODEC.decode
