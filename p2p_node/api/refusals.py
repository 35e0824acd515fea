"""How the API refuses: JSON that names the rule and the value that broke it."""

from __future__ import annotations

from typing import Any

__all__ = ["Refusal"]


class Refusal(Exception):
    """An answer that isn't what was asked for."""

    def __init__(self, status: int, rule: str, value: str = "", **more: Any) -> None:
        super().__init__(rule)
        self.status = status
        message = more.pop("message", f"{rule}, got {value!r}" if value else rule)
        self.error = {"rule": rule, "value": value, "message": message, **more}
