"""An ASGI application on one listening socket, on hypercorn's trio worker, that ends when it is told to."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.events import RawData
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState
from hypercorn.utils import wrap_app

from p2p_node.api.door import Door, PacedListener
from p2p_node.errors import UserError

__all__ = ["listening", "listening_on_unix", "run_app", "url_of"]

BACKLOG = 64
HEADER_BYTES_MAX = 16 * 1024
KEEP_ALIVE_S = 30
"""Between two requests, and for a request's line and headers to arrive."""

CONNECTIONS_MAX = 64
"""At once; who comes then is hung up on. Each holds a task, a descriptor and some buffers."""

UNIX_PATH_BYTES_MAX = 107
"""What the kernel's address structure takes, less its terminator."""


@contextlib.contextmanager
def listening(host: str, port: int, *, flag: str) -> Iterator[socket.socket]:
    """A socket that listens on ``host`` and ``port``; port 0 lets the system choose.

    Args:
        host: a name or an address.
        port: in [0, 65535].
        flag: what to blame if it can't be had.

    Raises:
        UserError: the address is taken or isn't ours.
    """
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, OverflowError) as error:
        raise UserError(f"{flag} {host}:{port} isn't an address of this machine: {error}") from error
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(place)
            sock.listen(BACKLOG)
        except OSError as error:
            raise UserError(
                f"{flag} {host}:{port} can't be listened on: {error.strerror}; choose another port, or 0"
            ) from error
        sock.setblocking(False)
        yield sock


@contextlib.contextmanager
def listening_on_unix(path: Path) -> Iterator[socket.socket]:
    """A Unix socket at ``path``, for its owner only; the path is free again afterwards.

    The caller makes sure that nobody else uses the path: what an earlier process left there is replaced.

    Raises:
        UserError: the path is too long for the kernel, or can't be made.
    """
    if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
        raise UserError(
            f"--api unix: {path} is longer than {UNIX_PATH_BYTES_MAX} bytes, which a Unix socket's path may "
            f"have; choose a shorter --datadir"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        # Never open to others, not even between being made and having its mode changed.
        os.fchmod(sock.fileno(), 0o600)
        try:
            path.unlink(missing_ok=True)
            sock.bind(os.fspath(path))
            path.chmod(0o600)
            sock.listen(BACKLOG)
        except OSError as error:
            raise UserError(f"--api unix: can't listen on {path}: {error.strerror}") from error
        sock.setblocking(False)
        try:
            yield sock
        finally:
            path.unlink(missing_ok=True)


def url_of(sock: socket.socket) -> str:
    """The URL under which a listening TCP socket is reached."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def run_app(app: Any, sock: socket.socket, door: Door | None = None) -> None:
    """Serve an ASGI application on a listening socket until cancelled.

    Args:
        app: what is served.
        sock: listens.
        door: keeps callers out who don't show its token; None lets everybody in.
    """
    config = Config()
    config.accesslog = None
    config.include_server_header = False
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.h11_max_incomplete_size = HEADER_BYTES_MAX
    wrapped = wrap_app(app, config.wsgi_max_body_size, "asgi")
    context = WorkerContext(None)
    streams: set[trio.SocketStream] = set()

    async def handle(stream: trio.SocketStream) -> None:
        said = b"" if door is None else await door.first_request(stream)
        if said is None or len(streams) >= CONNECTIONS_MAX:
            stream.socket.close()
            return
        streams.add(stream)
        try:
            await _Connection(
                wrapped,
                config,
                context,
                ConnectionState(LifespanState({})),
                stream,
                said=said,
            )
        finally:
            streams.discard(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_close_when_cancelled, streams)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        callers = listener if door is None else PacedListener(listener, door)
        nursery.start_soon(functools.partial(trio.serve_listeners, handle, [callers]))


class _Connection(TCPServer):
    """Ends when its client does: hypercorn would keep a half-closed connection until it has idled."""

    def __init__(self, *arguments: Any, said: bytes) -> None:
        super().__init__(*arguments)
        self._said = said
        """What was read from the client already."""

    async def _read_data(self) -> None:
        if self._said:
            await self.protocol.handle(RawData(self._said))
            self._said = b""
        await super()._read_data()
        if self._task_group._nursery is not None:
            self._task_group._nursery.cancel_scope.cancel()


async def _close_when_cancelled(streams: set[trio.SocketStream]) -> None:
    """Free senders that a client keeps waiting.

    Hypercorn shields its sends from cancellation, so a client that stopped reading would keep the
    node from stopping.
    """
    try:
        await trio.sleep_forever()
    finally:
        for stream in streams:
            stream.socket.close()
