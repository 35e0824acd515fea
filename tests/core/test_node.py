"""One whole peer: who hears which message, what is heard once, and what it costs to be wrong."""

from __future__ import annotations

from typing import Any

import pytest

from p2p_node.core.node import FEW_LINKS, NodeCore
from p2p_node.core.outbox import Transmit, ack_frame, message_frame
from p2p_node.sim.scenario import job_request
from p2p_node.sim.workload import derive_unit
from protocols.effects import Notify, Penalise, Persist, Publish, Run, SetTimer
from protocols.envelope import seal
from protocols.events import RunRecomputed
from protocols.limits import (
    EARLY_COMMITMENTS_MAX,
    VERIFIERS_PER_SEGMENT_MAX,
)
from protocols.messages import (
    Acceptance,
    Advert,
    Assignment,
    BidSeal,
    Cancel,
    DrawClaim,
    Headcount,
    Opening,
    Output,
    Proposal,
    Reveal,
    SyncSummary,
    SyncWant,
    Voucher,
    VoucherReceipt,
)
from protocols.rulings import Ruling
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
from tests.support.machines import core, deliver, said, the
from verification.duty import draw_proof
from verification.evidence import Contract
from verification.fraud import build_proof
from verification.prover import Prover

AGREED = contract()
PROVER, COMMITMENT = committed(AGREED)


def gossip(node: NodeCore, topic: str, message: Any, forwarder: int = 9) -> list[Any]:
    assert node.judge(topic, message.raw, NOW_MS)[0] is Ruling.ACCEPT
    return node.gossip_received(topic, message.raw, key(forwarder), NOW_MS)


def penalties(acts: list[Any]) -> list[Penalise]:
    return [act for act in acts if isinstance(act, Penalise)]


# --- Frames --------------------------------------------------------------------------------------


def test_a_message_is_acknowledged_and_heard_once() -> None:
    node = core(2)
    message = signed(REQUESTER, Cancel(bytes(32), "no"))
    ack = Transmit(key(REQUESTER), ack_frame(message.id))
    assert deliver(node, message) == [ack]
    first = deliver(node, offer())
    assert [type(act) for act in first if not isinstance(act, Transmit | SetTimer)] == [Notify]
    assert deliver(node, offer()) == [Transmit(key(REQUESTER), ack_frame(offer().id))]


@pytest.mark.parametrize(
    ("data", "points", "why"),
    [
        (b"", 20, "neither a message nor"),
        (b"\0", 20, "Envelope"),
        (b"\0" + offer().raw[:-1], 20, "Envelope"),
        (b"\0" + offer().raw[:-1] + b"\xff", 40, "signature"),
        (b"\0" + seal(offer().body, network="other", key=keys(0)).raw, 10, "network 'other'"),
        (b"\0" + signed(2, Assignment(bytes(32), bytes(32), None, b"", ())).raw, 20, "Assignment"),
        (b"\7" + offer().raw, 20, "neither a message nor"),
    ],
)
def test_what_cannot_be_read_costs_the_sender(data: bytes, points: int, why: str) -> None:
    [penalty] = core(2).frame_received(key(9), data, NOW_MS)
    assert isinstance(penalty, Penalise)
    assert (penalty.peer, penalty.points) == (key(9), points) and why in penalty.reason


def test_a_broken_rule_costs_the_sender_and_is_acknowledged() -> None:
    node = core(EXECUTOR, knows=VERIFIERS)
    body = Proposal(AGREED.award.raw, offer().raw, b"", (), (), 0)
    ack, penalty = node.frame_received(key(3), message_frame(signed(3, body).raw), NOW_MS)
    assert isinstance(ack, Transmit)
    assert penalty == Penalise(key(3), 10, "proposal: proposal carries somebody else's award or offer")


@pytest.mark.parametrize(
    "body",
    [
        BidSeal(bytes(32), bytes(32)),
        Acceptance(bytes(32), "cpu", 1),
        Output(bytes(32), 0, (1,)),
        Opening(bytes(32), ()),
        Reveal(bytes(32), bytes(32), bytes(32), (), "exact14"),
        VoucherReceipt(bytes(32), 1),
        Voucher(bytes(32), key(2), 1, 5, 0, NOW_MS, bytes(32)),
        DrawClaim(bytes(32), 0, bytes(80)),
        Cancel(bytes(32), "no"),
    ],
)
def test_what_names_nothing_of_ours_changes_nothing(body: Any) -> None:
    node = core(2)
    message = signed(9, body)
    assert deliver(node, message) == [Transmit(key(9), ack_frame(message.id))]


