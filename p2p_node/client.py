"""Talks to the node that runs on a data directory, through its local API."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2p_node.datadir import DataDir
from p2p_node.errors import ExitCode, UserError
from p2p_node.modelmanifest import refuse_model_name
from protocols.blobs import parse_blob_name
from protocols.limits import BLOB_PIECE_BYTES

if TYPE_CHECKING:
    import httpx

__all__ = ["ApiError", "NodeClient", "NodeGone", "NodeNotRunning", "connect"]

FILE_BYTES_MAX = 4_096
TIMEOUT_S = 30
"""An answer comes within this time; a stream says at least that it is alive (see the API)."""

BLOB_TIMEOUT_S = 600
"""A disk may take this long to write what is left of a large blob."""


class NodeNotRunning(UserError):
    """No node runs on the data directory."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"no node is running on {path}; start one with: p2p-node start --datadir {path}")


class NodeGone(UserError):
    """The node stopped, or hung, while it was asked."""

    exit_code = ExitCode.TASK_FAILED


class ApiError(UserError):
    """The node refused.

    Attributes:
        status: the HTTP status.
        error: the answer's ``error``: rule, value, message, and for a job file line and field.
    """

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(str(error.get("message") or f"the node answered with status {status}"))
        self.status = status
        self.error = error


@contextmanager
def connect(datadir: Path | None = None) -> Iterator[NodeClient]:
    """A client of the node that runs on ``datadir``, or on the user's default directory.

    Raises:
        NodeNotRunning: there is none.
    """
    place = DataDir.open(datadir)
    try:
        with place.api.open("rb") as file:
            announced = json.loads(file.read(FILE_BYTES_MAX))
        url, token = str(announced["url"]), str(announced["token"])
    except (OSError, ValueError, KeyError, TypeError):
        raise NodeNotRunning(place.path) from None
    # Imported late: it takes a quarter of a second.
    import httpx

    on_socket = url.startswith("unix:")
    with httpx.Client(
        base_url="http://localhost" if on_socket else url,
        transport=httpx.HTTPTransport(uds=url.removeprefix("unix:")) if on_socket else None,
        headers={"authorization": f"Bearer {token}"},
        timeout=TIMEOUT_S,
        # A proxy from the environment must see neither the requests nor the token.
        trust_env=False,
    ) as http:
        yield NodeClient(http, place.path)


