"""`NodeCore`: one whole peer, without the world.

It composes the machines of every role, routes each message to the one that it names, and turns
their effects into what a runtime can perform. The same object runs in the simulator, on trio over a
simulated network, and behind libp2p.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from p2p_node.core.census import MINUTE_MS, has_won
from p2p_node.core.credit import CreditBook
from p2p_node.core.directory import DIRECTORY_KINDS
from p2p_node.core.discovery import Discovery
from p2p_node.core.disputes import RUN_ROLES, Disputes, Ground
from p2p_node.core.engagement import Engagement
from p2p_node.core.gossip import TOPIC_OF_KIND, GossipBook, GossipReader
from p2p_node.core.market import Market
from p2p_node.core.outbox import Outbox, Transmit, ack_frame, message_frame, split_frame
from p2p_node.core.provider import Provider
from p2p_node.core.recovery import ClosedDraft, close_draft, restore_contracts, restore_lanes
from p2p_node.core.registry import Registry
from p2p_node.core.request import JobRequest
from p2p_node.core.requester import Job
from p2p_node.core.rooms import COMMON, Rooms
from p2p_node.core.search import Searches
from p2p_node.core.society import Society
from p2p_node.core.verifier import Verifier
from p2p_node.core.watch import Watch
from protocols.bidding import Ability
from protocols.crypto import Crypto, KeyPair
from protocols.effects import Effect, Penalise, Persist, Publish, Send, SetTimer
from protocols.envelope import Signed, open_envelope, seal
from protocols.errors import PeerFault
from protocols.events import Event, Heard, RunEvent, TimerFired
from protocols.limits import (
    ADVERT_LIFETIME_MS_MAX,
    EARLY_COMMITMENTS_MAX,
    INTEGER_MAX,
    OPEN_JOBS_MAX,
    SYNC_BYTES_MAX,
    VERIFIERS_PER_SEGMENT_MAX,
)
from protocols.messages import (
    Accelerator,
    Advert,
    Assignment,
    AuctionClose,
    Body,
    Closed,
    Commitment,
    Dispute,
    DisputeDeclined,
    DrawClaim,
    Entrusted,
    Equivocation,
    EvidencePart,
    EvidenceWant,
    FraudNotice,
    FraudProof,
    Headcount,
    Members,
    MembersWant,
    Offer,
    Opening,
    Proposal,
    SharedModel,
    SyncSummary,
    SyncWant,
    TraceChildren,
    TraceRoot,
    Voucher,
    Widening,
)
from protocols.rulings import Ruling
from protocols.standing import Standings
from verification.evidence import Contract

__all__ = ["Act", "Capability", "NodeCore"]

B = TypeVar("B", bound=Body)
Act = Effect | Transmit

ADVERT_RENEW_MS = 60_000
"""How often a peer says what it offers, in a small network."""

ADVERT_RENEW_MS_MAX = 240_000
ADVERT_EACH_MS = 250
"""In a large one each peer leaves so much time for each peer it knows: then adverts take a bounded share of
everybody's connection, however many peers there are, up to `ADVERT_RENEW_MS_MAX`."""

ADVERT_LIFETIMES = 3
"""An advert outlives this many renewals: two may be lost."""

ADVERT_PACE_MS = 1_000
"""At most one advert in this time, however many peers connect."""

FEW_LINKS = 4
"""A peer with more is known by now: it tells a new neighbour alone who it is, and not everybody once more."""
SYNC_MS = 5_000
SYNC_WITHIN_MS = 45_000
"""What is older than this has been compared with several neighbours."""
HOUSEKEEPING_MS = 10_000
FINISHED_JOBS_MAX = 32
"""Of which all messages are kept, for whoever asks why peers declined; their receipts are in the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """What this machine was measured to do, and what its owner offers."""

    abilities: tuple[Ability, ...] = ()
    addresses: tuple[str, ...] = ()
    software: str = "p2p-node"
    slots_total: int = 1
    cores: int = 1
    ram_bytes: int = 0
    blob_bytes_max: int = INTEGER_MAX
    """Room for what jobs' inputs name."""
    gemm_fp32_mflops: int = 0
    gemm_bf16_mflops: int = 0
    memory_mib_per_s: int = 0
    disk_mib_per_s: int = 0
    accelerators: tuple[Accelerator, ...] = field(default_factory=tuple)
    models: tuple[SharedModel, ...] = ()
    """Whose files it gives to whoever asks."""


