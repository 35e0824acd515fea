"""A simulated peer's store, read as a node that starts reads its own."""

from __future__ import annotations

from p2p_node.core.node import Act, NodeCore
from p2p_node.records import recover
from protocols.digest import DIGEST_BYTES

__all__ = ["SimStore", "restarted"]


class SimStore:
    """What a peer wrote down, by table and key."""

    def __init__(self, rows: dict[tuple[str, bytes], bytes]) -> None:
        self._tables: dict[str, dict[bytes, bytes]] = {}
        for (table, key), value in rows.items():
            self._tables.setdefault(table, {})[key] = value

    def load(self, table: str) -> dict[bytes, bytes]:
        """All of a table."""
        return self._tables.get(table, {})

    def keys(self, table: str) -> list[bytes]:
        """Its keys."""
        return list(self.load(table))

    def get(self, table: str, key: bytes) -> bytes | None:
        """One row."""
        return self.load(table).get(key)

    def under(self, table: str, prefix: bytes) -> dict[bytes, bytes]:
        """Rows whose keys begin with ``prefix``."""
        return {key: value for key, value in self.load(table).items() if key.startswith(prefix)}


def restarted(
    core: NodeCore, rows: dict[tuple[str, bytes], bytes], now_ms: int
) -> tuple[list[Act], list[bytes]]:
    """Give a new core its store, and end the jobs that were open when its peer crashed.

    Returns:
        Acts, and the ids of the jobs that are ended by them.
    """
    store = SimStore(rows)
    acts = recover(store, core, now_ms)
    ended = []
    for job_id in [key for key in store.keys("drafts") if len(key) == DIGEST_BYTES]:
        closed, more = core.close_job(
            job_id, store.under("drafts", job_id), store.under("frauds", job_id), now_ms
        )
        acts += more
        if closed is not None:
            ended.append(job_id)
    return acts, ended
