"""What the client says when there is no node, or a strange one."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from p2p_node.client import ApiError, NodeGone, NodeNotRunning, connect
from p2p_node.errors import UserError


def announce(datadir: Path, content: str) -> Path:
    datadir.mkdir(mode=0o700, exist_ok=True)
    (datadir / "api.json").write_text(content)
    return datadir


@contextmanager
def answering(datadir: Path, answer: bytes) -> Iterator[None]:
    """Announce a server that gives the same bytes to everybody, and hangs up."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(answer)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        announce(datadir, json.dumps({"url": url, "token": "t", "pid": 1}))
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", "null", '{"url": "http://127.0.0.1:1"}', "\0" * 9_000]
)
def test_without_a_usable_announcement_no_node_runs(tmp_path: Path, content: str) -> None:
    datadir = announce(tmp_path / "node", content)
    with (
        pytest.raises(
            NodeNotRunning, match=f"no node is running on {datadir}; start one with: p2p-node start"
        ),
        connect(datadir),
    ):
        pass


def test_an_announcement_left_behind(tmp_path: Path) -> None:
    datadir = announce(tmp_path / "node", '{"url": "http://127.0.0.1:1", "token": "t", "pid": 1}')
    with connect(datadir) as client, pytest.raises(NodeNotRunning):
        client.status()
    with connect(datadir) as client, pytest.raises(NodeNotRunning):
        list(client.events("00"))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"junk\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\ndata:",
    ],
)
def test_a_node_that_stops_in_the_middle(tmp_path: Path, answer: bytes) -> None:
    with answering(tmp_path / "node", answer), connect(tmp_path / "node") as client:
        with pytest.raises(NodeGone, match="stopped while it was asked"):
            client.status()
        with pytest.raises(NodeGone, match="stopped while it was asked"):
            list(client.events("00"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "no", "rule": "r", "value": "v"}}', "no"),
        (b'{"error": 1}', "the node answered with status 418"),
        (b"<html>", "the node answered with status 418"),
    ],
)
def test_refusals(tmp_path: Path, body: bytes, message: str) -> None:
    answer = b"HTTP/1.1 418 Teapot\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    with answering(tmp_path / "node", answer), connect(tmp_path / "node") as client:
        with pytest.raises(ApiError) as refused:
            client.status()
        assert (refused.value.status, str(refused.value)) == (418, message)
        with pytest.raises(ApiError, match=message):
            list(client.events("00"))


@pytest.mark.parametrize("prefix", ["", "../status", "00/receipt", "0?x", "ü", "0 0", "%2e"])
def test_only_ids_go_into_paths(tmp_path: Path, prefix: str) -> None:
    datadir = announce(tmp_path / "node", '{"url": "http://127.0.0.1:1", "token": "t", "pid": 1}')
    with connect(datadir) as client:
        for call in (client.job, client.cancel, client.explain, client.receipt):
            with pytest.raises(UserError, match="a job's id is hexadecimal"):
                call(prefix)


def test_proxies_of_the_environment_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    answer = b'HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{"alive": 1}'
    with answering(tmp_path / "node", answer), connect(tmp_path / "node") as client:
        assert client.status() == {"alive": 1}
