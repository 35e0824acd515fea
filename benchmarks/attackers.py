"""Attackers, for `benchmarks.floods`: each kind runs in a process of its own until it is told to stop.

Some are bare sockets. The others are strangers with keys of their own that connect as peers do, through our
own network module, and then misbehave; when they are cut off they come again, with new keys. They come from
many addresses, as strangers would: loopback has sixteen million.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import trio

from p2p_node.core.keyring import Keyring
from p2p_node.core.outbox import message_frame
from p2p_node.logs import configure_logging
from p2p_node.network.access import PeerAccess
from p2p_node.network.libp2p import open_network
from p2p_node.network.port import Network, NetworkError
from p2p_node.runtime import topic_name, topic_names
from protocols.auction import bid_seal
from protocols.blobs import Ask, Blob, Want, blob_message
from protocols.envelope import open_envelope, seal
from protocols.errors import PeerFault
from protocols.identity import peer_key
from protocols.limits import FRAME_BYTES_MAX, GOSSIP_BYTES_MAX, STREAMS_PER_CONNECTION_MAX
from protocols.messages import (
    Acceptance,
    Advert,
    Award,
    Bid,
    BidSeal,
    Commitment,
    CommitmentNotice,
    Member,
    Offer,
    Offering,
)
from protocols.rulings import Ruling
from verification.electorate import Electorate

__all__ = ["KINDS", "Scene", "mount"]

IDENTITIES = 12
CONNECT_S = 2.0
HELD_MAX = 200
SOCKETS = 4
AGAIN_S = 0.2


@dataclass(frozen=True, slots=True)
class Scene:
    """What an attacker knows of its victim."""

    address: str
    """Multiaddr with the peer's id."""
    api: tuple[str, int]
    network: str
    blob: tuple[bytes, int]
    """Digest and bytes of a blob that the victim has."""
    offering: tuple[str, bytes]
    """Workload and model of the jobs that it gives away."""
    seed: int = 0
    struck: Any = field(default=None)
    """Counts strikes."""

    @property
    def place(self) -> tuple[str, int]:
        """Host and port."""
        parts = self.address.split("/")
        return parts[2], int(parts[4])

    def strike(self, count: int = 1) -> None:
        """Count."""
        self.struck.value += count


def mount(kind: str, scene: Scene, struck: Synchronized[int]) -> None:
    """Attack until the process is ended."""
    os.environ["OMP_NUM_THREADS"] = "1"
    scene = Scene(
        scene.address, scene.api, scene.network, scene.blob, scene.offering, scene.seed, struck=struck
    )
    configure_logging("console", level=logging.CRITICAL)
    luck = random.Random(scene.seed)
    plain = trio.open_tcp_stream

    async def from_elsewhere(host: Any, port: int, **named: Any) -> trio.SocketStream:
        return await plain(host, port, **(named | {"local_address": _elsewhere(luck)}))

    trio.open_tcp_stream = from_elsewhere
    trio.run(KINDS[kind], scene, luck)


def _elsewhere(luck: random.Random) -> str:
    return f"127.{luck.randint(1, 3)}.{luck.randint(0, 3)}.{luck.randint(1, 250)}"


# --- Bare sockets ---------------------------------------------------------------------------------------


async def _sockets(scene: Scene, luck: random.Random, once: Callable[[Scene, random.Random], None]) -> None:
    def loop(number: int) -> None:
        chance = random.Random(scene.seed * 100 + number)
        while True:
            with suppress(OSError):
                once(scene, chance)
                scene.strike()

    async with trio.open_nursery() as nursery:
        for number in range(SOCKETS):
            nursery.start_soon(trio.to_thread.run_sync, loop, number)


def _connect(scene: Scene, luck: random.Random) -> socket.socket:
    return socket.create_connection(scene.place, timeout=CONNECT_S, source_address=(_elsewhere(luck), 0))


def _connection(scene: Scene, luck: random.Random) -> None:
    _connect(scene, luck).close()


def _junk(scene: Scene, luck: random.Random) -> None:
    with _connect(scene, luck) as connection:
        connection.sendall(b"\x13/multistream/1.0.0\n\x07/noise\n" + luck.randbytes(4_000))


