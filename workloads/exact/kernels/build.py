"""Compiles the kernels once per machine, into the user's cache.

Runs as a program too (``python -I .../workloads/exact/kernels/build.py``), by path and without importing any
package around it, so that a node can have it done without importing torch: it prints the library's path, or
why there is none on stderr.

The cache holds code that will be run, so nothing in it is believed that another user could have written, or
that a crash could have cut short.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import platformdirs

__all__ = ["NoKernels", "check_library", "find_or_build"]

_SOURCES = (
    *("kernels.cpp", "decoder.hpp", "quantise.hpp", "unpacked.hpp", "product.hpp", "vector.hpp"),
    *("float64.hpp", "training.hpp", "attention.hpp"),
)
_COMPILERS = ("c++", "g++", "clang++")
# Contraction would round a * b + c once where the profile rounds twice. -O3 takes twice as long to compile
# and gains nothing: what matters is unrolled by hand.
_ARITHMETIC = ("-ffp-contract=off", "-fno-fast-math")
_FLAGS = ("-std=c++17", "-O2", "-ftree-vectorize", *_ARITHMETIC, "-fPIC", "-shared", "-w")
# The processor's own instructions, or where the compiler can't tell them, those that all its kind have.
_TUNINGS = (("-march=native",), ())
_COMPILE_TIMEOUT_S = 120
_ANSWER_TIMEOUT_S = 10


class NoKernels(Exception):
    """There is no library to use; the message says why."""


def find_or_build(cache: Path | None = None) -> Path:
    """The library for this source, compiler and processor, compiled if it isn't there yet.

    Args:
        cache: folder to keep it in, made if it is missing; by default below the user's cache directory.

    Raises:
        NoKernels: no compiler, no safe place to keep the library, or it doesn't compile.
    """
    compiler = next((path for name in _COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        raise NoKernels(f"no C++ compiler: none of {', '.join(_COMPILERS)} is on PATH")
    if cache is None:
        cache = Path(platformdirs.user_cache_dir("p2p-node")) / "kernels"
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise NoKernels(f"{cache} cannot be made: {error.strerror}") from error
    _check_private(cache)
    library = cache / f"kernels-{_key(compiler)}.so"
    try:
        check_library(library)
    except NoKernels:
        _build_alone(compiler, library)
        check_library(library)
    return library


def check_library(library: Path) -> None:
    """Check that a library is whole and that only this user could have written it.

    Raises:
        NoKernels: it isn't; the message says what is wrong.
    """
    _check_private(library.parent)
    _check_private(library)
    try:
        expected = _digest_file(library).read_text(encoding="ascii").strip()
        found = hashlib.sha256(library.read_bytes()).hexdigest()
    except (OSError, UnicodeDecodeError) as error:
        raise NoKernels(f"{library} cannot be read with its digest: {error}") from error
    if found != expected:
        raise NoKernels(f"{library} has digest {found}, must be {expected}")


def _check_private(path: Path) -> None:
    try:
        status = path.lstat()
    except OSError as error:
        raise NoKernels(f"{path}: {error.strerror}") from error
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise NoKernels(f"{path} must be a plain file or folder")
    if status.st_uid != os.geteuid():
        raise NoKernels(f"{path} belongs to user {status.st_uid}, must belong to {os.geteuid()}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NoKernels(f"{path} has mode {stat.S_IMODE(status.st_mode):o}, must not be writable by others")


def _build_alone(compiler: str, library: Path) -> None:
    """Of nodes that start at once, one compiles."""
    try:
        lock = (library.parent / "lock").open("w")
    except OSError as error:
        raise NoKernels(f"{library.parent} cannot be written to: {error.strerror}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            check_library(library)
        except NoKernels:
            _build(compiler, library)


def _build(compiler: str, library: Path) -> None:
    source = Path(__file__).parent / _SOURCES[0]
    try:
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            output = Path(folder) / "kernels.so"
            for tuning in _TUNINGS:
                command = [compiler, *_FLAGS, *tuning, "-o", str(output), str(source)]
                result = subprocess.run(  # noqa: S603
                    command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False
                )
                if result.returncode == 0:
                    break
            else:
                lines = result.stderr.strip().splitlines() or ["no message"]
                raise NoKernels(f"{compiler} failed: {lines[0]}")
            output.chmod(0o600)
            digest = Path(folder) / "digest"
            digest.write_text(hashlib.sha256(output.read_bytes()).hexdigest(), encoding="ascii")
            digest.chmod(0o600)
            # A library without its digest isn't used; whoever builds at the same time writes what works too.
            digest.replace(_digest_file(library))
            output.replace(library)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoKernels(f"{library} cannot be built: {error}") from error


def _key(compiler: str) -> str:
    """A digest of all that decides what the compiler writes."""
    hasher = hashlib.sha256()
    for name in _SOURCES:
        hasher.update((Path(__file__).parent / name).read_bytes())
    try:
        version = subprocess.run(  # noqa: S603
            [compiler, "--version"], capture_output=True, timeout=_ANSWER_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise NoKernels(f"{compiler} does not answer: {error}") from error
    for part in (version, repr((_FLAGS, _TUNINGS)).encode(), platform.machine().encode(), _processor()):
        hasher.update(len(part).to_bytes(8, "little") + part)
    return hasher.hexdigest()[:32]


def _processor() -> bytes:
    """What the processor can do: a home directory shared between machines holds a library for each."""
    try:
        with Path("/proc/cpuinfo").open("rb") as file:
            told = {line for line in file if line.startswith((b"flags", b"Features", b"model name"))}
    except OSError:
        return platform.processor().encode()
    return b"".join(sorted(told))


def _digest_file(library: Path) -> Path:
    return library.with_suffix(".sha256")


if __name__ == "__main__":
    try:
        print(find_or_build())
    except NoKernels as reason:
        sys.exit(f"kernels: {reason}")
