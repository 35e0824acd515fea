"""The API's routes for blobs: listing, reading, fetching from peers with progress, pinning, removing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import trio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from p2p_node.api.refusals import Refusal
from p2p_node.blobs import BlobError, BlobMissing, BlobService, StoredBlob
from p2p_node.blobs.errors import BlobUnavailable
from p2p_node.blobs.store import BlobWriter
from p2p_node.network.port import PeerKey
from protocols.blobs import Blob, blob_name, parse_blob_name, piece_count
from protocols.identity import peer_key

__all__ = ["PIN_OWNER", "blob_routes"]

PIN_OWNER = "user"
"""Under which the owner of the node holds on to blobs."""

SOURCES_MAX = 16
"""Connected peers that are asked where nobody names one."""

GATHERED_BYTES = 1 << 20
"""Of an upload, written at once."""

TELL_S = 0.2
KEEP_ALIVE_S = 10.0
HEADERS = {"cache-control": "no-store"}


def blob_routes(
    blobs: BlobService | None,
    connected: Callable[[], Sequence[PeerKey]],
    holders: Callable[[bytes], Awaitable[list[PeerKey]]] | None = None,
) -> list[Route]:
    """The routes of a node.

    Args:
        blobs: None for a node that keeps none; then every route says so.
        connected: peers to fetch from where the caller names none.
        holders: finds others, by a blob's digest, where those have none; None finds nobody.
    """
    routes = _Routes(blobs, connected, holders)
    blob = "/v1/blobs/{name}"
    return [
        Route("/v1/blobs", routes.list, methods=["GET"]),
        Route("/v1/blobs", routes.add, methods=["POST"]),
        Route(blob, routes.read, methods=["GET"]),
        Route(blob, routes.remove, methods=["DELETE"]),
        Route(f"{blob}/fetch", routes.fetch, methods=["POST"]),
        Route(f"{blob}/pin", routes.pin, methods=["PUT"]),
        Route(f"{blob}/pin", routes.unpin, methods=["DELETE"]),
    ]


class _Routes:
    def __init__(
        self,
        blobs: BlobService | None,
        connected: Callable[[], Sequence[PeerKey]],
        holders: Callable[[bytes], Awaitable[list[PeerKey]]] | None,
    ) -> None:
        self._blobs, self._connected, self._holders = blobs, connected, holders

    async def list(self, request: Request) -> Response:
        return _json([_row(stored) for stored in self._service().store.stored()])

    async def add(self, request: Request) -> Response:
        store = self._service().store
        refused: BlobError | None = None
        try:
            with store.writer() as writer:
                gathered = bytearray()
                async for part in request.stream():
                    # After a refusal the rest is only read: whoever is still sending hears no answer.
                    if refused is None:
                        gathered += part
                    if len(gathered) >= GATHERED_BYTES:
                        refused = await self._write(writer, gathered)
                        gathered.clear()
                refused = refused or await self._write(writer, gathered)
                if refused is not None:
                    raise Refusal(507, str(refused))
                blob = await trio.to_thread.run_sync(writer.finish)
        except ClientDisconnect:
            raise Refusal(400, "a body must be complete") from None
        except BlobError as error:
            raise Refusal(507, str(error)) from error
        return _json({"blob": blob_name(blob), "size_bytes": blob.size_bytes}, status=201)

    async def _write(self, writer: BlobWriter, data: bytearray) -> BlobError | None:
        try:
            # A thread: the disk may take its time.
            await trio.to_thread.run_sync(writer.write, data)
        except BlobError as error:
            return error
        return None

    async def read(self, request: Request) -> Response:
        blob, store = _blob(request), self._service().store
        with _explained(blob):
            store.path(blob)
        size = {"content-length": str(blob.size_bytes)}
        return StreamingResponse(
            self._pieces(blob), media_type="application/octet-stream", headers=HEADERS | size
        )

    async def _pieces(self, blob: Blob) -> AsyncIterator[bytes]:
        for piece in range(piece_count(blob.size_bytes)):
            # One that went meanwhile ends the answer short of the length it announced.
            yield await trio.to_thread.run_sync(self._service().store.read_piece, blob, piece)

    async def remove(self, request: Request) -> Response:
        blob = _blob(request)
        with _explained(blob):
            self._service().store.remove(blob)
        return _json({"blob": blob_name(blob), "removed": True})

    async def pin(self, request: Request) -> Response:
        blob, store = _blob(request), self._service().store
        with _explained(blob):
            store.path(blob)
            store.pin(blob, PIN_OWNER)
        return _json({"blob": blob_name(blob), "pinned": True})

    async def unpin(self, request: Request) -> Response:
        blob = _blob(request)
        with _explained(blob):
            self._service().store.unpin(PIN_OWNER, blob)
        return _json({"blob": blob_name(blob), "pinned": False})

    async def fetch(self, request: Request) -> Response:
        blob, named = _blob(request), request.query_params.getlist("from")
        try:
            sources = [peer_key(name) for name in named] or list(self._connected())[:SOURCES_MAX]
        except ValueError as error:
            raise Refusal(400, "from must be a peer id", message=str(error)[:200]) from error
        self._service()
        return _Told(partial(self._fetch, blob, sources, is_open=not named), blob)

    async def _fetch(
        self,
        blob: Blob,
        sources: Sequence[PeerKey],
        *,
        is_open: bool,
        on_progress: Callable[[int, int], None],
    ) -> None:
        fetch = self._service().fetch
        try:
            await fetch(blob, sources, on_progress=on_progress)
        except BlobUnavailable:
            # Nobody near has it.
            found = await self._holders(blob.digest) if is_open and self._holders is not None else []
            if not found:
                raise
            await fetch(blob, found, on_progress=on_progress)

    def _service(self) -> BlobService:
        if self._blobs is None:
            raise Refusal(404, "this node keeps no blobs")
        return self._blobs


class _Told(Response):
    """Answers with a fetch's progress as server-sent events, and ends with what became of it."""

    def __init__(self, fetch: Callable[..., Any], blob: Blob) -> None:
        super().__init__(media_type="text/event-stream", headers=HEADERS)
        # Not known beforehand.
        del self.headers["content-length"]
        self._fetch, self._blob = fetch, blob
        self._here = 0
        self._end: dict[str, Any] | None = None
        self._news = trio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_with_client, receive, nursery.cancel_scope)
            nursery.start_soon(self._run)
            while self._end is None:
                with trio.move_on_after(KEEP_ALIVE_S):
                    await self._news.wait()
                self._news = trio.Event()
                event = {"event": "progress", "bytes_here": self._here, "bytes": self._blob.size_bytes}
                await _tell(send, event, more=True)
                with trio.move_on_after(TELL_S):
                    while self._end is None:
                        await self._news.wait()
                        self._news = trio.Event()
            await _tell(send, self._end, more=False)
            nursery.cancel_scope.cancel()

    async def _run(self) -> None:
        size = self._blob.size_bytes
        try:
            await self._fetch(on_progress=self._progressed)
        except BlobError as error:
            self._end = {"event": "failed", "message": str(error)}
        else:
            self._end = {"event": "fetched", "bytes_here": size, "bytes": size}
        self._news.set()

    def _progressed(self, here: int, total: int) -> None:
        self._here = here
        self._news.set()

    async def _end_with_client(self, receive: Receive, scope: trio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()


async def _tell(send: Send, event: dict[str, Any], *, more: bool) -> None:
    body = f"data: {json.dumps(event)}\n\n".encode()
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _blob(request: Request) -> Blob:
    try:
        return parse_blob_name(request.path_params["name"])
    except ValueError as error:
        raise Refusal(
            400, "a blob's name must be <digest in hex>:<size in bytes>", message=str(error)
        ) from error


@contextmanager
def _explained(blob: Blob) -> Iterator[None]:
    try:
        yield
    except BlobMissing as error:
        raise Refusal(404, "a blob must be on this node", blob_name(blob), message=str(error)) from error
    except BlobError as error:
        raise Refusal(409, str(error)) from error


def _row(stored: StoredBlob) -> dict[str, Any]:
    return {
        "blob": blob_name(stored.blob),
        "size_bytes": stored.blob.size_bytes,
        "used_ms": stored.used_ms,
        "pins": list(stored.pins),
        "private": stored.is_private,
    }


def _json(value: Any, *, status: int = 200) -> Response:
    return JSONResponse(value, status_code=status, headers=HEADERS)
