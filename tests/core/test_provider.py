"""A provider bids, reserves, and takes only contracts that it can hold and can't be framed by."""

from __future__ import annotations

from typing import Any

import pytest

from p2p_node.core.engagement import Engagement, EngagementState
from p2p_node.core.kept import KeptContract
from p2p_node.core.market import BIDDERS_EXPECTED
from p2p_node.core.node import NodeCore
from p2p_node.sim.workload import recompute
from protocols.auction import bid_seal
from protocols.codec import decode
from protocols.effects import Persist, Run
from protocols.errors import PeerFault, Rejected
from protocols.events import Heard, RunChunk, RunOutput
from protocols.limits import AGREED_SEGMENT_CHUNKS_MAX, OFFER_LIFETIME_MS_MAX
from protocols.messages import (
    Acceptance,
    AuctionClose,
    Bid,
    BidSeal,
    Cancel,
    Closed,
    Commitment,
    Decline,
    Member,
    Proposal,
    Refusal,
    Sealed,
)
from protocols.units import units_digest
from tests.support.builders import (
    CRYPTO,
    ELECTORATE,
    EXECUTOR,
    INPUT,
    NETWORK,
    NOW_MS,
    REQUESTER,
    UNITS,
    VERIFIERS,
    advert,
    award,
    blind,
    changed,
    claim,
    digests,
    key,
    offer,
    opening_request,
    signed,
)
from tests.support.machines import core, sent, the
from verification.electorate import Electorate
from verification.fraud import build_proof, open_proof

# --- Bids ----------------------------------------------------------------------------------------


def bidder(**arguments: Any) -> NodeCore:
    return core(EXECUTOR, knows=VERIFIERS, **arguments)


def close(*, seals: tuple[Sealed, ...], signer: int = REQUESTER) -> Any:
    return signed(signer, AuctionClose(offer().id, seals, NOW_MS + 1_000))


def test_a_bid_is_sealed_first_and_opened_at_the_close() -> None:
    node = bidder()
    seal = the(sent(node.provider.hear_offer(offer(), NOW_MS), BidSeal))
    counted = (Sealed(key(EXECUTOR), seal.body.seal),)
    bid = the(sent(node.provider.hear_close(close(seals=counted), NOW_MS + 1_000), Bid))
    assert bid_seal(key(EXECUTOR), bid.body) == seal.body.seal
    assert (bid.body.price_micros, bid.body.slots_free) == (100, 2)


def test_a_bid_reserves_its_slot() -> None:
    node = bidder(slots=1)
    node.provider.hear_offer(offer(), NOW_MS)
    decline = the(sent(node.provider.hear_offer(offer(nonce=bytes([1]) * 16), NOW_MS), Decline))
    assert (decline.body.reason, decline.body.have, decline.body.need) == ("busy", 0, 1)


@pytest.mark.parametrize("ending", ["closed", "not counted", "time"])
def test_a_reservation_ends(ending: str) -> None:
    node = bidder(slots=1)
    node.provider.hear_offer(offer(), NOW_MS)
    now_ms = NOW_MS
    if ending == "closed":
        node.provider.hear_closed(signed(REQUESTER, Closed(offer().id, key(4))))
    elif ending == "not counted":
        assert sent(node.provider.hear_close(close(seals=()), NOW_MS), Bid) == []
    else:
        now_ms += 1_000 + 6_000 + 1
    assert node.provider.capacity(now_ms).slots_free == 1


def test_only_the_requester_ends_or_opens_a_reservation() -> None:
    node = bidder(slots=1)
    seal = the(sent(node.provider.hear_offer(offer(), NOW_MS), BidSeal))
    node.provider.hear_closed(signed(3, Closed(offer().id, b"")))
    counted = (Sealed(key(EXECUTOR), seal.body.seal),)
    assert node.provider.hear_close(close(seals=counted, signer=3), NOW_MS) == []
    assert node.provider.capacity(NOW_MS).slots_free == 0


@pytest.mark.parametrize(
    ("job", "now_ms"),
    [
        (offer(EXECUTOR), NOW_MS),
        (offer(mode="posted", bids_close_ms=NOW_MS), NOW_MS),
        (offer(), NOW_MS + 1_001),
    ],
)
def test_some_offers_are_no_business_of_ours(job: Any, now_ms: int) -> None:
    assert bidder().provider.hear_offer(job, now_ms) == []


def test_a_peer_that_serves_nothing_is_silent() -> None:
    assert bidder(serves=False).provider.hear_offer(offer(), NOW_MS) == []


def test_a_requester_that_failed_us_gets_no_bid() -> None:
    node = bidder()
    node.standings.record_failure(key(REQUESTER), NOW_MS)
    decline = the(sent(node.provider.hear_offer(offer(), NOW_MS), Decline))
    assert decline.body.reason == "standing"


# --- Awards --------------------------------------------------------------------------------------

