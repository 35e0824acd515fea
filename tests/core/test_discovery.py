"""A client that knows nobody able asks the directory, and offers its job to whom it names."""

from __future__ import annotations

from p2p_node.core import discovery
from p2p_node.core.node import Act, NodeCore
from p2p_node.core.outbox import message_frame
from p2p_node.core.patience import FIRST_MS, LEAST_MS, MOST_MS, Patience
from p2p_node.core.visits import LINKS_KEPT, VISIT_MS
from p2p_node.sim.scenario import job_request
from protocols.effects import HangUp
from protocols.envelope import Signed
from protocols.identity import peer_id
from protocols.messages import Closest, FindClosest, MembersWant, Offer, ProviderRecord
from protocols.places import ability_key
from tests.support.builders import NOW_MS, advert, key, signed
from tests.support.machines import core, said

KEEPER, PROVIDER = 1, 2
REQUEST = job_request(1)
LATER_MS = NOW_MS + discovery.SEEK_AGAIN_MS


def client(*knows: int) -> NodeCore:
    node = core(0, knows=knows)
    node.discovery.directory.is_on = True
    node.connected.add(key(KEEPER))
    return node


def questions(acts: list[Act]) -> list[Signed[FindClosest]]:
    wanted = ability_key(REQUEST.workload, REQUEST.model)
    return [message for _, message in said(acts, FindClosest) if message.body.key == wanted]


def answer(question: Signed[FindClosest]) -> bytes:
    where = f"/ip4/127.0.0.1/tcp/4001/p2p/{peer_id(key(PROVIDER))}"
    record = signed(PROVIDER, ProviderRecord(question.body.key, NOW_MS, NOW_MS + 60_000, (where,)))
    return message_frame(signed(KEEPER, Closest(question.id, b"", (), (record.raw,))).raw)


def offered(acts: list[Act]) -> list[bytes]:
    return [peer for peer, _ in said(acts, Offer)]


def test_a_job_is_offered_to_whom_the_directory_names() -> None:
    node = client()
    _, acts = node.submit(REQUEST, nonce=bytes(16), now_ms=NOW_MS)
    (question,) = questions(acts)
    heard = node.frame_received(key(KEEPER), answer(question), NOW_MS)
    assert offered(heard) == [key(PROVIDER)]
    # Rooms, in a small network, are nothing to ask for.
    assert not said(heard, MembersWant)


def test_in_a_large_network_they_are_asked_for_the_jobs_room_first() -> None:
    node = client()
    node.rooms.is_wide = True
    job_id, acts = node.submit(REQUEST, nonce=bytes(16), now_ms=NOW_MS)
    (question,) = questions(acts)
    heard = node.frame_received(key(KEEPER), answer(question), NOW_MS)
    assert [(peer, want.body.depth) for peer, want in said(heard, MembersWant)] == [(key(PROVIDER), 1)]
    assert node.jobs[job_id].offers


def test_with_enough_who_are_able_nobody_is_asked() -> None:
    node = client(*range(2, 2 + discovery.ABLE_ENOUGH))
    _, acts = node.submit(REQUEST, nonce=bytes(16), now_ms=NOW_MS)
    assert not questions(acts)


def test_it_is_asked_again_after_a_while_and_only_while_the_job_is_open() -> None:
    node = client()
    job_id, acts = node.submit(REQUEST, nonce=bytes(16), now_ms=NOW_MS)
    (question,) = questions(acts)
    node.frame_received(key(KEEPER), answer(question), NOW_MS)
    assert not questions(node.discovery.seek(LATER_MS - 1))
    assert len(questions(node.discovery.seek(LATER_MS))) == 1
    node.cancel(job_id, LATER_MS)
    assert not questions(node.discovery.seek(LATER_MS + discovery.SEEK_AGAIN_MS))


def test_a_link_that_was_dialled_for_a_question_is_let_go() -> None:
    node = client()
    directory = node.discovery.directory
    strangers = [bytes([number]) * 32 for number in range(100, 100 + LINKS_KEPT + 1)]
    # Asked before there is a link: it was dialled for that.
    for stranger in strangers:
        directory._ask(stranger, bytes(32), None, NOW_MS)
    node.connected.update(strangers)
    node.discovery.used(strangers[0], advert(3))
    node.discovery.used(strangers[1], signed(3, MembersWant(REQUEST.workload, REQUEST.model, 1, 0)))
    assert directory._visits.let_go(NOW_MS + VISIT_MS - 1) == []
    ended = [act.peer for act in node.discovery.keep_house(NOW_MS + VISIT_MS) if isinstance(act, HangUp)]
    # What every link brings is no use of it; beyond that a few are kept, and all that serve something.
    assert ended == [strangers[0], strangers[2]]


def test_patience_follows_the_answers_that_come() -> None:
    patience = Patience()
    assert patience.wait_ms == FIRST_MS
    for _ in range(30):
        patience.answered(40)
    assert patience.wait_ms == LEAST_MS
    for _ in range(30):
        patience.answered(700)
    assert 700 < patience.wait_ms < FIRST_MS
    for _ in range(30):
        patience.answered(4_900)
    assert patience.wait_ms == MOST_MS
