"""A network that is large by smaller numbers: jobs find their rooms, and nobody else hears of them."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.growth import SCENARIO
from p2p_node.core import census, registry, rooms, society
from p2p_node.sim.play import Play
from p2p_node.sim.scenariofile import parse_scenario


@pytest.fixture
def small_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    """A twelfth of the real numbers."""
    for module in (rooms, society):
        monkeypatch.setattr(module, "ROOM_SPLIT", 21)
        monkeypatch.setattr(module, "ROOM_MERGE", 8)
    monkeypatch.setattr(rooms, "ROOMS_FROM_PEERS", 5)
    monkeypatch.setattr(census, "COUNTED_MAX", 21)
    monkeypatch.setattr(census, "ADVERTS_PER_MINUTE", 16)
    monkeypatch.setattr(registry, "REGISTRY_SAMPLE_MAX", 26)
    monkeypatch.setattr(registry, "REGISTRY_MEMBERS_MAX", 42)
    monkeypatch.setattr(registry, "REGISTRY_MET_MAX", 42)


def test_jobs_are_done_in_rooms_that_others_do_not_hear(small_rooms: None) -> None:
    load = [SCENARIO["load"][0] | {"per_peer_hour": 60, "units": 32}]
    changes = {"peers": 50, "minutes": 0.2, "warm_up_s": 25, "seed": 3, "load": load}
    play = Play(parse_scenario(SCENARIO | changes))
    play.run()
    report = play.report()
    assert report["jobs"]["verified"] == report["jobs"]["submitted"] >= 5
    heard = report["traffic"]["idle_heard_per_peer_per_job_milli"]
    assert heard["rooms"] == 0
    assert "jobs" not in heard
    cores = [peer.core for peer in play.world.peers]
    assert all(core.rooms.is_wide for core in cores)
    serving = [core for core in cores if core.capability.abilities]
    # Half of them serve: their room has split, and each is linked to some of its half.
    depths = Counter(core.rooms.depth_of("sim.hash", _model(core)) for core in serving)
    assert depths == {2: len(serving)}
    assert report["registry"]["p99"] < 26 + 42 + 42
    assert not any(peer.penalties for peer in play.world.peers)


def _model(core: object) -> bytes:
    return core.capability.abilities[0].offering.model  # type: ignore[attr-defined, no-any-return]
