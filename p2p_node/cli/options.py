"""Options that several commands share, and the passphrase, which comes from three places."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from p2p_node.errors import UserError

__all__ = [
    "PASSPHRASE_ENVIRONMENT",
    "datadir_option",
    "models_option",
    "output_option",
    "passphrase",
    "password_file_option",
]

PASSPHRASE_ENVIRONMENT = "P2P_NODE_PASSPHRASE"  # noqa: S105 - a name, not a secret
_PASSPHRASE_BYTES_MAX = 4_096

_F = TypeVar("_F", bound=Callable[..., Any])


def datadir_option(function: _F) -> _F:
    """``--datadir``: a path, or None for the user's default."""
    return click.option(
        "--datadir",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="P2P_NODE_DATADIR",
        show_envvar=True,
        help="Directory of the node's identity, settings and records.",
    )(function)


def password_file_option(function: _F) -> _F:
    """``--password-file``: a file whose first line is the passphrase."""
    return click.option(
        "--password-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help=f"File whose first line is the passphrase (else ${PASSPHRASE_ENVIRONMENT}, else asked for).",
    )(function)


def models_option(function: _F) -> _F:
    """``--models``: directories, absolute."""
    return click.option(
        "--models",
        multiple=True,
        metavar="DIR",
        type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
        help="Offer the model in this directory, or the models directly under it.",
    )(function)


def output_option(function: _F) -> _F:
    """``-o``: table, json or yaml."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json", "yaml"]),
        default="table",
        show_default=True,
        help="Form of what is printed.",
    )(function)


def passphrase(password_file: Path | None, *, confirm: bool = False) -> str:
    """The passphrase from the file, the environment or the terminal, in this order; no log shows it.

    It is gone from the environment afterwards, so that no process that we start inherits it.

    Args:
        password_file: a file whose first line is it, or None.
        confirm: ask twice.

    Raises:
        UserError: the file can't be read, or there is neither a variable nor a terminal.
    """
    from p2p_node.logs import hide

    chosen = _passphrase(password_file, confirm=confirm)
    hide(chosen)
    return chosen


def _passphrase(password_file: Path | None, *, confirm: bool) -> str:
    if password_file is not None:
        try:
            with password_file.open("rb") as file:
                line = file.readline(_PASSPHRASE_BYTES_MAX)
            return line.decode("utf-8").rstrip("\r\n")
        except OSError as error:
            raise UserError(f"can't read the password file {password_file}: {error.strerror}") from error
        except UnicodeDecodeError:
            raise UserError(f"the password file {password_file} must be UTF-8") from None
    if PASSPHRASE_ENVIRONMENT in os.environ:
        return os.environ.pop(PASSPHRASE_ENVIRONMENT)
    if not sys.stdin.isatty():
        raise UserError(
            f"no passphrase, and no terminal to ask on: give --password-file or {PASSPHRASE_ENVIRONMENT}"
        )
    return str(click.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True))
