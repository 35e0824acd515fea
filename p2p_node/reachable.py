"""Whether this node can be reached, kept up to date: others are asked at the start and now and then.

What they say decides whether the node is reached through relays, if its owner leaves that to it, and where
its advert says that it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

import structlog
import trio

from p2p_node.network.reachability import Found, is_unreachable

__all__ = ["Reachable"]

log = structlog.get_logger(__name__)

FIRST_S = 10.0
"""Until links stand; whoever asks nobody learns nothing."""

AGAIN_S = 900.0
UNKNOWN_AGAIN_S = 60.0
ADDRESSES_MAX = 8
_LOOK_S = 1.0


class Reachable:
    """What is known of how others reach this node."""

    def __init__(self, relays: Literal["auto", "always", "never"], *, listens: bool) -> None:
        self._relays, self._listens = relays, listens
        self.found: list[Found] = []
        """Of the last time somebody was asked."""

    def wants_relays(self) -> bool:
        """Whether to be reached through relays now."""
        if self._relays == "auto":
            return not self._listens or is_unreachable(self.found)
        return self._relays == "always"

    async def watch(self, ask: Callable[[], Awaitable[list[Found]]]) -> None:
        """Ask now and then, for ever."""
        await trio.sleep(FIRST_S)
        while self._listens:
            found = await ask()
            known = any(entry.state != "unknown" for entry in found)
            if known or not self.found:
                self._tell(found)
                self.found = found
            await trio.sleep(AGAIN_S if known else UNKNOWN_AGAIN_S)

    def _tell(self, found: list[Found]) -> None:
        if is_unreachable(found) and not is_unreachable(self.found):
            for entry in found:
                if entry.state == "not reachable":
                    log.warning(
                        "others can't reach us", address=entry.address, why=entry.reason, help=entry.remedy
                    )
        elif is_unreachable(self.found) and not is_unreachable(found):
            log.info("others reach us again")

    async def follow(
        self, addresses: Callable[[], list[str]], moved: Callable[[tuple[str, ...]], None]
    ) -> None:
        """Tell whenever the addresses change, for ever."""
        while True:
            moved(tuple(addresses()[:ADDRESSES_MAX]))
            await trio.sleep(_LOOK_S)
