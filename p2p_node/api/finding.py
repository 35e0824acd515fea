"""The API's route for the directory: peers beyond those that the node knows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from p2p_node.api.refusals import Refusal
from p2p_node.finding import Finder
from protocols.envelope import Signed
from protocols.identity import peer_id, peer_key
from protocols.messages import ProviderRecord
from protocols.places import ability_key, blob_key, model_key, model_name_key, workload_key

if TYPE_CHECKING:
    from p2p_node.node import Node

__all__ = ["find_shared", "finding_routes"]

_DIGEST = re.compile(r"[0-9a-f]{64}")


def finding_routes(node: Node) -> list[Route]:
    """The routes of a node."""

    async def providers(request: Request) -> Response:
        return await _providers(node, request)

    return [Route("/v1/providers", providers, methods=["GET"])]


async def find_shared(finder: Finder, wanted: str) -> None:
    """Get to know peers that share the files of a model, by its name, its digest, or its manifest's."""
    keys = [model_name_key(wanted)]
    if _DIGEST.fullmatch(wanted):
        keys = [model_key(bytes.fromhex(wanted)), blob_key(bytes.fromhex(wanted))]
    for key in keys:
        await finder.meet(await finder.find(key))


async def _providers(node: Node, request: Request) -> Response:
    if node.finder is None:
        raise Refusal(404, "this node takes no part in the directory")
    query = request.query_params
    peer, workload, model = query.get("peer"), query.get("workload", ""), query.get("model")
    if (peer is None) == (not workload):
        raise Refusal(400, "either peer or workload must be given")
    if peer is not None:
        try:
            found = await node.finder.find_peer(peer_key(peer))
        except ValueError as error:
            raise Refusal(400, "peer must be a peer id", peer[:80], message=str(error)[:200]) from error
    elif model is not None:
        found = await node.finder.find(ability_key(workload, _digest(node, model)))
    else:
        found = await node.finder.find(workload_key(workload))
    now_ms = node.runtime.clock()
    return JSONResponse(
        [_row(node, record, now_ms) for record in found], headers={"cache-control": "no-store"}
    )


def _digest(node: Node, model: str) -> bytes:
    if _DIGEST.fullmatch(model):
        return bytes.fromhex(model)
    place = node.models.get(model)
    if place is None:
        raise Refusal(400, "model must be a digest, or what a model of this node is called", model[:80])
    return place.digest


def _row(node: Node, record: Signed[ProviderRecord], now_ms: int) -> dict[str, Any]:
    return {
        "peer_id": peer_id(record.signer),
        "addresses": list(record.body.addresses),
        "connected": record.signer in node.core.connected,
        "known": node.core.registry.get(record.signer) is not None,
        "expires_in_ms": record.body.expires_ms - now_ms,
    }
