"""The gossip rules: ACCEPT, IGNORE or REJECT, and what is kept for neighbours."""

from __future__ import annotations

from typing import Any

import pytest

from p2p_node.core.gossip import ASKED_MS, GossipBook, GossipReader
from p2p_node.core.registry import Registry
from protocols.envelope import seal
from protocols.limits import BID_WINDOW_MS_MAX, OFFER_LIFETIME_MS_MAX, RECENT_GOSSIP_MS
from protocols.messages import Cancel
from protocols.rulings import Ruling
from protocols.standing import Standings
from tests.support.builders import (
    CRYPTO,
    EXECUTOR,
    INPUT,
    NETWORK,
    NOW_MS,
    UNITS,
    advert,
    changed,
    committed,
    contract,
    digests,
    key,
    keys,
    notice,
    offer,
    opening,
    signed,
    widening,
)
from verification.fraud import build_proof

AGREED = contract()
PROVER, COMMITMENT = committed(AGREED, variant=b"cheap")
NOTICE = notice(AGREED, COMMITMENT)


def fraud_proof(chunk: int = 0) -> Any:
    statement = opening(PROVER, COMMITMENT, digests(AGREED.terms))
    return signed(3, build_proof(AGREED, COMMITMENT, statement, chunk=chunk, input=INPUT, units=UNITS))


def book(*, registry: Registry | None = None, standings: Standings | None = None) -> GossipBook:
    reader = GossipReader(network=NETWORK, crypto=CRYPTO)
    return GossipBook(reader=reader, registry=registry or Registry(), standings=standings or Standings())


