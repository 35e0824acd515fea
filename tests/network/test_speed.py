"""The fast path changes how often, never what."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import trio
import trio.testing
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer.yamux import yamux

from p2p_node.network.libp2p import speed
from p2p_node.network.libp2p.network import Libp2pNetwork
from p2p_node.network.port import FrameReceived
from tests.network.hosts import join, network, next_event


class TwoSided:
    """A memory stream with the one method that libp2p asks of a socket."""

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks

    async def receive_some(self, size: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._chunks.pop(0) if self._chunks else b""


async def test_buffered_reads_return_the_same_bytes() -> None:
    speed.install()
    rng = random.Random(4)
    whole = rng.randbytes(50_000)
    cuts = sorted(rng.sample(range(1, len(whole)), 40))
    chunks = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    stream = TrioTCPStream(TwoSided(chunks))  # type: ignore[arg-type]
    read = bytearray()
    while piece := await stream.read(rng.choice([1, 2, 100, 5_000, None])):
        read += piece
    assert bytes(read) == whole
    assert await stream.read(0) == b""


@pytest.mark.parametrize("exact", [False, True])
async def test_messages_are_read_as_bytes_whatever_their_cuts(*, exact: bool) -> None:
    speed.install()
    rng = random.Random(6)
    messages = [rng.randbytes(rng.choice([1, 12, 700, 60_000])) for _ in range(40)]
    whole = b"".join(messages)

    class Messages:
        async def read_msg(self) -> bytes:
            await trio.lowlevel.checkpoint()
            return messages.pop(0) if messages else b""

    session = SecureSession.__new__(SecureSession)
    session.conn = Messages()  # type: ignore[assignment]
    read = bytearray()
    while len(read) < len(whole) - 70_000:
        size = rng.choice([1, 12, 5_000, 70_000])
        part = await (yamux.read_exactly(session, size) if exact else session.read(size))
        assert len(part) == size
        read += part
        if not exact:
            read += await session.read()
    with pytest.raises(ConnectionClosedError):
        if exact:
            await yamux.read_exactly(session, 80_000)
        else:
            read += await session.read(80_000)
            await session.read(1)
    assert bytes(read) == whole[: len(read)]
    assert exact or len(read) == len(whole)


@pytest.mark.parametrize("keeps", [False, True], ids=["bulk", "gossip"])
async def test_credit_returned_is_what_was_read_and_one_growth(*, keeps: bool) -> None:
    speed.install()
    sent: list[int] = []

    class Stream:
        _pending_recv_release = 0
        target_recv_window = recv_window = speed.DEFAULT_WINDOW_SIZE

        async def send_window_update(self, increment: int) -> None:
            sent.append(increment)

    stream = Stream()
    if keeps:
        speed.keep_window(SimpleNamespace(muxed_stream=stream))  # type: ignore[arg-type]
    rng = random.Random(5)
    total = 0
    for _ in range(5_000):
        size = rng.randrange(1, 60_000)
        total += size
        await speed._update_window_seldom(stream, bytes_read=size)  # type: ignore[arg-type]
    growth = 0 if keeps else speed.WINDOW_BYTES - speed.DEFAULT_WINDOW_SIZE
    assert sum(sent) == total + growth - stream._pending_recv_release
    assert 0 <= stream._pending_recv_release < speed.WINDOW_BYTES // 4
    assert len(sent) < 5_000 / (1 if keeps else 10)


async def test_long_transfers_both_ways_at_once_arrive_whole() -> None:
    rng = random.Random(6)
    frames = [rng.randbytes(rng.choice([10, 1_000, 65_519, 65_536, 300_000, 1_000_000])) for _ in range(60)]
    async with network(1) as one, network(2) as two:
        await join(one, two)
        async with trio.open_nursery() as nursery:

            async def send(sender: Libp2pNetwork, receiver: Libp2pNetwork) -> None:
                for frame in frames:
                    while not await sender.send(receiver.local_key, frame):
                        await trio.sleep(0.01)

            async def receive(receiver: Libp2pNetwork) -> None:
                for frame in frames:
                    assert (await next_event(receiver, FrameReceived)).data == frame

            for here, there in ((one, two), (two, one)):
                nursery.start_soon(send, here, there)
                nursery.start_soon(receive, here)
