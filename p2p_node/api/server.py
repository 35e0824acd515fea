"""Serves the API on loopback or a Unix socket, and says where in ``api.json``.

Whoever may read that file may command the node: it holds a random token that every request must
carry, and only its owner may read it. Other addresses than loopback are refused, since the token
would cross the network in the clear. A Unix socket also keeps other users of the machine from
connecting at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio

from p2p_node.api.access import hosts_of
from p2p_node.api.door import Door
from p2p_node.api.routes import make_app
from p2p_node.api.serving import listening, listening_on_unix, run_app, url_of
from p2p_node.listening import UNIX, loopback_host_and_port
from p2p_node.logs import hide

if TYPE_CHECKING:
    # libp2p brings stubs that hide trio's own types, and these that go with them.
    from trio_typing import TaskStatus

    from p2p_node.node import Node

__all__ = ["serve"]

log = structlog.get_logger(__name__)


async def serve(
    node: Node, address: str, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve a node's API until cancelled; started once ``api.json`` is in place.

    Args:
        node: what is asked and commanded.
        address: ``host:port`` on loopback; port 0 lets the system choose; or ``unix``, for a socket in the
            data directory.
        task_status: told when requests are answered.

    Raises:
        UserError: the address isn't loopback, or is taken.
    """
    token = secrets.token_urlsafe(32)
    hide(token)
    with (
        _listening(node, address) as (sock, url),
        _announced(node.place.api, {"url": url, "token": token, "pid": os.getpid()}),
    ):
        log.info("api is up", url=url)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_app, make_app(node, token, hosts_of(url)), sock, Door(token))
            task_status.started()


@contextlib.contextmanager
def _listening(node: Node, address: str) -> Iterator[tuple[socket.socket, str]]:
    """A listening socket, and the URL that says where it is."""
    if address == UNIX:
        path = node.place.api_socket.absolute()
        with listening_on_unix(path) as sock:
            yield sock, f"unix:{path}"
        return
    host, port = loopback_host_and_port(address, flag="--api")
    with listening(host, port, flag="--api") as sock:
        yield sock, url_of(sock)


@contextlib.contextmanager
def _announced(path: Path, content: dict[str, object]) -> Iterator[None]:
    """A file that is there, whole, as long as the block runs, for its owner only."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.unlink(missing_ok=True)
    # Never readable by others, not even for a moment.
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file)
    unfinished.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
