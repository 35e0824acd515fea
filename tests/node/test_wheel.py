"""The built wheel: what lies in it, and that it starts where the source isn't."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"p2p_node", "protocols", "verification", "workloads"}
VERSION = metadata.version("p2p-node")
DIST_INFO = f"p2p_node-{VERSION}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the backend of this environment, so that nothing is fetched."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment that holds the wheel, and finds only the dependencies in this one's place."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        str(home / "bin" / "python"),
    ]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    before = {entry.name for entry in site.iterdir()}
    assert before == PACKAGES | {DIST_INFO}
    # A plain path line adds the directory without running its own .pth files, so neither
    # does this environment's editable install, which would bring the source back.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return home


def run(installed: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    return subprocess.run(
        [str(installed / "bin" / arguments[0]), *arguments[1:]],
        cwd=installed,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_runs_is_the_wheel(installed: Path) -> None:
    program = "import json, protocols, p2p_node; print(json.dumps([protocols.__file__, p2p_node.__file__]))"
    for file in json.loads(run(installed, "python", "-c", program).stdout):
        assert Path(file).is_relative_to(installed)


def test_types_and_models_are_in_it(installed: Path) -> None:
    site = Path(sysconfig.get_path("purelib", vars={"base": str(installed)}))
    for package in PACKAGES:
        assert (site / package / "py.typed").is_file()
    tracked = subprocess.run(
        ["git", "ls-files", *sorted(PACKAGES)], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    missing = [name for name in tracked if (ROOT / name).is_file() and not (site / name).is_file()]
    assert missing == []
    assert list((site / "workloads" / "models").rglob("model.safetensors"))


def test_the_licence_is_in_it(installed: Path) -> None:
    site = Path(sysconfig.get_path("purelib", vars={"base": str(installed)}))
    text = (site / DIST_INFO / "licenses" / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0" in text


def test_it_starts_and_makes_an_identity(installed: Path, tmp_path: Path) -> None:
    helped = run(installed, "p2p-node", "--help")
    assert helped.returncode == 0, helped.stderr
    assert "Commands:" in helped.stdout
    datadir = str(tmp_path / "node")
    made = run(installed, "p2p-node", "init", "--no-passphrase", P2P_NODE_DATADIR=datadir)
    assert made.returncode == 0, made.stderr
    shown = run(installed, "p2p-node", "id", "-o", "json", P2P_NODE_DATADIR=datadir)
    assert json.loads(shown.stdout)["peer_id"] == made.stdout.strip()
    assert run(installed, "p2p-node", "--version").stdout == f"p2p-node {VERSION}\n"


def test_a_node_runs_from_it(installed: Path, tmp_path: Path) -> None:
    datadir = tmp_path / "node"
    assert run(installed, "p2p-node", "init", "--no-passphrase", "--datadir", str(datadir)).returncode == 0
    listening = ["--listen", "/ip4/127.0.0.1/tcp/0", "--api", "127.0.0.1:0", "--no-mdns"]
    command = [str(installed / "bin" / "p2p-node"), "start", "--datadir", str(datadir), *listening]
    with subprocess.Popen(command, cwd=installed, stderr=subprocess.PIPE, text=True) as node:
        assert node.stderr is not None
        told = []
        for line in node.stderr:
            told.append(line)
            if "node is up" in line:
                node.terminate()
        assert node.wait() == 0, told
    assert any("node is up" in line for line in told)
