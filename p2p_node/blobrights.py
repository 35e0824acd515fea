"""Who may have a private blob of ours: the parties of the jobs that hold on to it, while they go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from p2p_node.blobs import BlobStore
from protocols.blobs import Blob

__all__ = ["JOB_OWNER", "BlobRights", "job_owner"]

JOB_OWNER = "job:"
"""How the names begin under which our jobs hold on to blobs."""


def job_owner(job_id: bytes) -> str:
    """Under which name a job of ours holds on to what it names and leaves."""
    return JOB_OWNER + job_id.hex()


class BlobRights:
    """See the module. Peers are known by the keys that their connections proved.

    Args:
        store: knows who holds on to what.
        parties: of a job, by its id: who executes or verifies it now.
        jobs_of: the protocol's jobs that a job consists of, if it was split.
    """

    def __init__(
        self,
        store: BlobStore,
        *,
        parties: Callable[[bytes], frozenset[bytes]],
        jobs_of: Callable[[bytes], Iterable[bytes]],
    ) -> None:
        self._store = store
        self._parties = parties
        self._jobs_of = jobs_of

    def may_have(self, peer: bytes, blob: Blob) -> bool:
        """Whether a peer has a right to a blob."""
        holders = (owner for owner in self._store.owners(blob) if owner.startswith(JOB_OWNER))
        held_by = (bytes.fromhex(owner.removeprefix(JOB_OWNER)) for owner in holders)
        return any(peer in self._parties(job) for held in held_by for job in self._jobs_of(held))
