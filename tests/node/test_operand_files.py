"""Factors of a matrix product in files: what becomes of them, and which are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from p2p_node.errors import UserError
from p2p_node.jobrequest import build_request
from p2p_node.jobspec import parse_job_spec
from p2p_node.models import builtin_models, places_of
from p2p_node.packing import pack_files
from p2p_node.partition.plan import parts_of
from workloads.blobs import MemoryBlobs
from workloads.errors import InputRefused
from workloads.linalg.input import MatmulInput, Matrix, decode_input, encode_input, input_blobs
from workloads.registry import KINDS, open_workload

LEFT = np.arange(-6, 6, dtype=np.int64).reshape(4, 3)
RIGHT = np.array([[1, 2], [3, -4], [5, 6]], dtype=np.int32)
JOB = """apiVersion: p2p/v1
kind: Job
name: product
task: {{workload: linalg.matmul, rows: 4, inner: 3, columns: 2, left: {left}, right: {right}}}
"""


def packed(folder: Path, *, left: str = "left.npy") -> tuple[bytes, MemoryBlobs]:
    blobs = MemoryBlobs()
    document = JOB.format(left=left, right="right.safetensors").encode()
    return pack_files(document, folder / "job.yaml", blobs), blobs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "left.npy", LEFT)
    save_file({"right": RIGHT, "other": RIGHT}, tmp_path / "right.safetensors")
    return tmp_path


def product(input: bytes, blobs: MemoryBlobs) -> list[int]:
    units: list[int] = []
    with_blobs = open_workload("linalg.matmul", Path(), "exact14", blobs=blobs)
    digests: dict[int, bytes] = {}
    with_blobs.generate(input, (), lambda first, new: units.extend(new), digests.__setitem__, lambda: False)
    assert with_blobs.recompute(input, units, digests) == digests
    entries: list[int] = np.array(units, dtype=np.uint32).view(np.int32).tolist()
    return entries


def test_files_become_blobs_that_are_multiplied(folder: Path) -> None:
    document, blobs = packed(folder)
    spec = parse_job_spec(document)
    request = build_request(spec, places_of(builtin_models()), {}, blobs)
    assert [blob.size_bytes for blob in request.input_blobs] == [24, 12]
    assert product(request.input, blobs) == (LEFT @ RIGHT).flatten().tolist()


def test_parts_of_it_read_their_own_rows(folder: Path) -> None:
    document, blobs = packed(folder)
    request = build_request(parse_job_spec(document), places_of(builtin_models()), {}, blobs)
    split = KINDS["linalg.matmul"].split
    assert split is not None
    parts = parts_of(split, request.input, (1, 3))
    assert [entry for part in parts for entry in product(part.input, blobs)] == (
        (LEFT @ RIGHT).flatten().tolist()
    )
    assert all(len(input_blobs(part.input)) == 2 for part in parts)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (LEFT.T, r"has shape \[3, 4\], must have \[4, 3\]"),
        (LEFT.astype(np.float32), "holds float32, must hold integers"),
        (LEFT * 100, r"has an entry of magnitude 600, must be below 2\*\*8, task.bits"),
        (np.array([["a"] * 3] * 4, dtype=object), r"can't be read as \.npy: .*[Oo]bjects"),
    ],
)
def test_arrays_that_are_no_such_factor(folder: Path, content: np.ndarray, rule: str) -> None:  # type: ignore[type-arg]
    np.save(folder / "left.npy", content)
    with pytest.raises(UserError, match=rule):
        packed(folder)


def test_files_that_are_none(folder: Path) -> None:
    whole = (folder / "left.npy").read_bytes()
    (folder / "left.npy").write_bytes(whole[:-5])
    with pytest.raises(UserError, match=r"task\.left: .*left\.npy can't be read as \.npy"):
        packed(folder)
    # A header that promises what isn't there.
    (folder / "left.npy").write_bytes(whole.replace(b"(4, 3), ", b"(9**9,3)", 1))
    with pytest.raises(UserError, match=r"left\.npy can't be read"):
        packed(folder)
    (folder / "left.npy").write_bytes(whole.replace(b"(4, 3), ", b"(4000,3)", 1))
    with pytest.raises(UserError, match=r"left\.npy can't be read"):
        packed(folder)
    with pytest.raises(UserError, match=r"can't read .*: No such file"):
        packed(folder, left="absent.npy")
    (folder / "left.csv").write_text("1,2")
    with pytest.raises(UserError, match=r"must be called \.npy or \.safetensors"):
        packed(folder, left="left.csv")
    np.save(folder / "left.npy", LEFT)
    save_file({"a": RIGHT, "b": RIGHT}, folder / "right.safetensors")
    with pytest.raises(UserError, match="must hold one tensor, or one called 'right'; holds a, b"):
        packed(folder)


def test_blobs_that_dont_fit_are_refused_by_everybody() -> None:
    blobs = MemoryBlobs()
    small = blobs.write(LEFT.astype("<i2").tobytes()[:-2])
    with pytest.raises(InputRefused, match="left is a blob of 22 bytes, must have 24 at least"):
        encode_input(MatmulInput(4, 3, 2, 8, Matrix(blob=small), Matrix(seed=1)))
    loud = blobs.write((LEFT * 100).astype("<i2").tobytes())
    with pytest.raises(InputRefused, match="given by its entries or as a blob, got both"):
        encode_input(MatmulInput(4, 3, 2, 8, Matrix(tuple(range(12)), blob=loud), Matrix(seed=1)))
    job = encode_input(MatmulInput(4, 3, 2, 8, Matrix(blob=loud), Matrix(seed=1)))
    assert decode_input(job).left.blob == loud
    with pytest.raises(InputRefused, match=r"an entry of magnitude 2\*\*8 or more"):
        product(job, blobs)
    huge = MatmulInput(65_536, 257, 1, 8, Matrix(blob=loud), Matrix(seed=1))
    with pytest.raises(InputRefused, match="must be at most 16777216"):
        huge.check()
