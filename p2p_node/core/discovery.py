"""What a node makes of the directory: under what it is found, and who is found for jobs nobody near takes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from p2p_node.core.directory import DIRECTORY_KINDS, Directory, DirectoryAct, Search
from p2p_node.core.outbox import Transmit, message_frame
from p2p_node.core.request import JobState
from protocols.envelope import Signed
from protocols.messages import Advert, Offer, SharedModel, SyncSummary, SyncWant
from protocols.places import ability_key, blob_key, model_key, model_name_key, place_of, workload_key

if TYPE_CHECKING:
    import random

    from p2p_node.core.node import Capability, NodeCore

__all__ = ["PASSING", "Discovery"]

ABLE_ENOUGH = 3
"""With fewer peers known that could do a job, more are looked for."""

SEEK_AGAIN_MS = 30_000
COMPANY_AGAIN_MS = 10 * 60_000
"""For a room of ours, which may well have nobody else."""

SOUGHT_MAX = 256
OFFERED_MAX = 8
"""Peers found for one job that are linked to and offered it."""

PASSING = (SyncSummary, SyncWant, Advert, *DIRECTORY_KINDS)
"""What every link brings with it, whatever it is there for."""


class Discovery:
    """See above. Does nothing until the directory is on."""

    def __init__(self, node: NodeCore, jitter: random.Random) -> None:
        """Of a node whose key, jobs and links are there already."""
        self.directory = Directory(
            own=node.key,
            network=node.network,
            crypto=node.crypto,
            sign=node.sign,
            connected=node.connected,
            jitter=jitter,
        )
        self.blobs: Sequence[bytes] = ()
        """Digests of blobs that the owner has others find here."""
        self._node = node
        self._sought_ms: OrderedDict[tuple[str, bytes], int] = OrderedDict()
        self._for_jobs: list[tuple[Search, str, bytes]] = []

    def find_providers(
        self, workload: str, model: bytes, now_ms: int, *, wanted: int = 20
    ) -> tuple[Search, list[DirectoryAct]]:
        """Look for peers that run a model; see `Directory.search`."""
        return self.directory.search(ability_key(workload, model), now_ms, wanted=wanted)

    def used(self, peer: bytes, message: Signed[Any]) -> None:
        """A message beyond those that every link brings went over the link with a peer."""
        if not isinstance(message.body, PASSING):
            self.directory.used(peer)

    # --- Events ----------------------------------------------------------------------------------

    def peer_connected(self, peer: bytes, now_ms: int) -> list[DirectoryAct]:
        """See `Directory.peer_connected`."""
        return self._and_jobs(self.directory.peer_connected(peer, now_ms), now_ms)

    def hear(self, peer: bytes, message: Signed[Any], now_ms: int) -> list[DirectoryAct]:
        """See `Directory.hear`."""
        return self._and_jobs(self.directory.hear(peer, message, now_ms), now_ms)

    def timer_fired(self, key: tuple[Any, ...], now_ms: int) -> list[DirectoryAct]:
        """See `Directory.timer_fired`."""
        return self._and_jobs(self.directory.timer_fired(key, now_ms), now_ms)

    def keep_house(self, now_ms: int) -> list[DirectoryAct]:
        """See `Directory.keep_house`."""
        if not self.directory.is_on:
            return []
        capability = self._node.capability
        self.directory.provide(self._keys(capability), capability.addresses, now_ms)
        return [*self._and_jobs(self.directory.keep_house(now_ms), now_ms), *self.seek(now_ms)]

    def _keys(self, capability: Capability) -> list[bytes]:
        offerings = [ability.offering for ability in capability.abilities]
        keys = [place_of(self._node.key)]
        keys += [workload_key(name) for name in sorted({offering.workload for offering in offerings})]
        keys += [ability_key(offering.workload, offering.model) for offering in offerings]
        for model in capability.models:
            keys += _keys_of_model(model)
        return [*keys, *map(blob_key, self.blobs)]

    # --- Jobs that nobody near takes -------------------------------------------------------------

    def seek(self, now_ms: int) -> list[DirectoryAct]:
        """Look for peers that could do our open jobs, and for company in our rooms, where few are known."""
        acts: list[DirectoryAct] = []
        if not self.directory.is_on:
            return acts
        node = self._node
        open_jobs = [job.request for job in node.jobs.values() if job.state is JobState.BIDDING]
        pauses_ms = {(room.workload, room.model): COMPANY_AGAIN_MS for room in node.rooms.joined.values()}
        pauses_ms |= {(request.workload, request.model): SEEK_AGAIN_MS for request in open_jobs}
        for wanted, pause_ms in pauses_ms.items():
            if now_ms - self._sought_ms.get(wanted, -pause_ms) < pause_ms:
                continue
            if node.registry.able_count(*wanted) >= ABLE_ENOUGH:
                continue
            self._sought_ms[wanted] = now_ms
            self._sought_ms.move_to_end(wanted)
            if len(self._sought_ms) > SOUGHT_MAX:
                self._sought_ms.popitem(last=False)
            search, begun = self.find_providers(*wanted, now_ms)
            self._for_jobs.append((search, *wanted))
            acts += begun
        return self._and_jobs(acts, now_ms)

    def _and_jobs(self, acts: list[DirectoryAct], now_ms: int) -> list[DirectoryAct]:
        """Offer jobs to those that were found for them; they answer as if they had heard by gossip.

        Where jobs have rooms, they are also asked who is in those.
        """
        for entry in [entry for entry in self._for_jobs if entry[0].is_over]:
            self._for_jobs.remove(entry)
            search, workload, model = entry
            found = [record.signer for record in search.found if record.signer != self._node.key]
            acts = [*acts, *self._node.named(workload, model, found, now_ms)]
            for offer in self._open_offers(workload, model):
                acts = acts + [Transmit(peer, message_frame(offer.raw)) for peer in found[:OFFERED_MAX]]
        return acts

    def _open_offers(self, workload: str, model: bytes) -> list[Signed[Offer]]:
        wanted = (workload, model)
        jobs = [job for job in self._node.jobs.values() if job.state is JobState.BIDDING]
        return [job.offers[-1] for job in jobs if (job.request.workload, job.request.model) == wanted]


def _keys_of_model(model: SharedModel) -> list[bytes]:
    return [model_name_key(model.name), model_key(model.model), blob_key(model.manifest)]