TERMS = {"job_id": offer(mode="posted").id}


def proposal(
    *,
    signer: int = REQUESTER,
    terms: Any = None,
    job: Any = None,
    body: dict[str, Any] | None = None,
    **fields: Any,
) -> Any:
    terms = terms or award(**TERMS, **fields)
    whole = Proposal(terms.raw, (job or offer(mode="posted")).raw, INPUT, (), ELECTORATE.members, 0)
    return signed(signer, changed(whole, **(body or {})))


def test_a_fair_award_is_accepted_and_run() -> None:
    node = bidder()
    effects = node.provider.hear_proposal(proposal(), NOW_MS)
    assert the(sent(effects)).body.award_id == award(**TERMS).id
    assert isinstance(the(sent(effects)).body, Acceptance)
    [run] = [effect for effect in effects if isinstance(effect, Run)]
    assert (run.task.input, run.task.prefix) == (INPUT, ())
    assert node.provider.capacity(NOW_MS).slots_free == 1


def test_what_it_commits_to_is_told_in_the_room_that_the_requester_names() -> None:
    node = bidder()
    # Somebody said the offer again in a room one step off, where we heard it.
    node.rooms.place(TERMS["job_id"], 3)
    effects = node.provider.hear_proposal(proposal(body={"room_depth": 2}), NOW_MS)
    assert node.rooms.depth_of_job(TERMS["job_id"]) == 2
    [kept] = [effect for effect in effects if isinstance(effect, Persist) and effect.table == "contracts"]
    assert kept.value is not None
    assert decode(kept.value, KeptContract).room_depth == 2


PREFIX = UNITS[:32]
SMALL = Electorate([Member(key(2), 1)])


@pytest.mark.parametrize(
    ("fields", "body", "reason", "detail"),
    [
        ({"finish_by_ms": NOW_MS - 1}, {}, "expired", "has passed"),
        ({"finish_by_ms": NOW_MS + OFFER_LIFETIME_MS_MAX + 30_001}, {}, "terms", "too far ahead"),
        ({"accept_by_ms": 2**63 - 1}, {}, "terms", "too far ahead"),
        ({"units_max": 65}, {}, "terms", "award and offer differ"),
        ({"profile": "exact21"}, {}, "terms", "award and offer differ"),
        ({"chunk_units": 31}, {}, "terms", "chunk_units=31 must be 32"),
        ({"chunk_units": 64}, {}, "terms", "chunk_units=64 must be 32"),
        ({"segment_chunks": AGREED_SEGMENT_CHUNKS_MAX + 1}, {}, "terms", "segment_chunks=257"),
        ({}, {"input": b"other"}, "input", "doesn't match its digest"),
        ({}, {"prefix": PREFIX}, "prefix", "doesn't match its digest"),
        (
            {"prefix_units": 31, "prefix_digest": units_digest(UNITS[:31])},
            {"prefix": UNITS[:31]},
            "prefix",
            "whole number of chunks",
        ),
        (
            {"prefix_units": 64, "prefix_digest": units_digest(UNITS)},
            {"prefix": UNITS},
            "prefix",
            "whole number of chunks",
        ),
        ({"price_micros": 99}, {}, "price", "below our 100"),
        ({}, {"electorate": ()}, "electorate", "1..4096 members"),
        ({}, {"electorate": (Member(key(2), 1),) * 2}, "electorate", "occurs twice"),
        ({}, {"electorate": SMALL.members}, "electorate", "don't match the root"),
        ({"electorate_weight": 5}, {}, "electorate", "don't match the root"),
        ({"electorate_weight_max": 2}, {}, "electorate", "don't match the root"),
        (
            {"electorate_root": SMALL.root, "electorate_weight": 1, "electorate_count": 1},
            {"electorate": SMALL.members},
            "electorate",
            "leaves out 750000 ppm",
        ),
    ],
)
def test_terms_that_are_refused(
    fields: dict[str, Any], body: dict[str, Any], reason: str, detail: str
) -> None:
    node = bidder()
    refusal = the(sent(node.provider.hear_proposal(proposal(body=body, **fields), NOW_MS), Refusal))
    assert refusal.body.reason == reason and detail in refusal.body.detail
    assert node.provider.engagements == {}


def test_a_requester_may_leave_out_a_crowd_of_newcomers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p_node.core.registry.CROWD_SHARE", 2)
    node, later_ms = bidder(), NOW_MS + 60_000
    for number in range(40, 60):
        node.registry.hear(advert(number, expires_ms=later_ms + 60_000), later_ms)
    known = {*VERIFIERS, *range(40, 60)}
    left_out = node.registry.without_crowd(map(key, known), later_ms)
    assert set(left_out) == set(map(key, VERIFIERS))
    fresh = proposal(accept_by_ms=later_ms + 5_000, finish_by_ms=later_ms + 60_000)
    assert sent(node.provider.hear_proposal(fresh, later_ms), Refusal) == []


