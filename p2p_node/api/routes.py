"""The API's routes: who may call them, what they take, and how they refuse.

Every refusal is JSON: ``{"error": {"rule", "value", "message"}}``, and for a job file also its line
and field.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
import trio
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from p2p_node import receipts
from p2p_node.api import views
from p2p_node.api.access import AccessGuard
from p2p_node.api.blobs import blob_routes
from p2p_node.api.finding import finding_routes
from p2p_node.api.models import model_routes
from p2p_node.api.refusals import Refusal as _Refusal
from p2p_node.errors import UserError
from p2p_node.jobrecord import JobRecord
from p2p_node.jobspec import JobSpecError, parse_job_spec
from p2p_node.partition.receipts import render as render_whole
from p2p_node.yamltree import DOCUMENT_BYTES_MAX

if TYPE_CHECKING:
    from p2p_node.node import Node

__all__ = ["KEEP_ALIVE_S", "make_app"]

log = structlog.get_logger(__name__)

KEEP_ALIVE_S = 15
"""A stream with nothing to say sends a comment this often, so that a reader that is gone is noticed."""

DRAINED_BYTES_MAX = 8 * 1024 * 1024
"""A body that is too large is read this far: whoever is still sending doesn't hear an answer."""

BODY_S = 20
"""A job file that isn't here by then isn't waited for: it would hold its connection for ever."""

HEADERS = {"cache-control": "no-store"}


def make_app(node: Node, token: str, hosts: frozenset[str] | None = None) -> Starlette:
    """The API of ``node`` for callers who know ``token`` and name one of ``hosts``; see `AccessGuard`."""
    routes = _Routes(node)
    job = "/v1/jobs/{prefix}"
    return Starlette(
        routes=[
            Route("/v1/status", routes.status, methods=["GET"]),
            Route("/v1/peers", routes.peers, methods=["GET"]),
            Route("/v1/reachability", routes.reachability, methods=["POST"]),
            Route("/v1/jobs", routes.list_jobs, methods=["GET"]),
            Route("/v1/jobs", routes.submit_job, methods=["POST"]),
            Route("/v1/quotes", routes.quote_job, methods=["POST"]),
            Route(job, routes.show_job, methods=["GET"]),
            Route(job, routes.cancel_job, methods=["DELETE"]),
            Route(f"{job}/events", routes.job_events, methods=["GET"]),
            Route(f"{job}/receipt", routes.job_receipt, methods=["GET"]),
            Route(f"{job}/result", routes.job_result, methods=["GET"]),
            Route(f"{job}/frauds/{{number}}", routes.job_fraud, methods=["GET"]),
            Route(f"{job}/explain", routes.explain_job, methods=["GET"]),
            Route(f"{job}/resume", routes.resume_job, methods=["POST"]),
            Route("/v1/pause", routes.pause, methods=["POST"]),
            Route("/v1/resume", routes.resume, methods=["POST"]),
            Route("/v1/reload", routes.reload, methods=["POST"]),
            Route("/v1/shutdown", routes.shut_down, methods=["POST"]),
            *model_routes(node),
            *finding_routes(node),
            *blob_routes(
                node.blobs,
                lambda: [status.key for status in node.network.peers()],
                holders=node.finder.find_blob if node.finder is not None else None,
            ),
        ],
        middleware=[Middleware(AccessGuard, token=token, hosts=hosts)],
        exception_handlers={
            _Refusal: _answer_refusal,
            HTTPException: _answer_http_exception,
            Exception: _answer_bug,
        },
    )


