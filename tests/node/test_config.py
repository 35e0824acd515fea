"""Settings: defaults, then the file, then flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p_node.config import ConfigError, NodeConfig, load_config
from protocols.identity import peer_key

PEER = "/ip4/10.0.0.1/tcp/4150/p2p/12D3KooWDc55r8a9xeMqu6jArnDtdD2LUGiLwX2ZJvReDyKtCrdy"


def written(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(content)
    return path


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    assert load_config(tmp_path / "config.toml", {}) == NodeConfig()


def test_the_file_wins_over_defaults_and_flags_over_the_file(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        f'price_micros = 7\nnetwork = "lab"\nbootstrap = ["{PEER}"]\nmdns = false\napi = "off"\n',
    )
    config = load_config(path, {"price_micros": 9, "network": None, "metrics": "127.0.0.1:0"})
    assert config == NodeConfig(
        price_micros=9, network="lab", bootstrap=(PEER,), mdns=False, api=None, metrics="127.0.0.1:0"
    )


def test_off_works_as_a_flag(tmp_path: Path) -> None:
    path = written(tmp_path, 'metrics = "127.0.0.1:9000"\n')
    assert load_config(path, {"metrics": "off"}).metrics is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            'network = "lab"\nprice_micro = 5\n',
            r"config\.toml:2: price_micro is not a setting; did you mean price_micros\?",
        ),
        ("\n\n[plugins]\nx = 1\n", r"config\.toml:3: plugins is not a setting; known: listen, "),
        (
            'network = "lab"\n\nprice_micros = "many"\n',
            r"config\.toml:3: price_micros: Expected `int`, got .*'many'",
        ),
        ("price_micros = -1\n", r"config\.toml:1: price_micros: Expected `int` >= 0, got -1"),
        ("price_micros = 1.5\n", r"config\.toml:1: price_micros: .*got 1\.5"),
        ('network = "Main Net"\n', r"config\.toml:1: network: .*got 'Main Net'"),
        ('listen = ["0.0.0.0:4150"]\n', r"config\.toml:1: listen: .*got \['0\.0\.0\.0:4150'\]"),
        ('bootstrap = ["/ip4/10.0.0.1/tcp/4150"]\n', r"config\.toml:1: bootstrap: "),
        ('devices = ["gpu"]\n', r"config\.toml:1: devices: .*got \['gpu'\]"),
        ("devices = []\n", r"config\.toml:1: devices: .*got \[\]"),
        ('api = "4151"\n', r"config\.toml:1: api: .*got '4151'"),
        ('log_format = "xml"\n', r"config\.toml:1: log_format: .*got 'xml'"),
        ("price_micros = = 1\n", r"config\.toml is not TOML: .*line 1"),
    ],
)
def test_a_fault_in_the_file_names_line_rule_and_value(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(written(tmp_path, content), {})


def test_a_fault_in_a_flag_is_said_to_be_the_flags(tmp_path: Path) -> None:
    path = written(tmp_path, "price_micros = 7\n")
    with pytest.raises(ConfigError, match=r"^flag: price_micros: Expected `int` >= 0, got -2$"):
        load_config(path, {"price_micros": -2})


def test_a_file_that_is_not_text_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(path, {})
    path.write_bytes(b"#" * 70_000)
    with pytest.raises(ConfigError, match="more than 65536 bytes"):
        load_config(path, {})


def test_lists_of_peers_and_addresses_are_read(tmp_path: Path) -> None:
    peer = PEER.rpartition("/")[2]
    path = written(
        tmp_path, f'deny_peers = ["{peer}"]\nallow_addresses = ["10.0.0.0/8", "fd00::/8", "192.0.2.1"]\n'
    )
    access = load_config(path, {}).access
    assert access.denied_peers == {peer_key(peer)}
    assert not access.refuses_host("10.1.2.3")
    assert not access.refuses_host("192.0.2.1")
    assert access.refuses_host("192.0.2.2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('\nallow_addresses = ["10.0.0.1/8"]\n', r"config\.toml:2: allow_addresses: .*host bits set"),
        ('deny_addresses = ["example.org"]\n', r"config\.toml:1: deny_addresses: 'example\.org'"),
        ('deny_peers = ["12D3KooWshort"]\n', r"config\.toml:1: deny_peers: "),
        ('allow_peers = ["Qm"]\n', r"config\.toml:1: allow_peers: "),
        ('network_key = "key"\n', r"config\.toml:1: network_key: "),
    ],
)
def test_a_list_with_a_slip_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(written(tmp_path, content), {})
