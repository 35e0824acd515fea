from __future__ import annotations

from pathlib import Path

import pytest

from p2p_node import service
from p2p_node.config import NodeConfig
from p2p_node.datadir import DataDir
from p2p_node.errors import UserError


@pytest.mark.parametrize(
    ("device", "choices", "offered"),
    [
        ("cpu", ("auto",), True),
        ("cuda:1", ("auto",), True),
        ("cuda:1", ("cpu", "cuda"), True),
        ("cuda:1", ("cpu", "cuda:1"), True),
        ("cuda:1", ("cpu", "cuda:0"), False),
        ("cuda:1", ("cpu",), False),
        ("cpu", ("cuda",), False),
    ],
)
def test_what_devices_name(device: str, choices: tuple[str, ...], offered: bool) -> None:
    assert service.is_offered(device, choices) is offered


def test_a_node_without_its_cpu_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    place = DataDir.open(tmp_path / "node")
    with pytest.raises(UserError, match="--devices cuda:0 must include cpu or auto"):
        service.run(NodeConfig(devices=("cuda:0",)), place, bytes(32))
    assert not place.store.exists()
