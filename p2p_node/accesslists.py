"""The lists of whom to have to do with, read again while the node runs.

They are in `config.toml` alone, and no flag overrides them. If what is read breaks a rule, what was before
stays in force: a slip of the pen must neither let everybody in nor shut everybody out.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio

from p2p_node.config import ConfigError, load_config
from p2p_node.network.access import PeerAccess

if TYPE_CHECKING:
    # libp2p brings stubs that hide trio's own types, and these that go with them.
    from trio_typing import TaskStatus

__all__ = ["AccessLists"]

log = structlog.get_logger(__name__)


class AccessLists:
    """Reads the lists and hands them to the network.

    Args:
        path: the configuration.
        admit: takes new lists, cuts off whom they keep out, and says how many those were.
    """

    def __init__(self, path: Path, admit: Callable[[PeerAccess], int]) -> None:
        self._path, self._admit = path, admit

    def reload(self) -> dict[str, int]:
        """Read the lists and put them in force; how long each is, and how many peers were cut off.

        Raises:
            ConfigError: the file breaks a rule; nothing has changed.
        """
        access = load_config(self._path, {}).access
        found = {
            "allow_peers": len(access.allowed_peers),
            "deny_peers": len(access.denied_peers),
            "allow_addresses": len(access.allowed_ranges),
            "deny_addresses": len(access.denied_ranges),
            "cut_off": self._admit(access),
        }
        log.info("lists read again", **found)
        return found

    async def reload_on_hangup(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read them at each SIGHUP, until cancelled; a fault in the file is logged."""
        with trio.open_signal_receiver(signal.SIGHUP) as hangups:
            task_status.started()
            async for _ in hangups:
                try:
                    self.reload()
                except ConfigError as error:
                    log.error("lists not read again", why=str(error))