def test_gossip_on_a_link_is_judged_by_the_same_rules() -> None:
    node = core(2)
    assert penalties(deliver(node, advert(4, expires_ms=NOW_MS)))
    deliver(node, advert(4))
    assert node.registry.get(key(4)) == advert(4)
    assert node.judge("peers", advert(4).raw, NOW_MS)[0] is Ruling.IGNORE


# --- Gossip --------------------------------------------------------------------------------------


def test_each_kind_of_gossip_reaches_its_machine() -> None:
    node = core(2)
    assert gossip(node, "peers", advert(4)) == [Persist("registry", key(4), advert(4).raw)]
    assert the(said(gossip(node, "jobs", offer()), BidSeal))[0] == key(REQUESTER)
    acts = gossip(node, "jobs", notice(AGREED, COMMITMENT))
    assert the(said(acts, DrawClaim))[1].body.commitment_id == COMMITMENT.id
    assert gossip(node, "jobs", widening(COMMITMENT, 1)) == []
    executor, commitment = committed(AGREED, variant=b"cheap")
    statement = opening(executor, commitment, digests(AGREED.terms))
    proof = build_proof(AGREED, commitment, statement, chunk=0, input=INPUT, units=UNITS)
    [run] = gossip(node, "convictions", signed(3, proof))
    assert isinstance(run, Run) and run.key[0] == "fraud"
    lie = RunRecomputed(run.key, ((0, digests(AGREED.terms)[0]),), 1)
    acts = node.run_event(lie, NOW_MS)
    assert isinstance(acts[0], Persist) and acts[0].table == "convictions"
    assert node.standings.of(key(EXECUTOR)).convicted


def test_what_we_publish_we_have_heard() -> None:
    node = core(2)
    [published] = [act for act in node.start(NOW_MS) if isinstance(act, Publish)]
    assert isinstance(published.message.body, Advert)
    assert node.judge("peers", published.message.raw, NOW_MS)[0] is Ruling.IGNORE


def test_adverts_are_paced_however_many_peers_connect() -> None:
    node = core(2)
    node.start(NOW_MS)
    for number in range(FEW_LINKS):
        acts = node.peer_connected(key(number + 10), NOW_MS + number)
        assert not any(isinstance(act, Publish) for act in acts)
        assert SetTimer(("advert",), NOW_MS + 1_000) in acts
    assert any(isinstance(act, Publish) for act in node.timer_fired(("advert",), NOW_MS + 1_000))


# --- Anti-entropy --------------------------------------------------------------------------------


def test_a_newcomer_does_not_make_its_neighbours_say_everything_again() -> None:
    node = core(0)
    node.start(NOW_MS)
    for number in range(1, FEW_LINKS + 1):
        acts = node.peer_connected(key(number), NOW_MS + 2_000 * number)
        assert any(isinstance(act, Publish) for act in acts)
        assert said(acts, Advert) == []
    acts = node.peer_connected(key(9), NOW_MS + 60_000)
    assert not any(isinstance(act, Publish) for act in acts)
    [(receiver, told)] = said(acts, Advert)
    assert (receiver, told.signer) == (key(9), node.key)


def test_who_comes_to_a_large_network_does_not_speak_to_everybody_first() -> None:
    node = core(0)
    node.start(NOW_MS)
    node.peer_connected(key(1), NOW_MS)
    deliver(node, signed(1, Headcount(5_000)), NOW_MS + 100)
    acts = node.timer_fired(("advert",), NOW_MS + 1_000)
    assert not any(isinstance(act, Publish) and act.topic == "peers" for act in acts)


def test_neighbours_fetch_what_they_missed() -> None:
    have, lacks = core(2), core(3)
    for number in (4, 5):
        gossip(have, "peers", advert(number))
    summary = the(said(have.peer_connected(key(3), NOW_MS), SyncSummary))[1]
    want = the(said(deliver(lacks, summary), SyncWant))[1]
    assert set(want.body.ids) == {advert(4).id, advert(5).id}
    served = said(deliver(have, want))
    for _, message in served:
        deliver(lacks, message)
    assert lacks.registry.get(key(4)) == advert(4) and lacks.registry.get(key(5)) == advert(5)
    assert said(deliver(lacks, signed(2, changed(summary.body, ids=summary.body.ids[::-1])))) == []


