"""The compiled kernels of the exact profiles, found or compiled before workers start.

A worker may not write files, so it gets a library that exists or none; without one it computes the same bits,
slower. The node doesn't import what builds the library either, because that brings torch: it runs it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import structlog
import trio

import workloads

__all__ = ["NO_KERNELS", "VARIABLE", "find_kernels"]

log = structlog.get_logger(__name__)

VARIABLE = "P2P_NODE_KERNELS"
NO_KERNELS = "0"
_PATIENCE_S = 2.0
_POLL_S = 0.02
_BUILD = Path(workloads.__file__).parent / "exact" / "kernels" / "build.py"


async def find_kernels(patience_s: float = _PATIENCE_S) -> str:
    """The path of the library, or `NO_KERNELS`; what the operator set in the environment goes first.

    Args:
        patience_s: compiling takes seconds, once. When it takes longer than this it goes on by itself, for
            the next start.
    """
    setting = os.environ.get(VARIABLE)
    if setting:
        return setting
    process = _start_build()
    with trio.move_on_after(patience_s) as patience:
        while process.poll() is None:  # noqa: ASYNC110 - a child's end sets no event
            await trio.sleep(_POLL_S)
    if patience.cancelled_caught:
        log.info("kernels are being compiled", used="from the next start")
        return NO_KERNELS
    path, reason = process.communicate()
    if process.returncode:
        log.info("no kernels", reason=reason.strip())
        return NO_KERNELS
    return path.strip()


def _start_build() -> subprocess.Popen[str]:
    # In a session of its own: Ctrl-C in a terminal doesn't spoil what the next start needs.
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-I", str(_BUILD)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
