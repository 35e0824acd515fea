"""The file with a private network's key: text of three lines, the format of libp2p's ``swarm.key``."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from p2p_node.errors import UserError

__all__ = ["KEY_BYTES", "NetworkKeyError", "create", "load"]

KEY_BYTES = 32
_HEADER = "/key/swarm/psk/1.0.0/\n/base16/\n"
_FILE_BYTES_MAX = 1_024


class NetworkKeyError(UserError):
    """The file is missing, present where it must not be, exposed, or no key."""


def create(path: Path) -> None:
    """Draw a key and write it to ``path`` with mode 0600.

    Raises:
        NetworkKeyError: there is a file already, or the disk refuses.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"{_HEADER}{secrets.token_hex(KEY_BYTES)}\n")
    except FileExistsError:
        raise NetworkKeyError(f"{path} exists, and a key is never overwritten") from None
    except OSError as error:
        raise NetworkKeyError(f"can't write {path}: {error.strerror}") from error


def load(path: Path) -> bytes:
    """The key in ``path``, 32 bytes.

    Raises:
        NetworkKeyError: it is missing, readable by others, or has another format.
    """
    try:
        with path.expanduser().open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            raw = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise NetworkKeyError(f"can't read the network key {path}: {error.strerror}") from error
    if mode & 0o077:
        raise NetworkKeyError(
            f"{path} has mode {mode:04o}, and only its owner may read it; run: chmod 600 {path}"
        )
    text = raw.decode("ascii", "replace").replace("\r\n", "\n")
    try:
        key = bytes.fromhex(text.removeprefix(_HEADER))
    except ValueError:
        key = b""
    if not text.startswith(_HEADER) or len(key) != KEY_BYTES:
        # The content isn't shown: it may be a key with a slip of the pen.
        raise NetworkKeyError(
            f"{path} must hold {', '.join(_HEADER.splitlines())} and {2 * KEY_BYTES} hexadecimal digits, on "
            f"a line each; p2p-node network-key makes one"
        )
    return key