class _Routes:
    def __init__(self, node: Node) -> None:
        self._node = node

    # --- The node --------------------------------------------------------------------------------

    async def status(self, request: Request) -> Response:
        return _json(views.status(self._node))

    async def peers(self, request: Request) -> Response:
        return _json(views.peer_rows(self._node))

    async def reachability(self, request: Request) -> Response:
        ask = self._node.reachability
        return _json([asdict(found) for found in await ask()] if ask is not None else [])

    async def pause(self, request: Request) -> Response:
        return self._paused(self._node.pausing.pause, request)

    async def resume(self, request: Request) -> Response:
        return self._paused(self._node.pausing.resume, request)

    def _paused(self, change: Callable[[str | None], None], request: Request) -> Response:
        device = request.query_params.get("device")
        try:
            change(device)
        except UserError as error:
            rule = "a device must be one of this node's"
            raise _Refusal(400, rule, (device or "")[:80], message=str(error)) from error
        return _json({"paused": sorted(self._node.pausing.paused)})

    async def reload(self, request: Request) -> Response:
        if self._node.lists is None:
            raise _Refusal(400, "this node has no lists")
        try:
            return _json(self._node.lists.reload())
        except UserError as error:
            raise _Refusal(400, "the configuration must be valid", message=str(error)) from error

    async def shut_down(self, request: Request) -> Response:
        async def stop() -> None:
            log.info("stopping", by="api")
            self._node.stop()

        # Once the answer is on its way: stopping closes this connection too.
        return JSONResponse({"stopping": True}, background=BackgroundTask(stop))

    # --- Jobs ------------------------------------------------------------------------------------

    async def list_jobs(self, request: Request) -> Response:
        return _json([self._summary(record) for record in self._node.book.records()])

    async def submit_job(self, request: Request) -> Response:
        document = await _body(request, DOCUMENT_BYTES_MAX)
        with _job_files_refused():
            # A thread: a file of 64 KiB can be made to take a second, and peers shouldn't wait.
            spec = await trio.to_thread.run_sync(parse_job_spec, document)
            prepared = await trio.to_thread.run_sync(self._node.book.prepare, spec)
            record = self._node.book.submit(spec, views.described_spec(spec), prepared)
        # Peers are asked meanwhile; but a job that the client has an id of is found after a power cut, too.
        await trio.to_thread.run_sync(self._node.store.wait_for_disk)
        return _json({"id": record.id.hex(), "state": record.state, "name": record.name}, status=201)

    async def quote_job(self, request: Request) -> Response:
        document = await _body(request, DOCUMENT_BYTES_MAX)
        with _job_files_refused():
            spec = await trio.to_thread.run_sync(parse_job_spec, document)
            prepared = await trio.to_thread.run_sync(self._node.book.prepare, spec)
            return _json(self._node.book.quote(spec, prepared))

    async def show_job(self, request: Request) -> Response:
        return _json(self._details(self._find(request)))

    async def cancel_job(self, request: Request) -> Response:
        record = self._find(request)
        self._node.book.cancel(record)
        return _json(self._summary(record))

    async def resume_job(self, request: Request) -> Response:
        record = self._find(request)
        try:
            self._node.book.resume(record)
        except UserError as error:
            raise _Refusal(
                409,
                "a job in parts of which some are missing can be resumed",
                record.state,
                message=str(error),
            ) from error
        return _json(self._summary(record))

    async def explain_job(self, request: Request) -> Response:
        record = self._find(request)
        return _json(
            {
                "id": record.id.hex(),
                "name": record.name,
                "state": record.state,
                "reason": record.reason,
                "declines": self._node.book.explain(record),
            }
        )

    async def job_receipt(self, request: Request) -> Response:
        record = self._find(request)
        try:
            raw = self._node.book.receipt(record)
        except UserError as error:
            raise _Refusal(409, str(error)) from error
        if raw is None:
            raise _Refusal(404, "a job has a receipt once it is over", record.state)
        core = self._node.core
        rendered = receipts.render if record.whole is None else render_whole
        render = partial(rendered, raw, network=core.network, crypto=core.crypto)
        # Checking every signature takes a while; other requests and peers shouldn't wait.
        content = await trio.to_thread.run_sync(render)
        return Response(content, media_type="application/json", headers=HEADERS)

    async def job_fraud(self, request: Request) -> Response:
        record = self._find(request)
        number, frauds = request.path_params["number"], self._node.book.frauds(record)
        if not number.isdecimal() or int(number[:9]) >= len(frauds):
            raise _Refusal(404, f"the job has {len(frauds)} fraud proofs, numbered from 0", number[:80])
        content = self._node.book.fraud(frauds[int(number)])
        return Response(content, media_type="application/octet-stream", headers=HEADERS)

    async def job_result(self, request: Request) -> Response:
        record = self._find(request)
        # A thread: a picture takes a while to encode.
        result = await trio.to_thread.run_sync(self._node.book.result, record)
        if result is None:
            raise _Refusal(
                404, "a job has a result file once it is verified, unless it is text", record.state
            )
        described = HEADERS | {"x-result-description": result.description}
        return Response(result.content, media_type=result.media_type, headers=described)

    async def job_events(self, request: Request) -> Response:
        record = self._find(request)
        follows = request.query_params.get("follow", "true")
        if follows not in ("true", "false"):
            raise _Refusal(400, "follow must be true or false", follows[:80])
        events = self._events(record) if follows == "true" else _replay(record)
        return StreamingResponse(events, media_type="text/event-stream", headers=HEADERS)

    async def _events(self, record: JobRecord) -> AsyncIterator[str]:
        with self._node.book.subscribe(record) as events:
            while True:
                event: dict[str, Any] | None = None
                with trio.move_on_after(KEEP_ALIVE_S):
                    try:
                        event = await events.receive()
                    except trio.EndOfChannel:
                        return
                yield ": still here\n\n" if event is None else _event(event)

    def _find(self, request: Request) -> JobRecord:
        prefix = request.path_params["prefix"]
        try:
            return self._node.book.find(prefix)
        except UserError as error:
            raise _Refusal(
                404, "an id must begin the id of exactly one job", prefix[:80], message=str(error)[:200]
            ) from error

    def _summary(self, record: JobRecord) -> dict[str, Any]:
        has_receipt = record.is_final and self._node.book.has_receipt(record)
        proofs = len(self._node.book.frauds(record))
        disputes = sum(map(self._node.core.disputes.open_for, record.job_ids))
        return record.summary() | {
            "receipt_available": has_receipt,
            "fraud_proofs": proofs,
            "disputes_open": disputes,
        }

    def _details(self, record: JobRecord) -> dict[str, Any]:
        outputs = self._node.book.outputs(record) if record.is_final else None
        return self._summary(record) | ({} if outputs is None else {"outputs": outputs})


