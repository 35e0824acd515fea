"""Structured logs on stderr: for people, or as JSON lines for machines.

A log is read by others than who may command the node: it is sent to collectors and pasted into bug reports.
So no secret and nothing of a job's content reaches it: values under names that stand for such things are left
out, bytes are cut to what tells two of them apart, and secrets that this process holds are struck out of
whatever is written, tracebacks and libraries' messages too. Peers choose some of the words, so control
characters are escaped and long values cut.
"""

from __future__ import annotations

import base64
import json
import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

__all__ = ["REDACTED", "configure_logging", "hide"]

REDACTED = "[redacted]"
SECRET_CHARACTERS_MIN = 8
"""A shorter secret isn't struck out: it would be found in everything."""

VALUE_CHARACTERS_MAX = 500
_BYTES_SHOWN = 8
_UNBOUNDED = frozenset({"exception", "stack"})
_NEVER_SHOWN = frozenset(
    {
        *("authorization", "passphrase", "password", "private_key", "psk", "secret", "seed", "token"),
        *("body", "content", "data", "document", "frame", "input", "output", "payload", "prefix", "prompt"),
        *("prompts", "raw", "text", "units"),
    }
)
_NOISY = ("libp2p", "multiaddr", "hypercorn", "zeroconf", "httpx", "httpcore", "async_service")

_hidden: set[str] = set()


def hide(secret: str | bytes) -> None:
    """Strike a secret out of every line from now on, in the usual spellings of it."""
    if isinstance(secret, bytes):
        spellings = {
            secret.hex(),
            secret.hex().upper(),
            base64.b64encode(secret).decode().rstrip("="),
            base64.urlsafe_b64encode(secret).decode().rstrip("="),
            repr(secret)[2:-1],
        }
    else:
        spellings = {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]}
    _hidden.update(spelling for spelling in spellings if len(spelling) >= SECRET_CHARACTERS_MIN)


def configure_logging(form: str, *, level: int = logging.INFO) -> None:
    """Send logs to stderr.

    Args:
        form: ``console`` or ``json``.
        level: the least severity shown.
    """
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _presentable,
            renderer,
            _struck_out,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Their tracebacks describe other people's connections, not faults of this node.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_StrikingFormatter())
    logging.basicConfig(handlers=[handler], level=logging.ERROR)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _presentable(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The event without what must not be shown, and with what may be in bounds."""
    for name, value in event.items():
        if name in _NEVER_SHOWN:
            event[name] = REDACTED
        elif isinstance(value, bytes | bytearray | memoryview):
            event[name] = f"{bytes(value[:_BYTES_SHOWN]).hex()}… ({len(value)} bytes)"
        elif isinstance(value, str):
            # Before it is quoted, too: quoting spells a secret in yet another way.
            struck_out = _strike_out(value)
            event[name] = struck_out if name in _UNBOUNDED else _bounded(struck_out)
    return event


def _bounded(text: str) -> str:
    if len(text) > VALUE_CHARACTERS_MAX:
        text = f"{text[:VALUE_CHARACTERS_MAX]}… ({len(text)} characters)"
    # A peer's escape sequences must not act on the terminal of whoever reads this.
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _struck_out(_logger: Any, _method: str, line: Any) -> Any:
    return _strike_out(line) if isinstance(line, str) else line


def _strike_out(line: str) -> str:
    for secret in _hidden:
        line = line.replace(secret, REDACTED)
    return line


class _StrikingFormatter(logging.Formatter):
    """The same for libraries, which log in the standard way."""

    def format(self, record: logging.LogRecord) -> str:
        """The message and its traceback, without secrets."""
        return _strike_out(super().format(record))