def flipped(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


ACCEPT, IGNORE, REJECT = Ruling.ACCEPT, Ruling.IGNORE, Ruling.REJECT


@pytest.mark.parametrize(
    ("topic", "data", "ruling", "why"),
    [
        ("peers", advert(1).raw, ACCEPT, ""),
        ("peers", advert(1, expires_ms=NOW_MS + 1, sent_ms=NOW_MS - 9).raw, ACCEPT, ""),
        ("peers", advert(1, expires_ms=NOW_MS, sent_ms=NOW_MS - 9).raw, IGNORE, "late or known"),
        ("peers", advert(1, expires_ms=NOW_MS - 1).raw, REJECT, "lifetime"),
        ("peers", advert(1, sent_ms=NOW_MS + 30_001).raw, REJECT, "in the future"),
        ("jobs", advert(1).raw, REJECT, "doesn't belong on topic 'jobs'"),
        ("jobs", offer().raw, ACCEPT, ""),
        ("jobs", offer(expires_ms=NOW_MS + 1_001).raw, ACCEPT, ""),
        ("jobs", offer(sent_ms=NOW_MS - 9, bids_close_ms=NOW_MS - 9, expires_ms=NOW_MS).raw, IGNORE, "late"),
        ("jobs", offer(bids_close_ms=NOW_MS - 1).raw, REJECT, "offer times"),
        ("jobs", offer(bids_close_ms=NOW_MS + 240_000).raw, REJECT, "offer times"),
        (
            "jobs",
            offer(bids_close_ms=NOW_MS + BID_WINDOW_MS_MAX + 1, expires_ms=NOW_MS + 10**6).raw,
            REJECT,
            "collects bids",
        ),
        ("jobs", offer(expires_ms=NOW_MS + OFFER_LIFETIME_MS_MAX + 30_001).raw, REJECT, "lifetime"),
        ("jobs", offer(sent_ms=NOW_MS + 30_001, bids_close_ms=NOW_MS + 30_002).raw, REJECT, "in the future"),
        ("peers", offer().raw, REJECT, "doesn't belong on topic 'peers'"),
        ("weather", offer().raw, REJECT, "doesn't belong on topic 'weather'"),
        ("jobs", NOTICE.raw, ACCEPT, ""),
        ("jobs", signed(3, NOTICE.body).raw, REJECT, "isn't from the executor"),
        ("jobs", signed(EXECUTOR, changed(NOTICE.body, award=b"")).raw, REJECT, "Envelope"),
        (
            "jobs",
            signed(EXECUTOR, changed(NOTICE.body, commitment=NOTICE.body.award)).raw,
            REJECT,
            "expected",
        ),
        (
            "jobs",
            notice(
                contract(finish_by_ms=NOW_MS - 30_001), committed(contract(finish_by_ms=NOW_MS - 30_001))[1]
            ).raw,
            IGNORE,
            "late",
        ),
        ("jobs", widening(COMMITMENT, 1).raw, IGNORE, "late or known"),
        ("convictions", fraud_proof().raw, ACCEPT, ""),
        ("convictions", signed(3, changed(fraud_proof().body, input=b"")).raw, REJECT, "input"),
        ("convictions", signed(3, changed(fraud_proof().body, chunk=9)).raw, REJECT, "outside"),
        ("jobs", signed(1, Cancel(bytes(32), "no")).raw, REJECT, "doesn't belong"),
        ("jobs", b"", REJECT, "Envelope"),
        ("jobs", offer().raw + b"\0", REJECT, "Envelope"),
        ("jobs", flipped(offer().raw), REJECT, "signature"),
        ("jobs", bytes(65_537), REJECT, "65537 bytes exceeds 65536"),
        ("jobs", seal(offer().body, network="other", key=keys(0)).raw, REJECT, "network 'other'"),
    ],
)
def test_rulings(topic: str, data: bytes, ruling: Ruling, why: str) -> None:
    found, reason = book().judge(topic, data, NOW_MS)
    assert found is ruling and why in reason


def test_an_unknown_kind_is_ignored_and_nobody_pays() -> None:
    class Gift(type(offer().body), frozen=True):  # type: ignore[misc]
        KIND = "gift"

    body = Gift(*[getattr(offer().body, field) for field in offer().body.__struct_fields__])
    assert book().judge("jobs", signed(1, body).raw, NOW_MS)[0] is IGNORE


def test_judging_changes_nothing_and_taking_happens_once() -> None:
    gossip = book()
    for _ in range(2):
        assert gossip.judge("jobs", offer().raw, NOW_MS)[0] is ACCEPT
    judged = gossip.take("jobs", offer().raw, NOW_MS)
    assert judged is not None and judged.message == offer()
    assert gossip.take("jobs", offer().raw, NOW_MS) is None
    assert gossip.judge("jobs", offer().raw, NOW_MS)[0] is IGNORE


def test_what_was_accepted_on_one_topic_is_not_on_another() -> None:
    gossip = book()
    gossip.judge("jobs", offer().raw, NOW_MS)
    assert gossip.judge("peers", offer().raw, NOW_MS)[0] is REJECT


def test_what_was_not_judged_is_not_taken() -> None:
    assert book().take("jobs", offer().raw, NOW_MS) is None


def test_an_advert_must_be_news() -> None:
    registry = Registry()
    registry.hear(advert(1, sequence=5), NOW_MS)
    gossip = book(registry=registry)
    assert gossip.judge("peers", advert(1, sequence=5, cores=9).raw, NOW_MS)[0] is IGNORE
    assert gossip.judge("peers", advert(1, sequence=6).raw, NOW_MS)[0] is ACCEPT


def test_a_widening_is_judged_by_the_notice_before_it() -> None:
    gossip = book()
    gossip.judge("jobs", NOTICE.raw, NOW_MS)
    gossip.take("jobs", NOTICE.raw, NOW_MS)
    assert gossip.judge("jobs", widening(COMMITMENT, 1).raw, NOW_MS)[0] is ACCEPT
    assert gossip.judge("jobs", widening(COMMITMENT, 1, number=3).raw, NOW_MS)[0] is REJECT


def test_the_convicted_need_no_second_proof() -> None:
    standings = Standings()
    standings.convict(key(EXECUTOR))
    assert book(standings=standings).judge("convictions", fraud_proof().raw, NOW_MS)[0] is IGNORE


# --- For neighbours ------------------------------------------------------------------------------


def heard(gossip: GossipBook, message: Any, now_ms: int = NOW_MS) -> bytes:
    gossip.keep("jobs", message, now_ms)
    return bytes(message.id)


def test_recent_gossip_is_offered_served_and_forgotten() -> None:
    gossip = book()
    old, new = heard(gossip, offer()), heard(gossip, NOTICE, NOW_MS + 1_000)
    assert gossip.recent_ids(NOW_MS + 1_000) == (old, new)
    assert gossip.recent(new) == NOTICE.raw
    assert gossip.recent_ids(NOW_MS + RECENT_GOSSIP_MS + 1) == (new,)
    assert gossip.recent(old) is None
    # Still known, so that a neighbour's copy isn't asked for again.
    assert gossip.missing((old, new, bytes(32)), NOW_MS) == (bytes(32),)


def test_what_is_on_its_way_is_not_asked_of_every_neighbour() -> None:
    gossip = book()
    one, other = bytes(32), bytes([1]) * 32
    assert gossip.missing((one,), NOW_MS) == (one,)
    assert gossip.missing((one, other), NOW_MS + 100) == (other,)
    # It didn't come: the answer, or the question, was lost.
    assert gossip.missing((one, other), NOW_MS + ASKED_MS) == (one,)
    # Nor may whoever keeps it from us hold up the others twice.
    assert gossip.missing((one,), NOW_MS + ASKED_MS + 1) == (one,)


def test_what_was_superseded_is_not_asked_for() -> None:
    registry = Registry()
    old, new = advert(1, sequence=1), advert(1, sequence=2)
    registry.hear(new, NOW_MS)
    gossip = book(registry=registry)
    assert gossip.missing((old.id,), NOW_MS) == (old.id,)
    assert gossip.judge("peers", old.raw, NOW_MS) == (IGNORE, "late or known")
    assert gossip.missing((old.id,), NOW_MS + ASKED_MS) == ()


def test_a_comparison_between_neighbours_is_about_the_last_while() -> None:
    gossip = book()
    heard(gossip, offer())
    new = heard(gossip, NOTICE, NOW_MS + 50_000)
    assert gossip.recent_ids(NOW_MS + 50_000, within_ms=45_000) == (new,)


def test_recent_gossip_is_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(advert(1).raw)
    monkeypatch.setattr("p2p_node.core.gossip.RECENT_GOSSIP_BYTES_MAX", 3 * size)
    gossip = book()
    ids = [heard(gossip, advert(number)) for number in range(5)]
    heard(gossip, advert(4))
    assert gossip.recent_ids(NOW_MS) == tuple(ids[2:])


def test_recent_gossip_is_bounded_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p_node.core.gossip.RECENT_GOSSIP_MAX", 2)
    gossip = book()
    ids = [heard(gossip, advert(number)) for number in range(5)]
    assert gossip.recent_ids(NOW_MS) == tuple(ids[3:])
