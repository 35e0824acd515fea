"""Reading a model directory's ``config.json`` with bounds; without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workloads.errors import ModelRefused

__all__ = ["CONFIG_FILE", "has_model_type", "integer_field", "read_fields"]

CONFIG_FILE = "config.json"
_BYTES_MAX = 1 << 20


def read_fields(model_dir: Path) -> dict[str, Any]:
    """The object in a model directory's ``config.json``.

    Raises:
        ModelRefused: the file is missing, too large, or holds anything but an object.
    """
    try:
        with (model_dir / CONFIG_FILE).open("rb") as file:
            raw = file.read(_BYTES_MAX + 1)
    except OSError as error:
        raise ModelRefused(f"{CONFIG_FILE} cannot be read: {error.strerror}") from error
    if len(raw) > _BYTES_MAX:
        raise ModelRefused(f"{CONFIG_FILE} is larger than {_BYTES_MAX} bytes")
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ModelRefused(f"{CONFIG_FILE} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ModelRefused(f"{CONFIG_FILE} must hold an object, got {type(fields).__name__}")
    return fields


def has_model_type(model_dir: Path, model_type: str) -> bool:
    """Whether a directory says that it holds a model of this type, be it right or broken.

    Raises:
        ModelRefused: as `read_fields`, if there is a ``config.json``.
    """
    return (model_dir / CONFIG_FILE).is_file() and read_fields(model_dir).get("model_type") == model_type


def integer_field(fields: dict[str, Any], name: str, low: int, high: int) -> int:
    """A whole number from a configuration.

    Raises:
        ModelRefused: it is missing or out of range.
    """
    value = fields.get(name)
    if type(value) is not int or not low <= value <= high:
        raise ModelRefused(f"{CONFIG_FILE}: {name}={value!r} must be an integer in [{low}, {high}]")
    return value
