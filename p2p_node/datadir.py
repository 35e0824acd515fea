"""The directory that holds all that one node knows, and the lock that keeps it to one process.

Two processes with one identity would contradict each other under the same signature, so a node
holds an exclusive lock on its directory for as long as it runs. The kernel drops the lock when
the process dies, however it dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from p2p_node.errors import UserError

__all__ = ["DataDir", "DataDirError", "DataDirLocked"]

_LOCK_NAME = "lock"
_PID_BYTES_MAX = 32


class DataDirError(UserError):
    """The directory can't be made or used."""


class DataDirLocked(DataDirError):
    """Another process runs a node on this directory; `pid` is it, or None if it left no trace."""

    def __init__(self, path: Path, pid: int | None) -> None:
        holder = f"process {pid}" if pid is not None else "another process"
        super().__init__(f"{path} is in use by {holder}; stop it, or choose another --datadir")
        self.pid = pid


@dataclass(frozen=True, slots=True)
class DataDir:
    """Paths inside one node's directory."""

    path: Path

    @classmethod
    def open(cls, path: Path | None = None) -> DataDir:
        """The directory at ``path``, or the user's default one; made with mode 0700 if absent.

        Raises:
            DataDirError: it can't be made, isn't ours, or others may write to it.
        """
        chosen = path if path is not None else _default_path()
        try:
            chosen.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = chosen.stat()
        except OSError as error:
            raise DataDirError(f"can't make the data directory {chosen}: {error.strerror}") from error
        # Whoever may write here may replace the identity, the ledger and the configuration.
        if status.st_mode & 0o022:
            raise DataDirError(
                f"{chosen} has mode {status.st_mode & 0o777:04o}, and only its owner may write to it; "
                f"run: chmod 700 {chosen}"
            )
        return cls(chosen)

    @classmethod
    def existing(cls, path: Path | None = None) -> DataDir | None:
        """The same as `open`, or None where there is no such directory yet."""
        chosen = path if path is not None else _default_path()
        return cls.open(chosen) if chosen.is_dir() else None

    @property
    def keystore(self) -> Path:
        """The node's identity."""
        return self.path / "keystore.json"

    @property
    def config(self) -> Path:
        """Optional settings."""
        return self.path / "config.toml"

    @property
    def store(self) -> Path:
        """What the node must remember, as SQLite."""
        return self.path / "node.sqlite"

    @property
    def blobs(self) -> Path:
        """Content that jobs read and leave, named by what it hashes to."""
        return self.path / "blobs"

    @property
    def blob_files(self) -> Path:
        """The complete blobs among them, each a file called by its digest."""
        return self.blobs / "complete"

    @property
    def models(self) -> Path:
        """Models that were added, each in a directory of its name."""
        return self.path / "models"

    @property
    def calibrations(self) -> Path:
        """What this machine was measured to do with each model."""
        return self.path / "calibrations.json"

    @property
    def api(self) -> Path:
        """Where the running node writes the address of its local API."""
        return self.path / "api.json"

    @property
    def api_socket(self) -> Path:
        """Where it answers if it is on a Unix socket."""
        return self.path / "api.sock"

    def is_in_use(self) -> bool:
        """Whether a process holds the directory."""
        try:
            with self.lock():
                return False
        except DataDirLocked:
            return True

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for this process.

        Raises:
            DataDirLocked: another process holds it.
        """
        descriptor = os.open(self.path / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataDirLocked(self.path, _read_pid(descriptor)) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            # The file stays: removing it would let a third process lock a new one beside a holder of the old.
            yield
        finally:
            os.close(descriptor)


def _default_path() -> Path:
    from platformdirs import user_data_path

    return user_data_path("p2p-node", appauthor=False)


def _read_pid(descriptor: int) -> int | None:
    text = os.pread(descriptor, _PID_BYTES_MAX, 0).decode("ascii", "replace").strip()
    return int(text) if text.isdecimal() else None
