"""What the system must bring, and the command that brings it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_system.sh"


def check(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(SCRIPT), *arguments],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def executable(path: Path, content: str) -> str:
    path.write_text(f"#!/bin/sh\n{content}\n")
    path.chmod(0o755)
    return str(path)


def os_release(tmp_path: Path, content: str) -> str:
    path = tmp_path / "os-release"
    path.write_text(content)
    return str(path)


def test_this_system_has_everything() -> None:
    checked = check()
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("release", "command"),
    [
        ("ID=debian", "sudo apt-get update && sudo apt-get install -y gcc libc6-dev python3-dev libgmp-dev"),
        ("ID=linuxmint\nID_LIKE='ubuntu debian'", "apt-get install -y gcc libc6-dev python3-dev libgmp-dev"),
        ("ID=fedora", "sudo dnf install -y gcc python3-devel gmp-devel"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"', "sudo dnf install -y gcc python3-devel gmp-devel"),
        ("ID=arch", "sudo pacman -S --needed gcc python gmp"),
        ("ID=alpine", "sudo apk add gcc musl-dev python3-dev gmp-dev"),
        ("ID=haiku", "install these with your system's package manager: "),
    ],
)
def test_without_a_compiler_the_systems_own_command_is_named(
    tmp_path: Path, release: str, command: str
) -> None:
    checked = check(CC="no-such-compiler", OS_RELEASE=os_release(tmp_path, release))
    assert checked.returncode == 1
    assert "missing: a C compiler (tried: no-such-compiler)" in checked.stderr
    assert command in checked.stderr.splitlines()[-1]


def test_a_mac_gets_its_own_commands(tmp_path: Path) -> None:
    executable(tmp_path / "uname", "echo Darwin")
    checked = check(CC="no-such-compiler", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert checked.returncode == 1
    assert checked.stderr.splitlines()[-2:] == [
        "run: xcode-select --install",
        "run: brew install python@3.12 gmp",
    ]


@pytest.mark.parametrize(
    ("header", "missing", "package"),
    [
        ("gmp.h", "the headers of GMP (gmp.h)", "libgmp-dev"),
        ("Python.h", f"the headers of {sys.executable} (Python.h)", "python3-dev"),
    ],
)
def test_missing_headers_are_named(tmp_path: Path, header: str, missing: str, package: str) -> None:
    compiler = executable(tmp_path / "cc", f'case "$(cat)" in *{header}*) exit 1 ;; esac')
    checked = check(CC=compiler, OS_RELEASE=os_release(tmp_path, "ID=debian"))
    assert checked.returncode == 1
    assert checked.stderr.splitlines() == [
        f"missing: {missing}",
        f"run: sudo apt-get update && sudo apt-get install -y {package}",
    ]


def test_an_old_python_is_named(tmp_path: Path) -> None:
    old = executable(tmp_path / "python", 'test "$1" = --version && echo Python 3.9.2; exit 1')
    checked = check(PYTHON=old, OS_RELEASE=os_release(tmp_path, "ID=debian"))
    assert checked.returncode == 1
    assert "missing: Python >= 3.11 (found: " in checked.stderr
    assert "python3 python3-venv python3-dev" in checked.stderr


def test_a_python_without_venv_is_named(tmp_path: Path) -> None:
    bare = executable(
        tmp_path / "python", f'case "$2" in *ensurepip*) exit 1 ;; esac\nexec {sys.executable} "$@"'
    )
    checked = check(PYTHON=bare, OS_RELEASE=os_release(tmp_path, "ID=debian"))
    assert checked.returncode == 1
    assert checked.stderr.splitlines()[-1].endswith("apt-get install -y python3-venv")


def test_the_first_python_new_enough_is_chosen(tmp_path: Path) -> None:
    old = executable(tmp_path / "old", "exit 1")
    assert check("--python", PYTHON=f"{old} {sys.executable}").stdout == f"{sys.executable}\n"
    assert check("--python", PYTHON=old).stdout == f"{old}\n"
