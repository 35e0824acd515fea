"""A running node: its parts, as the API sees them, and what it hears of itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog

from p2p_node.accesslists import AccessLists
from p2p_node.activity import Activity
from p2p_node.blobs import BlobService
from p2p_node.catalogue import Catalogue
from p2p_node.config import NodeConfig
from p2p_node.core.node import NodeCore
from p2p_node.datadir import DataDir
from p2p_node.executor import ModelPlace, WorkerExecutor
from p2p_node.finding import Finder
from p2p_node.jobs import JobBook
from p2p_node.modelshares import ModelShares
from p2p_node.network.port import Network
from p2p_node.network.reachability import Found
from p2p_node.pausing import Pausing
from p2p_node.runtime import Runtime
from p2p_node.store import Store
from protocols.blobs import Blob
from protocols.effects import Notify
from protocols.identity import short_id

__all__ = ["Node", "NodeNotes"]

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Node:
    """A running node, as its API sees it."""

    config: NodeConfig
    place: DataDir
    core: NodeCore
    runtime: Runtime
    network: Network
    store: Store
    book: JobBook
    executor: WorkerExecutor
    models: dict[str, ModelPlace]
    measured: dict[str, Any]
    started_ms: int
    earned: dict[bytes, int]
    """Micro-units settled to us, by award."""
    activity: Activity
    stop: Callable[[], None]
    """Begins a graceful end, as SIGTERM does."""
    pausing: Pausing
    """What the owner has taken back."""
    blobs: BlobService | None = None
    """None for a node that keeps none."""
    catalogue: Catalogue | None = None
    """None for a node whose models are settled, as in tests."""
    reachability: Callable[[], Awaitable[list[Found]]] | None = None
    """Asks peers to dial back; None where the network can't, as in tests."""
    finder: Finder | None = None
    """Asks the directory; None where the node takes no part in it."""
    shares: ModelShares | None = None
    """Models that it gives away."""
    lists: AccessLists | None = None
    """Whom to have to do with; None where the network keeps no lists, as in tests."""


class NodeNotes:
    """Logs what happens to the node, and passes what happens to jobs on to the book."""

    def __init__(self) -> None:
        self.book: JobBook | None = None
        self.may_have: Callable[[bytes, Blob], bool] = lambda peer, blob: False
        """Whether a peer has a right to a private blob; nobody has before jobs are known."""
        self.finder: Finder | None = None
        self.earned: dict[bytes, int] = {}
        self.activity = Activity()

    def worker_died(self, why: str) -> None:
        """Log and count a death; the pool starts another worker."""
        log.warning("worker died", why=why)
        self.activity.worker_deaths += 1

    def __call__(self, note: Notify, now_ms: int) -> None:
        """Take one note of the core's."""
        if note.subject:
            if self.book is not None:
                self.book.on_notify(note, now_ms)
            return
        if note.event == "searched":
            if self.finder is not None:
                self.finder.heard(note)
            return
        self.activity.hear(note)
        if note.event == "earned":
            self.earned[note.details["award"]] = note.details["settled_micros"]
        shown = {
            name: short_id(value)
            if name in ("peer", "requester", "accused", "accuser")
            else value.hex()[:16]
            if isinstance(value, bytes)
            else value
            for name, value in note.details.items()
        }
        log.info(note.event, **shown)
