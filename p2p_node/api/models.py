"""The API's routes for models: what this node has and offers, what peers share, and changes while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from p2p_node.api.finding import find_shared
from p2p_node.api.refusals import Refusal
from p2p_node.catalogue import Catalogue, Shelved
from p2p_node.errors import UserError
from p2p_node.models import remove_model, size_bytes
from p2p_node.modelshares import ModelShares, shared_rows
from protocols.blobs import parse_blob_name

if TYPE_CHECKING:
    from p2p_node.node import Node

__all__ = ["model_routes"]

HEADERS = {"cache-control": "no-store"}


def model_routes(node: Node) -> list[Route]:
    """The routes of a node; one whose models are settled refuses to change them."""
    routes = _Routes(node)
    model = "/v1/models/{name}"
    return [
        Route("/v1/models", routes.list, methods=["GET"]),
        Route("/v1/models/shared", routes.shared, methods=["GET"]),
        Route("/v1/models/refresh", routes.refresh, methods=["POST"]),
        Route(model, routes.remove, methods=["DELETE"]),
        Route(f"{model}/share", routes.share, methods=["PUT"]),
        Route(f"{model}/share", routes.stop_sharing, methods=["DELETE"]),
    ]


class _Routes:
    def __init__(self, node: Node) -> None:
        self._node = node

    async def list(self, request: Request) -> Response:
        return _json([self._row(shelved) for shelved in self._catalogue().models])

    async def shared(self, request: Request) -> Response:
        wanted = request.query_params.get("wanted")
        if wanted is not None and self._node.finder is not None:
            await find_shared(self._node.finder, wanted[:64])
        core, now_ms = self._node.core, self._node.runtime.clock()
        others = [advert for advert in core.registry.current(now_ms) if advert.signer != core.key]
        return _json(shared_rows(others, core.capability.models))

    async def refresh(self, request: Request) -> Response:
        try:
            await self._catalogue().refresh()
        except UserError as error:
            raise Refusal(409, str(error)) from error
        return await self.list(request)

    async def remove(self, request: Request) -> Response:
        name, catalogue = request.path_params["name"], self._catalogue()
        shelved = next((one for one in catalogue.models if one.name == name), None)
        try:
            if shelved is not None and shelved.served[1].path.parent == self._node.place.models:
                self._refuse_in_use(shelved)
                catalogue.withdraw(name)
                self._shares().stop(name)
            # A thread: gigabytes take a while to be let go.
            await trio.to_thread.run_sync(remove_model, self._node.place, name)
        except UserError as error:
            raise Refusal(409, str(error)) from error
        return _json({"name": name, "removed": True})

    def _refuse_in_use(self, shelved: Shelved) -> None:
        digest = shelved.served[1].digest
        if any(engaged.award.body.model == digest for engaged in self._node.core.provider.running()):
            raise UserError(f"{shelved.name} is being run for a peer: see p2p-node pause")
        if job := self._node.book.uses(shelved.name):
            raise UserError(f"{shelved.name} is what job {job[:12]} is about, which isn't over")

    async def share(self, request: Request) -> Response:
        name = request.path_params["name"]
        try:
            manifest = parse_blob_name(request.query_params.get("manifest", ""))
            shared = await trio.to_thread.run_sync(self._shares().read, name, manifest)
            if (known := self._node.models.get(name)) is None or known.digest != shared.model:
                raise UserError(f"the manifest must be of this node's model {name!r}")
            self._shares().share(name, manifest)
        except (ValueError, UserError) as error:
            raise Refusal(
                400, "manifest must name a blob that lists the model's files", message=str(error)[:300]
            ) from error
        return _json({"name": name, "digest": shared.model.hex(), "shared": True})

    async def stop_sharing(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._shares().stop(name)
        return _json({"name": name, "shared": False})

    def _row(self, shelved: Shelved) -> dict[str, Any]:
        kind, model = shelved.served
        shares = self._node.shares
        return {
            "name": model.name,
            "workload": kind.name,
            "size_bytes": size_bytes(model),
            "digest": model.digest.hex(),
            "path": str(model.path),
            "state": shelved.state.value,
            "why": shelved.why,
            "shared": shares is not None and model.name in shares.models,
        }

    def _catalogue(self) -> Catalogue:
        if self._node.catalogue is None:
            raise Refusal(404, "this node's models are settled")
        return self._node.catalogue

    def _shares(self) -> ModelShares:
        if self._node.shares is None:
            raise Refusal(404, "this node keeps no blobs")
        return self._node.shares


def _json(value: Any) -> Response:
    return JSONResponse(value, headers=HEADERS)
