"""Private blobs: for the parties of their job, sealed where they lie, thrown away by whom they were lent."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p_node.bloboutput import OutputTaker
from p2p_node.blobrights import BlobRights, job_owner
from p2p_node.blobs import BlobError, BlobStore, BlobUnavailable
from p2p_node.blobs.sealing import Opener, opening_key, sealed_size
from p2p_node.core.keyring import Keyring
from protocols.blobs import Blob, Sealed, Want, blob_of, piece_count
from tests.blobs.rig import MIB, Peer, World, content, play
from workloads.frames import BlobPart

DATA = content(5, 2 * MIB + 77)
BLOB = blob_of(DATA)
JOB = b"j" * 32
SEED = b"s" * 32
READER = Keyring(SEED).public
OWNER = "run:sealed:execute"


def opened(folder: Path) -> BlobStore:
    return BlobStore.open(folder, bytes_max=64 * MIB, clock=lambda: 1)


def leave(store: BlobStore, data: bytes = DATA, reader: bytes = READER, name: Blob | None = None) -> None:
    """What a run leaves for its requester."""
    blob = name or blob_of(data)
    taker = OutputTaker(store, OWNER, reader)
    for at in range(0, len(data), MIB) or [0]:
        taker.take(BlobPart(1, blob.digest, blob.size_bytes, at, data[at : at + MIB]))
    taker.close()


def all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


# --- Sealed where it lies --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, MIB, MIB + 1, 3 * MIB])
def test_what_is_sealed_is_opened_by_its_reader(tmp_path: Path, size: int) -> None:
    data, store = content(3, size), opened(tmp_path)
    leave(store, data)
    blob = blob_of(data)
    sealed = store.sealed(blob, READER)
    assert sealed is not None and sealed.size_bytes == sealed_size(blob)
    assert store.owners(sealed) == (OWNER,)
    assert not store.has(blob)
    assert store.unseal(blob, sealed, opening_key(SEED)).read_bytes() == data
    assert not store.has(sealed)


def test_nothing_of_it_reaches_the_disk_in_the_clear(tmp_path: Path) -> None:
    leave(opened(tmp_path))
    found = all_bytes(tmp_path)
    assert len(found) > len(DATA)
    assert not any(DATA[at : at + 24] in found for at in range(0, len(DATA) - 24, 99_991))


def test_what_the_run_reads_again_is_there_in_the_clear_until_it_ends(tmp_path: Path) -> None:
    store = opened(tmp_path)
    taker = OutputTaker(store, OWNER, READER, "run:execute")
    for at in range(0, len(DATA), MIB):
        taker.take(BlobPart(1, BLOB.digest, BLOB.size_bytes, at, DATA[at : at + MIB]))
    assert store.path(BLOB).read_bytes() == DATA and store.is_private(BLOB)
    store.unpin("run:execute")
    assert not store.has(BLOB) and store.sealed(BLOB, READER) is not None


def test_nobody_else_opens_it(tmp_path: Path) -> None:
    store = opened(tmp_path)
    leave(store)
    assert store.sealed(BLOB, b"x" * 32) is None
    sealed = store.sealed(BLOB, READER)
    assert sealed is not None
    with pytest.raises(BlobError, match="can't be opened"):
        store.unseal(BLOB, sealed, opening_key(b"t" * 32))


@pytest.mark.parametrize("at", [0, 20, 100, 130, MIB + 200, -1])
def test_a_changed_byte_is_found(tmp_path: Path, at: int) -> None:
    store = opened(tmp_path)
    leave(store)
    sealed = store.sealed(BLOB, READER)
    assert sealed is not None
    spoiled = bytearray(store.path(sealed).read_bytes())
    spoiled[at] ^= 1
    with pytest.raises(BlobError, match=r"can't be opened|is damaged"):
        store.unseal(BLOB, store.add(bytes(spoiled)), opening_key(SEED))
    assert not store.has(BLOB)


def test_parts_cant_be_cut_off_or_belong_to_another_blob(tmp_path: Path) -> None:
    store = opened(tmp_path)
    leave(store)
    sealed = store.sealed(BLOB, READER)
    assert sealed is not None
    content = store.path(sealed).read_bytes()
    with pytest.raises(BlobError, match="is damaged"):
        store.unseal(BLOB, store.add(content[: sealed_size(blob_of(DATA[: 2 * MIB]))]), opening_key(SEED))
    with pytest.raises(BlobError, match="is damaged"):
        store.unseal(blob_of(b"another"), store.add(content), opening_key(SEED))
    head = Opener.head_bytes
    with pytest.raises(BlobError, match="ends at another place"):
        Opener(BLOB, opening_key(SEED), content[:head]).open(content[head : head + MIB + 17], is_last=True)


def test_a_key_that_is_no_point_seals_nothing(tmp_path: Path) -> None:
    with pytest.raises(BlobError, match="nothing can be sealed"):
        leave(opened(tmp_path), reader=b"\xff" * 32)


def test_what_isnt_what_it_is_called_isnt_kept_as_that(tmp_path: Path) -> None:
    store = opened(tmp_path)
    with pytest.raises(Exception, match="what was called blob"):
        leave(store, b"x" * 100, name=Blob(BLOB.digest, 100))
    assert store.sealed(Blob(BLOB.digest, 100), READER) is None


def test_it_comes_to_its_reader_over_the_network(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        reader = await world.peer(key=opening_key(SEED))
        stranger = await world.peer(key=opening_key(b"t" * 32))
        executor = await world.peer()
        # The simulated network names peers by keys of its own.
        leave(executor.store, reader=READER)
        as_sealed = executor.store.sealed(BLOB, READER)
        assert as_sealed is not None
        executor.store.keep_sealed(BLOB, reader.key, as_sealed)
        steps: list[tuple[int, int]] = []
        path = await reader.service.fetch(
            BLOB, [executor.key], on_progress=lambda here, total: steps.append((here, total))
        )
        assert path.read_bytes() == DATA
        assert steps[-1] == (len(DATA), len(DATA)) and max(steps) == steps[-1]
        assert [row.blob for row in reader.store.stored()] == [BLOB]
        with pytest.raises(BlobUnavailable, match="not here"):
            await stranger.service.fetch(BLOB, [executor.key])
        # The sealed form is for everybody, and of no use to them.
        await stranger.service.fetch(as_sealed, [executor.key])
        with pytest.raises(BlobError, match="can't be opened"):
            stranger.store.unseal(BLOB, as_sealed, opening_key(b"t" * 32))

    play(tmp_path, scenario)


def test_a_source_that_names_something_too_large_is_charged(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        async def serve(stream: object) -> None:
            from p2p_node.blobs.talk import BlobTalk

            talk = BlobTalk(stream, silence_s=100)  # type: ignore[arg-type]
            assert isinstance(await talk.message(), Want)
            await talk.send(Sealed(Blob(b"d" * 32, 1 << 34)))

        source = await world.source(serve)
        reader = await world.peer(key=opening_key(SEED))
        with pytest.raises(BlobUnavailable, match="must have"):
            await reader.service.fetch(BLOB, [source.local_key])
        assert reader.points_of(source.local_key) > 0

    play(tmp_path, scenario)


# --- For the parties of a job ----------------------------------------------------------------------


def test_only_parties_of_the_job_are_given_what_it_names(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        parties: set[bytes] = set()
        store = opened(tmp_path / "requester")
        rights = BlobRights(
            store,
            parties=lambda job: frozenset(parties) if job == JOB else frozenset(),
            jobs_of=lambda job: (job,),
        )
        requester = await world.peer(may_have=rights.may_have)
        # Its rights and its blobs are in one store.
        rights._store = requester.store
        blob = requester.store.add(DATA)
        requester.store.set_private(blob, is_lent=False)
        executor, stranger = await world.peer(), await world.peer()

        async def can_have(peer: Peer) -> bool:
            try:
                await peer.service.fetch(blob, [requester.key])
            except BlobUnavailable as error:
                assert "not here" in str(error)
                return False
            return True

        assert not await can_have(executor)
        requester.store.pin(blob, "user")
        assert not await can_have(executor)
        requester.store.pin(blob, job_owner(JOB))
        parties.add(executor.key)
        assert await can_have(executor)
        assert not await can_have(stranger)
        # Over: from now on it is nobody's but ours, also after a restart.
        requester.store.unpin(job_owner(JOB))
        executor.store.remove(blob)
        assert not await can_have(executor)

    play(tmp_path, scenario)


def test_what_was_lent_goes_when_nobody_holds_on_to_it(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.set_private(BLOB, is_lent=True)
    store.pin(BLOB, "run:one")
    store.pin(BLOB, "run:two")
    assert store.add(DATA) == BLOB
    store.unpin("run:one")
    assert store.has(BLOB) and store.is_private(BLOB)
    store.unpin("run:two")
    assert not store.has(BLOB) and not store.is_private(BLOB)


def test_what_was_lent_half_goes_too(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.set_private(BLOB, is_lent=True)
    store.pin(BLOB, "run:one")
    partial = store.begin(BLOB)
    store.unpin("run:one")
    assert partial.path.exists()
    store.pause(partial)
    assert not partial.path.exists() and not store.is_private(BLOB)


def test_what_was_ours_before_stays(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.add(DATA)
    store.set_private(BLOB, is_lent=True)
    store.pin(BLOB, "run:one")
    store.unpin("run:one")
    assert store.has(BLOB) and not store.is_private(BLOB)


def test_a_restart_forgets_neither_whose_it_is_nor_to_give_it_back(tmp_path: Path) -> None:
    ours, theirs = blob_of(b"ours"), blob_of(b"theirs")
    store = opened(tmp_path)
    store.add(b"ours")
    store.set_private(ours, is_lent=False)
    store.set_private(theirs, is_lent=True)
    store.pin(theirs, "run:one")
    store.add(b"theirs")
    leave(store)
    store.close()
    again = opened(tmp_path)
    assert again.is_private(ours) and again.is_private(theirs)
    assert again.sealed(BLOB, READER) is not None
    again.unpin("run:one")
    assert again.has(ours) and not again.has(theirs)
    assert piece_count(BLOB.size_bytes) == 3
