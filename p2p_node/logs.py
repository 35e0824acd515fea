"""Structured logs on stderr: for people, or as JSON lines for machines."""

from __future__ import annotations

import logging
import sys

import structlog

__all__ = ["configure_logging"]

_NOISY = ("libp2p", "multiaddr", "hypercorn", "zeroconf", "httpx", "async_service")


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
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Their tracebacks describe other people's connections, not faults of this node.
    logging.basicConfig(stream=sys.stderr, level=logging.ERROR, format="%(message)s")
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
