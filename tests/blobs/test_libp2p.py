"""Blobs over real libp2p on loopback, with real threads and real disks."""

from __future__ import annotations

import time
from pathlib import Path

import trio

from p2p_node.blobs import BlobService, BlobStore
from p2p_node.blobs.talk import PROTOCOL
from p2p_node.network.port import BulkStream, FrameReceived, Network
from protocols.blobs import Piece, blob_message, blob_of
from tests.blobs.rig import FAST, MIB, Scripted, content
from tests.network.hosts import network

DATA = content(5, 12 * MIB + 5)
BLOB = blob_of(DATA)


def opened(folder: Path) -> BlobService:
    store = BlobStore.open(folder, bytes_max=64 * MIB, clock=lambda: time.time_ns() // 1_000_000)
    return BlobService(store, serve_bytes_per_s=FAST, serve_peer_bytes_per_s=FAST)


async def drain(net: Network, frames: list[bytes]) -> None:
    async for event in net.events:
        if isinstance(event, FrameReceived):
            frames.append(event.data)


async def test_two_givers_a_liar_and_a_cut(tmp_path: Path) -> None:
    async def lie(stream: BulkStream, piece: int) -> bool:
        await stream.send(blob_message(Piece(piece)) + bytes(MIB))
        return True

    async with network(1) as one, network(2) as two, network(3) as three, network(4) as mine:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                frames: list[bytes] = []
                for net in (one, two, three, mine):
                    nursery.start_soon(drain, net, frames if net is two else [])
                givers = [opened(tmp_path / "one"), opened(tmp_path / "two")]
                for net, giver in zip((one, two), givers, strict=True):
                    giver.store.add(DATA)
                    await nursery.start(giver.run, net)
                three.serve_bulk(PROTOCOL, Scripted(DATA, instead=lie))
                taker = opened(tmp_path / "mine")
                await nursery.start(taker.run, mine)
                for net in (one, two, three):
                    await mine.dial(net.addresses[0])
                cut = False

                def progressed(here: int, total: int) -> None:
                    nonlocal cut
                    if here >= 4 * MIB and not cut:
                        cut = True
                        nursery.start_soon(one.close)

                path = await taker.fetch(
                    BLOB, [three.local_key, one.local_key, two.local_key], on_progress=progressed
                )
                assert path.read_bytes() == DATA
                assert cut
                assert givers[1].bytes_served > 0
                points = {status.key: status.points for status in mine.peers()}
                assert points[three.local_key] >= 40 and points[two.local_key] == 0
                # The link beside the transfer is as good as before.
                assert await mine.send(two.local_key, b"frame")
                while not frames:
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
