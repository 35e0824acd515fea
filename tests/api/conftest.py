"""One running node for all tests of the API."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from p2p_node.client import NodeClient, connect
from tests.api.rig import Rig, running_rig


@pytest.fixture(scope="session")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running_rig(tmp_path_factory.mktemp("rig")) as running:
        yield running


@pytest.fixture
def client(rig: Rig) -> Iterator[NodeClient]:
    with connect(rig.datadir) as connected:
        yield connected


@pytest.fixture
def http(rig: Rig) -> Iterator[httpx.Client]:
    """Raw requests that carry the token."""
    with connect(rig.datadir) as connected:
        yield connected._http