class NodeCore:
    """One peer. Feed it what happens, perform the acts it returns, in order."""

    def __init__(
        self,
        *,
        keys: KeyPair,
        crypto: Crypto,
        secret: bytes,
        network: str,
        capability: Capability,
        jitter: random.Random,
        reader: GossipReader | None = None,
    ) -> None:
        """A peer that knows nobody yet.

        Args:
            keys: its own key pair.
            crypto: judges what others signed.
            secret: 32 bytes from which salts and nonces are derived.
            network: messages for any other network are refused.
            capability: what it offers.
            jitter: spreads periodic work; nothing of the protocol depends on it.
            reader: opens gossip, where many cores in one process share what they read.
        """
        self.network = network
        self.crypto = crypto
        self.secret = secret
        self.key = keys.public
        self.capability = capability
        self.standings = Standings()
        self.registry = Registry(secret)
        self.rooms = Rooms(
            self.key, self.registry, lambda: [ability.offering for ability in self.capability.abilities]
        )
        self.credit = CreditBook()
        self.outbox = Outbox()
        self.jobs: OrderedDict[bytes, Job] = OrderedDict()
        self.connected: set[bytes] = set()
        self.market = Market(self.key, self.registry, self.standings, self.connected, self.rooms)
        self.searches = Searches(self.key, self.registry, self.rooms, self.connected, jitter)
        self._keys = keys
        self._jitter = jitter
        self._gossip = GossipBook(
            reader=reader or GossipReader(network=network, crypto=crypto),
            registry=self.registry,
            standings=self.standings,
            rooms=self.rooms,
        )
        self._society = Society(self, self._gossip, self._jitter)
        self._routes: dict[bytes, Any] = {}
        self._early_claims: OrderedDict[bytes, dict[bytes, Signed[DrawClaim]]] = OrderedDict()
        self._due_claims: list[Signed[DrawClaim]] = []
        self._direct_seen: OrderedDict[bytes, None] = OrderedDict()
        self._advertised_ms = -ADVERT_PACE_MS
        self._advertised_slots = 0
        self._advert_said: Signed[Advert] | None = None
        self.provider = Provider(
            self,
            self.registry,
            own_key=self.key,
            abilities=capability.abilities,
            slots_total=capability.slots_total,
            blob_bytes_max=capability.blob_bytes_max,
        )
        self.verifier = Verifier(self, keys=keys, abilities=capability.abilities)
        self._watch = Watch(self)
        self.disputes = Disputes(self, own=self.key, ground=self._ground, owner=self._own_job)
        self.discovery = Discovery(self, jitter)

    # --- Surroundings of the machines ------------------------------------------------------------

    def sign(self, body: B) -> Signed[B]:
        """Seal a body with this peer's key."""
        return seal(body, network=self.network, key=self._keys)

    def route(self, identifier: bytes, owner: Any) -> None:
        """Deliver messages that name ``identifier`` to ``owner``."""
        self._routes[identifier] = owner
        self._due_claims += self._early_claims.pop(identifier, {}).values()

    def _ground(self, commitment_id: bytes) -> Ground | None:
        owner = self._routes.get(commitment_id)
        if isinstance(owner, Engagement):
            return owner.ground(commitment_id)
        return self.verifier.ground(commitment_id)

    def _own_job(self, commitment_id: bytes) -> Job | None:
        owner = self._routes.get(commitment_id)
        return owner if isinstance(owner, Job) else None

    def own_contract(self, commitment_id: bytes) -> Contract | None:
        """The contract of a job of ours under which this was committed to."""
        job = self._own_job(commitment_id)
        attempts = job.attempts if job is not None else []
        return next((a.contract for a in attempts if commitment_id in a.rounds), None)

    def own_advert(self, now_ms: int) -> Signed[Advert]:
        """What we say of ourselves now, to one who asks."""
        return self.sign(self._advert(now_ms))

    def parties(self, job_id: bytes) -> frozenset[bytes]:
        """Who may have what a private job of ours names and leaves."""
        job = self.jobs.get(job_id)
        return job.parties if job is not None else frozenset()

    # --- Commands --------------------------------------------------------------------------------

    def start(self, now_ms: int) -> list[Act]:
        """Begin: advertise, and set the periodic timers."""
        timers: list[Effect] = [
            SetTimer(("sync",), now_ms + self._jitter.randint(0, SYNC_MS)),
            SetTimer(("housekeeping",), now_ms + HOUSEKEEPING_MS),
        ]
        return self._act([*self._advertise(now_ms), *timers], now_ms)

    def restore(
        self,
        *,
        registry: list[bytes],
        convictions: list[bytes],
        outbox: dict[bytes, bytes],
        now_ms: int,
        standings: dict[bytes, bytes] | None = None,
        contracts: Mapping[bytes, bytes] | None = None,
        lanes: Mapping[bytes, bytes] | None = None,
        vouchers: Mapping[bytes, bytes] | None = None,
    ) -> list[Act]:
        """Take back what the store kept over a restart; entries that no longer open are dropped.

        Args:
            registry: adverts.
            convictions: keys of the convicted.
            outbox: obligations that weren't acknowledged.
            now_ms: the clock.
            standings: what we think of peers.
            contracts: that we execute under.
            lanes: under which we may still be paid.
            vouchers: the newest paid to us under each of both, by award.
        """
        for raw in registry:
            try:
                advert = open_envelope(raw, network=self.network, crypto=self.crypto, expect=Advert)
            except PeerFault:
                continue
            self.registry.restore(advert)
            self._gossip.pass_over(advert.id)
        for key, value in (standings or {}).items():
            self.standings.restore(key, value)
        for key in convictions:
            self.standings.convict(key)
        acts: list[Act] = []
        for key, value in outbox.items():
            acts += self.outbox.restore(key, value, now_ms)
        paid = vouchers or {}
        restore_lanes(self, self.verifier.lanes, lanes or {}, paid, now_ms)
        effects = restore_contracts(self, self.provider, contracts or {}, paid, now_ms)
        return acts + (self._act(effects, now_ms) if effects else [])

    def close_job(
        self, job_id: bytes, rows: Mapping[bytes, bytes], frauds: Mapping[bytes, bytes], now_ms: int
    ) -> tuple[ClosedDraft | None, list[Act]]:
        """End a job of ours that was open when the node stopped; see `close_draft`."""
        closed = close_draft(self, job_id, rows, now_ms, frauds=frauds)
        return closed, self._act(closed.effects, now_ms) if closed else []

    def submit(self, request: JobRequest, *, nonce: bytes, now_ms: int) -> tuple[bytes, list[Act]]:
        """Offer a job.

        Args:
            request: what is asked for.
            nonce: fresh randomness that makes the job's id unique.
            now_ms: the clock.

        Returns:
            The job's id, and acts.

        Raises:
            ValueError: too many jobs are open.
        """
        if sum(not job.is_final for job in self.jobs.values()) >= OPEN_JOBS_MAX:
            raise ValueError(f"{OPEN_JOBS_MAX} jobs are open already")
        job = Job(self, request, nonce=nonce, now_ms=now_ms)
        self.jobs[job.id] = job
        return job.id, [*self._act(job.start(now_ms), now_ms), *self.discovery.seek(now_ms)]

    def cancel(self, job_id: bytes, now_ms: int) -> list[Act]:
        """Cancel a job on the client's word."""
        return self._act(self.jobs[job_id].cancel(now_ms), now_ms)

    def pause(self, devices: frozenset[str], why: str, now_ms: int) -> list[Act]:
        """Leave these devices to their owner, and others to work; see `Provider.pause`.

        A peer that is paused altogether claims no draw as a verifier either. What it has promised it does.
        """
        effects = self.provider.pause(devices, why, now_ms)
        self.verifier.is_paused = self.provider.is_paused
        return self._act([*effects, *self._advertise(now_ms)], now_ms)

    def offer(self, abilities: tuple[Ability, ...], now_ms: int) -> list[Act]:
        """Offer these from now on, in place of what was offered; contracts in hand go on."""
        if abilities == self.capability.abilities:
            return []
        self.capability = replace(self.capability, abilities=abilities)
        self.provider.abilities = self.verifier.abilities = abilities
        return self._act(self._advertise(now_ms), now_ms)

    def move(self, addresses: tuple[str, ...], now_ms: int) -> list[Act]:
        """Be reached at these addresses from now on."""
        if addresses == self.capability.addresses:
            return []
        self.capability = replace(self.capability, addresses=addresses)
        return self._act(self._advertise(now_ms), now_ms)

    def share(self, models: tuple[SharedModel, ...], now_ms: int) -> list[Act]:
        """Tell others whose files can be had here from now on."""
        if models == self.capability.models:
            return []
        self.capability = replace(self.capability, models=models)
        return self._act(self._advertise(now_ms), now_ms)

    # --- Network events --------------------------------------------------------------------------

    def peer_connected(self, peer: bytes, now_ms: int) -> list[Act]:
        """A link is up: tell the peer what we have, and send what waits for it."""
        self.connected.add(peer)
        if self.discovery.directory.is_visit(peer):
            # We came to ask one thing: neither needs to hear all that the other has.
            return self.outbox.flush(peer)
        self.registry.meet(peer)
        found = self.discovery.peer_connected(peer, now_ms)
        ids = self._gossip.recent_ids(now_ms, shares=partial(self._shares, peer))
        summary = Send(peer, self.sign(SyncSummary(ids)), now_ms + SYNC_MS)
        # What waited goes first; the summary isn't among it yet, or it would go twice.
        waiting = self.outbox.flush(peer)
        if self.rooms.is_wide:
            greeting = self._society.greeting(peer, self.own_advert(now_ms), now_ms)
        elif self._advert_said is None or len(self.connected) <= FEW_LINKS:
            greeting = self._advertise(now_ms)
        else:
            greeting = [Send(peer, self._advert_said, now_ms + SYNC_MS)]
        return [*waiting, *found, *self._act([*greeting, summary], now_ms)]

    def _shares(self, peer: bytes, topic: str) -> bool:
        return self.rooms.shares(topic, peer)

    def peer_disconnected(self, peer: bytes, now_ms: int) -> list[Act]:
        """A link is down; timers decide what that means for jobs."""
        self.connected.discard(peer)
        effects = [effect for job in self.jobs.values() for effect in job.link_lost(peer, now_ms)]
        return self._act(effects, now_ms)

    def judge(self, topic: str, data: bytes, now_ms: int) -> tuple[Ruling, str]:
        """Whether gossip may be forwarded. Quick, and changes nothing that matters."""
        return self._gossip.judge(topic, data, now_ms)

    def gossip_received(self, topic: str, data: bytes, forwarder: bytes, now_ms: int) -> list[Act]:
        """Gossip that `judge` accepted."""
        judged = self._gossip.take(topic, data, now_ms)
        if judged is None:
            return []
        message = judged.message
        self._society.note(topic, message)
        try:
            effects = self._hear_gossip(message, judged.opened, now_ms)
        except PeerFault as fault:
            effects = [Penalise(forwarder, fault.points, str(fault))]
        return self._act(effects, now_ms)

    def _hear_gossip(self, message: Signed[Any], opened: Any, now_ms: int) -> list[Effect]:
        match message.body:
            case Advert():
                return self.registry.hear(message, now_ms)
            case Offer():
                return self.provider.hear_offer(message, now_ms)
            case Widening():
                return self.verifier.hear(message, now_ms)
            case FraudProof():
                return self.verifier.hear_accusation(message, opened, now_ms)
            case FraudNotice():
                return self.disputes.hear_notice(message, now_ms)
            case Equivocation():
                effects = self._watch.hear_equivocation(message, opened)
                return effects + self._drop_convicted(opened.accused, now_ms)
        contract, commitment = opened
        return self._watch_commitment(commitment, now_ms) + self.verifier.hear_commitment(
            contract, commitment, now_ms
        )

    def _watch_commitment(self, commitment: Signed[Commitment], now_ms: int) -> list[Effect]:
        effects = self._watch.hear_commitment(commitment)
        return effects + self._drop_convicted(commitment.signer, now_ms) if effects else []

    def _drop_convicted(self, peer: bytes, now_ms: int) -> list[Effect]:
        """Jobs don't go on with an executor that contradicted itself."""
        return [effect for job in self.jobs.values() for effect in job.executor_equivocated(peer, now_ms)]

    def frame_received(self, peer: bytes, frame: bytes, now_ms: int) -> list[Act]:
        """A frame from a direct link, whose other end is ``peer``."""
        try:
            is_ack, rest = split_frame(frame)
            if is_ack:
                return self.outbox.acknowledged(peer, rest)
            message = self._gossip.reader.frame(rest)
            if isinstance(message.body, DIRECTORY_KINDS):
                return self.discovery.hear(peer, message, now_ms)
        except PeerFault as fault:
            return [Penalise(peer, fault.points, str(fault))]
        self.discovery.used(peer, message)
        self._society.company.used(peer, message, now_ms)
        ack = Transmit(peer, ack_frame(message.id))
        if message.id in self._direct_seen:
            return [ack]
        self._direct_seen[message.id] = None
        while len(self._direct_seen) > OPEN_JOBS_MAX * 4:
            self._direct_seen.popitem(last=False)
        if isinstance(message.body, SyncWant):
            return [ack, *self._serve_gossip(peer, message.body)]
        try:
            effects = self._hear_direct(peer, message, now_ms)
        except PeerFault as fault:
            effects = [Penalise(peer, fault.points, f"{message.body.KIND}: {fault}")]
        return [ack, *self._act(effects, now_ms)]

    def _hear_direct(self, peer: bytes, message: Signed[Any], now_ms: int) -> list[Effect]:
        body = message.body
        if isinstance(body, FraudNotice) and self.disputes.is_ours(body):
            # We may have convicted it already, and still want what convinces others.
            return self.disputes.hear_notice(message, now_ms)
        topic = TOPIC_OF_KIND.get(body.KIND)
        if topic is not None:
            topic = self._society.topic_of(message, topic)
            ruling, why = self._gossip.judge(topic, message.raw, now_ms, is_direct=True)
            if ruling is Ruling.REJECT:
                return [Penalise(peer, PeerFault.points, why)]
            if isinstance(body, Advert) and self.rooms.is_wide:
                # It was for us: told on to every neighbour, all adverts would reach everybody after all.
                self._gossip.pass_over(message.id)
                return self.registry.hear(message, now_ms) if ruling is Ruling.ACCEPT else []
            judged = self._gossip.take(topic, message.raw, now_ms)
            return self._hear_gossip(judged.message, judged.opened, now_ms) if judged else []
        match body:
            case Headcount():
                self.rooms.census.hear_claim(body.peers)
                # Before our first advert goes out: what is said to everybody in a large network is a flood.
                return self.rooms.review(now_ms) if not self.rooms.is_wide else []
            case MembersWant():
                return self._society.tell_members(message, now_ms)
            case Members():
                return self._hear_members(message, now_ms)
            case Entrusted():
                return self._hear_entrusted(peer, message, now_ms)
            case SyncSummary():
                missing = self._gossip.missing(body.ids, now_ms)
                return [Send(peer, self.sign(SyncWant(missing)), now_ms + SYNC_MS)] if missing else []
            case AuctionClose():
                return self.provider.hear_close(message, now_ms)
            case Closed():
                return self.provider.hear_closed(message)
            case Proposal():
                return self.provider.hear_proposal(message, now_ms)
            case Assignment():
                return self.verifier.hear(message, now_ms)
            case Dispute() | DisputeDeclined() | TraceRoot() | TraceChildren():
                return self.disputes.hear(message, now_ms)
            case EvidenceWant():
                return self.disputes.archive.hear_want(message, now_ms)
            case EvidencePart():
                return self.disputes.archive.hear_part(message, now_ms)
        for name in ("award_id", "commitment_id", "job_id", "voucher_id", "lane"):
            owner = self._routes.get(getattr(body, name, b""))
            if owner is not None:
                watched = self._watch_commitment(message, now_ms) if isinstance(body, Commitment) else []
                return watched + self._handle(owner, Heard(message), now_ms)
        if isinstance(body, Voucher):
            return self.verifier.lanes.hear_voucher(message, now_ms)
        if isinstance(body, Opening):
            return self.verifier.hear(message, now_ms)
        if isinstance(body, DrawClaim):
            self._keep_early_claim(message)
        return []  # About something that is over, or that we never knew.

    def seek(self, offer: Signed[Offer], now_ms: int) -> list[Effect]:
        """Ask who could do a job, if we don't know."""
        body = offer.body
        return self._society.ask(self.searches.for_job(offer.id, body.workload, body.model, now_ms), now_ms)

    def named(self, workload: str, model: bytes, peers: Iterable[bytes], now_ms: int) -> list[Act]:
        """The directory named peers that have an ability: ask them who is in the rooms that we look for."""
        questions = self.searches.named(workload, model, peers, now_ms)
        return self._act(self._society.ask(questions, now_ms), now_ms) if questions else []

    def _hear_members(self, message: Signed[Members], now_ms: int) -> list[Effect]:
        if not self.searches.has_asked(message.signer):
            return []
        effects = self._society.hear_members(message, now_ms)
        effects += self._society.ask(self.searches.hear(message.signer, message.body, now_ms), now_ms)
        for job in list(self.jobs.values()):
            if job.is_seeking and self.searches.is_done(job.offers[-1].id):
                effects += job.sought(now_ms)
        return effects

    def _hear_entrusted(self, peer: bytes, message: Signed[Entrusted], now_ms: int) -> list[Effect]:
        """Gossip from one who isn't in its room: we are, so we say it there."""
        inner = self._gossip.reader.envelope(message.body.message)
        room = self._society.room_for(inner, message.body)
        if room is None:
            return []
        ruling, why = self._gossip.judge(room.topic, inner.raw, now_ms)
        if ruling is Ruling.REJECT:
            return [Penalise(peer, PeerFault.points, why)]
        judged = self._gossip.take(room.topic, inner.raw, now_ms)
        if judged is None:
            return []
        self._society.note(room.topic, judged.message)
        heard = self._hear_gossip(judged.message, judged.opened, now_ms)
        return [Publish(room.topic, judged.message), *heard]

    def _keep_early_claim(self, message: Signed[DrawClaim]) -> None:
        """A verifier was quicker than the executor whose commitment it heard by gossip."""
        claims = self._early_claims.setdefault(message.body.commitment_id, {})
        if len(claims) < VERIFIERS_PER_SEGMENT_MAX:
            claims[message.signer] = message
        while len(self._early_claims) > EARLY_COMMITMENTS_MAX:
            self._early_claims.popitem(last=False)

    def _serve_gossip(self, peer: bytes, want: SyncWant) -> list[Act]:
        """What a neighbour missed, said once: if it is lost, the next comparison finds it again."""
        served: list[Act] = []
        bytes_total = 0
        for identifier in dict.fromkeys(want.ids):
            raw = self._gossip.recent(identifier)
            if raw is None:
                continue
            bytes_total += len(raw)
            # A request is small, an answer isn't: who wants more asks again.
            if bytes_total > SYNC_BYTES_MAX:
                break
            served.append(Transmit(peer, message_frame(raw)))
        return served

    # --- Timers and runs -------------------------------------------------------------------------

    def timer_fired(self, key: tuple[Any, ...], now_ms: int) -> list[Act]:
        """A timer is due."""
        match key:
            case ("outbox", peer, identifier):
                return self.outbox.retry(peer, identifier, now_ms)
            case ("sync",):
                return self._act(self._sync(now_ms), now_ms)
            case ("advert",):
                return self._act(self._advertise(now_ms), now_ms)
            case ("housekeeping",):
                return [*self._act(self._keep_house(now_ms), now_ms), *self.discovery.keep_house(now_ms)]
            case ("directory", *_):
                return self.discovery.timer_fired(key, now_ms)
            case ("duty", _):
                return self._act(self.verifier.timer_fired(key, now_ms), now_ms)
            case ("dispute" | "evidence", *_):
                return self._act(self.disputes.timer_fired(key, now_ms), now_ms)
        owner = self.jobs.get(key[1]) or self._routes.get(key[1])
        return self._act(self._handle(owner, TimerFired(key), now_ms) if owner else [], now_ms)

    def run_event(self, event: RunEvent, now_ms: int) -> list[Act]:
        """A worker reports."""
        role, identifier = event.key[0], event.key[1]
        if role in ("verify", "fraud"):
            return self._act(self.verifier.run_event(event, now_ms), now_ms)
        if role in RUN_ROLES:
            return self._act(self.disputes.run_event(event, now_ms), now_ms)
        owner = self._routes.get(identifier)
        return self._act(self._handle(owner, event, now_ms) if owner else [], now_ms)

    def _handle(self, owner: Any, event: Event, now_ms: int) -> list[Effect]:
        handle: Callable[[Event, int], list[Effect]] = owner.handle
        effects = handle(event, now_ms)
        # The event may have been the commitment that these claims are for.
        due, self._due_claims = self._due_claims, []
        for claim in due:
            job = self._routes.get(claim.body.commitment_id)
            try:
                effects += job.handle(Heard(claim), now_ms) if job else []
            except PeerFault as fault:
                effects.append(Penalise(claim.signer, fault.points, f"draw-claim: {fault}"))
        return effects

    def _advertise(self, now_ms: int) -> list[Effect]:
        if now_ms - self._advertised_ms < ADVERT_PACE_MS:
            return [SetTimer(("advert",), self._advertised_ms + ADVERT_PACE_MS)]
        if self.rooms.is_wide:
            return self._advertise_widely(now_ms)
        pace_ms = max(ADVERT_RENEW_MS, min(ADVERT_RENEW_MS_MAX, ADVERT_EACH_MS * len(self.registry)))
        renew_ms = pace_ms + self._jitter.randint(0, pace_ms // 4)
        self._advertised_ms = now_ms
        self._advertised_slots = self._free_slots()
        self._advert_said = self.sign(self._advert(now_ms, lifetime_ms=ADVERT_LIFETIMES * renew_ms))
        return [Publish("peers", self._advert_said), SetTimer(("advert",), now_ms + renew_ms)]

    def _advertise_widely(self, now_ms: int) -> list[Effect]:
        """In a large network: to our rooms each minute, and to everybody when a lot says so."""
        self._advertised_ms = now_ms
        self._advertised_slots = self._free_slots()
        effects: list[Effect] = []
        if topics := self.rooms.home_topics():
            ours = self.own_advert(now_ms)
            effects += [Publish(topic, ours) for topic in topics]
        if has_won(self.key, now_ms, peers=self.rooms.census.peers):
            effects.append(Publish("peers", self.sign(self._advert(now_ms, is_for_all=True))))
        return [*effects, SetTimer(("advert",), now_ms + MINUTE_MS)]

    def _advert(self, now_ms: int, *, is_for_all: bool = False, lifetime_ms: int = 0) -> Advert:
        if not lifetime_ms:
            # Whoever hears of us by lot hears again after many minutes.
            lifetime_ms = ADVERT_LIFETIME_MS_MAX if is_for_all else ADVERT_LIFETIMES * MINUTE_MS
        capability = self.capability
        return Advert(
            # Rooms and everybody hear different ones, of which the second counts for both.
            sequence=now_ms + is_for_all,
            sent_ms=now_ms,
            expires_ms=now_ms + lifetime_ms,
            addresses=capability.addresses,
            software=capability.software,
            # None at all while it is paused: whoever draws up an electorate leaves it out.
            slots_total=0 if self.provider.is_paused else capability.slots_total,
            slots_free=self._advertised_slots,
            cores=capability.cores,
            ram_bytes=capability.ram_bytes,
            gemm_fp32_mflops=capability.gemm_fp32_mflops,
            gemm_bf16_mflops=capability.gemm_bf16_mflops,
            memory_mib_per_s=capability.memory_mib_per_s,
            disk_mib_per_s=capability.disk_mib_per_s,
            accelerators=capability.accelerators,
            offerings=tuple(ability.offering for ability in capability.abilities),
            models=capability.models,
        )

    def _free_slots(self) -> int:
        # Reservations don't count: they last seconds, and most are lost to another bidder.
        if self.provider.is_paused:
            return 0
        return max(0, self.capability.slots_total - len(self.provider.running()))

    def _sync(self, now_ms: int) -> list[Effect]:
        again = SetTimer(("sync",), now_ms + SYNC_MS + self._jitter.randint(0, SYNC_MS))
        if not self.connected:
            return [again]
        neighbour = self._jitter.choice(sorted(self.connected))
        shares = partial(self._shares, neighbour)
        ids = self._gossip.recent_ids(now_ms, within_ms=SYNC_WITHIN_MS, shares=shares)
        if not ids:
            return [again]
        return [Send(neighbour, self.sign(SyncSummary(ids)), now_ms + SYNC_MS), again]

    def _keep_house(self, now_ms: int) -> list[Effect]:
        finished = [job_id for job_id, job in self.jobs.items() if job.is_final]
        for job_id in finished[: max(0, len(finished) - FINISHED_JOBS_MAX)]:
            del self.jobs[job_id]
        over = dict.fromkeys(owner for owner in self._routes.values() if _is_over(owner, now_ms))
        self._routes = {key: owner for key, owner in self._routes.items() if owner not in over}
        settled = [effect for owner in over if isinstance(owner, Engagement) for effect in owner.forget()]
        for owner in over:
            if isinstance(owner, Engagement):
                settled += self.verifier.lanes.adopt(owner.lane, now_ms)
        self.verifier.forget(now_ms)
        self.provider.capacity(now_ms)
        settled += self._society.keep_company(now_ms)
        changed = self._advertised_slots != self._free_slots()
        return [
            *settled,
            *self.registry.expire(now_ms),
            *(self._advertise(now_ms) if changed else []),
            SetTimer(("housekeeping",), now_ms + HOUSEKEEPING_MS),
        ]

    # --- Effects ---------------------------------------------------------------------------------

    def _act(self, effects: list[Effect], now_ms: int) -> list[Act]:
        """Effects as acts: sends go through the outbox, and what we publish we have heard."""
        changes = self.standings.changes()
        if not changes and len(effects) < 2 and all(type(effect) is Persist for effect in effects):
            return [*effects]  # Most events end here: an advert is written down, or nothing is done.
        acts: list[Act] = []
        for effect in [*effects, *changes]:
            match effect:
                case Send(peer, message):
                    self.discovery.used(peer, message)
                    self._society.company.used(peer, message, now_ms)
                    acts += self.outbox.send(effect, now_ms)
                case Publish(topic, message):
                    said = self._society.say(message, now_ms) if topic == COMMON else effect
                    if isinstance(said, Publish):
                        self._gossip.keep(said.topic, message, now_ms)
                        acts.append(said)
                    else:
                        for entrusted in said:
                            acts += self.outbox.send(entrusted, now_ms)
                    if isinstance(message.body, FraudProof):
                        acts += self.verifier.convict_own(message)
                case _:
                    acts.append(effect)
        # Written down before anything is said.
        return sorted(acts, key=_is_said) if len(acts) > 1 else acts


def _is_said(act: Act) -> bool:
    return not isinstance(act, Persist)


def _is_over(owner: Any, now_ms: int) -> bool:
    if isinstance(owner, Job):
        return owner.is_final
    return isinstance(owner, Engagement) and owner.is_forgettable(now_ms)
