"""What a node and its worker process say to each other: MessagePack values, one after another, on two pipes.

The node's side of the pipe is trusted, the worker's isn't: it may be running a stranger's job, so what it
says is read with bounds and by type. Importable without torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack
import msgspec

from protocols.effects import Case
from protocols.events import Finding
from protocols.limits import EVIDENCE_BYTES_MAX
from protocols.messages import OpenedValue
from workloads.sandbox.layers import LayerReport

__all__ = [
    "BUFFER_BYTES_MAX",
    "GOING_ON",
    "BlobPart",
    "Cancel",
    "ChunkDone",
    "Command",
    "Event",
    "Failed",
    "Finished",
    "FrameReader",
    "Generate",
    "Judge",
    "Judged",
    "Load",
    "Loaded",
    "MalformedFrame",
    "ModelRef",
    "OpenValues",
    "Opened",
    "Output",
    "Phase",
    "Ready",
    "Recompute",
    "Recomputed",
    "Shutdown",
    "Trace",
    "Traced",
    "Work",
    "encode_frame",
]

BUFFER_BYTES_MAX = EVIDENCE_BYTES_MAX + 8 * 1024 * 1024
"""Bytes of one unfinished frame; the largest carries what one operator of a dispute takes."""


class MalformedFrame(Exception):
    """The other end of the pipe sent something that is not a frame, or too large a one."""


class _Frame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """A tagged, closed array."""


class ModelRef(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A model of a workload in one numerics profile.

    Args:
        path: the directory.
        digest: what its files must hash to.
        profile: ``exact14``, ``exact21`` or ``native``.
        variant: how to cheat while generating, for hostile test peers; empty for honest.
        workload: what it is run as (`workloads.registry`).
        blobs: the folder of the node's blobs; empty where it has none.
    """

    path: str
    digest: bytes
    profile: str
    variant: str = ""
    workload: str = "lm.generate"
    blobs: str = ""


class Load(_Frame, frozen=True):
    """Have the model ready before it is needed; answered by `Loaded` or `Failed`."""

    run: int
    model: ModelRef


class Generate(_Frame, frozen=True):
    """Run a job; answered by `Output` and `ChunkDone`, then `Finished` or `Failed`.

    Args:
        run: names this run in every answer.
        model: loaded first if it isn't.
        input: in the workload's own encoding.
        prefix: verified output to go on from, whole chunks of it.
    """

    run: int
    model: ModelRef
    input: bytes
    prefix: tuple[int, ...] = ()


class Recompute(_Frame, frozen=True):
    """Derive the digests of some chunks of a claimed output; answered by `Recomputed` or `Failed`."""

    run: int
    model: ModelRef
    input: bytes
    units: tuple[int, ...]
    chunks: tuple[int, ...]


class Trace(_Frame, frozen=True):
    """Run a chunk's program operator by operator; answered by `Traced` or `Failed`."""

    run: int
    model: ModelRef
    input: bytes
    units: tuple[int, ...]
    chunk: int


class OpenValues(_Frame, frozen=True):
    """Show what it takes to judge one value of a chunk's trace; answered by `Opened` or `Failed`.

    Args:
        run: names this run in every answer.
        model: loaded first if it isn't.
        input: the job's.
        units: the output, at least as far as the chunk's end.
        chunk: its number.
        index: of the value; `protocols.effects.PROGRAM_INDEX` for the program itself.
    """

    run: int
    model: ModelRef
    input: bytes
    units: tuple[int, ...]
    chunk: int
    index: int


class Judge(_Frame, frozen=True):
    """Judge one value of somebody's trace, without a model; answered by `Judged` or `Failed`."""

    run: int
    case: Case


class Cancel(_Frame, frozen=True):
    """Stop a run, or drop it if it waits; a generation then ends in `Finished` with reason ``cancelled``."""

    run: int


class Shutdown(_Frame, frozen=True):
    """Exit now."""


class Ready(_Frame, frozen=True):
    """The worker is locked in and takes commands; ``layers`` says how well (`workloads.sandbox`)."""

    pid: int
    torch: str
    start_ms: int
    layers: tuple[LayerReport, ...] = ()