def test_serving_gossip_is_bounded_and_takes_no_room_in_the_outbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request of some kilobytes must not be answered with megabytes that wait to be acknowledged."""
    node = core(2)
    for number in range(4, 20):
        gossip(node, "peers", advert(number))
    size = len(advert(4).raw)
    monkeypatch.setattr("p2p_node.core.node.SYNC_BYTES_MAX", 5 * size)
    before = len(node.outbox)
    ids = tuple(advert(number).id for number in range(4, 20))
    acts = deliver(node, signed(3, SyncWant((*ids, *ids))))
    assert len(said(acts)) == 5 and len(node.outbox) == before
    assert not any(isinstance(act, SetTimer) for act in acts)


# --- Routing across messages ---------------------------------------------------------------------


class Contracted:
    """Peer 0 has a contract with peer 1, whose commitment hasn't come yet."""

    def __init__(self) -> None:
        self.node = core(REQUESTER, knows=(EXECUTOR, *VERIFIERS))
        request = job_request(0, mode="posted", verifiers=1_000)
        job_id, acts = self.node.submit(request, nonce=bytes(16), now_ms=NOW_MS)
        self.job = self.node.jobs[job_id]
        receiver, _ = the(said(acts, Proposal))
        self.executor = next(number for number in (EXECUTOR, *VERIFIERS) if key(number) == receiver)
        self.others = [number for number in (EXECUTOR, *VERIFIERS) if number != self.executor]
        acceptance = self.say(Acceptance(self.job.attempts[0].award.id, "cpu", 1))
        self.agreed = Contract(self.job.attempts[0].award, acceptance)
        self.request = request

    def say(self, body: Any, number: int | None = None) -> Any:
        message = signed(self.executor if number is None else number, body)
        deliver(self.node, message)
        return message

    def commitment(self) -> Any:
        units = tuple(derive_unit(self.request.input, index) for index in range(64))
        self.say(Output(self.agreed.award.id, 0, units))
        prover = Prover(
            self.agreed,
            secret=bytes(32),
            network=NETWORK,
            crypto=CRYPTO,
            sign=lambda body: signed(self.executor, body),
        )
        return prover.commit([bytes([1]) * 32, bytes([2]) * 32], units, final=True)


def drawn(number: int, commitment: Any) -> Any:
    return signed(number, DrawClaim(commitment.id, 0, draw_proof(keys(number), NETWORK, commitment.id)))


def test_a_claim_that_overtakes_its_commitment_waits_for_it() -> None:
    """Gossip may be quicker than the executor's own link."""
    case = Contracted()
    commitment = case.commitment()
    for number in case.others:
        assert said(deliver(case.node, drawn(number, commitment))) == []
    acts = deliver(case.node, commitment)
    assert len(said(acts, Assignment)) == len(case.others)
    assert case.node._early_claims == {} and case.node._due_claims == []


def test_an_early_claim_that_breaks_a_rule_costs_its_sender_and_not_the_executor() -> None:
    case = Contracted()
    commitment = case.commitment()
    liar = case.others[0]
    deliver(case.node, signed(liar, DrawClaim(commitment.id, 0, bytes(80))))
    acts = deliver(case.node, commitment)
    assert [penalty.peer for penalty in penalties(acts)] == [key(liar)]
    assert commitment.id in case.job.attempts[0].rounds


def test_early_claims_are_bounded() -> None:
    node = core(REQUESTER)
    for number in range(VERIFIERS_PER_SEGMENT_MAX + 5):
        deliver(node, signed(number + 10, DrawClaim(bytes(32), 0, bytes(80))))
    assert len(node._early_claims[bytes(32)]) == VERIFIERS_PER_SEGMENT_MAX
    for number in range(EARLY_COMMITMENTS_MAX + 5):
        deliver(node, signed(9, DrawClaim(number.to_bytes(32, "big"), 0, bytes(80))))
    assert len(node._early_claims) == EARLY_COMMITMENTS_MAX


