"""Blobs come from several peers at once, whole and checked, whatever their sources do."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import trio
import trio.testing

from p2p_node.blobs import BlobUnavailable, StoreFull, fetching, serving
from p2p_node.blobs.talk import PROTOCOL
from p2p_node.network.port import BulkStream
from protocols.blobs import Blob, Holding, Lacking, Piece, Want, blob_message, blob_of
from protocols.errors import Malformed
from tests.blobs.rig import MIB, Peer, Scripted, World, content, index_of, play

DATA = content(7, 5 * MIB + 321)
BLOB = blob_of(DATA)


async def fetched(peer: Peer, *sources: bytes) -> bytes:
    return (await peer.service.fetch(BLOB, sources)).read_bytes()


# --- Good sources -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, MIB, 3 * MIB + 1])
def test_a_blob_comes_from_a_peer(tmp_path: Path, size: int) -> None:
    data = content(3, size)

    async def scenario(world: World) -> None:
        giver, taker = await world.peer(), await world.peer()
        blob = giver.store.add(data)
        steps: list[tuple[int, int]] = []
        path = await taker.service.fetch(
            blob, [giver.key], on_progress=lambda here, total: steps.append((here, total))
        )
        assert path.read_bytes() == data
        assert path == taker.store.path(blob)
        assert steps[0] == (0, size) and steps[-1] == (size, size)
        assert steps == sorted(steps)
        assert giver.service.bytes_served == size
        assert taker.points_of(giver.key) == giver.points_of(taker.key) == 0

    play(tmp_path, scenario)


def test_what_is_here_needs_nobody(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        peer = await world.peer()
        blob = peer.store.add(DATA)
        steps: list[tuple[int, int]] = []
        await peer.service.fetch(blob, [], on_progress=lambda here, total: steps.append((here, total)))
        assert steps == [(len(DATA), len(DATA))]

    play(tmp_path, scenario)


def test_several_sources_share_the_pieces(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        scripts = [Scripted(DATA), Scripted(DATA)]
        sources = [(await world.source(script)).local_key for script in scripts]
        taker = await world.peer()
        assert await fetched(taker, *sources) == DATA
        assert all(len(script.asked) >= 2 for script in scripts)
        # At the end a piece may be asked of both; before that, each of one.
        assert len(scripts[0].asked) + len(scripts[1].asked) <= 6 + 2

    play(tmp_path, scenario)


def test_a_source_with_some_pieces_gives_those(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        half, rest = Scripted(DATA, held=b"\1\0\1\0\1\0"), Scripted(DATA, held=b"\0\1\0\1\0\1")
        sources = [(await world.source(script)).local_key for script in (half, rest)]
        taker = await world.peer()
        assert await fetched(taker, *sources) == DATA
        assert set(half.asked) == {0, 2, 4} and set(rest.asked) == {1, 3, 5}

    play(tmp_path, scenario)


def test_pieces_on_their_way_are_given_on(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        stuck = trio.Event()

        async def stop_at_4(stream: BulkStream, piece: int) -> bool:
            if piece >= 4:
                stuck.set()
                await trio.sleep_forever()
            return False

        origin = await world.source(Scripted(DATA, instead=stop_at_4))
        middle, end = await world.peer(), await world.peer()
        world.nursery.start_soon(_fetch_quietly, middle, origin.local_key)
        await stuck.wait()
        steps: list[int] = []
        with trio.move_on_after(5):
            await end.service.fetch(BLOB, [middle.key], on_progress=lambda here, total: steps.append(here))
        assert steps[-1] == 4 * MIB

    play(tmp_path, scenario)


async def _fetch_quietly(peer: Peer, *sources: bytes) -> None:
    with contextlib.suppress(BlobUnavailable):
        await peer.service.fetch(BLOB, sources)


def test_fetches_of_one_blob_are_one_and_outlive_who_began(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        script = Scripted(DATA)
        source = await world.source(script)
        taker = await world.peer()
        async with trio.open_nursery() as nursery:
            impatient = trio.CancelScope()

            async def begin() -> None:
                with impatient:
                    await taker.service.fetch(BLOB, [source.local_key])

            nursery.start_soon(begin)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(fetched, taker, source.local_key)
            await trio.testing.wait_all_tasks_blocked()
            impatient.cancel()
        assert taker.store.has(BLOB)
        assert script.streams == 1

    play(tmp_path, scenario)


def test_who_cancels_keeps_what_came(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        script = Scripted(DATA)
        source = await world.source(script)
        taker = await world.peer()
        for _ in range(2):
            with trio.CancelScope() as scope:

                def stop_at_two(here: int, total: int, scope: trio.CancelScope = scope) -> None:
                    if here >= 2 * MIB:
                        scope.cancel()

                await taker.service.fetch(BLOB, [source.local_key], on_progress=stop_at_two)
            assert not taker.store.has(BLOB)
        steps: list[int] = []
        await taker.service.fetch(
            BLOB, [source.local_key], on_progress=lambda here, total: steps.append(here)
        )
        assert steps[0] >= 2 * MIB
        assert taker.store.path(BLOB).read_bytes() == DATA

    play(tmp_path, scenario)


def test_a_cut_in_the_middle_goes_on_with_another_source(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        taker = await world.peer()

        async def cut_at_3(stream: BulkStream, piece: int) -> bool:
            if piece == 3:
                world.internet.disconnect(taker.key, first.local_key)
                await trio.sleep(1)
            return False

        second = Scripted(DATA, held=b"\0\0\0\1\1\1")
        first = await world.source(Scripted(DATA, instead=cut_at_3))
        other = await world.source(second)
        assert await fetched(taker, first.local_key, other.local_key) == DATA
        assert 3 in second.asked

    play(tmp_path, scenario)


def test_a_fetch_resumes_after_a_restart_with_another_source(tmp_path: Path) -> None:
    async def first(world: World) -> None:
        async def stop_at_3(stream: BulkStream, piece: int) -> bool:
            return piece >= 3

        source = await world.source(Scripted(DATA, instead=stop_at_3))
        taker = await world.peer()
        with trio.move_on_after(5):
            await fetched(taker, source.local_key)
        taker.store.close()

    async def second(world: World) -> None:
        script = Scripted(DATA)
        source = await world.source(script)
        taker = await world.peer()
        assert await fetched(taker, source.local_key) == DATA
        assert script.asked == [3, 4, 5]

    play(tmp_path, first)
    play(tmp_path, second)


def test_a_peer_that_isnt_connected_is_dialled(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        giver = await world.peer()
        taker = await world.peer(addresses_of=lambda peer: ["/ip4/10.9.9.9/tcp/1", *giver.network.addresses])
        giver.store.add(DATA)
        world.internet.disconnect(taker.key, giver.key)
        await trio.sleep(0.1)
        assert await fetched(taker, giver.key) == DATA

    play(tmp_path, scenario)


def test_a_busy_source_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "BLOB_STREAMS_PER_PEER_MAX", 0)

    async def scenario(world: World) -> None:
        giver, taker = await world.peer(), await world.peer()
        giver.store.add(DATA)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetched, taker, giver.key)
            await trio.sleep(20)
            assert not taker.store.has(BLOB)
            monkeypatch.setattr(serving, "BLOB_STREAMS_PER_PEER_MAX", 4)
        assert taker.store.has(BLOB)
        assert taker.points_of(giver.key) == 0

    play(tmp_path, scenario)


# --- Bad sources ------------------------------------------------------------------------------


def test_nobody_has_it(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        empty, taker = await world.peer(), await world.peer()
        with pytest.raises(BlobUnavailable, match="can't be had from 0 peers"):
            await fetched(taker)
        with pytest.raises(BlobUnavailable, match="from 0 peers"):
            await fetched(taker, taker.key)
        with pytest.raises(BlobUnavailable, match=r"from 1 peers .*refused: not here"):
            await fetched(taker, empty.key)
        with pytest.raises(BlobUnavailable, match="isn't connected and can't be reached"):
            await fetched(taker, bytes(32))
        with pytest.raises(Malformed):
            await taker.service.fetch(Blob(b"short", 1), [])
        assert taker.points_of(empty.key) == 0

    play(tmp_path, scenario)


def test_a_blob_that_doesnt_fit_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        script = Scripted(DATA)
        source = await world.source(script)
        taker = await world.peer(bytes_max=MIB)
        with pytest.raises(StoreFull, match="must fit into blob_bytes_max"):
            await fetched(taker, source.local_key)
        assert script.streams == 0

    play(tmp_path, scenario)


def test_a_disk_that_fills_up_ends_the_fetch_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StoreFull("the disk is full")

    async def scenario(world: World) -> None:
        source = await world.source(Scripted(DATA))
        taker = await world.peer()
        monkeypatch.setattr("p2p_node.blobs.partial.PartialBlob.write", full)
        with pytest.raises(StoreFull, match="the disk is full"):
            await fetched(taker, source.local_key)
        assert taker.points_of(source.local_key) == 0

    play(tmp_path, scenario)


async def _junk_header(stream: BulkStream, piece: int) -> bool:
    await stream.send(b"\x05\0\0\0junk!")
    return True


async def _wrong_bytes(stream: BulkStream, piece: int) -> bool:
    await stream.send(blob_message(Piece(piece)) + bytes(MIB))
    return True


async def _wrong_number(stream: BulkStream, piece: int) -> bool:
    await stream.send(blob_message(Piece(piece + 1)) + bytes(MIB))
    return True


async def _swapped(stream: BulkStream, piece: int) -> bool:
    await stream.send(blob_message(Piece(piece)) + DATA[-MIB:])
    return True


async def _oversized(stream: BulkStream, piece: int) -> bool:
    await stream.send(b"\xff\xff\xff\xff" + bytes(100))
    return True


async def _endless(stream: BulkStream, piece: int) -> bool:
    while True:
        await stream.send(blob_message(Piece(piece)) + bytes(MIB))


async def _another_message(stream: BulkStream, piece: int) -> bool:
    await stream.send(blob_message(Holding(b"")))
    return True


@pytest.mark.parametrize(
    "instead",
    [_junk_header, _wrong_bytes, _wrong_number, _swapped, _oversized, _endless, _another_message],
)
def test_a_source_that_sends_junk_is_dropped_and_charged(tmp_path: Path, instead: object) -> None:
    async def scenario(world: World) -> None:
        liar = await world.source(Scripted(DATA, instead=instead))  # type: ignore[arg-type]
        taker, giver = await world.peer(), await world.peer()
        giver.store.add(DATA)
        with pytest.raises(BlobUnavailable, match="sent junk"):
            await fetched(taker, liar.local_key)
        assert taker.points_of(liar.local_key) >= 20
        assert await fetched(taker, liar.local_key, giver.key) == DATA

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    "script",
    [
        Scripted(DATA, index=index_of(DATA)[32:] + index_of(DATA)[:32]),
        Scripted(DATA, index=bytes(6 * 32)),
        Scripted(DATA, held=b"\1\1"),
        Scripted(DATA, held=bytes(60_000)),
    ],
)
def test_a_wrong_index_or_inventory_is_charged(tmp_path: Path, script: Scripted) -> None:
    async def scenario(world: World) -> None:
        liar = await world.source(script)
        taker = await world.peer()
        with pytest.raises(BlobUnavailable, match="sent junk"):
            await fetched(taker, liar.local_key)
        assert script.asked == []
        assert taker.points_of(liar.local_key) >= 20

    play(tmp_path, scenario)


def test_a_silent_source_is_left_for_another(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        async def silent(stream: BulkStream) -> None:
            await trio.sleep_forever()

        mute = await world.source(silent)
        taker, giver = await world.peer(), await world.peer()
        began = trio.current_time()
        with pytest.raises(BlobUnavailable, match="peer was silent for 15 s"):
            await fetched(taker, mute.local_key)
        assert trio.current_time() - began < fetching.TRIES * (fetching.SILENCE_S + 5)
        assert 0 < taker.points_of(mute.local_key) <= 15
        giver.store.add(DATA)
        began = trio.current_time()
        assert await fetched(taker, mute.local_key, giver.key) == DATA
        # Nobody waits for it while another has everything.
        assert trio.current_time() - began < 5

    play(tmp_path, scenario)


def test_a_source_that_drips_is_left(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        async def drip(stream: BulkStream, piece: int) -> bool:
            await stream.send(blob_message(Piece(piece)))
            for _ in range(MIB):
                await stream.send(b"\0")
                await trio.sleep(fetching.SILENCE_S - 1)
            return True

        slow = await world.source(Scripted(DATA, instead=drip))
        taker = await world.peer()
        with pytest.raises(BlobUnavailable, match="more than 120 s for a piece"):
            await fetched(taker, slow.local_key)

    play(tmp_path, scenario)


def test_the_last_pieces_of_a_slow_source_are_asked_of_another(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        async def dawdle(stream: BulkStream, piece: int) -> bool:
            await trio.sleep(14)
            return False

        slow, quick = await world.source(Scripted(DATA, instead=dawdle)), await world.source(Scripted(DATA))
        taker = await world.peer()
        began = trio.current_time()
        assert await fetched(taker, slow.local_key, quick.local_key) == DATA
        assert trio.current_time() - began < 5

    play(tmp_path, scenario)


# --- Serving ----------------------------------------------------------------------------------


def test_a_rate_holds_for_each_peer_and_for_all(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        giver = await world.peer(serve_bytes_per_s=MIB, serve_peer_bytes_per_s=MIB // 2)
        giver.store.add(DATA)
        takers = [await world.peer() for _ in range(3)]
        began = trio.current_time()
        await fetched(takers[0], giver.key)
        alone = trio.current_time() - began
        assert len(DATA) / (MIB / 2) - 2 < alone < len(DATA) / (MIB / 2) + 2
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for taker in takers[1:]:
                nursery.start_soon(fetched, taker, giver.key)
        together = trio.current_time() - began
        assert 2 * len(DATA) / MIB - 2 < together < 2 * len(DATA) / MIB + 2

    play(tmp_path, scenario)


def test_streams_of_one_peer_and_of_all_are_bounded(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        giver = await world.peer(serve_bytes_per_s=65_536)
        giver.store.add(DATA)
        strangers = [await world.network() for _ in range(2)]
        answers = []
        for stranger, streams in zip(strangers, (5, 2), strict=True):
            for _ in range(streams):
                stream = await stranger.open_bulk(giver.key, "blobs/1")
                await stream.send(blob_message(Want(BLOB, False)))
                answers.append(await stream.receive())
        busy = blob_message(Lacking(True, "too many transfers"))
        yes = blob_message(Holding(b""))
        # Four of one peer's; at 64 KiB a second, five in all.
        assert answers == [yes] * 4 + [busy] + [yes, busy]

    play(tmp_path, scenario)


def test_streams_of_one_address_range_leave_room_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "BLOB_STREAMS_PER_RANGE_MAX", 2)

    async def scenario(world: World) -> None:
        giver = await world.peer()
        giver.store.add(DATA)
        ranges = {}

        async def serve(stream: BulkStream) -> None:
            stream.range = ranges[stream.peer]
            await giver.service._server.serve(stream)

        giver.network.serve_bulk(PROTOCOL, serve)
        answers = []
        for name in (b"10.0.0.0/24", b"10.0.0.0/24", b"10.0.0.0/24", b"10.0.1.0/24", None):
            stranger = await world.network()
            ranges[stranger.local_key] = name
            stream = await stranger.open_bulk(giver.key, PROTOCOL)
            await stream.send(blob_message(Want(BLOB, False)))
            answers.append(await stream.receive() == blob_message(Holding(b"")))
        assert answers == [True, True, False, True, True]

    play(tmp_path, scenario)


def test_pieces_in_memory_are_bounded_and_who_does_not_read_gives_its_places_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "BLOB_PIECES_SERVED_MAX", 3)
    large = content(1, 8 * MIB)

    async def scenario(world: World) -> None:
        giver, taker = await world.peer(), await world.peer()
        giver.store.add(large)
        giver.store.add(DATA)
        server, stranger = giver.service._server, await world.network()
        for _ in range(4):
            deaf = await stranger.open_bulk(giver.key, PROTOCOL)
            await deaf.send(blob_message(Want(blob_of(large), False)))
            for piece in range(8):
                await deaf.send(blob_message(fetching.Ask(piece)))
        await trio.sleep(2)
        assert server._pieces.value == 0
        await fetched(taker, giver.key)
        await trio.sleep(serving.IDLE_S)
        assert server._pieces.value == 3
        assert not server._streams and not server._range_streams

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    ("messages", "points"),
    [
        ([b"\x04\0\0\0junk"], 20),
        ([b"\xff\xff\xff\x7f"], 20),
        ([blob_message(Holding(b""))], 20),
        ([blob_message(Want(BLOB, False)), blob_message(Want(BLOB, False))], 20),
        ([blob_message(Want(Blob(bytes(32), -1), False))], 20),
        ([blob_message(Want(BLOB, False)), blob_message(Lacking(False, "no"))], 20),
        ([blob_message(Want(Blob(BLOB.digest, 5), False))], 0),
    ],
)
def test_a_requester_that_breaks_rules_is_charged(tmp_path: Path, messages: list[bytes], points: int) -> None:
    async def scenario(world: World) -> None:
        giver = await world.peer()
        giver.store.add(DATA)
        stranger = await world.network()
        stream = await stranger.open_bulk(giver.key, "blobs/1")
        for message in messages:
            await stream.send(message)
        await trio.sleep(1)
        assert giver.points_of(stranger.local_key) == points

    play(tmp_path, scenario)


def test_a_requester_that_doesnt_read_or_ask_is_cut_off(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        giver = await world.peer()
        giver.store.add(content(1, 20 * MIB))
        stranger = await world.network()
        deaf = await stranger.open_bulk(giver.key, "blobs/1")
        await deaf.send(blob_message(Want(blob_of(content(1, 20 * MIB)), False)))
        for piece in range(20):
            await deaf.send(blob_message(fetching.Ask(piece)))
        idle = await stranger.open_bulk(giver.key, "blobs/1")
        await trio.sleep(serving.IDLE_S + 10)
        assert giver.service.bytes_served < 8 * MIB
        assert giver.service._server._streams.total() == 0
        for stream in (deaf, idle):
            with pytest.raises(Exception, match="stream ended"):
                while True:
                    await stream.receive()

    play(tmp_path, scenario)


def test_a_blob_that_rotted_isnt_served(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        giver, taker = await world.peer(), await world.peer()
        giver.store.add(DATA)
        path = giver.store.path(BLOB)
        path.chmod(0o644)
        entry = giver.store._entries[BLOB.digest]
        with path.open("r+b") as file:
            file.seek(3 * MIB)
            file.write(b"rot")
        entry.mtime_ns = path.stat().st_mtime_ns
        with pytest.raises(BlobUnavailable, match="not here"):
            await fetched(taker, giver.key)
        assert taker.points_of(giver.key) == 0
        assert not giver.store.has(BLOB)

    play(tmp_path, scenario)