class Loaded(_Frame, frozen=True):
    """The model is in memory; ``load_ms`` is 0 if it was already."""

    run: int
    model: bytes
    load_ms: int


class Output(_Frame, frozen=True):
    """New output units, the first of them at position ``first_unit``."""

    run: int
    first_unit: int
    units: tuple[int, ...]


class BlobPart(_Frame, frozen=True):
    """A part of content that a run leaves. Parts of one blob come in order, and no other's between them.

    Args:
        run: which.
        digest: of the whole blob.
        size_bytes: of the whole blob.
        offset: of this part's first byte.
        data: 1 MiB, or what is left.
    """

    run: int
    digest: bytes
    size_bytes: int
    offset: int
    data: bytes


class Phase(_Frame, frozen=True):
    """What a run is at: ``loading`` or ``running``."""

    run: int
    phase: str


class ChunkDone(_Frame, frozen=True):
    """A chunk of the output is whole."""

    run: int
    chunk: int
    digest: bytes


class Finished(_Frame, frozen=True):
    """A generation ended: ``length``, ``stop`` or ``cancelled``; ``units_total`` counts the prefix too."""

    run: int
    units_total: int
    reason: str
    cpu_us: int


class Recomputed(_Frame, frozen=True):
    """The digests that the chunks asked for should have."""

    run: int
    digests: tuple[tuple[int, bytes], ...]
    cpu_us: int


class Traced(_Frame, frozen=True):
    """The program's digest, and the digests of all its values, inputs first."""

    run: int
    program: bytes
    digests: tuple[bytes, ...]
    cpu_us: int


class Opened(_Frame, frozen=True):
    """What the operator behind one value takes, and the workload's own evidence."""

    run: int
    values: tuple[OpenedValue, ...]
    context: bytes
    cpu_us: int


class Judged(_Frame, frozen=True):
    """A referee's finding; ``detail`` names operator and rule, for people."""

    run: int
    finding: Finding
    detail: str
    cpu_us: int


class Failed(_Frame, frozen=True):
    """A run could not be done.

    Args:
        run: which.
        reason: ``model-refused``, ``input-refused``, ``numerics-refused``, ``program-refused``,
            ``out-of-memory``, ``not-permitted`` (the sandbox refused), ``cancelled``, ``crashed``, or from
            the supervisor ``deadline``, ``output-limit``, ``out-of-memory``, ``worker-died``.
        detail: the rule and the value.
    """

    run: int
    reason: str
    detail: str


Work = Load | Generate | Recompute | Trace | OpenValues | Judge
"""Commands that a worker does one after the other."""

Command = Work | Cancel | Shutdown
Event = (
    Ready
    | Loaded
    | Phase
    | BlobPart
    | Output
    | ChunkDone
    | Finished
    | Recomputed
    | Traced
    | Opened
    | Judged
    | Failed
)

GOING_ON = (Phase, BlobPart, Output, ChunkDone)
"""Events of a run after which others follow."""

_encoder = msgspec.msgpack.Encoder()


def encode_frame(frame: Command | Event) -> bytes:
    """Bytes of one frame."""
    return _encoder.encode(frame)


class FrameReader:
    """Splits a byte stream into frames of one direction.

    Args:
        kind: `Command` or `Event`.
    """

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self._unpacker = msgpack.Unpacker(  # type: ignore[attr-defined, no-untyped-call]
            max_buffer_size=BUFFER_BYTES_MAX, raw=False, use_list=True
        )

    def feed(self, data: bytes) -> Iterator[Any]:
        """Add bytes; yields the frames they complete.

        Raises:
            MalformedFrame: the bytes are no frame of this direction, or one frame exceeds the buffer.
        """
        try:
            self._unpacker.feed(data)  # type: ignore[no-untyped-call]
            for value in self._unpacker:
                yield msgspec.convert(value, self._kind)
        except (msgpack.UnpackException, msgspec.ValidationError, ValueError) as error:
            raise MalformedFrame(f"{type(error).__name__}: {error}") from error
