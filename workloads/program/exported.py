"""Programs from graphs that ``torch.export`` wrote: `read_archive` as data, `aten` as exact operators.

What comes out is a `Template`: the program, which ends in the digest of the graph's outputs, and its tensors.
Others run it (`workloads.exported`) without ever reading the archive. Whatever a graph asks for that programs
don't have is refused, by the name of the first operator or argument concerned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from workloads.errors import ModelRefused, ProgramRefused
from workloads.program.archive import Archive, Fields, read_archive
from workloads.program.aten import Arguments, Ref, apply
from workloads.program.builder import Builder
from workloads.program.interpreter import infer
from workloads.program.program import (
    JOB,
    PARAMETER,
    Program,
    Step,
    ValueSpec,
    spec_of,
)

__all__ = [
    "END",
    "TEMPLATE_PROFILE",
    "Template",
    "check_template",
    "import_archive",
    "with_profile",
]

TEMPLATE_PROFILE = "exact21"
END = "digest"

# By the numbers of torch's schema: what programs carry in place of each type, and the spacing of one.
_TYPES = {
    1: ("uint8", 0.0),
    5: ("int64", 0.0),
    6: ("float16", 2.0**-10),
    7: ("float32", 2.0**-23),
    8: ("float64", 2.0**-52),
    12: ("uint8", 0.0),
    13: ("bfloat16", 2.0**-7),
}
# Of no consequence to any value; a rule that doesn't know such an argument refuses it all the same.
_PLACEMENT = {"as_device": "device", "as_layout": "layout", "as_memory_format": "memory format"}


@dataclass(frozen=True, slots=True)
class Template:
    """A graph as a program.

    Args:
        program: ends in a step ``digest`` that takes the graph's outputs.
        parameters: the values of its inputs from the model, by name.
        outputs: what the graph calls its outputs, where that is known.
    """

    program: Program
    parameters: dict[str, Tensor]
    outputs: tuple[str, ...] = ()


def import_archive(path: Path) -> Template:
    """The program of an archive that ``torch.export.save`` wrote.

    Raises:
        ModelRefused: the file isn't such an archive, or its graph contradicts itself.
        ProgramRefused: it uses an operator, an argument or a size that programs don't have.
    """
    return _Importer(read_archive(path)).template()


def check_template(program: Program) -> tuple[ValueSpec, ...]:
    """See that a program can be run and ends in the digest of its outputs.

    Returns:
        The specs of its values.

    Raises:
        ProgramRefused: it can't, or doesn't.
    """
    specs = infer(program)
    if program.steps[-1].op != END:
        raise ProgramRefused(f"program ends in {program.steps[-1].op!r}, must end in {END!r}")
    return specs


def with_profile(program: Program, profile: str) -> Program:
    """The same program with every contraction in ``profile``."""
    return Program(program.inputs, tuple(_in_profile(step, profile) for step in program.steps))


def _in_profile(step: Step, profile: str) -> Step:
    attributes = tuple((name, profile if name == "precision" else value) for name, value in step.attributes)
    return replace(step, attributes=attributes)


class _Importer:
    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._builder = Builder()
        self._refs: dict[str, Ref] = {}
        self._parameters: dict[str, Tensor] = {}
        for name in ("sym_int_values", "sym_float_values", "sym_bool_values", "custom_obj_values"):
            if archive.graph.get(name):
                raise ProgramRefused(f"graph has {name}: sizes must be fixed and values tensors")
        self._meta = _fields(archive.graph.get("tensor_values"), "tensor_values")

    def template(self) -> Template:
        for spec in _items(self._archive.signature.get("input_specs"), "input_specs"):
            self._input(*_tagged(spec))
        for node in _items(self._archive.graph.get("nodes"), "nodes"):
            self._node(_fields(node, "node"))
        outputs, names = [], []
        for spec in _items(self._archive.signature.get("output_specs"), "output_specs"):
            kind, value = _tagged(spec)
            if kind != "user_output":
                raise ProgramRefused(f"output kind {kind!r} isn't supported, only 'user_output'")
            tag, argument = _tagged(_fields(value, kind).get("arg"))
            if tag != "as_tensor":
                raise ProgramRefused(f"output {tag!r} isn't supported, only tensors")
            outputs.append(self._ref(argument).value)
            names.append(_text(argument.get("name"), "output name"))
        if not outputs:
            raise ProgramRefused("graph has no outputs")
        self._builder.apply(END, *outputs, header=b"")
        return Template(self._builder.build(), self._parameters, tuple(names))

    def _input(self, kind: str, value: object) -> None:
        fields = _fields(value, kind)
        if kind == "user_input":
            tag, argument = _tagged(fields.get("arg"))
            if tag != "as_tensor":
                raise ProgramRefused(f"input {tag!r} isn't supported, only tensors")
            name = _text(_fields(argument, tag).get("name"), "input name")
            self._declare(name, name, self._spec(name), JOB)
            return
        key = {
            "parameter": "parameter_name",
            "buffer": "buffer_name",
            "tensor_constant": "tensor_constant_name",
        }
        if kind not in key:
            raise ProgramRefused(f"input kind {kind!r} isn't supported")
        full_name = _text(fields.get(key[kind]), key[kind])
        tensor = self._archive.tensors.get(full_name)
        if tensor is None:
            raise ModelRefused(f"archive lacks the tensor {full_name!r}")
        name = _text(_fields(fields.get("arg"), kind).get("name"), "input name")
        if self._spec(name) != spec_of(tensor):
            raise ModelRefused(
                f"tensor {full_name!r} is {spec_of(tensor)}, the graph says {self._spec(name)}"
            )
        self._parameters[full_name] = tensor
        self._declare(name, full_name, spec_of(tensor), PARAMETER)

    def _declare(self, name: str, full_name: str, spec: ValueSpec, source: str) -> None:
        self._bind(name, self._builder.input(full_name, spec, source))

    def _node(self, node: Fields) -> None:
        target = _text(node.get("target"), "target")
        given = {}
        for item in _items(node.get("inputs"), "inputs"):
            fields = _fields(item, "argument")
            name = _text(fields.get("name"), "argument name")
            given[name] = self._argument(target, name, *_tagged(fields.get("arg")))
        results = apply(target, Arguments(self._builder, given, TEMPLATE_PROFILE))
        names = []
        for output in _items(node.get("outputs"), "outputs"):
            tag, value = _tagged(output)
            if tag not in {"as_tensor", "as_tensors", "as_none"}:
                raise ProgramRefused(f"operator {target}: output {tag!r} isn't supported")
            several = _items(value, tag) if tag == "as_tensors" else [value] if tag == "as_tensor" else []
            names += [_text(_fields(one, tag).get("name"), "output name") for one in several]
        if len(names) != len(results):
            raise ModelRefused(f"operator {target} has {len(names)} outputs, must have {len(results)}")
        for name, value in zip(names, results, strict=True):
            self._bind(name, value)
            if self._builder.shape(value) != self._spec(name).shape:
                raise ModelRefused(
                    f"operator {target} gives shape {self._builder.shape(value)}, "
                    f"the graph says {self._spec(name).shape}"
                )

    def _argument(self, target: str, name: str, tag: str, value: Any) -> Any:
        match tag:
            case "as_none":
                return None
            case "as_tensor":
                return self._ref(value)
            case "as_tensors":
                return [self._ref(item) for item in _items(value, tag)]
            case "as_optional_tensors":
                items = [_tagged(item) for item in _items(value, tag)]
                return [None if kind == "as_none" else self._ref(item) for kind, item in items]
            case "as_bool" if type(value) is bool:
                return value
            case "as_int" if type(value) is int:
                return value
            case "as_float" if type(value) in {int, float}:
                return float(value)
            case "as_string" if isinstance(value, str):
                return value
            case "as_ints" if all(type(item) is int for item in _items(value, tag)):
                return value
            case "as_floats" if all(type(item) in {int, float} for item in _items(value, tag)):
                return [float(item) for item in value]
            case "as_sym_int" if isinstance(value, dict) and type(value.get("as_int")) is int:
                return value["as_int"]
            case "as_sym_ints" if all(
                isinstance(item, dict) and type(item.get("as_int")) is int for item in _items(value, tag)
            ):
                return [item["as_int"] for item in value]
            case "as_scalar_type" if value in _TYPES:
                return _TYPES[value][0]
            case "as_device" | "as_layout" | "as_memory_format":
                return _PLACEMENT[tag]
        raise ProgramRefused(f"operator {target}: {name} is {tag} {str(value)[:40]!r}, which isn't supported")

    def _bind(self, name: str, value: int) -> None:
        if name in self._refs:
            raise ModelRefused(f"graph names {name!r} twice")
        self._refs[name] = Ref(value, _TYPES[self._meta_type(name)][1])

    def _ref(self, value: object) -> Ref:
        name = _text(_fields(value, "tensor").get("name"), "tensor name")
        if name not in self._refs:
            raise ModelRefused(f"graph uses {name!r} before it is there")
        return self._refs[name]

    def _meta_type(self, name: str) -> int:
        kind = _fields(self._meta.get(name), f"tensor_values of {name!r}").get("dtype")
        if type(kind) is not int or kind not in _TYPES:
            raise ProgramRefused(f"tensor {name!r} has element type {kind!r}, which programs don't have")
        return kind

    def _spec(self, name: str) -> ValueSpec:
        kind = self._meta_type(name)
        sizes = []
        for size in _items(self._meta[name].get("sizes"), f"sizes of {name!r}"):
            tag, number = _tagged(size)
            if tag != "as_int" or type(number) is not int:
                raise ProgramRefused(f"tensor {name!r} has a size that isn't fixed")
            sizes.append(number)
        if math.prod(sizes) < 0:
            raise ModelRefused(f"tensor {name!r} has a negative size")
        return ValueSpec(_TYPES[kind][0], tuple(sizes))


def _fields(value: object, what: str) -> Fields:
    if not isinstance(value, dict):
        raise ModelRefused(f"{what} must be an object, got {type(value).__name__}")
    return value


def _items(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ModelRefused(f"{what} must be a list, got {type(value).__name__}")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ModelRefused(f"{what} must be text, got {type(value).__name__}")
    return value


def _tagged(value: object) -> tuple[str, Any]:
    if not isinstance(value, dict) or len(value) != 1:
        raise ModelRefused(f"{str(value)[:80]} must be an object with one member")
    return next(iter(value.items()))
