"""The server ends when it is told to, whatever its clients do."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from p2p_node.api.serving import listening, run_app, url_of


async def test_a_client_that_stops_reading_does_not_keep_the_node_from_stopping() -> None:
    sent = 0

    async def endless(request: Request) -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            nonlocal sent
            while True:
                yield bytes(1 << 14)
                sent += 1

        return StreamingResponse(parts())

    app = Starlette(routes=[Route("/", endless)])
    scope, ended = trio.CancelScope(), trio.Event()

    async def serve(sock: socket.socket) -> None:
        with scope:
            await run_app(app, sock)
        ended.set()

    with listening("127.0.0.1", 0, flag="--api") as sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, sock)
            async with await trio.open_tcp_stream(*sock.getsockname()) as stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                # Until the buffers between us are full, and a shielded send waits.
                before = -1
                while not 0 < sent == before:
                    before = sent
                    await trio.sleep(0.2)
                scope.cancel()
                with trio.move_on_after(10):
                    await ended.wait()
                # Closing our end would free the sender in any case.
                assert ended.is_set()


def test_urls_of_both_families() -> None:
    with listening("127.0.0.1", 0, flag="--api") as sock:
        assert url_of(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"

    class Six:
        def getsockname(self) -> tuple[str, int, int, int]:
            return ("::1", 80, 0, 0)

    assert url_of(Six()) == "http://[::1]:80"  # type: ignore[arg-type]
