"""Who may call the API, and what it says to those who may not or who ask wrongly."""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trio

from p2p_node import api
from p2p_node.api.serving import listening
from p2p_node.errors import UserError
from tests.api.rig import Rig, job_document

ROUTES = [
    ("GET", "/v1/status"),
    ("GET", "/v1/peers"),
    ("GET", "/v1/jobs"),
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs/00"),
    ("DELETE", "/v1/jobs/00"),
    ("GET", "/v1/jobs/00/events"),
    ("GET", "/v1/jobs/00/receipt"),
    ("GET", "/v1/jobs/00/explain"),
    ("POST", "/v1/pause"),
    ("POST", "/v1/resume"),
    ("POST", "/v1/shutdown"),
    ("OPTIONS", "/v1/status"),
    ("GET", "/nowhere"),
]


@pytest.fixture(scope="module")
def anonymous() -> Iterator[httpx.Client]:
    with httpx.Client(verify=False, trust_env=False) as client:
        yield client


def announced(rig: Rig) -> dict[str, str]:
    return dict(json.loads((rig.datadir / "api.json").read_text()))


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_nothing_is_answered_without_the_token(
    rig: Rig, anonymous: httpx.Client, method: str, path: str
) -> None:
    there = announced(rig)
    token = there["token"]
    wrong = [
        {},
        {"authorization": token},
        {"authorization": f"Basic {token}"},
        {"authorization": f"Bearer {token[:-1]}"},
        {"authorization": f"Bearer {token}x"},
        {"authorization": "Bearer"},
        {"authorization": b"Bearer \xff\xfe"},
    ]
    for headers in wrong:
        response = anonymous.request(
            method,
            there["url"] + path,
            params={"token": token},
            headers=headers,
            content=job_document() if method == "POST" else None,
        )
        assert response.status_code == 401
        assert set(response.json()["error"]) == {"rule", "value", "message"}
        assert token not in response.text
    assert not rig.stopped.is_set()


def test_the_announcement_is_for_its_owner_only(rig: Rig) -> None:
    path = rig.datadir / "api.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert set(announced(rig)) == {"url", "token", "pid"}
    assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not list(rig.datadir.glob("*.part"))
    assert len(announced(rig)["token"]) >= 43  # 256 bits


async def test_the_announcement_ends_with_the_api(rig: Rig, tmp_path: Path) -> None:
    from dataclasses import replace

    from p2p_node.datadir import DataDir

    node = replace(rig.node, place=DataDir.open(tmp_path / "other"))
    # A file that somebody left readable must not pass its mode on.
    unfinished = node.place.api.with_name("api.json.part")
    unfinished.write_text("left behind")
    unfinished.chmod(0o644)
    async with trio.open_nursery() as nursery:
        await nursery.start(api.serve, node, "localhost:0")
        assert stat.S_IMODE(node.place.api.stat().st_mode) == 0o600
        assert json.loads(node.place.api.read_text())["token"] != announced(rig)["token"]
        nursery.cancel_scope.cancel()
    assert not node.place.api.exists()


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("0.0.0.0:0", "must be a loopback address"),
        ("192.0.2.1:4151", "must be a loopback address"),
        ("[::]:0", "must be a loopback address"),
        ("example.org:80", "must be a loopback address"),
        ("localhost.example.org:80", "must be a loopback address"),
        ("127.0.0.1", "must be host:port"),
        ("127.0.0.1:65536", "must be host:port"),
        (":80", "must be host:port"),
        ("127.0.0.1:x", "must be host:port"),
    ],
)
async def test_other_addresses_are_refused(rig: Rig, address: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        await api.serve(rig.node, address)
    assert (rig.datadir / "api.json").exists()


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(UserError, match=f"--api 127.0.0.1:{port} can't be listened on"),
            listening("127.0.0.1", port, flag="--api"),
        ):
            pass


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/status/", 307),
        ("GET", "/v1/jobs/../../etc/passwd", 404),
        ("GET", "/v2/status", 404),
        ("DELETE", "/v1/status", 405),
        ("PUT", "/v1/jobs", 405),
        ("GET", "/v1/shutdown", 405),
        ("OPTIONS", "/v1/jobs", 405),
        ("GET", "/v1/jobs/zz", 404),
        ("GET", "/v1/jobs/zz/receipt", 404),
        ("GET", "/v1/jobs/zz/explain", 404),
        ("GET", "/v1/jobs/zz/events", 404),
        ("DELETE", "/v1/jobs/zz", 404),
    ],
)
def test_what_does_not_exist(http: httpx.Client, method: str, path: str, status: int) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    assert not [name for name in response.headers if name.startswith("access-control")]
    if status != 307:
        error = response.json()["error"]
        assert set(error) == {"rule", "value", "message"}
        assert error["rule"]


@pytest.mark.parametrize("pause_s", [0.0, 0.03], ids=["at once", "after a pause"])
def test_junk_on_the_socket_leaves_the_api_up(rig: Rig, http: httpx.Client, pause_s: float) -> None:
    host, port = announced(rig)["url"].removeprefix("http://").split(":")
    junk = [
        b"\0" * 1_000,
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\n" + b"x: " + b"y" * 100_000 + b"\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
        b"GET /v1/status HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    ]
    for data in junk:
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            answer = b""
            try:
                connection.sendall(data)
                time.sleep(pause_s)  # An end of the stream that comes alone is another path.
                connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(65_536):
                    answer += part
            except TimeoutError:
                raise  # It must hang up.
            except OSError:
                pass  # It hung up before it had heard everything.
            assert b" 200 " not in answer
    assert http.get("/v1/status").status_code == 200
