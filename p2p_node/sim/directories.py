"""Many peers' directories and nothing else of them, in one process, on a clock of its own.

They are the machines that run for real. Messages take a drawn time; there are no links: whoever has an
address can be spoken to. A share of the peers may be silent, or lie: liars answer every question with the
closest of their own kind and with peers that don't exist, keep nothing, and have no records.
"""

from __future__ import annotations

import heapq
import itertools
import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from p2p_node.core.directory import DIRECTORY_KINDS, Directory, Search
from p2p_node.core.outbox import Transmit, message_frame, split_frame
from p2p_node.sim.crypto import SimCrypto, SimKeys
from protocols.effects import Penalise, SetTimer
from protocols.envelope import Signed, open_envelope, seal
from protocols.errors import PeerFault
from protocols.identity import peer_id
from protocols.limits import BUCKET_PEERS
from protocols.messages import Body, Closest, FindClosest, ProviderRecord
from protocols.places import place_of

__all__ = ["DirectoryPeer", "DirectoryWorld", "Manner"]

Manner: TypeAlias = Literal["honest", "silent", "lying"]
NETWORK = "directories"
START_MS = 1_700_000_000_000
HOUSE_MS = 10_000
_PLACE_BITS = 256


@dataclass(slots=True)
class DirectoryPeer:
    """One peer."""

    keys: SimKeys
    address: str
    manner: Manner
    directory: Directory
    connected: set[bytes] = field(default_factory=set)
    is_up: bool = True
    searched: dict[int, int] = field(default_factory=dict)
    """When each search was over."""
    charged: list[Penalise] = field(default_factory=list)

    @property
    def key(self) -> bytes:
        """Its public key."""
        return self.keys.public

    def sign(self, body: Body) -> Signed[Any]:
        """Seal a body with its key."""
        return seal(body, network=NETWORK, key=self.keys)

    def place_record(self, now_ms: int) -> Signed[ProviderRecord]:
        """Where it is."""
        return self.directory.own_records.record(place_of(self.key), now_ms)