class NodeClient:
    """Commands and questions to one node.

    Every method raises `NodeNotRunning` if nobody answers, `NodeGone` if the node stops while it
    answers, and `ApiError` if it refuses.
    """

    def __init__(self, http: httpx.Client, path: Path) -> None:
        self._http = http
        self._path = path

    def status(self) -> dict[str, Any]:
        """What the node is, has and does."""
        return dict(self._call("GET", "/v1/status").json())

    def peers(self) -> list[dict[str, Any]]:
        """Every peer it is connected to or has heard of."""
        return list(self._call("GET", "/v1/peers").json())

    def reachability(self) -> list[dict[str, Any]]:
        """Have peers dial it back; what they found of each address."""
        return list(self._call("POST", "/v1/reachability").json())

    def submit(self, document: bytes) -> dict[str, Any]:
        """Ask for a job; ``document`` is a job file's content."""
        return dict(self._call("POST", "/v1/jobs", content=document).json())

    def add_blob(self, content: bytes) -> str:
        """Hand content to the node, which keeps it; what job files call it."""
        starts = range(0, len(content), BLOB_PIECE_BYTES) or [0]
        return str(self.upload_blob(content[at : at + BLOB_PIECE_BYTES] for at in starts)["blob"])

    def quote(self, document: bytes) -> dict[str, Any]:
        """What a job would be checked by and cost; nothing is offered to anybody."""
        return dict(self._call("POST", "/v1/quotes", content=document).json())

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs, oldest first."""
        return list(self._call("GET", "/v1/jobs").json())

    def job(self, prefix: str) -> dict[str, Any]:
        """The one job whose id begins with ``prefix``."""
        return dict(self._call("GET", _job(prefix)).json())

    def cancel(self, prefix: str) -> dict[str, Any]:
        """Cancel an open job."""
        return dict(self._call("DELETE", _job(prefix)).json())

    def resume(self, prefix: str) -> dict[str, Any]:
        """Go on with what is missing of a job in parts."""
        return dict(self._call("POST", _job(prefix) + "/resume").json())

    def explain(self, prefix: str) -> dict[str, Any]:
        """Why peers didn't bid."""
        return dict(self._call("GET", _job(prefix) + "/explain").json())

    def receipt(self, prefix: str) -> bytes:
        """The content of receipt.json; the job is over."""
        return self._call("GET", _job(prefix) + "/receipt").content

    def fraud(self, prefix: str, number: int) -> bytes:
        """The fraud proof with this number, as its file has it."""
        return self._call("GET", f"{_job(prefix)}/frauds/{number}").content

    def result(self, prefix: str) -> tuple[bytes, str]:
        """A verified job's output file and what it is; for jobs whose output isn't text."""
        content, description, _ = self.result_file(prefix)
        return content, description

    def result_file(self, prefix: str) -> tuple[bytes, str, str]:
        """The same, and its media type."""
        response = self._call("GET", _job(prefix) + "/result")
        media_type = response.headers.get("content-type", "").partition(";")[0]
        return response.content, response.headers.get("x-result-description", ""), media_type

    def reload_lists(self) -> dict[str, int]:
        """Have it read its lists of peers and addresses again; how long each is, and who was cut off."""
        return dict(self._call("POST", "/v1/reload").json())

    def pause_work(self, device: str | None = None) -> list[str]:
        """Take the machine, or one device, back from the network; returns what is paused then."""
        return list(self._call("POST", "/v1/pause", params=_device(device)).json()["paused"])

    def resume_work(self, device: str | None = None) -> list[str]:
        """Give it to the network again; returns what is paused still."""
        return list(self._call("POST", "/v1/resume", params=_device(device)).json()["paused"])

    def blobs(self) -> list[dict[str, Any]]:
        """All blobs that it keeps, the most recently used first."""
        return list(self._call("GET", "/v1/blobs").json())

    def upload_blob(self, parts: Iterator[bytes]) -> dict[str, Any]:
        """Hand content over a part at a time; its ``blob`` is what it is called."""
        with self._answered():
            # The answer comes once the last byte is on the disk.
            response = self._http.post("/v1/blobs", content=parts, timeout=BLOB_TIMEOUT_S)
        _refuse(response)
        return dict(response.json())

    def fetch_blob(self, name: str, peer: str | Sequence[str] | None = None) -> Iterator[int]:
        """Have the node fetch a blob from peers, or from those it is connected to; bytes here, as they come.

        Raises:
            BlobUnavailable: nobody could give it.
        """
        from p2p_node.blobs.errors import BlobUnavailable

        peers = [] if peer is None else [peer] if isinstance(peer, str) else list(peer)
        query = {"from": peers}
        path = f"{_blob(name)}/fetch"
        with self._answered(), self._http.stream("POST", path, params=query) as response:
            if response.is_error:
                response.read()
            _refuse(response)
            for line in response.iter_lines():
                if not line.startswith("data: "):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if event["event"] == "failed":
                    raise BlobUnavailable(event["message"])
                yield event["bytes_here"]

    def blob_content(self, name: str) -> Iterator[bytes]:
        """A blob that the node has, a part at a time."""
        with self._answered(), self._http.stream("GET", _blob(name)) as response:
            if response.is_error:
                response.read()
            _refuse(response)
            yield from response.iter_bytes()

    def pin_blob(self, name: str) -> dict[str, Any]:
        """Keep a blob, whatever else needs room."""
        return dict(self._call("PUT", _blob(name) + "/pin").json())

    def unpin_blob(self, name: str) -> dict[str, Any]:
        """Let a blob go when room is needed."""
        return dict(self._call("DELETE", _blob(name) + "/pin").json())

    def remove_blob(self, name: str) -> dict[str, Any]:
        """Throw a blob away."""
        return dict(self._call("DELETE", _blob(name)).json())

    def models(self) -> list[dict[str, Any]]:
        """The models that it has, and whether it offers them."""
        return list(self._call("GET", "/v1/models").json())

    def shared_models(self, wanted: str | None = None) -> list[dict[str, Any]]:
        """Models that it or peers share, by name; first it looks far away for those who share ``wanted``."""
        query = {} if wanted is None else {"wanted": wanted}
        return list(self._call("GET", "/v1/models/shared", params=query).json())

    def find_providers(self, **query: str) -> list[dict[str, Any]]:
        """Peers beyond those that it knows: by ``peer``, or by ``workload`` and maybe ``model``."""
        return list(self._call("GET", "/v1/providers", params=query).json())

    def refresh_models(self) -> list[dict[str, Any]]:
        """Have it look for models again; returns those that it has."""
        with self._answered():
            # Hashing a large model takes its time.
            response = self._http.post("/v1/models/refresh", timeout=BLOB_TIMEOUT_S)
        _refuse(response)
        return list(response.json())

    def remove_model(self, name: str) -> None:
        """Have it withdraw a model that was added to it, and delete its files."""
        self._call("DELETE", f"/v1/models/{_model(name)}")

    def share_model(self, name: str, manifest: str) -> None:
        """Have it give a model's files, which are in its store, to whoever asks."""
        self._call("PUT", f"/v1/models/{_model(name)}/share", params={"manifest": manifest})

    def stop_sharing_model(self, name: str) -> None:
        """Have it give them no longer."""
        self._call("DELETE", f"/v1/models/{_model(name)}/share")

    def shut_down(self) -> None:
        """Stop the node as SIGTERM does."""
        self._call("POST", "/v1/shutdown")

    def events(self, prefix: str, *, follow: bool = True) -> Iterator[dict[str, Any]]:
        """A job's events from the first on.

        Args:
            prefix: of the job's id.
            follow: go on as they happen, until the last; otherwise end with what there is.
        """
        path = f"{_job(prefix)}/events{'' if follow else '?follow=false'}"
        with self._answered(), self._http.stream("GET", path) as response:
            if response.is_error:
                response.read()
            _refuse(response)
            for line in response.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))

    def _call(
        self, method: str, path: str, *, content: bytes | None = None, params: dict[str, str] | None = None
    ) -> httpx.Response:
        with self._answered():
            response = self._http.request(method, path, content=content, params=params)
        _refuse(response)
        return response

    @contextmanager
    def _answered(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.ConnectError:
            # Left behind by a node that was killed.
            raise NodeNotRunning(self._path) from None
        except httpx.TimeoutException:
            raise NodeGone(f"the node on {self._path} didn't answer for {TIMEOUT_S} s") from None
        except httpx.HTTPError as error:
            raise NodeGone(f"the node on {self._path} stopped while it was asked: {error}") from None


def _device(name: str | None) -> dict[str, str]:
    return {} if name is None else {"device": name}


def _job(prefix: str) -> str:
    # Only what can be in an id goes into a path.
    if not prefix or not prefix.isascii() or not prefix.isalnum():
        raise UserError(f"a job's id is hexadecimal, got {prefix[:80]!r}")
    return f"/v1/jobs/{prefix}"


def _model(name: str) -> str:
    refuse_model_name(name)
    return name


def _blob(name: str) -> str:
    try:
        parse_blob_name(name)
    except ValueError as error:
        raise UserError(str(error)) from None
    return f"/v1/blobs/{name}"


def _refuse(response: httpx.Response) -> None:
    if not response.is_error:
        return
    try:
        error = dict(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        error = {}
    raise ApiError(response.status_code, error)
