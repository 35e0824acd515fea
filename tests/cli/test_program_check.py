"""`p2p-node program check`, in a process of its own, as users run it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from p2p_node.cli.program_check import check
from p2p_node.errors import UserError
from p2p_node.jobspec import parse_job_spec
from p2p_node.packing import pack_files
from p2p_node.programspec import ProgramTask
from protocols.limits import INPUT_BYTES_MAX
from tests.support.onnx_files import graph, model, node, port
from workloads.blobs import MemoryBlobs
from workloads.errors import WorkloadRefused
from workloads.exported.input import decode_input
from workloads.exported.kind import PROGRAM
from workloads.exported.source import load_program

DIGITS = Path(__file__).parents[2] / "examples" / "data" / "digits.pt2"
JOB = """
apiVersion: p2p/v1
kind: Job
name: n
task:
  workload: program.run
  program: {{file: {file}, inputs: {{x: [[1, 2, 3, 4.5]]}}}}  # Numbers as they are.
verify: full
"""


def classifier(*, bad: bool = False, size: int = 3) -> bytes:
    torch.manual_seed(0)
    weights = {"w": torch.randn(size, 4)}
    if bad:
        weights["w"][0, 0] = torch.nan
    nodes = [node("Gemm", ["x", "w"], ["h"], transB=1), node("Softmax", ["h"], ["y"])]
    return model(graph(nodes, inputs=[port("x", ["batch", 4])], outputs=["y"], tensors=weights))


def test_a_graph_that_runs_is_described() -> None:
    result = CliRunner().invoke(check, [str(DIGITS), "--output", "json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["runs"] is True
    assert (found["profiles"], found["travels"]) == (["exact14", "exact21"], "in the job")
    assert found["inputs"] == ["pictures: uint8 [50, 8, 8]"]
    assert (found["parameters"], found["batch"]["words"]) == (1_898, 500)
    assert found["batch"]["multiply_adds"] > 10**6
    assert found["batch"]["price_micros"]["ceiling"] == 500 * 500
    assert found["operators_too_large_to_dispute"] == 0


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("x.onnx", classifier(bad=True), "tensor 'w' holds NaN"),
        ("x.onnx", model(graph([node("NonZero", ["x"], ["y"])], inputs=[port("x", [3])], outputs=["y"])),
         r"node 0 'the NonZero' \(NonZero\): the operator isn't among"),
        ("x.pt2", b"no archive", "no zip archive"),
        ("x.pickle", b"", "must end in .pt2 or .onnx"),
    ],
)  # fmt: skip
def test_what_stands_in_the_way_is_named(tmp_path: Path, name: str, content: bytes, rule: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(WorkloadRefused, match=rule):
        load_program(file)


def test_a_bomb_does_not_go_off_and_ends_with_exit_code_2(tmp_path: Path) -> None:
    file = tmp_path / "x.pt2"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/models/model.json", bytes(64 << 20))
    result = CliRunner().invoke(check, [str(file)])
    assert isinstance(result.exception, UserError)
    assert result.exception.exit_code == 2
    assert "must be stored, not compressed" in str(result.exception)
    assert result.output == ""


def test_bad_options_are_usage_errors() -> None:
    for shape in ("x", "x=1,a", "=1"):
        result = CliRunner().invoke(check, [str(DIGITS), "--shape", shape])
        assert result.exit_code == 2
        assert "NAME=SIZES" in result.output


def test_a_large_program_travels_as_a_blob(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(classifier(size=20_000))
    blobs = MemoryBlobs()
    packed = pack_files(JOB.format(file="x.onnx").encode(), tmp_path / "job.yaml", blobs)
    assert b"# Numbers as they are." in packed
    assert len(packed) < INPUT_BYTES_MAX
    spec = parse_job_spec(packed)
    assert isinstance(spec.task, ProgramTask)
    job = decode_input(spec.task.program.packed)
    (blob,) = PROGRAM.input_blobs(spec.task.program.packed)
    assert job.blob == blob
    assert len(blobs.read(blob)) > INPUT_BYTES_MAX
    assert (spec.verify.chunks, job.batches, job.batch_words) == ("all", 1, 20_000)
