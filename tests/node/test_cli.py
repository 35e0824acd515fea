"""The commands that need no running node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from p2p_node import keystore
from p2p_node.cli import COMMANDS, cli, main
from p2p_node.cli.output import print_record, print_rows
from p2p_node.config import NodeConfig
from p2p_node.datadir import DataDir
from p2p_node.service import Options
from protocols.identity import peer_key

EXAMPLE = Path(__file__).parents[2] / "examples" / "verse.yaml"


@pytest.fixture(autouse=True)
def no_passphrase_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("P2P_NODE_PASSPHRASE", raising=False)
    monkeypatch.delenv("P2P_NODE_DATADIR", raising=False)


def call(*arguments: str, code: int = 0, text: str = "") -> Result:
    result = CliRunner().invoke(cli, list(arguments), input=text, catch_exceptions=True)
    if code == 0 and result.exception is not None:
        raise result.exception
    return result


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["p2p-node", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["job", "--help"], ["init", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom p2p_node.cli import main\n"
        f"sys.argv = ['p2p-node', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "heavy = {'torch', 'libp2p', 'trio', 'rich', 'numpy', 'cryptography', 'yaml', 'msgspec'}\n"
        "heavy &= sys.modules.keys()\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout


def test_every_listed_command_exists() -> None:
    for name, entry in COMMANDS.items():
        assert entry.load().name == name
        assert call(name, "--help").output.startswith("Usage:")


def test_an_unknown_command_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_main(monkeypatch, "nothing") == 2


def test_init_then_id(tmp_path: Path) -> None:
    made = call("init", "--datadir", str(tmp_path / "node"), "--no-passphrase")
    shown = json.loads(call("id", "--datadir", str(tmp_path / "node"), "-o", "json").output)
    assert made.stdout.strip() == shown["peer_id"]
    assert peer_key(shown["peer_id"]).hex() == shown["public_key"]
    assert shown["encrypted"] is False
    assert "Keep a copy" in made.stderr


def test_init_encrypts_with_a_password_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("correct horse\nsecond line\n")
    call("init", "--datadir", str(tmp_path / "node"), "--password-file", str(tmp_path / "password"))
    place = DataDir.open(tmp_path / "node")
    assert keystore.load(place.keystore, "correct horse").public
    shown = yaml.safe_load(call("id", "--datadir", str(tmp_path / "node"), "-o", "yaml").output)
    assert shown["encrypted"] is True


def test_init_encrypts_with_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2P_NODE_PASSPHRASE", "correct horse")
    call("init", "--datadir", str(tmp_path / "node"))
    assert keystore.load(tmp_path / "node" / "keystore.json", "correct horse").public


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["init"], "no passphrase, and no terminal to ask on"),
        (["init", "--password-file", "absent"], "can't read the password file absent"),
        (["id"], "run: p2p-node init"),
        (["start"], "run: p2p-node init"),
        (["start", "--price", "-1"], "price_micros: Expected `int` >= 0, got -1"),
        (["init", "--no-passphrase", "--password-file", "x"], "exclude each other"),
        (["job", "validate", "absent.yaml"], "can't read the job file absent.yaml"),
    ],
)
def test_a_users_fault_ends_with_two_and_no_traceback(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("P2P_NODE_DATADIR", str(tmp_path / "node"))
    assert run_main(monkeypatch, *arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_init_never_overwrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["init", "--datadir", str(tmp_path / "node"), "--no-passphrase"]
    call(*arguments)
    before = (tmp_path / "node" / "keystore.json").read_bytes()
    assert run_main(monkeypatch, *arguments) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert (tmp_path / "node" / "keystore.json").read_bytes() == before


def test_start_hands_over_settings_directory_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[Any, ...]] = []

    def run(config: NodeConfig, place: DataDir, seed: bytes, options: Options) -> None:
        started.append((config, place, seed, options))
        # Whoever runs holds the directory.
        assert run_main(monkeypatch, "start", "--datadir", str(place.path)) == 2

    monkeypatch.setattr("p2p_node.service.run", run)
    datadir = tmp_path / "node"
    identity = keystore.create(DataDir.open(datadir).keystore, None)
    (datadir / "config.toml").write_text('network = "lab"\nprice_micros = 3\n')
    flags = (
        "--listen /ip4/127.0.0.1/tcp/0 --devices cpu,cuda:0 --price 5 --api off --log-format json --no-mdns"
    )
    result = call("start", "--datadir", str(datadir), *flags.split())
    expected = NodeConfig(
        listen=("/ip4/127.0.0.1/tcp/0",),
        network="lab",
        devices=("cpu", "cuda:0"),
        price_micros=5,
        api=None,
        log_format="json",
        mdns=False,
    )
    assert started == [(expected, DataDir(datadir), identity.seed, Options())]
    assert f"in use by process {os.getpid()}" in result.stderr


def test_validate_fills_in_defaults() -> None:
    shown = json.loads(call("job", "validate", str(EXAMPLE), "-o", "json").output)
    assert shown["task"]["temperature_milli"] == 800
    assert shown["timeouts"] == {
        "queue_ms": 30_000,
        "stall_ms": 20_000,
        "execution_ms": 300_000,
        "total_ms": 600_000,
    }
    assert "task.prompt" in call("job", "validate", str(EXAMPLE)).output


def test_validate_names_the_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(EXAMPLE.read_text().replace("max_tokens: 64", "max_tokens: many"))
    assert run_main(monkeypatch, "job", "validate", str(path)) == 2
    expected = f"error: {path}: line 9: task.max_tokens: must be an integer from 1 to 65536, got 'many'\n"
    assert capsys.readouterr().err == expected


ROWS = [{"peer": "a", "price": 5, "note": "[red]x\x1b[2J"}, {"peer": "b", "price": None, "note": None}]


def test_rows_as_a_table_show_peers_words_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(ROWS, "table", columns=["peer", "price", "note"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["peer", "price", "note"]
    assert lines[1].split() == ["a", "5", "[red]x\ufffd[2J"]
    assert lines[2].split() == ["b", "-", "-"]


def test_rows_for_programs_show_everything(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(ROWS, "json", columns=["peer"])
    assert json.loads(capsys.readouterr().out) == ROWS
    print_rows(ROWS, "yaml")
    assert yaml.safe_load(capsys.readouterr().out) == ROWS


def test_a_record_as_a_table_has_dotted_names(capsys: pytest.CaptureFixture[str]) -> None:
    print_record({"a": True, "b": {"c": [1, 2], "d": {}}}, "table")
    assert [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()] == [
        ["a", "yes"],
        ["b.c", "1, 2"],
        ["b.d"],
    ]
