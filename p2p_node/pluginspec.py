"""What a job file's task may ask of a workload that a plug-in adds: plain data, which the plug-in reads."""

from __future__ import annotations

import re
from typing import Any

import yaml
from msgspec import Struct

from p2p_node.yamltree import Fault, Reader

__all__ = ["PluginTask", "plugin_fields"]

_INTEGER = re.compile(r"-?[0-9]{1,18}")
_FIELDS_MAX = 256


class PluginTask(Struct, frozen=True, kw_only=True):
    """Fields as they stand in the file: text, integers, truth values, lists and mappings."""

    workload: str
    fields: dict[str, Any]


def plugin_fields(workload: str) -> Reader[PluginTask]:
    """Reads the task of a plug-in's workload."""

    def read(node: yaml.Node, path: str) -> PluginTask:
        fields = _plain(node, path)
        if not isinstance(fields, dict):
            raise Fault(node.start_mark.line + 1, path, "must be a mapping of fields to values")
        return PluginTask(
            workload=workload, fields={name: value for name, value in fields.items() if name != "workload"}
        )

    return read


def _plain(node: yaml.Node, path: str) -> Any:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        return [_plain(inner, f"{path}[{index}]") for index, inner in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        if len(node.value) > _FIELDS_MAX:
            raise Fault(line, path, f"must have at most {_FIELDS_MAX} fields")
        fields: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in fields:
                raise Fault(key.start_mark.line + 1, path, "must have plain words as keys, each once")
            fields[str(key.value)] = _plain(value, f"{path}.{key.value}")
        return fields
    if not isinstance(node, yaml.ScalarNode):
        raise Fault(line, path, "must be text, a number, a list or a mapping")
    if node.style is None and _INTEGER.fullmatch(node.value):
        return int(node.value)
    if node.style is None and node.value in {"true", "false"}:
        return node.value == "true"
    return str(node.value)