def test_a_registry_full_of_keys_does_not_break_the_electorate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adverts are free: more able peers than a list may hold once raised in the middle of an award."""
    monkeypatch.setattr("p2p_node.core.market.ELECTORATE_MEMBERS_MAX", 4)
    node = core(REQUESTER, knows=tuple(range(1, 20)))
    node.standings.record_completion(key(7), declared_ms=1, delivered_ms=1)
    one = node.market.electorate(offer().body, key(EXECUTOR), NOW_MS)
    other = node.market.electorate(offer(nonce=bytes([1]) * 16).body, key(EXECUTOR), NOW_MS)
    assert one is not None and other is not None
    assert one.count == other.count == 4
    # Proven peers stay; who else is in it nobody could aim at.
    assert key(7) in one and key(7) in other
    assert one.root != other.root
    assert key(EXECUTOR) not in one and key(REQUESTER) not in one


def test_the_electorate_is_everybody_able_and_welcome() -> None:
    node = core(REQUESTER, knows=(1, 2, 3))
    node.standings.convict(key(3))
    electorate = node.market.electorate(offer().body, key(1), NOW_MS)
    assert electorate is not None and [m.key for m in electorate.members] == [key(2)]
    assert core(REQUESTER).market.electorate(offer().body, key(1), NOW_MS) is None


def test_a_late_voucher_still_finds_its_contract() -> None:
    node = core(EXECUTOR, knows=VERIFIERS)
    posted = offer(mode="posted")
    terms = contract(job_id=posted.id, segment_chunks=1).award
    deliver(node, signed(REQUESTER, Proposal(terms.raw, posted.raw, INPUT, (), ELECTORATE.members, 0)))
    [engagement] = node.provider.engagements.values()
    engagement.lane.deliver(3_200)
    deliver(node, signed(REQUESTER, Cancel(terms.id, "enough")))
    node.timer_fired(("housekeeping",), NOW_MS + 10_000)
    voucher = Voucher(terms.id, key(EXECUTOR), 1, 3_200, 0, NOW_MS, bytes(32))
    acts = deliver(node, signed(REQUESTER, voucher), NOW_MS + 20_000)
    assert said(acts, VoucherReceipt) and not penalties(acts)
    node.timer_fired(("housekeeping",), NOW_MS + 200_000)
    assert terms.id not in node._routes


# --- Housekeeping and restart --------------------------------------------------------------------


def test_finished_jobs_are_forgotten_beyond_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p_node.core.node.FINISHED_JOBS_MAX", 2)
    node = core(REQUESTER)
    ids = []
    for number in range(4):
        job_id, _ = node.submit(job_request(number), nonce=bytes([number]) * 16, now_ms=NOW_MS)
        node.cancel(job_id, NOW_MS)
        ids.append(job_id)
    open_id, _ = node.submit(job_request(9), nonce=bytes([9]) * 16, now_ms=NOW_MS)
    node.timer_fired(("housekeeping",), NOW_MS + 10_000)
    assert list(node.jobs) == [*ids[2:], open_id]
    assert set(node._routes) == {open_id}


def test_open_jobs_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p_node.core.node.OPEN_JOBS_MAX", 1)
    node = core(REQUESTER)
    node.submit(job_request(0), nonce=bytes(16), now_ms=NOW_MS)
    with pytest.raises(ValueError, match="1 jobs are open already"):
        node.submit(job_request(1), nonce=bytes(16), now_ms=NOW_MS)


def test_writing_comes_before_speaking() -> None:
    acts = deliver(core(EXECUTOR, knows=VERIFIERS), advert(8))
    assert acts[-1] == Persist("registry", key(8), advert(8).raw)
    posted = offer(mode="posted")
    terms = contract(job_id=posted.id).award
    proposal = Proposal(terms.raw, posted.raw, INPUT, (), ELECTORATE.members, 0)
    ack, first, *rest = deliver(core(EXECUTOR, knows=VERIFIERS), signed(REQUESTER, proposal))
    assert isinstance(ack, Transmit) and isinstance(first, Persist) and first.table == "contracts"
    assert not any(isinstance(act, Persist) for act in rest)


def test_a_restart_takes_back_what_was_kept() -> None:
    node = core(2)
    acts = node.restore(
        registry=[advert(4).raw, b"junk", offer().raw], convictions=[key(5)], outbox={}, now_ms=NOW_MS
    )
    assert acts == [] and len(node.registry) == 1
    assert node.standings.of(key(5)).convicted


def test_timers_and_runs_of_forgotten_things_mean_nothing() -> None:
    node = core(2)
    for timer in (
        ("round", bytes(32), "draw", 0),
        ("attempt", bytes(32), "stall"),
        ("job", bytes(32), "total"),
        ("bids", bytes(32)),
        ("engagement", bytes(32), "finish"),
        ("duty", bytes(32)),
        ("outbox", key(3), bytes(32)),
    ):
        assert node.timer_fired(timer, NOW_MS) == []
    for role in ("execute", "settle", "verify", "fraud"):
        assert node.run_event(RunRecomputed((role, bytes(32)), (), 1), NOW_MS) == []
