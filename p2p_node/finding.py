"""Asks the directory on behalf of a node's owner, and waits for what it finds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import structlog
import trio

from p2p_node.blobs import BlobStore
from p2p_node.network.port import Network, NetworkError
from p2p_node.runtime import Runtime
from protocols.effects import Notify
from protocols.envelope import Signed
from protocols.identity import short_id
from protocols.messages import ProviderRecord
from protocols.places import blob_key, place_of

__all__ = ["KEEPER", "Finder"]

log = structlog.get_logger(__name__)

KEEPER = "user"
"""Under which the owner of the node holds on to blobs."""

TELL_S = 30.0
PATIENCE_S = 15.0
DIAL_S = 10.0
MET_MAX = 8
"""Providers that are dialled to hear what they say of themselves."""

ADVERT_S = 8.0
"""How long their adverts may take."""


class Finder:
    """See above."""

    def __init__(self, runtime: Runtime, network: Network) -> None:
        """Of a running node."""
        self._runtime, self._network = runtime, network
        self._over: dict[int, trio.Event] = {}

    def heard(self, note: Notify) -> None:
        """A search is over."""
        event = self._over.get(note.details["search"])
        if event is not None:
            event.set()

    async def find(
        self, key: bytes, *, wanted: int = 20, peer: bytes | None = None
    ) -> list[Signed[ProviderRecord]]:
        """Providers of a key, within 15 s; what was found by then if it takes longer.

        Args:
            key: see `protocols.places`.
            wanted: how many are enough.
            peer: whose place the key is, to find out where that peer is.
        """
        runtime = self._runtime
        directory = runtime.core.discovery.directory
        search, acts = directory.search(key, runtime.clock(), wanted=wanted, peer=peer)
        self._over[search.number] = trio.Event()
        try:
            runtime.perform(acts)
            if not search.is_over:
                with trio.move_on_after(PATIENCE_S):
                    await self._over[search.number].wait()
        finally:
            del self._over[search.number]
        return search.found

    async def find_peer(self, peer: bytes) -> list[Signed[ProviderRecord]]:
        """Where a peer says it is."""
        return await self.find(place_of(peer), wanted=1, peer=peer)

    async def find_blob(self, digest: bytes) -> list[bytes]:
        """Keys of peers that give a blob away."""
        return [record.signer for record in await self.find(blob_key(digest))]

    async def tell_of_blobs(self, store: BlobStore) -> None:
        """Have others find the blobs that the owner keeps here, for ever."""
        while True:
            stored = [one for one in store.stored() if KEEPER in one.pins and not one.is_private]
            self._runtime.core.discovery.blobs = [one.blob.digest for one in stored]
            await trio.sleep(TELL_S)

    async def meet(self, records: Iterable[Signed[ProviderRecord]]) -> None:
        """Connect to some of the providers that we don't know, until their adverts are here."""
        registry, own = self._runtime.core.registry, self._runtime.core.key
        strangers = [r for r in records if registry.get(r.signer) is None and r.signer != own][:MET_MAX]
        if not strangers:
            return
        with trio.move_on_after(ADVERT_S):
            async with trio.open_nursery() as nursery:
                for record in strangers:
                    nursery.start_soon(self._dial, record.signer, record.body.addresses)
            # Nothing tells of an advert that has come.
            while any(self._is_linked(r.signer) and registry.get(r.signer) is None for r in strangers):  # noqa: ASYNC110
                await trio.sleep(0.05)

    def _is_linked(self, peer: bytes) -> bool:
        return any(status.key == peer for status in self._network.peers())

    async def _dial(self, peer: bytes, addresses: Sequence[str]) -> None:
        for address in addresses:
            with trio.move_on_after(DIAL_S):
                try:
                    await self._network.dial(address)
                except NetworkError as error:
                    log.debug("dial failed", peer=short_id(peer), address=address, why=str(error))
                else:
                    return
