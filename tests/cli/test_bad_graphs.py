"""Graphs made to hurt whoever reads them: each is refused by a rule, before it is run or paid for."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from p2p_node.cli.job_validate import validate
from p2p_node.errors import UserError
from tests.support.onnx_files import graph, model, node, port
from workloads.errors import WorkloadRefused
from workloads.exported.source import load_program

JOB = """
apiVersion: p2p/v1
kind: Job
name: n
task:
  workload: program.run
  program: {file: x.onnx, inputs: {x: [[1, 2, 3, 4]]}}
"""


def small(*nodes: bytes, tensors: dict[str, torch.Tensor] | None = None) -> bytes:
    return model(graph(nodes, inputs=[port("x", [1, 4])], outputs=["y"], tensors=tensors or {}))


def doubled(times: int) -> bytes:
    """Each node doubles what the last one gave."""
    nodes = [node("Concat", [f"v{n}"] * 2, [f"v{n + 1}"], axis=0) for n in range(times)]
    return small(node("Relu", ["x"], ["v0"]), *nodes, node("Relu", [f"v{times}"], ["y"]))


CYCLE = small(node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"]))
SHAPE = {"shape": torch.tensor([1 << 20, 1 << 20])}
GRAPHS = {
    "cycle": (CYCLE, "uses 'b' before it is there.*cycle"),
    "name twice": (small(node("Relu", ["x"], ["x"]), node("Relu", ["x"], ["y"])), "names 'x' twice"),
    "doubling": (doubled(40), "concat has a value of .* bytes as float64, more than"),
    "filled": (
        small(node("ConstantOfShape", ["shape"], ["c"]), node("Add", ["x", "c"], ["y"]), tensors=SHAPE),
        "value of .* bytes as float64, more than",
    ),
    "expanded": (
        small(node("Expand", ["x", "shape"], ["y"]), tensors={"shape": torch.tensor([1 << 30, 4])}),
        "value of .* bytes as float64, more than",
    ),
    "tiled": (
        small(
            node("Tile", ["w", "shape"], ["c"]),
            node("Add", ["x", "c"], ["y"]),
            tensors={"w": torch.ones(1, 4), "shape": torch.tensor([1 << 30, 1])},
        ),
        "operator isn't among",
    ),
    "range": (
        small(
            node("Range", ["a", "b", "c"], ["r"]),
            node("Cast", ["r"], ["f"], to=1),
            node("Add", ["x", "f"], ["y"]),
            tensors={"a": torch.tensor(0), "b": torch.tensor(1 << 40), "c": torch.tensor(1)},
        ),
        "operator isn't among",
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_that_is_a_trap_is_refused_with_the_rule(tmp_path: Path, name: str) -> None:
    content, rule = GRAPHS[name]
    file = tmp_path / "x.onnx"
    file.write_bytes(content)
    with pytest.raises(WorkloadRefused, match=rule):
        load_program(file)


def test_a_graph_of_too_many_nodes_is_refused_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workloads.program.onnx.model.STEPS_MAX", 10)
    file = tmp_path / "x.onnx"
    file.write_bytes(doubled(20))
    with pytest.raises(WorkloadRefused, match="more than 10 nodes"):
        load_program(file)


def test_an_archive_inside_an_onnx_file_is_no_graph(tmp_path: Path) -> None:
    file = tmp_path / "x.onnx"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.onnx", bytes(32 << 20))
    with pytest.raises(WorkloadRefused):
        load_program(file)


def test_a_job_with_such_a_graph_does_not_validate(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(CYCLE)
    job = tmp_path / "job.yaml"
    job.write_text(JOB)
    result = CliRunner().invoke(validate, [str(job)])
    assert isinstance(result.exception, UserError)
    assert result.exception.exit_code == 2
    assert "uses 'b' before it is there" in str(result.exception)
