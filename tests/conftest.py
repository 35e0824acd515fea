"""What holds for all tests: the same examples every time, and no test that fails on a slow machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported: peers and tests share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "deterministic"))

_TESTS = Path(__file__).parent
_ALONE = {"swarm/test_the_demo.py"}
"""Tests that bring a swarm of their own."""
_LONGEST_FIRST = (
    "swarm",
    "swarm/test_the_demo.py",
    "sim/test_swarm.py",
    "node/test_wheel.py",
    "workloads/test_worker.py",
)


# Before xdist looks at the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes share the tests, each file stays whole, and so does all that uses one swarm.

    What takes longest comes first: it would keep everybody waiting if it came last.
    """

    def group(item: pytest.Item) -> str:
        place = item.path.relative_to(_TESTS)
        uses_swarm = place.parts[0] == "swarm" and str(place) not in _ALONE
        return "swarm" if uses_swarm else str(place)

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    order = {name: index for index, name in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(group(item), len(order)))
