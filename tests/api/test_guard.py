"""Web pages, other users of the machine and junk: who can't reach the API, and what they can't use up."""

from __future__ import annotations

import contextlib
import socket
import stat
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import trio
from starlette.applications import Starlette

from p2p_node import api
from p2p_node.api import door, routes, serving
from p2p_node.api.access import hosts_of
from p2p_node.client import connect
from p2p_node.datadir import DataDir
from p2p_node.errors import UserError
from tests.api.rig import Rig


def place_of(http: httpx.Client) -> tuple[str, int]:
    return str(http.base_url.host), int(http.base_url.port or 0)


@pytest.mark.parametrize(
    "host",
    ["rebound.example:{port}", "127.0.0.1.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "[::1]:{port}"],
)
def test_a_name_that_resolves_to_us_is_refused_even_with_the_token(http: httpx.Client, host: str) -> None:
    named = host.format(port=http.base_url.port)
    response = http.get("/v1/status", headers={"host": named})
    assert response.status_code == 403
    assert "host" in response.json()["error"]["rule"]


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LocalHost:{port}"])
def test_our_own_names_are_not(http: httpx.Client, host: str) -> None:
    named = host.format(port=http.base_url.port)
    assert http.get("/v1/status", headers={"host": named}).status_code == 200


@pytest.mark.parametrize("origin", ["https://example.org", "null", "http://localhost:1", "file://"])
@pytest.mark.parametrize("method", ["GET", "OPTIONS", "POST"])
def test_no_web_page_may_call(http: httpx.Client, method: str, origin: str) -> None:
    asked = {"origin": origin, "access-control-request-method": "POST"}
    response = http.request(method, "/v1/pause", headers=asked)
    assert response.status_code == 403
    assert not [name for name in response.headers if name.startswith("access-control")]
    assert http.get("/v1/status").json()["paused"] == []


@pytest.mark.parametrize("second", ["host: rebound.example", "authorization: Bearer x", "origin: null"])
def test_a_second_header_does_not_slip_through(http: httpx.Client, second: str) -> None:
    host, port = place_of(http)
    token = http.headers["authorization"]
    head = f"GET /v1/status HTTP/1.1\r\nhost: {host}:{port}\r\nauthorization: {token}\r\n{second}\r\n\r\n"
    with socket.create_connection((host, port), timeout=5) as connection:
        connection.sendall(head.encode())
        assert connection.recv(65_536).split()[1] in (b"400", b"401", b"403")


def test_a_unix_socket_has_no_hosts() -> None:
    assert hosts_of("unix:/x/api.sock") is None
    assert hosts_of("http://[::1]:80") == {"[::1]:80", "localhost:80"}


async def test_on_a_unix_socket_the_owner_is_served_and_others_cannot_connect(
    rig: Rig, tmp_path: Path
) -> None:
    node = replace(rig.node, place=DataDir.open(tmp_path / "d"))
    # What a node that was killed has left behind.
    node.place.api_socket.write_bytes(b"")
    async with trio.open_nursery() as nursery:
        await nursery.start(api.serve, node, "unix")
        assert stat.S_IMODE(node.place.api_socket.stat().st_mode) == 0o600

        def ask() -> tuple[str, int]:
            with connect(node.place.path) as client:
                peer = client.status()["peer_id"]
            transport = httpx.HTTPTransport(uds=str(node.place.api_socket))
            with httpx.Client(base_url="http://localhost", transport=transport) as anonymous:
                return peer, anonymous.get("/v1/status").status_code

        peer, without_token = await trio.to_thread.run_sync(ask)
        assert peer.startswith("12D3Koo")
        assert without_token == 401
        nursery.cancel_scope.cancel()
    assert not node.place.api_socket.exists()


async def test_a_path_too_long_for_a_socket_is_named(rig: Rig, tmp_path: Path) -> None:
    node = replace(rig.node, place=DataDir.open(tmp_path / ("d" * 120)))
    with pytest.raises(UserError, match="longer than 107 bytes"):
        await api.serve(node, "unix")


def test_callers_who_say_nothing_hold_no_place_of_the_owner(http: httpx.Client) -> None:
    idle = [socket.create_connection(place_of(http), timeout=5) for _ in range(3 * door.STRANGERS_MAX)]
    try:
        with httpx.Client(base_url=http.base_url, headers=http.headers, trust_env=False) as owner:
            assert owner.get("/v1/status").status_code == 200
        assert idle[0].recv(1) == b""  # Whoever was silent longest made room.
    finally:
        for connection in idle:
            connection.close()


def test_connections_with_the_token_are_bounded_and_their_places_come_back(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "CONNECTIONS_MAX", 4)
    host, port = place_of(http)
    head = f"GET /v1/status HTTP/1.1\r\nhost: {host}:{port}\r\nauthorization: {http.headers['authorization']}"
    held = []
    try:
        for _ in range(6):
            held.append(socket.create_connection((host, port), timeout=5))
            held[-1].sendall(f"{head}\r\n\r\n".encode())
            heard = held[-1].recv(65_536)
        assert b" 200 " not in heard
    finally:
        for connection in held:
            connection.close()
    for _ in range(100):
        try:
            assert http.get("/v1/status").status_code == 200
            break
        except httpx.HTTPError:
            continue
    else:
        pytest.fail("no place came back")


def test_a_job_file_that_never_ends_is_not_waited_for(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "BODY_S", 0.1)
    host, port = place_of(http)
    token = http.headers["authorization"]
    head = f"POST /v1/jobs HTTP/1.1\r\nhost: {host}:{port}\r\nauthorization: {token}\r\n"
    with socket.create_connection((host, port), timeout=5) as connection:
        connection.sendall(f"{head}content-length: 1000\r\n\r\napiVersion".encode())
        assert b" 408 " in connection.recv(65_536)
    assert http.get("/v1/status").status_code == 200


async def test_headers_that_never_end_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "KEEP_ALIVE_S", 0.1)
    with serving.listening("127.0.0.1", 0, flag="--api") as sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serving.run_app, Starlette(), sock)
            async with await trio.open_tcp_stream(*sock.getsockname()) as stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nx: ")
                with trio.fail_after(5):
                    assert await stream.receive_some(1) == b""
            nursery.cancel_scope.cancel()


def test_a_body_without_the_token_is_not_read(http: httpx.Client) -> None:
    host, port = place_of(http)
    with socket.create_connection((host, port), timeout=5) as connection:
        head = f"POST /v1/blobs HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-length: 1000000000\r\n\r\n"
        connection.sendall(head.encode())
        sent, heard = 0, b""
        try:
            # Far more than all the buffers between us: somebody would have to take it.
            while sent < 64 << 20:
                connection.sendall(bytes(1 << 16))
                sent += 1 << 16
        except OSError:
            pass
        else:
            pytest.fail("64 MiB of a stranger's body were taken")
        with contextlib.suppress(OSError):
            heard = connection.recv(65_536)
        assert b" 401 " in heard or not heard