# --- Requests and answers ------------------------------------------------------------------------


async def _replay(record: JobRecord) -> AsyncIterator[str]:
    for event in list(record.events):
        yield _event(event)


@contextmanager
def _job_files_refused() -> Iterator[None]:
    """Answer a job file that breaks a rule with its line and field.

    Raises:
        _Refusal: it does, or the job can't be asked for from here.
    """
    try:
        yield
    except JobSpecError as error:
        raise _Refusal(
            400, error.rule, error.value, message=str(error), line=error.line, field=error.field
        ) from error
    except UserError as error:
        raise _Refusal(400, str(error)) from error


def _event(event: dict[str, Any]) -> str:
    # JSON has no line breaks outside of strings, where they are escaped.
    return f"data: {json.dumps(event)}\n\n"


async def _body(request: Request, bytes_max: int) -> bytes:
    """The request's body.

    Raises:
        _Refusal: it is larger than ``bytes_max``, whatever its headers say.
    """
    body, size = bytearray(), 0
    try:
        with trio.fail_after(BODY_S):
            async for part in request.stream():
                size += len(part)
                if size <= bytes_max:
                    body += part
                elif size > DRAINED_BYTES_MAX:
                    break
    except trio.TooSlowError:
        raise _Refusal(408, f"a body must arrive within {BODY_S} s", f"{size} bytes so far") from None
    except ClientDisconnect:
        raise _Refusal(400, "a body must be complete") from None
    if size > bytes_max:
        raise _Refusal(413, f"a body must have at most {bytes_max} bytes", f"{size} or more")
    return bytes(body)


def _json(value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(value, status_code=status, headers=HEADERS | (headers or {}))


async def _answer_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, _Refusal)  # noqa: S101 - starlette's table of handlers says so
    return _json({"error": error.error}, status=error.status)


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - starlette's table of handlers says so
    rule = {404: "a path must name a route", 405: "a method must fit its route"}.get(
        error.status_code, error.detail
    )
    refusal = _Refusal(error.status_code, rule, f"{request.method} {request.url.path}"[:200])
    return _json({"error": refusal.error}, status=error.status_code, headers=dict(error.headers or {}))


async def _answer_bug(request: Request, error: Exception) -> Response:
    log.error("api failed", method=request.method, path=request.url.path, exc_info=error)
    refusal = _Refusal(500, "the node failed to answer; its log says why")
    return _json({"error": refusal.error}, status=500)
