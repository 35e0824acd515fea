"""Durations on the command line, written as in job files: ``80ms``, ``30s``, ``5m``, ``1h``."""

from __future__ import annotations

import re

import click

__all__ = ["DURATION", "duration_text"]

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}
_FORM = re.compile(r"([0-9]{1,9})(ms|s|m|h)")


class _Duration(click.ParamType):  # type: ignore[type-arg]
    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Milliseconds."""
        if isinstance(value, int):
            return value
        match = _FORM.fullmatch(str(value))
        if match is None:
            self.fail(
                f"{value!r} must be a whole number and one of {', '.join(_UNITS_MS)}, e.g. 30s", param, ctx
            )
        return int(match[1]) * _UNITS_MS[match[2]]


DURATION = _Duration()
"""A click type that gives milliseconds."""


def duration_text(duration_ms: int) -> str:
    """A duration as people read it, rounded to what matters."""
    if duration_ms < 1_000:
        return f"{duration_ms} ms"
    if duration_ms < 100_000:
        return f"{duration_ms / 1_000:.1f} s"
    if duration_ms < 7_200_000:
        return f"{duration_ms // 60_000} min"
    return f"{duration_ms // 3_600_000} h"
