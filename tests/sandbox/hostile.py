"""A kind of work that attacks the machine it runs on; loaded by a zygote that a test starts, never by a node.

The input names an attack and its arguments. An attack that is stopped raises what stopped it, one that gets
through returns, and the run then ends as if all were well.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from workloads.registry import KINDS
from workloads.workload import Kind, Outcome

NAME = "test.hostile"
_libc = ctypes.CDLL(None, use_errno=True)
_GIB = 1 << 30
OnUnits = Callable[[int, list[int]], None]


def _raw(*arguments: Any) -> int:
    result = _libc.syscall(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


# --- Network --------------------------------------------------------------------------------------


def connect(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), timeout=5)


def send_datagram(port: int) -> None:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port))


def connect_locally(path: str) -> None:
    socket.socket(socket.AF_UNIX).connect(path)


def pair_up() -> None:
    socket.socketpair()


# --- Files ----------------------------------------------------------------------------------------


def read(path: str) -> None:
    Path(path).read_bytes()


def list_folder(path: str) -> None:
    os.listdir(path)


def write(path: str) -> None:
    Path(path).write_text("x")


def write_temporary() -> None:
    with tempfile.TemporaryFile():
        pass


def remove(path: str) -> None:
    os.unlink(path)


def fill_disk(folder: str) -> None:
    with open(f"{folder}/full", "wb") as file:
        while True:
            file.write(bytes(1 << 20))


def fill_memory_file() -> None:
    os.write(os.memfd_create("full"), bytes(1 << 20))


# --- Programs and processes -----------------------------------------------------------------------


def execute() -> None:
    os.execv("/bin/sh", ["sh", "-c", "true"])


def run_program() -> None:
    subprocess.run(["/bin/true"], check=True)


def fork_bomb() -> None:
    while True:
        os.fork()


def vfork() -> None:
    os.posix_spawn("/bin/true", ["true"], {})


def thread_bomb() -> None:
    while True:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def kill_parent() -> None:
    os.kill(os.getppid(), signal.SIGKILL)


def kill_all() -> None:
    os.kill(-1, signal.SIGKILL)


def survive_the_node() -> None:
    if _libc.prctl(1, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def limit_the_node(pid: int) -> None:
    import resource

    resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, 0))


def trace(pid: int) -> None:
    _raw({"x86_64": 101, "aarch64": 117}[os.uname().machine], 16, pid, 0, 0)


def gain_powers() -> None:
    """Every call that would change what the process is or may do; raises what stopped the last of them."""
    x86 = {"mount": 165, "unshare": 272, "setns": 308, "bpf": 321, "keyctl": 250, "userfaultfd": 323}
    x86 |= {"process_vm_readv": 310, "process_vm_writev": 311, "init_module": 175, "reboot": 169}
    x86 |= {"io_uring_setup": 425, "pidfd_open": 434, "perf_event_open": 298, "chroot": 161, "setuid": 105}
    arm = {"mount": 40, "unshare": 97, "setns": 268, "bpf": 280, "keyctl": 219, "userfaultfd": 282}
    arm |= {"process_vm_readv": 270, "process_vm_writev": 271, "init_module": 105, "reboot": 142}
    arm |= {"io_uring_setup": 425, "pidfd_open": 434, "perf_event_open": 241, "chroot": 51, "setuid": 146}
    stopped: OSError | None = None
    for name, number in (x86 if os.uname().machine == "x86_64" else arm).items():
        try:
            _raw(number, 0, 0, 0, 0, 0)
        except PermissionError as error:
            stopped = error
        else:
            raise RuntimeError(f"{name} got through")
    assert stopped is not None
    raise stopped


def call_as_another_architecture() -> None:
    """getpid by the 32-bit entry, whose numbers mean other calls."""
    code = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    ctypes.CFUNCTYPE(ctypes.c_int)(address)()


# --- Exhaustion -----------------------------------------------------------------------------------


def take_memory() -> None:
    held = []
    while True:
        held.append(bytes(64 << 20))  # untouched pages: only the limit on memory can end this, not the clock


def take_memory_by_torch() -> None:
    torch.zeros(64 * _GIB, dtype=torch.uint8)


def share_memory() -> None:
    mmap.mmap(-1, 1 << 20)


def grow_a_stack() -> None:
    mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100)


def take_descriptors() -> None:
    while True:
        os.dup(0)


def compute_forever() -> None:
    while True:
        pass


def print_forever() -> None:
    while True:
        print("x" * 1000, file=sys.stderr)


def talk_nonsense() -> None:
    for descriptor in range(3, 10):
        try:
            os.write(descriptor, b"\xc1" * 64)
        except OSError:
            continue


# --- Endings --------------------------------------------------------------------------------------


def crash() -> None:
    ctypes.string_at(0)


def abort() -> None:
    os.abort()


def leave() -> None:
    os._exit(0)


def raise_error() -> None:
    raise ZeroDivisionError("one of those days")


ATTACKS = {n: value for n, value in globals().items() if getattr(value, "__module__", "") == __name__}


class _Hostile:
    model = bytes(32)
    profile = "native"

    def generate(
        self,
        input: bytes,
        prefix: Sequence[int],
        on_units: OnUnits,
        on_chunk: Callable[[int, bytes], None],
        should_stop: Callable[[], bool],
    ) -> Outcome:
        name, *arguments = json.loads(input)
        if name == "say_forever":
            position = 0
            while True:
                on_units(position, [7] * 4096)
                position += 4096
        if name == "look_around":
            seen = [number for number in range(256) if _is_open(number)]
            on_units(0, [len(seen), os.getpid(), os.getppid(), len(os.environ)])
            return Outcome(4, "length")
        ATTACKS[name](*arguments)
        return Outcome(0, "length")

    def recompute(self, input: bytes, units: Sequence[int], chunks: Iterable[int]) -> dict[int, bytes]:
        return {}


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


KINDS[NAME] = Kind(
    name=NAME,
    unit="unit",
    chunk_units=1,
    segment_chunks=1,
    profiles=("native",),
    variants=(),
    models=lambda: (),
    probe=lambda: b"",
    open=lambda *_: _Hostile(),
)
