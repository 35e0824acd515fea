"""From an ONNX file to a program, node by node.

Sizes must be fixed. A first size that the file leaves open, as exporters do for the batch, becomes one;
others must be given. What can be worked out beforehand is; tensors that nothing takes are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from workloads.errors import ModelRefused, ProgramRefused
from workloads.program.builder import Builder, Value
from workloads.program.exported import END, TEMPLATE_PROFILE, Template
from workloads.program.onnx import elementwise as _elementwise
from workloads.program.onnx import layers as _layers
from workloads.program.onnx import shapes as _shapes
from workloads.program.onnx.constants import fold
from workloads.program.onnx.context import OPERATORS, Context, Known, Operand
from workloads.program.onnx.model import Node, OnnxModel, Port, read_model
from workloads.program.program import JOB, PARAMETER, Program, ValueSpec, spec_of

__all__ = ["import_onnx"]

del _elementwise, _layers, _shapes  # Imported to register their rules.


def import_onnx(path: Path, shapes: Mapping[str, Sequence[int]] | None = None) -> Template:
    """The program of an ONNX file.

    Args:
        path: the file.
        shapes: of inputs whose sizes the file leaves open.

    Raises:
        ModelRefused: the file can't be read, or its graph contradicts itself.
        ProgramRefused: it uses an operator, an attribute or a size that programs don't have; names the first
            node concerned.
    """
    return _Importer(read_model(path), shapes or {}).template()


class _Importer:
    def __init__(self, model: OnnxModel, shapes: Mapping[str, Sequence[int]]) -> None:
        self._model = model
        self._builder = Builder()
        self._operands: dict[str, Operand] = {}
        for port in model.inputs:
            spec = _spec(port, shapes.get(port.name))
            self._bind(port.name, self._builder.input(port.name, spec, JOB))
        constants = {
            node.outputs[0]: _constant(node)
            for node in model.nodes
            if node.op == "Constant" and len(node.outputs) == 1
        }
        self._tensors = {**model.tensors, **constants}
        if len(self._tensors) != len(model.tensors) + len(constants):
            raise ModelRefused("graph names a tensor twice")
        for name, tensor in self._tensors.items():
            value = self._builder.input(name, spec_of(tensor), PARAMETER)
            self._bind(name, Known(tensor, value))

    def template(self) -> Template:
        for place, node in enumerate(self._model.nodes):
            if node.op == "Constant":
                continue
            try:
                self._node(node)
            except ProgramRefused as error:
                where = f" {node.name!r}" if node.name else ""
                raise ProgramRefused(f"node {place}{where} ({node.op}): {error}") from error
        outputs = [self._output(port.name) for port in self._model.outputs]
        if not outputs:
            raise ProgramRefused("graph has no outputs")
        self._builder.apply(END, *outputs, header=b"")
        program = _pruned(self._builder.build())
        parameters = {
            item.name: self._tensors[item.name] for item in program.inputs if item.source == PARAMETER
        }
        return Template(program, parameters, tuple(port.name for port in self._model.outputs))

    def _node(self, node: Node) -> None:
        inputs = [self._operand(name) for name in node.inputs]
        known = [operand.tensor if isinstance(operand, Known) else None for operand in inputs]
        if all(isinstance(operand, Known) or operand is None for operand in inputs):
            worked_out = fold(node, known)
            if worked_out is not None:
                self._bind(node.outputs[0], Known(worked_out))
                return
        found = OPERATORS.get(node.op)
        if found is None:
            raise ProgramRefused("the operator isn't among those of ONNX that programs have")
        context = Context(self._builder, node, inputs, self._model.opset, TEMPLATE_PROFILE)
        result = found(context)
        context.check_used()
        results: Sequence[Operand] = result if isinstance(result, list) else [result]
        # Further outputs, such as a mask of dropout, may be named and not be used.
        for name, operand in zip(node.outputs, results, strict=False):
            self._bind(name, operand)

    def _bind(self, name: str, operand: Operand) -> None:
        if name in self._operands:
            raise ModelRefused(f"graph names {name!r} twice")
        if name:
            self._operands[name] = operand

    def _operand(self, name: str) -> Operand | None:
        if not name:
            return None
        if name not in self._operands:
            raise ModelRefused(f"graph uses {name!r} before it is there: nodes in a cycle, or out of order")
        return self._operands[name]

    def _output(self, name: str) -> Value:
        found = self._operand(name)
        if isinstance(found, int):
            return found
        if found is None or found.value is None:
            raise ProgramRefused(f"output {name!r} is constant")
        return found.value


def _spec(port: Port, given: Sequence[int] | None) -> ValueSpec:
    if port.dtype is None or (port.shape is None and given is None):
        raise ModelRefused(f"the file doesn't say what {port.name!r} is")
    shape: list[int | str] = list(port.shape or ())
    if shape and isinstance(shape[0], str):
        shape[0] = 1
    if given is not None:
        if port.shape is not None and not _fits(port.shape, given):
            raise ProgramRefused(f"{port.name!r} has shape {list(port.shape)}, not {list(given)}")
        shape = list(given)
    sizes = []
    for size in shape:
        if not isinstance(size, int):
            raise ProgramRefused(f"{port.name!r} has an open size {size!r}; its shape must be given")
        sizes.append(size)
    return ValueSpec(spec_of(torch.empty(0, dtype=port.dtype)).dtype, tuple(sizes))


def _fits(shape: Sequence[int | str], given: Sequence[int]) -> bool:
    return len(shape) == len(given) and all(
        isinstance(size, str) or size == wanted for size, wanted in zip(shape, given, strict=True)
    )


def _constant(node: Node) -> Tensor:
    value = next(iter(node.attributes.values()), None)
    if isinstance(value, Tensor):
        return value
    if isinstance(value, int | float | list):
        return torch.tensor(value, dtype=torch.int64 if _is_whole(value) else torch.float32)
    raise ProgramRefused(f"constant {node.name!r} is no number")


def _is_whole(value: int | float | list[int] | list[float]) -> bool:
    return all(type(item) is int for item in (value if isinstance(value, list) else [value]))


def _pruned(program: Program) -> Program:
    """The program without the steps and parameters that its end doesn't depend on."""
    first = len(program.inputs)
    needed = {program.value_count - 1}
    for number in range(program.value_count - 1, first - 1, -1):
        if number in needed:
            needed.update(program.steps[number - first].inputs)
    kept = [
        number
        for number in range(program.value_count)
        if number in needed or (number < first and program.inputs[number].source == JOB)
    ]
    places = {number: place for place, number in enumerate(kept)}
    return Program(
        tuple(program.inputs[number] for number in kept if number < first),
        tuple(
            replace(
                program.steps[number - first],
                inputs=tuple(places[value] for value in program.steps[number - first].inputs),
            )
            for number in kept
            if number >= first
        ),
    )
