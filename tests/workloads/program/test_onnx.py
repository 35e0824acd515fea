"""ONNX files as programs: against torch, node by node, and against files that lie."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tests.support.onnx_files import graph, message, model, node, port, tensor, varint
from workloads.errors import ModelRefused, ProgramRefused, WorkloadRefused
from workloads.program import run
from workloads.program.exported import Template, check_template
from workloads.program.onnx.importer import import_onnx
from workloads.program.onnx.wire import fields

X, N = "x", "n"


def tensors(seed: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        "w": torch.randn(6, 4),
        "v": torch.randn(4, 6),
        "b": torch.randn(4),
        "scale": torch.tensor(1.5),
        "k": torch.randn(5, 2, 3, 3),
        "kb": torch.randn(5),
        "t": torch.randn(2, 5, 2, 2),
        "g": torch.randn(2),
        "gb": torch.randn(2),
        "mean": torch.randn(2),
        "var": torch.rand(2) + 0.5,
        "table": torch.randn(9, 4),
        "i": torch.tensor([2, -1, 0]),
        "one": torch.tensor([1]),
        "low": torch.tensor(-0.5),
        "two": torch.tensor(2.0),
        "high": torch.tensor(0.5),
        "pads": torch.tensor([0, 0, 1, 0, 0, 0, 0, 2]),
        "shape": torch.tensor([0, -1]),
        "twice": torch.tensor([1.0, 1.0, 2.0, 2.0]),
        "sizes": torch.tensor([1, 2, 7, 5]),
        "wide": torch.tensor([3, 3, 4]),
        "parts": torch.tensor([1, 3]),
        "start": torch.tensor([-3]),
        "end": torch.tensor([2**40]),
        "mask": torch.tensor([1, 0, 1, 1], dtype=torch.uint8),
        "axes": torch.tensor([1]),
        "last": torch.tensor([-1]),
        "back": torch.tensor([-(2**40)]),
        "places": torch.tensor([[0, -1, 1]]),
    }


Expected = Callable[[Tensor, dict[str, Tensor]], Tensor]
FLAT, IMAGE = (3, 4), (1, 2, 6, 6)

# Operator, inputs, attributes, shape of x, what torch says.
CASES: list[tuple[str, list[str], dict[str, Any], tuple[int, ...], Expected]] = [
    ("Gemm", ["x", "w", "b"], {"transB": 1}, (3, 4), lambda x, t: F.linear(x, t["w"][:, :], None)),
    ("Gemm", ["x", "v"], {"alpha": 0.5}, FLAT, lambda x, t: 0.5 * x @ t["v"]),
    ("MatMul", ["x", "v"], {}, (2, 3, 4), lambda x, t: x @ t["v"]),
    (
        "Einsum",
        ["x", "w"],
        {"equation": "bct,sb->cts"},
        (4, 2, 3),
        lambda x, t: torch.einsum("bct,sb->cts", x, t["w"]),
    ),
    (
        "Einsum",
        ["x", "x"],
        {"equation": "bct,bcs->bts"},
        (2, 3, 4),
        lambda x, t: torch.einsum("bct,bcs->bts", x, x),
    ),
    (
        "Conv",
        ["x", "k", "kb"],
        {"pads": [1, 1, 1, 1], "strides": [2, 2]},
        IMAGE,
        lambda x, t: F.conv2d(x, t["k"], t["kb"], 2, 1),
    ),
    (
        "Conv",
        ["x", "k"],
        {"pads": [1, 0, 0, 2]},
        IMAGE,
        lambda x, t: F.conv2d(F.pad(x, (0, 2, 1, 0)), t["k"]),
    ),
    (
        "Conv",
        ["x", "k"],
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        IMAGE,
        lambda x, t: F.conv2d(F.pad(x, (0, 1, 0, 1)), t["k"], stride=2),
    ),
    (
        "ConvTranspose",
        ["x", "t"],
        {"strides": [2, 2]},
        IMAGE,
        lambda x, t: F.conv_transpose2d(x, t["t"], stride=2),
    ),
    (
        "MaxPool",
        ["x"],
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        IMAGE,
        lambda x, t: F.max_pool2d(x, 3, 2, 1),
    ),
    (
        "MaxPool",
        ["x"],
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]},
        IMAGE,
        lambda x, t: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-1e9), 3, 2),
    ),
    (
        "AveragePool",
        ["x"],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        IMAGE,
        lambda x, t: F.avg_pool2d(x, 2),
    ),
    ("GlobalAveragePool", ["x"], {}, IMAGE, lambda x, t: x.mean((2, 3), keepdim=True)),
    ("GlobalMaxPool", ["x"], {}, IMAGE, lambda x, t: x.amax((2, 3), keepdim=True)),
    (
        "BatchNormalization",
        ["x", "g", "gb", "mean", "var"],
        {"epsilon": 1e-3},
        IMAGE,
        lambda x, t: F.batch_norm(x, t["mean"], t["var"], t["g"], t["gb"], eps=1e-3),
    ),
    (
        "InstanceNormalization",
        ["x", "g", "gb"],
        {},
        IMAGE,
        lambda x, t: F.instance_norm(x, weight=t["g"], bias=t["gb"]),
    ),
    (
        "LayerNormalization",
        ["x", "b", "b"],
        {"epsilon": 1e-4},
        FLAT,
        lambda x, t: F.layer_norm(x, (4,), t["b"], t["b"], 1e-4),
    ),
    (
        "Resize",
        ["x", "", "twice"],
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        IMAGE,
        lambda x, t: F.interpolate(x, scale_factor=2),
    ),
    ("Resize", ["x", "", "twice"], {"mode": "nearest"}, IMAGE, lambda x, t: F.interpolate(x, scale_factor=2)),
    (
        "Resize",
        ["x", "", "", "sizes"],
        {"mode": "linear"},
        IMAGE,
        lambda x, t: F.interpolate(x, size=(7, 5), mode="bilinear"),
    ),
    ("Softmax", ["x"], {}, FLAT, lambda x, t: x.softmax(-1)),
    ("LogSoftmax", ["x"], {"axis": 0}, FLAT, lambda x, t: x.log_softmax(0)),
    ("ReduceMean", ["x", "axes"], {"keepdims": 0}, FLAT, lambda x, t: x.mean(1)),
    ("ReduceSum", ["x"], {}, FLAT, lambda x, t: x.sum((0, 1), keepdim=True)),
    ("ArgMax", ["x"], {"axis": -1, "keepdims": 0}, FLAT, lambda x, t: x.argmax(-1)),
    ("Clip", ["x", "low", "high"], {}, FLAT, lambda x, t: x.clamp(-0.5, 0.5)),
    ("Clip", ["x", "", "high"], {}, FLAT, lambda x, t: x.clamp(max=0.5)),
    ("LeakyRelu", ["x"], {"alpha": 0.25}, FLAT, lambda x, t: F.leaky_relu(x, 0.25)),
    ("HardSigmoid", ["x"], {}, FLAT, lambda x, t: (0.2 * x + 0.5).clamp(0, 1)),
    ("HardSwish", ["x"], {}, FLAT, lambda x, t: F.hardswish(x)),
    ("Gelu", ["x"], {"approximate": "tanh"}, FLAT, lambda x, t: F.gelu(x, approximate="tanh")),
    ("Pow", ["x", "two"], {}, FLAT, lambda x, t: x**2),
    ("Max", ["x", "b", "low"], {}, FLAT, lambda x, t: x.maximum(t["b"]).clamp(min=-0.5)),
    ("Sub", ["x", "b"], {}, FLAT, lambda x, t: x - t["b"]),
    ("Div", ["x", "scale"], {}, FLAT, lambda x, t: x / 1.5),
    ("Where", ["mask", "x", "low"], {}, FLAT, lambda x, t: torch.where(t["mask"] != 0, x, t["low"])),
    ("Greater", ["x", "low"], {}, FLAT, lambda x, t: x > -0.5),
    ("Gather", ["x", "i"], {"axis": 1}, FLAT, lambda x, t: x[:, [2, 3, 0]]),
    ("GatherElements", ["x", "places"], {}, FLAT, lambda x, t: x.gather(0, torch.tensor([[0, 2, 1]]))),
    ("Slice", ["x", "start", "end", "last"], {}, FLAT, lambda x, t: x[:, -3:]),
    ("Slice", ["x", "last", "back", "last", "last"], {}, FLAT, lambda x, t: x.flip(-1)),
    ("Pad", ["x", "pads"], {}, (1, 2, 3, 3), lambda x, t: F.pad(x, (0, 2, 1, 0))),
    ("Concat", ["x", "w"], {"axis": 0}, FLAT, lambda x, t: torch.cat((x, t["w"]))),
    ("Transpose", ["x"], {}, (2, 3, 4), lambda x, t: x.permute(2, 1, 0)),
    ("Flatten", ["x"], {"axis": 2}, (2, 3, 4), lambda x, t: x.reshape(6, 4)),
    ("Reshape", ["x", "shape"], {}, (2, 3, 4), lambda x, t: x.reshape(2, 12)),
    ("Unsqueeze", ["x", "last"], {}, FLAT, lambda x, t: x.unsqueeze(-1)),
    ("Squeeze", ["x"], {}, (1, 4, 1), lambda x, t: x.reshape(4)),
    ("Expand", ["x", "wide"], {}, (3, 4), lambda x, t: x.expand(3, 3, 4)),
    ("Cast", ["x"], {"to": 9}, FLAT, lambda x, t: x != 0),
    (
        "DepthToSpace",
        ["x"],
        {"blocksize": 2, "mode": "CRD"},
        (1, 8, 2, 3),
        lambda x, t: F.pixel_shuffle(x, 2),
    ),
    ("Erf", ["x"], {}, FLAT, lambda x, t: x.erf()),
    ("Reciprocal", ["x"], {}, FLAT, lambda x, t: 1 / x),
]


def imported(folder: Path, content: bytes, **changes: Any) -> Template:
    path = folder / "x.onnx"
    path.write_bytes(content)
    template = import_onnx(path, **changes)
    check_template(template.program)
    return template


def outputs_of(template: Template, given: Mapping[str, Tensor]) -> list[Tensor]:
    values = [template.parameters.get(item.name, given.get(item.name)) for item in template.program.inputs]
    assert all(value is not None for value in values)
    everything = [*values, *run(template.program, values)]  # type: ignore[arg-type]
    return [everything[number] for number in template.program.steps[-1].inputs]  # type: ignore[misc]


def close(found: Tensor, wanted: Tensor) -> bool:
    assert found.shape == wanted.shape
    return bool((found.double() - wanted.double()).abs().max() <= 2e-6 * wanted.double().abs().max().clamp(1))


@pytest.mark.parametrize(("op", "inputs", "attributes", "shape", "expected"), CASES)
def test_an_operator_agrees_with_torch(
    tmp_path: Path,
    op: str,
    inputs: list[str],
    attributes: dict[str, Any],
    shape: tuple[int, ...],
    expected: Expected,
) -> None:
    known = tensors()
    if attributes.get("transB") and "b" in inputs:
        known["b"] = torch.zeros(6)
    x = torch.randn(shape)
    content = graph(
        [node(op, inputs, ["y"], **attributes)], inputs=[port("x", shape)], outputs=["y"], tensors=known
    )
    (found,) = outputs_of(imported(tmp_path, model(content)), {"x": x})
    assert close(
        found, expected(x.double(), {k: v.double() if v.is_floating_point() else v for k, v in known.items()})
    )


def encoder() -> tuple[bytes, Callable[[Tensor], Tensor]]:
    """A transformer encoder as exporters write it: norms in pieces, shapes worked out, and a residual."""
    torch.manual_seed(5)
    known = {
        "table": torch.randn(9, 4),
        "q": torch.randn(4, 4),
        "k": torch.randn(4, 4),
        "v": torch.randn(4, 4),
        "gain": torch.randn(4),
        "two": torch.tensor(2.0),
        "epsilon": torch.tensor(1e-5),
        "half": torch.tensor(0.5),
        "zero": torch.tensor([0]),
        "heads": torch.tensor([2]),
        "width": torch.tensor([-1]),
        "root": torch.tensor(2.0),
        "axes": torch.tensor([-1]),
        "one": torch.tensor(1.0),
    }
    nodes = [
        node("Gather", ["table", "ids"], ["x"]),
        node("ReduceMean", ["x", "axes"], ["mean"]),
        node("Sub", ["x", "mean"], ["centred"]),
        node("Pow", ["centred", "two"], ["squares"]),
        node("ReduceMean", ["squares", "axes"], ["variance"]),
        node("Add", ["variance", "epsilon"], ["shifted"]),
        node("Sqrt", ["shifted"], ["deviation"]),
        node("Div", ["centred", "deviation"], ["normal"]),
        node("Mul", ["normal", "gain"], ["h"]),
        node("Shape", ["h"], ["whole"]),
        node("Constant", [], ["places"], value=torch.tensor([0, 1])),
        node("Gather", ["whole", "places"], ["front"]),
        node("Concat", ["front", "heads", "width"], ["split"], axis=0),
    ]
    for name in "qkv":
        nodes += [
            node("MatMul", ["h", name], [f"{name}1"]),
            node("Reshape", [f"{name}1", "split"], [f"{name}2"]),
            node("Transpose", [f"{name}2"], [f"{name}3"], perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]),
        ]
    nodes += [
        node("MatMul", ["q3", "k3"], ["scores"]),
        node("Div", ["scores", "root"], ["scaled"]),
        node("Softmax", ["scaled"], ["weights"], axis=-1),
        node("MatMul", ["weights", "v3"], ["mixed"]),
        node("Transpose", ["mixed"], ["mixed2"], perm=[0, 2, 1, 3]),
        node("Reshape", ["mixed2", "whole"], ["mixed3"]),
        node("Add", ["x", "mixed3"], ["sum"]),
        node("Div", ["sum", "root"], ["part"]),
        node("Erf", ["part"], ["erf"]),
        node("Add", ["erf", "one"], ["raised"]),
        node("Mul", ["sum", "raised"], ["product"]),
        node("Mul", ["product", "half"], ["y"]),
    ]

    def expected(ids: Tensor) -> Tensor:
        t = {name: value.double() if value.is_floating_point() else value for name, value in known.items()}
        x = t["table"][ids]
        h = F.layer_norm(x, (4,), t["gain"])
        q, k, v = ((h @ t[name]).view(*ids.shape, 2, 2).transpose(1, 2) for name in "qkv")
        mixed = ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
        total = x + mixed
        return total * 0.5 * (1 + (total / 2).erf())

    ids = port("ids", ["batch", 5], torch.int64)
    return model(graph(nodes, inputs=[ids], outputs=["y"], tensors=known)), expected


def test_a_transformer_is_read_with_its_shapes_worked_out(tmp_path: Path) -> None:
    content, expected = encoder()
    template = imported(tmp_path, content)
    ids = torch.tensor([[3, 0, 8, 1, 1]])
    assert close(outputs_of(template, {"ids": ids})[0], expected(ids))
    # Arithmetic on shapes is done while reading, and what nothing takes is left out.
    assert {"zero", "heads", "width", "places"}.isdisjoint(template.parameters)
    assert template.outputs == ("y",)
    two = torch.tensor([[3, 0, 8, 1, 1], [2, 2, 7, 4, 5]])
    assert close(
        outputs_of(imported(tmp_path, content, shapes={"ids": (2, 5)}), {"ids": two})[0], expected(two)
    )


# --- Files that lie -----------------------------------------------------------------------------


def small(
    *nodes: bytes, known: Mapping[str, Tensor] | None = None, shape: Sequence[int | str] = (3, 4)
) -> bytes:
    return model(graph(nodes, inputs=[port("x", shape)], outputs=["y"], tensors=known))


RELU = node("Relu", ["x"], ["y"])
HUGE = message((1, 2**39), (1, 2**39), (2, 1), (8, "w"), (9, b"1234"))
LIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no ONNX graph"),
    "noise": (b"\x0f\x07", "wire type 7"),
    "cut": (small(RELU)[:40], "ends behind its message"),
    "endless number": (b"\x08" + b"\xff" * 11, "more than 64 bits"),
    "old operators": (
        model(graph([RELU], inputs=[port("x", (3,))], outputs=["y"]), opset=3),
        "operator set 3",
    ),
    "unknown operator": (
        small(node("Detect", ["x"], ["y"])),
        r"node 0 'the Detect' \(Detect\): the operator isn't",
    ),
    "custom domain": (
        small(message((2, "y"), (4, "Run"), (7, "com.example"))),
        r"com\.example\.Run isn't one of",
    ),
    "a graph inside": (
        small(message((2, "y"), (4, "If"), (5, message((1, "then"), (6, b""), (20, 5))))),
        "kind 5",
    ),
    "unknown attribute": (small(node("Relu", ["x"], ["y"], slope=1.0)), "attribute 'slope' isn't supported"),
    "a cycle": (small(node("Add", ["x", "y"], ["y"])), "uses 'y' before it is there"),
    "twice": (small(RELU, RELU), "names 'y' twice"),
    "absent tensor": (small(node("Add", ["x", "w"], ["y"])), "uses 'w' before it is there"),
    "no such output": (small(node("Relu", ["x"], ["z"])), "uses 'y' before it is there"),
    "open size": (small(RELU, shape=("batch", "width")), "'x' has an open size 'width'"),
    "tensor that lies": (
        model(message((1, RELU), (5, HUGE), (11, port("x", (3,))), (12, message((1, "y"))))),
        "tensor 'w' of 4 bytes must have",
    ),
    "tensor elsewhere": (
        model(message((1, RELU), (5, message((1, 1), (2, 1), (8, "w"), (13, b""))))),
        "in another file",
    ),
    "tensor of text": (model(message((1, RELU), (5, message((1, 1), (2, 8), (8, "w"))))), "element type 8"),
    "huge input": (small(RELU, shape=(2**39,)), "dimension 549755813888"),
    "huge value": (
        small(node("Expand", ["x", "s"], ["y"]), known={"s": torch.tensor([2**31, 3, 4])}),
        "more than",
    ),
    "a size from a run": (small(node("Reshape", ["x", "x"], ["y"])), "input 1 must be constant"),
    "shape that doesn't fit": (
        small(node("Reshape", ["x", "s"], ["y"]), known={"s": torch.tensor([5, -1])}),
        "12 elements can't have shape",
    ),
    "division by zero": (
        small(
            node("Div", ["s", "z"], ["q"]),
            node("Expand", ["x", "q"], ["y"]),
            known={"s": torch.tensor([4]), "z": torch.tensor([0])},
        ),
        "can't be worked out",
    ),
    "sum of one": (
        small(node("Einsum", ["x", "x"], ["y"], equation="ab,cd->ac")),
        "sums a dimension of one tensor",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_file_that_lies_is_refused_by_name(tmp_path: Path, name: str) -> None:
    content, rule = LIES[name]
    with pytest.raises((ModelRefused, ProgramRefused), match=rule):
        imported(tmp_path, content)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="cannot be read"):
        import_onnx(tmp_path / "nowhere.onnx")


def test_numbers_may_be_packed_or_not(tmp_path: Path) -> None:
    values = message((1, 2), (2, 1), (4, 1.5), (4, -2.0), (8, "w"))
    integers = message((1, varint(2) + varint(1)), (2, 7), (7, varint(3) + varint(-1)), (8, "i"))
    content = message(
        (1, node("Add", ["x", "w"], ["y"])),
        (1, node("Gather", ["y", "i"], ["z"])),
        (5, values),
        (5, integers),
        (11, port("x", (4, 2))),
        (12, message((1, "z"))),
    )
    x = torch.randn(4, 2)
    (found,) = outputs_of(imported(tmp_path, model(content)), {"x": x})
    assert close(found, (x + torch.tensor([1.5, -2.0]))[[3, 3]].reshape(2, 1, 2))


@settings(max_examples=120, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_files_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    damaged = bytearray(encoder()[0])
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(damaged[: data.draw(st.integers(1, len(damaged)))])
    with contextlib.suppress(WorkloadRefused):
        assert import_onnx(path).program.steps


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.binary(max_size=64))
def test_any_bytes_are_fields_or_refused(data: bytes) -> None:
    with contextlib.suppress(ModelRefused):
        read = list(fields(memoryview(data)))
        assert len(read) <= len(data)


def test_a_tensor_keeps_its_bytes(tmp_path: Path) -> None:
    known = {"w": torch.randn(4, dtype=torch.float64), "u": torch.tensor([1, 0, 255], dtype=torch.uint8)}
    read = imported(
        tmp_path, small(node("Add", ["x", "w"], ["z"]), node("Cast", ["z"], ["y"], to=1), known=known)
    ).parameters
    assert torch.equal(read["w"], known["w"])
    assert tensor("w", known["w"]).startswith(b"\x08\x04")
