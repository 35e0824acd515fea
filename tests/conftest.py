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

_ALONE = {"swarm/test_the_demo.py"}
"""Tests that bring a swarm of their own."""
_LONGEST_FIRST = (
    "swarm",
    "swarm/test_the_demo.py",
    "sim/test_swarm.py",
    "node/test_wheel.py",
    "workloads/test_worker.py",
)


def _group(nodeid: str) -> str:
    """What one process must run: a file, or all that uses the one swarm."""
    place = Path(nodeid.partition("::")[0]).relative_to("tests")
    uses_swarm = place.parts[0] == "swarm" and str(place) not in _ALONE
    return "swarm" if uses_swarm else str(place)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first: it would keep the other processes waiting if it came last."""
    order = {name: index for index, name in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(_group(item.nodeid), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Groups stay whole and in order where several processes share the tests."""
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    config.option.loadscopereorder = False
    return GroupScheduling(config, log)