def _long_name(scene: Scene, luck: random.Random) -> None:
    # A protocol's name of 25 MB.
    with _connect(scene, luck) as connection:
        connection.sendall(b"\x13/multistream/1.0.0\n\xc0\xf0\xf5\x0b" + bytes(64 * 1024))


def _api(scene: Scene, luck: random.Random) -> None:
    with socket.create_connection(scene.api, timeout=CONNECT_S) as connection:
        connection.sendall(b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999\r\n\r\n")
        connection.sendall(luck.randbytes(50_000))


_held: list[socket.socket] = []


def _silent(scene: Scene, luck: random.Random) -> None:
    _held.append(_connect(scene, luck))
    if len(_held) > HELD_MAX:
        _held.pop(0).close()


# --- Peers ----------------------------------------------------------------------------------------------

Misbehave = Callable[["Stranger"], Awaitable[None]]


@dataclass(slots=True)
class Stranger:
    """One connected attacker."""

    scene: Scene
    luck: random.Random
    keys: Keyring
    network: Network
    victim: bytes
    heard: trio.MemoryReceiveChannel[tuple[str, bytes]]
    """Gossip: topic and message."""

    def sign(self, body: Any, keys: Keyring | None = None) -> bytes:
        """A signed message's bytes."""
        return seal(body, network=self.scene.network, key=keys or self.keys).raw

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip, and count it."""
        await self.network.publish(topic_name(self.scene.network, topic), data)
        self.scene.strike()

    async def send(self, data: bytes) -> None:
        """One frame to the victim; raises if it is gone."""
        if await self.network.send(self.victim, data):
            self.scene.strike()
        elif not self.network.peers():
            raise NetworkError("cut off")
        else:
            await trio.sleep(0.01)


class _NoBook:
    def load(self) -> list[str]:
        return []

    def remember(self, address: str) -> None:
        return

    def forget(self, address: str) -> None:
        return


@asynccontextmanager
async def _stranger(scene: Scene, luck: random.Random) -> AsyncIterator[Stranger]:
    seed = luck.randbytes(32)
    say, heard = trio.open_memory_channel[tuple[str, bytes]](64)

    def rule(topic: str, data: bytes, forwarder: bytes) -> Ruling:
        with suppress(trio.WouldBlock):
            say.send_nowait((topic, data))
        return Ruling.IGNORE  # It passes nothing on.

    victim = peer_key(scene.address.rpartition("/")[2])
    async with open_network(
        seed=seed,
        listen=[],
        topics=topic_names(scene.network),
        rule=rule,
        network_name=scene.network,
        bootstrap=[],
        address_book=_NoBook(),
        mdns=False,
        jitter=luck,
        clock=lambda: time.time_ns() // 1_000_000,
        access=PeerAccess(allowed_peers=frozenset({victim})),
    ) as network:
        await network.dial(scene.address)
        scene.strike()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_drain, network)
            yield Stranger(scene, luck, Keyring(seed), network, victim, heard)
            nursery.cancel_scope.cancel()


async def _drain(network: Network) -> None:
    async for _ in network.events:
        pass


async def _strangers(scene: Scene, luck: random.Random, misbehave: Misbehave) -> None:
    async def again_and_again() -> None:
        while True:
            try:
                async with _stranger(scene, luck) as stranger:
                    await misbehave(stranger)
            except (NetworkError, BaseExceptionGroup):
                await trio.sleep(AGAIN_S)

    async with trio.open_nursery() as nursery:
        for _ in range(IDENTITIES):
            nursery.start_soon(again_and_again)
            await trio.sleep(0.05)


async def _pause(stranger: Stranger, seconds: float = 0.01) -> None:
    await trio.sleep(seconds)
    if not stranger.network.peers():
        raise NetworkError("cut off")


async def _junk_gossip(stranger: Stranger) -> None:
    while True:
        await stranger.publish("jobs", stranger.luck.randbytes(1_000))
        await _pause(stranger)


async def _spam(stranger: Stranger) -> None:
    """Offers that break no rule, each by another key."""
    while True:
        await stranger.publish("jobs", stranger.sign(_offer(stranger), _fresh(stranger)))
        await _pause(stranger, 0.002)


async def _giants(stranger: Stranger) -> None:
    while True:
        await stranger.publish("jobs", stranger.luck.randbytes(GOSSIP_BYTES_MAX))
        await stranger.send(message_frame(bytes(FRAME_BYTES_MAX - 16)))
        await _pause(stranger)


async def _bombs(stranger: Stranger) -> None:
    """Msgpack that claims or nests far more than it has."""
    deep = b"\x91" * 500_000
    wide = b"\x96" + b"\xdd\xff\xff\xff\xff" * 6 + b"\xdf\xff\xff\xff\xff" * 1_000
    long = b"\x96\xdb\xff\xff\xff\xff" + bytes(1_000) + b"\xc6\xff\xff\xff\xff"
    while True:
        for bomb in (deep, wide, long):
            await stranger.send(message_frame(bomb))
            await stranger.publish("jobs", bomb[: GOSSIP_BYTES_MAX - 1])
        await _pause(stranger)


async def _dribble(stranger: Stranger) -> None:
    streams = []
    for _ in range(STREAMS_PER_CONNECTION_MAX):
        streams.append(await stranger.network.open_bulk(stranger.victim, "blobs/1"))
        stranger.scene.strike()
    while True:
        for stream in streams:
            await stream.send(b"\0")
            stranger.scene.strike()
        await _pause(stranger, 0.5)


async def _surround(stranger: Stranger) -> None:
    """In the victim's mesh, passing on nothing."""
    while True:
        await _pause(stranger, 1)


async def _adverts(stranger: Stranger) -> None:
    while True:
        keys = _fresh(stranger)
        await stranger.publish("peers", stranger.sign(_advert(stranger), keys))
        await _pause(stranger, 0.002)


async def _bids(stranger: Stranger) -> None:
    """For each offer, seals of many keys, opened by nobody."""
    async for _, data in stranger.heard:
        with suppress(PeerFault):
            offer: Any = open_envelope(data, network=stranger.scene.network, crypto=_Believing())
            if not isinstance(offer.body, Offer):
                continue
            for _ in range(100):
                keys = _fresh(stranger)
                bid = Bid(offer.id, bytes(32), 1, 1, 10**9, "cpu", True, 1)
                await stranger.send(
                    message_frame(stranger.sign(BidSeal(offer.id, bid_seal(keys.public, bid)), keys))
                )


async def _draws(stranger: Stranger) -> None:
    """Commitments of contracts that strangers made with each other, for which the victim is drawn."""
    while True:
        await stranger.publish("jobs", _hollow(stranger))
        await _pause(stranger, 0.002)


async def _blobs(stranger: Stranger) -> None:
    digest, size = stranger.scene.blob

    async def draw() -> None:
        stream = await stranger.network.open_bulk(stranger.victim, "blobs/1")
        await stream.send(blob_message(Want(Blob(digest, size), False)))
        for piece in range(4):
            await stream.send(blob_message(Ask(piece)))
        taken, number = 0, 4
        while True:
            taken += len(await stream.receive())
            if taken > 1 << 20:
                taken -= 1 << 20
                stranger.scene.strike()
                await stream.send(blob_message(Ask(number % (size >> 20))))
                number += 1

    while True:
        with suppress(NetworkError, BaseExceptionGroup):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(draw)
        await _pause(stranger, 0.1)


class _Believing:
    """Whoever attacks needn't check."""

    def verify(self, key: bytes, message: bytes, signature: bytes) -> bool:
        return True

    def vrf_output(self, key: bytes, alpha: bytes, proof: bytes) -> bytes | None:
        return None


# --- What they say --------------------------------------------------------------------------------------


def _fresh(stranger: Stranger) -> Keyring:
    return Keyring(stranger.luck.randbytes(32))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _offer(stranger: Stranger) -> Offer:
    workload, model = stranger.scene.offering
    now_ms, luck = _now_ms(), stranger.luck
    return Offer(
        nonce=luck.randbytes(16),
        mode="auction",
        workload=workload,
        model=model,
        profile="exact14",
        input_digest=luck.randbytes(32),
        input_units=8,
        units_max=64,
        # Below what anybody asks, so that nobody bids.
        price_micros_max=0,
        ram_bytes_min=0,
        rate_milli_min=0,
        exclude=(),
        sent_ms=now_ms,
        bids_close_ms=now_ms + 1_000,
        expires_ms=now_ms + 60_000,
    )


def _advert(stranger: Stranger) -> Advert:
    workload, model = stranger.scene.offering
    now_ms = _now_ms()
    return Advert(
        sequence=now_ms,
        sent_ms=now_ms,
        expires_ms=now_ms + 10 * 60_000,
        addresses=(f"/ip4/127.0.0.1/tcp/9/p2p/{stranger.scene.address.rpartition('/')[2]}",),
        software="p2p-node",
        slots_total=64,
        slots_free=64,
        cores=64,
        ram_bytes=1 << 40,
        gemm_fp32_mflops=10**9,
        gemm_bf16_mflops=10**9,
        memory_mib_per_s=10**6,
        disk_mib_per_s=10**6,
        accelerators=(),
        offerings=(Offering(workload, model, ("exact14",), 1, 10**12, True),),
    )


def _hollow(stranger: Stranger) -> bytes:
    workload, model = stranger.scene.offering
    requester, executor, luck, now_ms = _fresh(stranger), _fresh(stranger), stranger.luck, _now_ms()
    electorate = Electorate([Member(stranger.victim, 1)])
    network = stranger.scene.network
    award = Award(
        job_id=luck.randbytes(32),
        attempt=0,
        executor=executor.public,
        basis=luck.randbytes(32),
        workload=workload,
        model=model,
        profile="exact14",
        input_digest=luck.randbytes(32),
        units_max=64,
        stop_unit=-1,
        chunk_units=32,
        segment_chunks=2,
        prefix_units=0,
        prefix_digest=luck.randbytes(32),
        price_micros=100,
        verifier_fee_micros=10,
        expected_verifiers_milli=1_000,
        samples=2,
        electorate_root=electorate.root,
        electorate_weight=electorate.total_weight,
        electorate_count=electorate.count,
        electorate_weight_max=1,
        sent_ms=now_ms,
        accept_by_ms=now_ms + 5_000,
        finish_by_ms=now_ms + 60_000,
        answer_within_ms=8_000,
    )
    terms = seal(award, network=network, key=requester)
    acceptance = seal(Acceptance(terms.id, "cpu", 1_000), network=network, key=executor)
    commitment = seal(_commitment(terms.id, luck), network=network, key=executor)
    notice = CommitmentNotice(terms.raw, acceptance.raw, commitment.raw)
    return seal(notice, network=network, key=executor).raw


def _commitment(award_id: bytes, luck: random.Random) -> Commitment:
    return Commitment(
        award_id=award_id,
        segment=0,
        previous=b"",
        first_chunk=0,
        chunks=2,
        root=luck.randbytes(32),
        units_total=64,
        units_digest=luck.randbytes(32),
        final=True,
        profile="exact14",
    )


def _peers(misbehave: Misbehave) -> Callable[[Scene, random.Random], Awaitable[None]]:
    return partial(_strangers, misbehave=misbehave)


def _bare(once: Callable[[Scene, random.Random], None]) -> Callable[[Scene, random.Random], Awaitable[None]]:
    return partial(_sockets, once=once)


KINDS: dict[str, Callable[[Scene, random.Random], Awaitable[None]]] = {
    "connections": _bare(_connection),
    "silent connections": _bare(_silent),
    "junk for a handshake": _bare(_junk),
    "names of 25 MB": _bare(_long_name),
    "junk to the local API": _bare(_api),
    "slow-loris streams": _peers(_dribble),
    "mesh eclipse": _peers(_surround),
    "blob requests": _peers(_blobs),
    "bid floods": _peers(_bids),
    "giant messages": _peers(_giants),
    "msgpack bombs": _peers(_bombs),
    "junk in gossip": _peers(_junk_gossip),
    "gossip spam": _peers(_spam),
    "verifier draws": _peers(_draws),
    "sybil adverts": _peers(_adverts),
}
"""What each does is said in docs/hardening.md. Those that leave most in their victim's tables come last."""
