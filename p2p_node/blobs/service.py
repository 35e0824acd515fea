"""The blobs of a running node: kept in its store, given to peers, and fetched from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio
from nacl.public import PrivateKey

from p2p_node.blobs.errors import BlobError, BlobSealed, BlobUnavailable
from p2p_node.blobs.fetching import Fetch, Progress
from p2p_node.blobs.partial import PartialBlob
from p2p_node.blobs.serving import BlobServer, Offload
from p2p_node.blobs.store import BlobStore
from p2p_node.blobs.talk import PROTOCOL
from p2p_node.network.port import BulkStream, Network, NetworkError, StreamBroken
from protocols.blobs import Blob, check_blob
from protocols.identity import short_id
from protocols.limits import BLOB_FETCHES_MAX

if TYPE_CHECKING:
    # libp2p brings stubs that hide trio's own types, and these that go with them.
    from trio_typing import TaskStatus

__all__ = ["BlobService"]

log = structlog.get_logger(__name__)

DIAL_S = 10.0
TIDY_S = 3_600.0


class BlobService:
    """See above.

    Args:
        store: where blobs are kept.
        serve_bytes_per_s: what peers may draw from us, all together.
        serve_peer_bytes_per_s: and each of them.
        addresses_of: where a peer that isn't connected may be reached.
        may_have: whether a peer has a right to a private blob; nobody has unless given.
        key: opens what peers sealed to us; None opens nothing.
        offload: for what blocks.
    """

    def __init__(
        self,
        store: BlobStore,
        *,
        serve_bytes_per_s: int,
        serve_peer_bytes_per_s: int,
        addresses_of: Callable[[bytes], Sequence[str]] = lambda peer: (),
        may_have: Callable[[bytes, Blob], bool] = lambda peer, blob: False,
        key: PrivateKey | None = None,
        offload: Offload = trio.to_thread.run_sync,
    ) -> None:
        self.store = store
        self._addresses_of, self._offload = addresses_of, offload
        self._key = key
        self._server = BlobServer(
            store,
            partial_of=self._partial_of,
            bytes_per_s=serve_bytes_per_s,
            peer_bytes_per_s=serve_peer_bytes_per_s,
            may_have=may_have,
            offload=offload,
        )
        self._network: Network | None = None
        self._nursery: trio.Nursery | None = None
        self._started = trio.Event()
        self._fetches: dict[Blob, Fetch] = {}
        self._places = trio.Semaphore(BLOB_FETCHES_MAX)

    @property
    def bytes_served(self) -> int:
        """Given to peers since the start."""
        return self._server.bytes_served

    async def run(
        self, network: Network, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve and fetch over a network until cancelled."""
        self._network = network
        network.serve_bulk(PROTOCOL, self._server.serve)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._started.set()
            task_status.started()
            while True:
                await trio.sleep(TIDY_S)
                await self._offload(self.store.tidy)

    async def fetch(
        self,
        blob: Blob,
        sources: Sequence[bytes],
        *,
        on_progress: Progress = lambda here, total: None,
    ) -> Path:
        """A blob's file, fetched unless it is here. Pin the blob first: from then on it stays.

        Fetches of one blob are one, with all their sources. Whoever loses patience cancels; what has come
        is kept and the next fetch goes on from there.

        Args:
            blob: what to fetch.
            sources: keys of peers that may have it, the likeliest first.
            on_progress: told bytes here and bytes in all, at the start and after each piece.

        Raises:
            Malformed: no blob can have this name.
            BlobUnavailable: no source had it, or none could be relied on.
            StoreFull: no room.
        """
        check_blob(blob)
        await self._started.wait()
        while True:
            if await self._offload(self.store.has, blob):
                on_progress(blob.size_bytes, blob.size_bytes)
                return self.store.path(blob)
            fetch = self._fetches.get(blob)
            if fetch is None:
                fetch = self._begin(blob)
            if not fetch.scope.cancel_called:
                break
            await fetch.ended.wait()
        local_key = self._network.local_key if self._network is not None else b""
        fetch.add_sources(source for source in sources if source != local_key)
        fetch.listeners.append(on_progress)
        fetch.waiting += 1
        try:
            await fetch.ended.wait()
        finally:
            fetch.waiting -= 1
            fetch.listeners.remove(on_progress)
            if not fetch.waiting:
                fetch.scope.cancel()
        if fetch.failure is not None:
            raise type(fetch.failure)(str(fetch.failure))
        return self.store.path(blob)

    def _begin(self, blob: Blob) -> Fetch:
        assert self._nursery is not None  # noqa: S101  we have started
        fetch = Fetch(
            blob,
            open_stream=self._open_stream,
            penalise=self._penalise,
            offload=self._offload,
            is_reader=self._key is not None,
        )
        self._fetches[blob] = fetch
        self._nursery.start_soon(self._run_fetch, fetch)
        return fetch

    async def _run_fetch(self, fetch: Fetch) -> None:
        began = trio.current_time()
        try:
            with fetch.scope:
                async with self._places:
                    sealed = await self._fetch_into_store(fetch)
                # Outside: what is sealed takes a place of its own.
                if sealed is not None:
                    await self._fetch_sealed(fetch, sealed)
                log.info(
                    "blob fetched",
                    blob=fetch.blob.digest.hex()[:16],
                    bytes=fetch.blob.size_bytes,
                    took_ms=round(1_000 * (trio.current_time() - began)),
                )
        except BlobError as error:
            fetch.failure = error
        except Exception:
            # A bug of ours must not become a way to stop us from afar.
            log.exception("a fetch met a bug", blob=fetch.blob.digest.hex()[:16])
            fetch.failure = BlobUnavailable("the node met a bug; its log says which")
        finally:
            del self._fetches[fetch.blob]
            fetch.ended.set()

    async def _fetch_into_store(self, fetch: Fetch) -> BlobSealed | None:
        """Fetch a blob; returns where it is instead if it comes sealed."""
        partial = await self._offload(self.store.begin, fetch.blob)
        try:
            await fetch.run(partial)
            await self._offload(self.store.complete, partial)
        except BlobSealed as sealed:
            self.store.drop(partial)
            return sealed
        finally:
            # Does nothing to a blob that is complete.
            self.store.pause(partial)
        return None

    async def _fetch_sealed(self, fetch: Fetch, found: BlobSealed) -> None:
        assert self._key is not None  # noqa: S101  else nothing is taken sealed
        blob, owner = fetch.blob, f"unsealing:{fetch.blob.digest.hex()}"

        def on_progress(here: int, total: int) -> None:
            for listener in list(fetch.listeners):
                listener(min(here, blob.size_bytes), blob.size_bytes)

        self.store.pin(found.sealed, owner)
        try:
            await self.fetch(found.sealed, [found.source], on_progress=on_progress)
            await self._offload(self.store.unseal, blob, found.sealed, self._key)
        finally:
            self.store.unpin(owner)
        fetch.failure = None

    def _partial_of(self, blob: Blob) -> PartialBlob | None:
        fetch = self._fetches.get(blob)
        return fetch.partial if fetch is not None else None

    # --- The network -----------------------------------------------------------------------------

    async def _open_stream(self, peer: bytes) -> BulkStream:
        network = self._network
        assert network is not None  # noqa: S101  we have started
        if not any(status.key == peer for status in network.peers()):
            await self._connect(network, peer)
        return await network.open_bulk(peer, PROTOCOL)

    async def _connect(self, network: Network, peer: bytes) -> None:
        for address in self._addresses_of(peer):
            with trio.move_on_after(DIAL_S):
                try:
                    await network.dial(address)
                except NetworkError as error:
                    log.debug("dial failed", peer=short_id(peer), address=address, why=str(error))
                else:
                    return
        raise StreamBroken("isn't connected and can't be reached")

    def _penalise(self, peer: bytes, points: int, reason: str) -> None:
        if self._network is not None:
            self._network.penalise(peer, points, reason)