def test_an_award_must_be_based_on_the_reserved_bid() -> None:
    node = bidder()
    node.provider.hear_offer(offer(), NOW_MS)
    refusal = the(sent(node.provider.hear_proposal(proposal(terms=award(), job=offer()), NOW_MS), Refusal))
    assert refusal.body.reason == "basis"


def test_a_busy_provider_refuses() -> None:
    node = bidder(slots=1)
    node.provider.hear_proposal(proposal(), NOW_MS)
    other = offer(mode="posted", nonce=bytes([1]) * 16)
    terms = award(job_id=other.id)
    refusal = the(sent(node.provider.hear_proposal(proposal(terms=terms, job=other), NOW_MS), Refusal))
    assert refusal.body.reason == "busy"


@pytest.mark.parametrize(
    ("message", "rule"),
    [
        (proposal(signer=3), "somebody else's award or offer"),
        (proposal(job=offer(3, mode="posted")), "somebody else's award or offer"),
        (proposal(executor=key(4)), "names another executor"),
        (proposal(body={"award": b""}), "Envelope"),
        (proposal(body={"award": offer().raw}), "expected 'award'"),
    ],
)
def test_proposals_that_break_a_rule(message: Any, rule: str) -> None:
    with pytest.raises(PeerFault, match=rule):
        bidder().provider.hear_proposal(message, NOW_MS)


def test_a_contract_is_run_once_even_after_it_is_over() -> None:
    """Or its first run's voucher would pay for the second."""
    node = bidder()
    node.provider.hear_proposal(proposal(), NOW_MS)
    [engagement] = node.provider.engagements.values()
    engagement.handle(Heard(signed(REQUESTER, Cancel(engagement.award.id, "over"))), NOW_MS)
    assert engagement.state is EngagementState.DONE
    node.provider.capacity(NOW_MS)
    assert node.provider.hear_proposal(proposal(), NOW_MS) == []
    assert node.provider.engagements == {}


def test_terms_that_cut_chunks_otherwise_would_frame_an_honest_executor() -> None:
    """Why `chunk_units` is refused: a digest over 32 units, read as one over 31, looks false."""
    node = bidder()
    terms = award(**TERMS, chunk_units=31, segment_chunks=1)
    engagement = Engagement(node, terms, input=INPUT, prefix=(), device="cpu", eta_ms=1)
    engagement.start(NOW_MS)
    honest = digests(terms.body)
    engagement.handle(RunOutput(engagement.run_key, 0, UNITS[:32]), NOW_MS)
    effects = engagement.handle(RunChunk(engagement.run_key, 0, honest[0]), NOW_MS)
    commitment = the(sent(effects, Commitment))
    results = [bytes([1]) * 32]
    request = opening_request(commitment, results, 2)
    assert request.body.draws[0].claim == claim(2, commitment).raw and blind(2, commitment, results)
    opening = the(sent(engagement.handle(Heard(request), NOW_MS)))
    proof = build_proof(engagement.contract, commitment, opening, chunk=0, input=INPUT, units=UNITS[:31])
    assert proof is not None
    accusation = open_proof(proof, network=NETWORK, crypto=CRYPTO)
    assert accusation.is_guilty(dict(recompute(accusation.task, chunk_units=32))[0])


def test_rejected_means_nothing_was_taken() -> None:
    node = bidder()
    with pytest.raises(Rejected):
        node.provider.hear_proposal(proposal(signer=3), NOW_MS)
    assert node.provider.engagements == {} and node.provider.capacity(NOW_MS).slots_free == 2


def test_of_many_able_peers_a_lot_says_which_answer() -> None:
    """About `BIDDERS_EXPECTED` of them, and others for another offer; all of them where they are few."""
    node = bidder()
    asked = [offer(nonce=number.to_bytes(16, "little")) for number in range(200)]
    assert all(node.provider._is_drawn(message) for message in asked)
    for number in range(100, 100 + 3 * BIDDERS_EXPECTED):
        node.registry.hear(advert(number), NOW_MS)
    drawn = [node.provider._is_drawn(message) for message in asked]
    assert 200 / 6 < sum(drawn) < 200 / 2
    undrawn = asked[drawn.index(False)]
    assert node.provider.hear_offer(undrawn, NOW_MS) == []


def test_adverts_of_a_thousand_keys_do_not_keep_a_neighbour_from_answering() -> None:
    node = bidder()
    for number in range(100, 100 + 10 * BIDDERS_EXPECTED):
        node.registry.hear(advert(number), NOW_MS)
    asked = [offer(nonce=number.to_bytes(16, "little")) for number in range(50)]
    assert not all(node.provider._is_drawn(message) for message in asked)
    node.connected.add(key(REQUESTER))
    assert all(node.provider._is_drawn(message) for message in asked)
