"""``program.run`` among the kinds of work; readable without torch.

The program is no model that a node has: it comes with each job. What the nodes agree on is this way to read
and run programs, by its version.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from protocols.blobs import Blob
from protocols.limits import UNITS_MAX
from protocols.messages import Tolerance
from workloads.blobs import Blobs
from workloads.exported.input import CHUNK_UNITS, CODEC, Kept, Port, RunInput, decode_input
from workloads.inputs import items_split
from workloads.workload import ALL_PROFILES, Artifact, Kind, Model, Workload, weightless_model

__all__ = [
    "ALTERED_OPERATOR",
    "MODEL",
    "NAME",
    "PROGRAM",
    "SKIPPED_OPERATOR",
    "TOLERANCE",
    "model_digest",
]

NAME = "program.run"
MODEL = "exported-programs"
ALTERED_OPERATOR = "altered-operator"
SKIPPED_OPERATOR = "skipped-operator"
_VERSION = 1
_SEGMENT_CHUNKS = 4
TOLERANCE = Tolerance(agree_steps=64, convict_steps=64, agree_margin_ppb=400_000, convict_margin_ppb=400_000)
"""Of native runs, whatever the program: 0.04% of an output's size, a hundred times what honest float32 shows
and less than half-precision products do. Where a program amplifies roundings more, nobody is judged by it."""
_PROBE = Path(__file__).parent / "probe.bin"


def model_digest() -> bytes:
    """The digest that stands for this way to run programs."""
    return weightless_model(NAME, _VERSION)


def _models() -> tuple[Model, ...]:
    return (Model(MODEL, Path(), model_digest(), UNITS_MAX),)


def _probe() -> bytes:
    return _PROBE.read_bytes()


def _open(
    model_dir: Path, profile: str, variant: str | None, expected_digest: bytes | None, blobs: Blobs
) -> Workload:
    from workloads.exported.workload import ProgramRun

    return ProgramRun(profile, variant, expected_digest=expected_digest, blobs=blobs)


def _output_arrays(job: RunInput, units: Sequence[int]) -> dict[str, Any]:
    """The outputs as arrays by name: batches follow one another in the first dimension, if there is one."""
    import numpy as np

    words = np.array(units, dtype="<u4").view("<f4").reshape(job.batches, job.batch_words)
    arrays, start = {}, 0
    for port in job.outputs:
        part = words[:, start : start + port.elements].reshape(job.batches, *port.shape)
        start += port.elements
        arrays[port.name] = _joined(part, port).astype("<i8" if port.dtype == "int64" else "<f4")
    return arrays


def _joined(part: Any, port: Port) -> Any:
    return part.reshape(-1, *port.shape[1:]) if port.shape else part


def outputs_file(input: bytes, units: Sequence[int]) -> Artifact:
    """A finished job's outputs as one file."""
    job = decode_input(input, is_whole=True)
    arrays = _output_arrays(job, units)
    if job.file == "safetensors":
        from safetensors.numpy import save

        content = save(arrays)
    else:
        import numpy as np

        file = io.BytesIO()
        np.savez(file, **arrays)
        content = file.getvalue()
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
    return Artifact("application/octet-stream", content, f"{job.file} file of {shapes}")


def _narrowed(whole: RunInput, first: int, count: int) -> RunInput:
    values = tuple(
        _of_batches(port, data, first, count) for port, data in zip(whole.inputs, whole.values, strict=True)
    )
    return msgspec.structs.replace(whole, batches=count, values=values)


def _of_batches(port: Port, data: bytes | Kept, first: int, count: int) -> bytes | Kept:
    if isinstance(data, Kept):
        if len(data.digests) == 1:
            return data
        start = data.start + first * port.size_bytes
        return Kept(data.blob, start, data.digests[first : first + count])
    if len(data) == port.size_bytes:
        return data
    return data[first * port.size_bytes : (first + count) * port.size_bytes]


def _blobs(input: bytes) -> tuple[Blob, ...]:
    return CODEC.decode(input, is_whole=True).blobs


PROGRAM = Kind(
    name=NAME,
    unit="word",
    chunk_units=CHUNK_UNITS,
    segment_chunks=_SEGMENT_CHUNKS,
    profiles=ALL_PROFILES,
    variants=(ALTERED_OPERATOR, SKIPPED_OPERATOR),
    models=_models,
    tolerance=lambda _: TOLERANCE,
    probe=_probe,
    open=_open,
    present=outputs_file,
    input_blobs=_blobs,
    split=items_split(CODEC, "batch", lambda job: job.batches, _narrowed),
)
