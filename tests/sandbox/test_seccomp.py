"""The filter on both architectures, run instruction by instruction, and its numbers against the kernel's."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from workloads.sandbox.seccomp import program
from workloads.sandbox.syscalls import (
    ACCELERATOR_ONLY,
    ALLOWED,
    ARCHITECTURES,
    CHECKED,
    CLONE3,
    NEWEST,
    numbers,
)

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
OWN_PID = 42
THREAD_FLAGS = 0x3D0F00
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def decide(machine: str, number: int, *arguments: int, audit: int = 0, accelerator: bool = False) -> int:
    """What the filter says of a call: the classic BPF machine, with the instructions that filters use."""
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("=IIQ6Q", number & 0xFFFFFFFF, audit or ARCHITECTURES[machine], 0, *padded)
    lines = program(machine, OWN_PID, has_accelerator=accelerator)
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, operand = lines[at]
        at += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, operand)
            case 0x06:
                return operand
            case 0x15 | 0x25 | 0x45:
                holds = {
                    0x15: accumulator == operand,
                    0x25: accumulator > operand,
                    0x45: accumulator & operand,
                }
                at += if_true if holds[code] else if_false
            case _:
                pytest.fail(f"instruction {code:#x}")


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_only_what_is_listed_is_allowed(machine: str) -> None:
    plain, checked = numbers(ALLOWED, machine), numbers(CHECKED, machine)
    for number in range(NEWEST + 1):
        if number == CLONE3:
            assert decide(machine, number) == ENOSYS
        elif number not in checked.values():
            assert decide(machine, number) == (ALLOW if number in plain.values() else EPERM), number
    assert decide(machine, NEWEST + 1) == decide(machine, 0x40000000) == decide(machine, -1) == ENOSYS
    assert decide(machine, plain["read"], audit=0x40000003) == KILL


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize(
    ("name", "arguments", "verdict"),
    [
        ("kill", (OWN_PID, 6), ALLOW),
        ("kill", (0, 9), EPERM),
        ("kill", (2**32 - 1, 9), EPERM),
        ("tgkill", (OWN_PID, OWN_PID, 6), ALLOW),
        ("tgkill", (OWN_PID + 1, OWN_PID, 6), EPERM),
        ("prlimit64", (0, 7), ALLOW),
        ("prlimit64", (OWN_PID, 7), EPERM),
        ("prctl", (15,), ALLOW),
        ("prctl", (1,), EPERM),
        ("ioctl", (1, 0x5401), ALLOW),
        ("ioctl", (1, 0x5412), EPERM),
        ("fcntl", (1, 3), ALLOW),
        ("fcntl", (1, 8), EPERM),
        ("clone", (THREAD_FLAGS,), ALLOW),
        ("clone", (0x01200011,), EPERM),
        ("clone", (THREAD_FLAGS | 0x10000000,), EPERM),
        ("mmap", (0, 4096, 3, 0x22), ALLOW),
        ("mmap", (0, 4096, 1, 0x01), ALLOW),
        ("mmap", (0, 4096, 3, 0x21), EPERM),
        ("mmap", (0, 4096, 3, 0x122), EPERM),
        ("mmap", (0, 4096, 3, 0x40022), EPERM),
    ],
)
def test_calls_are_allowed_by_their_arguments(
    machine: str, name: str, arguments: tuple[int, ...], verdict: int
) -> None:
    assert decide(machine, numbers(CHECKED, machine)[name], *arguments) == verdict


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_drivers_of_accelerators_get_their_calls_and_no_socket(machine: str) -> None:
    ioctl = numbers(CHECKED, machine)["ioctl"]
    assert decide(machine, ioctl, 3, 0xC020462A, accelerator=True) == ALLOW
    for number in numbers(ACCELERATOR_ONLY, machine).values():
        assert (decide(machine, number), decide(machine, number, accelerator=True)) == (EPERM, ALLOW)
    socket = {"x86_64": 41, "aarch64": 198}[machine]
    assert decide(machine, socket, accelerator=True) == EPERM


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip("the kernel's headers aren't installed")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\b", HEADERS[machine].read_text())
    theirs = {name: int(number) for name, number in found}
    theirs.setdefault("newfstatat", theirs.get("fstatat", -1))
    ours = {
        name: number
        for table in (ALLOWED, CHECKED, ACCELERATOR_ONLY)
        for name, number in numbers(table, machine).items()
    }
    assert ours == {name: theirs.get(name) for name in ours}
    assert theirs.get("clone3", CLONE3) == CLONE3
