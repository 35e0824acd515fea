"""Who may call the API: whoever has the token, and no web page.

A page that the owner visits can make the browser send requests here, also under a name of its own that it
has let resolve to 127.0.0.1 (DNS rebinding). It doesn't know the token, and can't even try one: a request
must name this very address as its host, and one that comes from a page (it has an origin) must come from
here.
"""

from __future__ import annotations

import hmac

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from p2p_node.api.door import no_token
from p2p_node.api.refusals import Refusal

__all__ = ["AccessGuard", "hosts_of"]

_LOCALHOST = "localhost"


def hosts_of(url: str) -> frozenset[str] | None:
    """What a request may name as its host at ``url``; None for a Unix socket, which no page reaches."""
    if not url.startswith("http://"):
        return None
    netloc = url.removeprefix("http://")
    return frozenset({netloc, f"{_LOCALHOST}:{netloc.rpartition(':')[2]}"})


class AccessGuard:
    """Lets nothing through without the token, nor for a web page: not even whether a route exists."""

    def __init__(self, app: ASGIApp, token: str, hosts: frozenset[str] | None) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()
        self._hosts = hosts
        self._origins = frozenset(f"http://{host}" for host in hosts or ())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._refusal(scope["headers"])
        if refusal is None:
            await self._app(scope, receive, send)
            return
        # Its body isn't read, so the connection is of no further use to it.
        headers = {"cache-control": "no-store", "connection": "close"}
        if refusal.status == 401:
            headers["www-authenticate"] = "Bearer"
        response = JSONResponse({"error": refusal.error}, status_code=refusal.status, headers=headers)
        await response(scope, receive, send)

    def _refusal(self, headers: list[tuple[bytes, bytes]]) -> Refusal | None:
        host, origin, given = (
            b",".join(value for name, value in headers if name == wanted)
            for wanted in (b"host", b"origin", b"authorization")
        )
        if self._hosts is not None and host.decode("latin-1").lower() not in self._hosts:
            return Refusal(403, "the header host must be the address that api.json names")
        if origin and origin.decode("latin-1").lower() not in self._origins:
            return Refusal(403, "no web page may call the API")
        if not hmac.compare_digest(given, self._expected):
            return no_token()
        return None
