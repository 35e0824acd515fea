"""What a job file's task of ``program.run`` may ask for.

A job file names files: the client's graph, and arrays to run it on. They are read where the job file lies
(`p2p_node.packing`), and what is handed to a node has their content in their place.
"""

from __future__ import annotations

import json
import math
from typing import Any

import yaml
from msgspec import Struct

from p2p_node.yamltree import Fault, Field, Reader, choice, encoded_bytes, integer, listing, mapping, text
from protocols.limits import INPUT_BYTES_MAX, UNITS_MAX
from workloads.exported.input import FILES, PORTS_MAX

__all__ = ["PROGRAM_FIELDS", "ProgramShape", "ProgramSpec", "ProgramTask", "ProgramValues"]

_PATH_BYTES_MAX = 4_096
_NAME_BYTES_MAX = 256
_NUMBER_CHARACTERS_MAX = 40


class ProgramValues(Struct, frozen=True, kw_only=True):
    """Values of one input of a graph."""

    name: str
    file: str = ""
    numbers: str = ""
    """Nested lists in JSON, where there is no file."""


class ProgramShape(Struct, frozen=True, kw_only=True):
    """The sizes of an input that a graph leaves open."""

    name: str
    sizes: tuple[int, ...]


class ProgramSpec(Struct, frozen=True, kw_only=True):
    """A graph in a file with its values, or both as they were packed for a node."""

    file: str = ""
    inputs: tuple[ProgramValues, ...] = ()
    shapes: tuple[ProgramShape, ...] = ()
    output: str = FILES[0]
    packed: bytes = b""


class ProgramTask(Struct, frozen=True, kw_only=True):
    """The outputs of a client's own graph, batch by batch."""

    workload: str
    program: ProgramSpec


def _inputs(node: yaml.Node, path: str) -> tuple[ProgramValues, ...]:
    if not isinstance(node, yaml.MappingNode) or len(node.value) > PORTS_MAX:
        raise Fault(node.start_mark.line + 1, path, f"must be a mapping of at most {PORTS_MAX} names")
    found: dict[str, ProgramValues] = {}
    for key, value in node.value:
        name = text(bytes_max=_NAME_BYTES_MAX)(key, path)
        where = f"{path}.{name}"
        if name in found:
            raise Fault(key.start_mark.line + 1, where, "must be given only once")
        if isinstance(value, yaml.ScalarNode) and value.tag == "tag:yaml.org,2002:str":
            found[name] = ProgramValues(name=name, file=text(bytes_max=_PATH_BYTES_MAX)(value, where))
        else:
            found[name] = ProgramValues(name=name, numbers=json.dumps(_numbers(value, where)))
    return tuple(found.values())


_SIZES = listing(integer(1, UNITS_MAX * 1_024), length_min=1, length_max=8)


def _shapes(node: yaml.Node, path: str) -> tuple[ProgramShape, ...]:
    if not isinstance(node, yaml.MappingNode) or len(node.value) > PORTS_MAX:
        raise Fault(node.start_mark.line + 1, path, f"must be a mapping of at most {PORTS_MAX} names")
    names = [text(bytes_max=_NAME_BYTES_MAX)(key, path) for key, _ in node.value]
    return tuple(
        ProgramShape(name=name, sizes=_SIZES(value, f"{path}.{name}"))
        for name, (_, value) in zip(names, node.value, strict=True)
    )


def _numbers(node: yaml.Node, path: str) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_numbers(inner, f"{path}[{index}]") for index, inner in enumerate(node.value)]
    written = str(node.value) if isinstance(node, yaml.ScalarNode) else ""
    try:
        number = json.loads(written[:_NUMBER_CHARACTERS_MAX])
        if type(number) in {int, float} and math.isfinite(number):
            return number
    except ValueError:
        pass
    rule = "must be a file's name, a number, or lists of numbers"
    raise Fault(node.start_mark.line + 1, path, rule, repr(written[:_NUMBER_CHARACTERS_MAX]))


_FILLED = mapping(
    ProgramSpec,
    {
        "file": Field("file", text(bytes_max=_PATH_BYTES_MAX)),
        "inputs": Field("inputs", _inputs),
        "shapes": Field("shapes", _shapes),
        "output": Field("output", choice(*FILES)),
        "packed": Field("packed", encoded_bytes(bytes_max=INPUT_BYTES_MAX)),
    },
)


def _program(node: yaml.Node, path: str) -> ProgramSpec:
    spec = _FILLED(node, path)
    if bool(spec.file) == bool(spec.packed):
        raise Fault(node.start_mark.line + 1, path, "must have exactly one of file and packed")
    return spec


PROGRAM_FIELDS: Reader[ProgramTask] = mapping(
    ProgramTask,
    {
        "workload": Field("workload", choice("program.run"), required=True),
        "program": Field("program", _program, required=True),
    },
)
"""Reads the task."""
