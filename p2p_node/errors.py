"""What a person at the terminal can be told, and the exit codes that scripts rely on.

A `UserError` is somebody's to mend: its message names the rule, the value and, where there is
one, the way out. Anything else that escapes from this package is a bug.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

__all__ = ["ExitCode", "UserError"]


class ExitCode(IntEnum):
    """How a command ended."""

    OK = 0
    USAGE = 2
    NO_BIDS = 3
    TASK_FAILED = 4
    VERIFICATION_FAILED = 5
    TIMED_OUT = 6


class UserError(Exception):
    """A fault that the user can mend; printed without a traceback."""

    exit_code: ClassVar[ExitCode] = ExitCode.USAGE
