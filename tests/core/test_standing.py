"""What a node thinks of its peers follows from what it saw, and is bounded."""

from __future__ import annotations

import pytest

from protocols.standing import DECEIT_FAILURES, FORGIVING_CONTRACTS, Standings
from tests.support.builders import NOW_MS, key

PEER = key(1)


def test_an_unknown_peer_is_welcome_and_unproven() -> None:
    standings = Standings()
    assert standings.is_welcome(PEER, NOW_MS) and standings.of(PEER).reputation_ppm == 0
    assert standings.peers == {}


def test_reputation_grows_with_work_and_falls_faster() -> None:
    standings = Standings()
    for _ in range(8):
        standings.record_completion(PEER, declared_ms=100, delivered_ms=100)
    assert standings.of(PEER).reputation_ppm == 800_000
    standings.record_failure(PEER, NOW_MS)
    assert standings.of(PEER).reputation_ppm == 8_000_000 // 14


def test_exclusion_doubles_and_ends() -> None:
    standings = Standings()
    for expected_ms in (60_000, 120_000, 240_000):
        standings.record_failure(PEER, NOW_MS)
        assert not standings.is_welcome(PEER, NOW_MS + expected_ms - 1)
        assert standings.is_welcome(PEER, NOW_MS + expected_ms)
    for _ in range(100):
        standings.record_failure(PEER, NOW_MS)
    assert standings.is_welcome(PEER, NOW_MS + (60_000 << 10))


def test_work_well_done_shortens_the_next_exclusion() -> None:
    standings = Standings()
    for _ in range(4):
        standings.record_failure(PEER, NOW_MS)
    for _ in range(2 * FORGIVING_CONTRACTS):
        standings.record_completion(PEER, declared_ms=100, delivered_ms=100)
    standings.record_failure(PEER, NOW_MS)
    assert not standings.is_welcome(PEER, NOW_MS + 240_000 - 1)
    assert standings.is_welcome(PEER, NOW_MS + 240_000)


def test_where_everybody_failed_those_who_never_deceived_are_taken() -> None:
    standings = Standings()
    standings.record_failure(key(1), NOW_MS, is_mishap=True)
    standings.record_failure(key(2), NOW_MS, weight=DECEIT_FAILURES)
    standings.convict(key(3))
    everybody = [key(number) for number in (1, 2, 3)]
    assert standings.welcome_among(everybody, NOW_MS) == {key(1)}
    assert standings.welcome_among([*everybody, key(4)], NOW_MS) == {key(4)}, "better one that didn't fail"
    standings.record_failure(key(1), NOW_MS)
    assert standings.welcome_among(everybody, NOW_MS) == set()
    again = Standings()
    for change in standings.changes():
        again.restore(change.key, change.value or b"")
    assert again.of(key(1)).distrusted_until_ms == NOW_MS + 2 * 60_000


def test_deceit_weighs_as_many_failures() -> None:
    lied, failed = Standings(), Standings()
    lied.record_failure(PEER, NOW_MS, weight=DECEIT_FAILURES)
    for _ in range(DECEIT_FAILURES):
        failed.record_failure(PEER, NOW_MS)
    assert lied.of(PEER) == failed.of(PEER)
    assert not lied.is_welcome(PEER, NOW_MS + 8 * 60_000 - 1)


def test_good_work_makes_up_for_the_risk_of_a_failure() -> None:
    standings = Standings()
    assert standings.of(PEER).risk_micros(100) == 0
    standings.record_failure(PEER, NOW_MS)
    assert standings.of(PEER).risk_micros(100) == 400
    for _ in range(39):
        standings.record_completion(PEER, declared_ms=100, delivered_ms=100)
    assert standings.of(PEER).risk_micros(100) == 10


def test_a_conviction_is_for_good() -> None:
    standings = Standings()
    standings.record_completion(PEER, declared_ms=1, delivered_ms=1)
    standings.convict(PEER)
    assert not standings.is_welcome(PEER, 2**62) and standings.of(PEER).reputation_ppm == 0


def test_declaring_less_time_than_it_takes_does_not_pay() -> None:
    standings = Standings()
    standings.record_completion(PEER, declared_ms=100, delivered_ms=500)
    assert standings.of(PEER).latency_factor_ppm == 2_000_000
    standings.record_completion(PEER, declared_ms=0, delivered_ms=10**9)
    assert standings.of(PEER).latency_factor_ppm <= 27_000_000


def test_being_quicker_than_declared_is_worth_no_more() -> None:
    standings = Standings()
    standings.record_completion(PEER, declared_ms=500, delivered_ms=1)
    assert standings.of(PEER).latency_factor_ppm == 1_000_000


def test_convictions_are_kept_longest_but_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocols.standing.REGISTRY_PEERS_MAX", 3)
    standings = Standings()
    standings.convict(key(1))
    standings.record_failure(key(2), NOW_MS)
    standings.convict(key(3))
    standings.convict(key(4))
    assert list(standings.peers) == [key(1), key(3), key(4)]
    standings.convict(key(5))
    assert list(standings.peers) == [key(3), key(4), key(5)]
