"""The published digests, and whether this machine's operators give them.

``published.json`` is data of the package, so that every node holds the same; ``tests/vectors/exact.json`` is
its copy for other implementations. Both are written by ``python -m workloads.exact.selftest --publish``.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from workloads.errors import NumericsRefused
from workloads.exact.cases import Form, operator_digests

__all__ = ["FILE", "check_operators", "published_digests"]

_NAMED_MAX = 4

FILE = Path(__file__).with_name("published.json")


@cache
def published_digests() -> dict[str, str]:
    """Digest by line of the self-test."""
    digests: dict[str, str] = json.loads(FILE.read_text())
    return digests


def check_operators() -> None:
    """Run one small case of each operator; takes a few tenths of a second.

    Raises:
        NumericsRefused: a digest differs from the published one; the message names the operators.
    """
    published = published_digests()
    differing = [name for name, digest in operator_digests(Form()).items() if digest != published.get(name)]
    if differing:
        named = ", ".join(differing[:_NAMED_MAX])
        others = f" and {len(differing) - _NAMED_MAX} more" if len(differing) > _NAMED_MAX else ""
        raise NumericsRefused(
            f"this machine does not reproduce the exact operators: {named}{others} "
            f"differ{'s' if len(differing) == 1 else ''} from the published digests"
        )