class DirectoryWorld:
    """See above."""

    def __init__(self, seed: int, *, delay_ms: tuple[int, int] = (10, 150)) -> None:
        """An empty world.

        Args:
            seed: of everything that is drawn.
            delay_ms: least and most of what a message takes.
        """
        self.now_ms = START_MS
        self.messages = 0
        self.bytes = 0
        self.peers: list[DirectoryPeer] = []
        self.by_key: dict[bytes, DirectoryPeer] = {}
        self._dice = random.Random(seed)  # noqa: S311
        self._seed, self._delay_ms = seed, delay_ms
        self._crypto = SimCrypto()
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._liars: list[tuple[int, bytes]] = []
        """Place and record of each liar's place, in order: they know each other."""

    # --- Peers -----------------------------------------------------------------------------------

    def add(self, manner: Manner = "honest", *, address: str = "", neighbours: int = 0) -> DirectoryPeer:
        """A peer more, that meets some drawn ones and has the rest to find."""
        number = len(self.peers)
        keys = SimKeys(f"{self._seed}/{number}".encode())
        connected: set[bytes] = set()
        directory = Directory(
            own=keys.public,
            network=NETWORK,
            crypto=self._crypto,
            sign=lambda body: seal(body, network=NETWORK, key=keys),
            connected=connected,
            jitter=random.Random(f"{self._seed}/{number}"),  # noqa: S311
        )
        directory.is_on = True
        where = address or f"/ip4/{20 + number % 180}.{number >> 8}.{number & 255}.1/tcp/4001"
        peer = DirectoryPeer(keys, f"{where}/p2p/{peer_id(keys.public)}", manner, directory, connected)
        directory.provide([], (peer.address,), self.now_ms)
        self.peers.append(peer)
        self.by_key[peer.key] = peer
        if manner == "lying":
            record = peer.place_record(self.now_ms)
            self._liars.append((int.from_bytes(record.body.key, "big"), record.raw))
            self._liars.sort()
        if manner == "honest":
            self.after(self._dice.randrange(HOUSE_MS), lambda: self._keep_house(peer))
        there = [other for other in self.peers[:-1] if other.is_up]
        for other in self._dice.sample(there, min(neighbours, len(there))):
            connected.add(other.key)
            self.perform(peer, directory.peer_connected(other.key, self.now_ms))
        return peer

    def furnish(self) -> None:
        """Give every peer the table of one that has been there long: drawn peers in each bucket."""
        ordered = sorted((int.from_bytes(place_of(peer.key), "big"), peer) for peer in self.peers)
        places = [place for place, _ in ordered]
        for place, peer in ordered:
            peer.directory.settle(self.now_ms)
            for bit in range(_PLACE_BITS - 1, -1, -1):
                low = ((place ^ (1 << bit)) >> bit) << bit
                begin, end = bisect_left(places, low), bisect_left(places, low + (1 << bit))
                for number in self._dice.sample(range(begin, end), min(BUCKET_PEERS, end - begin)):
                    other = ordered[number][1]
                    peer.directory.table.hear(other.place_record(self.now_ms))
                    peer.directory.table.answered(other.key, self.now_ms)
                if begin == end and bisect_left(places, (place >> bit) << bit) + 1 == end:
                    break

    def provide(self, peer: DirectoryPeer, *keys: bytes) -> None:
        """Have a peer be found under these keys from now on."""
        peer.directory.provide(keys, (peer.address,), self.now_ms)

    def search(self, peer: DirectoryPeer, key: bytes, /, **how: Any) -> Search:
        """Have a peer look for providers of a key."""
        search, acts = peer.directory.search(key, self.now_ms, **how)
        self.perform(peer, acts)
        return search

    # --- Time ------------------------------------------------------------------------------------

    def after(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self._heap, (self.now_ms + delay_ms, next(self._order), action))

    def run(self, ms: int, *, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass, until something holds if it does before."""
        end_ms = self.now_ms + ms
        while self._heap and self._heap[0][0] <= end_ms and not until():
            self.now_ms, _, action = heapq.heappop(self._heap)
            action()
        if not until():
            self.now_ms = end_ms

    def _keep_house(self, peer: DirectoryPeer) -> None:
        if peer.is_up:
            self.perform(peer, peer.directory.keep_house(self.now_ms))
            self.after(HOUSE_MS, lambda: self._keep_house(peer))

    # --- Messages --------------------------------------------------------------------------------

    def perform(self, peer: DirectoryPeer, acts: Sequence[Any]) -> None:
        """Do what a directory asks for."""
        for act in acts:
            match act:
                case Transmit(receiver, frame):
                    self._carry(peer, receiver, frame)
                case SetTimer(key, at_ms):
                    self.after(at_ms - self.now_ms, lambda key=key: self._fire(peer, key))  # type: ignore[misc]
                case Penalise():
                    peer.charged.append(act)

    def _fire(self, peer: DirectoryPeer, key: tuple[Any, ...]) -> None:
        if peer.is_up:
            self.perform(peer, peer.directory.timer_fired(key, self.now_ms))

    def _carry(self, sender: DirectoryPeer, receiver: bytes, frame: bytes) -> None:
        self.messages += 1
        self.bytes += len(frame)
        there = self.by_key.get(receiver)
        knows = receiver in sender.connected or bool(sender.directory.addresses_of(receiver))
        # Whoever was asked can answer on the way by which the question came.
        if there is not None and (knows or there.manner == "honest"):
            self.after(self._dice.randint(*self._delay_ms), lambda: self.deliver(sender, there, frame))

    def deliver(self, sender: DirectoryPeer, receiver: DirectoryPeer, frame: bytes) -> None:
        """Hand a frame to its receiver."""
        if not receiver.is_up or receiver.manner == "silent":
            return
        _, raw = split_frame(frame)
        try:
            message: Signed[Any] = open_envelope(raw, network=NETWORK, crypto=self._crypto)
            if not isinstance(message.body, DIRECTORY_KINDS):
                raise AssertionError("a directory says nothing else")
            if receiver.manner == "lying":
                acts = self._lie(receiver, sender, message)
            else:
                acts = receiver.directory.hear(sender.key, message, self.now_ms)
        except PeerFault as fault:
            acts = [Penalise(sender.key, fault.points, str(fault))]
        self.perform(receiver, acts)

    def _lie(self, liar: DirectoryPeer, asker: DirectoryPeer, message: Signed[Any]) -> list[Any]:
        if not isinstance(message.body, FindClosest):
            return []
        goal = int.from_bytes(message.body.key, "big")
        close = [record for _, record in sorted(self._liars, key=lambda one: one[0] ^ goal)]
        invented = [self._invented() for _ in range(BUCKET_PEERS // 2)]
        peers = tuple(close[: BUCKET_PEERS // 2] + invented)
        answer = Closest(message.id, liar.place_record(self.now_ms).raw, peers, ())
        return [Transmit(asker.key, message_frame(liar.sign(answer).raw))]

    def _invented(self) -> bytes:
        keys = SimKeys(self._dice.randbytes(16))
        host = ".".join(str(self._dice.randrange(20, 200)) for _ in range(4))
        where = (f"/ip4/{host}/tcp/4001/p2p/{peer_id(keys.public)}",)
        body = ProviderRecord(place_of(keys.public), self.now_ms, self.now_ms + 3_600_000, where)
        return seal(body, network=NETWORK, key=keys).raw
