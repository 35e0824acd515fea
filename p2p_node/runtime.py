"""Performs what a `NodeCore` asks for, on trio.

One task at a time touches the core. Acts of one event are performed in order: what must not be
forgotten is written in one transaction before anything is sent. Time, network, store and executor
are given, so the same runtime runs for real and under a mock clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import structlog
import trio

from p2p_node.core.gossip import TOPICS
from p2p_node.core.node import Act, NodeCore
from p2p_node.core.outbox import Transmit
from p2p_node.core.request import JobRequest
from p2p_node.errors import UserError
from p2p_node.network.port import (
    FrameReceived,
    GossipReceived,
    Network,
    NetworkError,
    NetworkEvent,
    PeerConnected,
    PeerDisconnected,
)
from p2p_node.timers import Timers
from protocols.bidding import Ability
from protocols.effects import (
    CancelRun,
    Greet,
    HangUp,
    Join,
    Leave,
    Notify,
    Penalise,
    Persist,
    Publish,
    Run,
    SetTimer,
    Task,
)
from protocols.events import RunEvent
from protocols.identity import short_id
from protocols.messages import SharedModel
from protocols.rulings import Ruling

if TYPE_CHECKING:
    # libp2p brings stubs that hide trio's own types, and these that go with them.
    from trio_typing import TaskStatus

__all__ = ["Executor", "Keeper", "Runtime", "topic_name", "topic_names"]

log = structlog.get_logger(__name__)

Outgoing = Publish | Transmit | Join | Leave
OUTGOING_MAX = 4_096
DIAL_TIMEOUT_S = 10
DIALS_MAX = 16


class Executor(Protocol):
    """Runs tasks in workers."""

    def start(self, key: tuple[Any, ...], task: Task, report: Callable[[RunEvent], None]) -> None:
        """Start a task; its events go to ``report``, the last of them an ending."""
        ...

    def cancel(self, key: tuple[Any, ...]) -> None:
        """Stop a task; nothing more is reported."""
        ...


class Keeper(Protocol):
    """Keeps what must survive a crash."""

    def apply(self, changes: Sequence[Persist]) -> None:
        """Write all changes in one transaction."""
        ...


def topic_name(network: str, topic: str) -> str:
    """A topic's name on the wire: it carries the network and a version."""
    return f"/p2p-node/{network}/{topic}/1"


def topic_names(network: str) -> list[str]:
    """Every gossip topic of a network."""
    return [topic_name(network, topic) for topic in TOPICS]


class Runtime:
    """One running peer."""

    def __init__(
        self,
        core: NodeCore,
        *,
        executor: Executor,
        keeper: Keeper,
        clock: Callable[[], int],
        on_notify: Callable[[Notify, int], None] = lambda note, now_ms: None,
    ) -> None:
        """Prepare a peer; `run` starts it.

        Args:
            core: decides.
            executor: computes.
            keeper: remembers.
            clock: milliseconds since the epoch.
            on_notify: told of everything that happens, for logs and clients.
        """
        self.core = core
        self.clock = clock
        self.frames_dropped = 0
        self.bugs_met = 0
        self.frames_received = 0
        self.gossip_received = 0
        self.penalties = 0
        self._executor = executor
        self._keeper = keeper
        self._on_notify = on_notify
        self._network: Network | None = None
        self._timers = Timers(clock)
        self._timer_wake = trio.Event()
        self._failed = trio.Event()
        self._failure: UserError | None = None
        self._outgoing_in, self._outgoing_out = trio.open_memory_channel[Outgoing](OUTGOING_MAX)
        self._nursery: trio.Nursery | None = None
        self._dialling: dict[bytes, list[bytes]] = {}
        self._short_topic = {topic_name(core.network, topic): topic for topic in TOPICS}

    # --- What the outside calls ------------------------------------------------------------------

    def rule(self, topic: str, data: bytes, forwarder: bytes) -> Ruling:
        """The gossip rule to open the network with."""
        name = self._short_topic.get(topic)
        if name is None:
            return Ruling.IGNORE
        ruling, why = self.core.judge(name, data, self.clock())
        if ruling is Ruling.REJECT:
            self.penalties += 1
            log.warning("gossip rejected", forwarder=short_id(forwarder), why=why)
        return ruling

    def submit(
        self, request: JobRequest, *, nonce: bytes, announce: Callable[[bytes], None] = lambda job_id: None
    ) -> bytes:
        """Offer a job.

        Args:
            request: what is asked for.
            nonce: fresh randomness that makes the job's id unique.
            announce: told the job's id before anything happens to the job.

        Returns:
            The job's id.

        Raises:
            ValueError: too many jobs are open.
        """
        job_id, acts = self.core.submit(request, nonce=nonce, now_ms=self.clock())
        announce(job_id)
        self.perform(acts)
        return job_id

    def cancel(self, job_id: bytes) -> None:
        """Cancel a job.

        Raises:
            KeyError: no such job.
        """
        self.perform(self.core.cancel(job_id, self.clock()))

    def pause(self, devices: frozenset[str], why: str) -> None:
        """Leave these devices to their owner from now on, and no others; see `NodeCore.pause`."""
        self.perform(self.core.pause(devices, why, self.clock()))

    def offer(self, abilities: tuple[Ability, ...]) -> None:
        """Offer these from now on, and nothing else; see `NodeCore.offer`."""
        self.perform(self.core.offer(abilities, self.clock()))

    def move(self, addresses: tuple[str, ...]) -> None:
        """Be reached at these addresses from now on; see `NodeCore.move`."""
        self.perform(self.core.move(addresses, self.clock()))

    def share(self, models: tuple[SharedModel, ...]) -> None:
        """Tell others whose files can be had here; see `NodeCore.share`."""
        self.perform(self.core.share(models, self.clock()))

    async def run(
        self, network: Network, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run until cancelled."""
        self._network = network
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._send_outgoing, network)
            nursery.start_soon(self._fire_timers)
            nursery.start_soon(self._end_if_writing_fails)
            self.perform(self.core.start(self.clock()))
            task_status.started()
            async for event in network.events:
                self.perform(self._hear_contained(event))
                # Many events may wait; sending and timers get their turn between them.
                await trio.lowlevel.checkpoint()

    def _hear_contained(self, event: NetworkEvent) -> list[Act]:
        """What follows from an event, or nothing if we have a bug that it reaches."""
        try:
            return self._hear(event)
        except Exception:
            # A bug of ours must not become a way to stop us from afar; it is loud in log and metrics.
            self.bugs_met += 1
            log.exception("an event from the network met a bug", kind=type(event).__name__)
            return []

    def _hear(self, event: NetworkEvent) -> list[Act]:
        now_ms = self.clock()
        match event:
            case FrameReceived(peer, data):
                self.frames_received += 1
                return self.core.frame_received(peer, data, now_ms)
            case GossipReceived(topic, data, forwarder):
                self.gossip_received += 1
                return self._hear_gossip(topic, data, forwarder, now_ms)
            case PeerConnected(peer, _):
                log.info("peer connected", peer=short_id(peer))
                return self.core.peer_connected(peer, now_ms)
            case PeerDisconnected(peer):
                log.info("peer disconnected", peer=short_id(peer))
                return self.core.peer_disconnected(peer, now_ms)

    def _hear_gossip(self, topic: str, data: bytes, forwarder: bytes, now_ms: int) -> list[Act]:
        name = self._short_topic.get(topic)
        # What waited in the queue may be of a room that we have left since.
        return self.core.gossip_received(name, data, forwarder, now_ms) if name is not None else []

    # --- Performing acts -------------------------------------------------------------------------

    def perform(self, acts: list[Act]) -> None:
        """Perform the acts of one event, in order."""
        changes = [act for act in acts if isinstance(act, Persist)]
        if changes:
            self._write(changes)
        for act in acts:
            match act:
                case Publish() | Transmit() | Join() | Leave():
                    self._queue(act)
                case Greet(peer):
                    self._greet(peer)
                case SetTimer(key, at_ms):
                    self._set_timer(key, at_ms)
                case Run(key, task):
                    self._executor.start(key, task, self._report)
                case CancelRun(key):
                    self._executor.cancel(key)
                case Penalise(peer, points, reason):
                    self.penalties += 1
                    log.warning("peer penalised", peer=short_id(peer), points=points, why=reason)
                    if self._network is not None and points:
                        self._network.penalise(peer, points, reason)
                case HangUp(peer):
                    if self._network is not None:
                        self._network.hang_up(peer)
                case Notify():
                    self._on_notify(act, self.clock())

    def _write(self, changes: list[Persist]) -> None:
        try:
            self._keeper.apply(changes)
        except UserError as error:
            # What can't be written must not be said, and the core believes that it was: only a new process,
            # with what the store has, tells no lies. Whoever called us may not be one who can end us.
            self._failure = self._failure or error
            self._failed.set()
            raise

    async def _end_if_writing_fails(self) -> None:
        await self._failed.wait()
        if self._failure is not None:
            raise self._failure

    def _report(self, event: RunEvent) -> None:
        self.perform(self.core.run_event(event, self.clock()))

    # --- Timers ----------------------------------------------------------------------------------

    def _set_timer(self, key: tuple[Any, ...], at_ms: int) -> None:
        if self._timers.set(key, at_ms):
            self._timer_wake.set()

    async def _fire_timers(self) -> None:
        while True:
            self._timer_wake = trio.Event()
            while (key := self._timers.pop_due()) is not None:
                self.perform(self.core.timer_fired(key, self.clock()))
            with trio.move_on_after(self._timers.wait_s()):
                await self._timer_wake.wait()

    # --- Sending ---------------------------------------------------------------------------------

    def _queue(self, act: Outgoing) -> None:
        try:
            self._outgoing_in.send_nowait(act)
        except trio.WouldBlock:
            # The outbox sends again what mattered.
            self.frames_dropped += 1

    async def _send_outgoing(self, network: Network) -> None:
        async for act in self._outgoing_out:
            try:
                if isinstance(act, Transmit):
                    if not await network.send(act.peer, act.frame):
                        self._dial_and_send(network, act)
                    continue
                topic = topic_name(self.core.network, act.topic)
                if isinstance(act, Join):
                    self._short_topic[topic] = act.topic
                    await network.join(topic)
                elif isinstance(act, Leave):
                    self._short_topic.pop(topic, None)
                    await network.leave(topic)
                elif topic in self._short_topic:
                    await network.publish(topic, act.message.raw)
            except NetworkError as error:
                log.warning("sending failed", why=str(error))

    def addresses_of(self, peer: bytes) -> tuple[str, ...]:
        """Where a peer says that it can be reached, in its advert or in the directory."""
        advert = self.core.registry.get(peer)
        if advert is not None:
            return advert.body.addresses
        return self.core.discovery.directory.addresses_of(peer)

    def _dial_and_send(self, network: Network, act: Transmit) -> None:
        waiting = self._dialling.get(act.peer)
        if waiting is not None:
            if len(waiting) < OUTGOING_MAX // DIALS_MAX:
                waiting.append(act.frame)
            return
        self._start_dial(network, act.peer, [act.frame])

    def _greet(self, peer: bytes) -> None:
        if self._network is not None and peer not in self._dialling:
            self._start_dial(self._network, peer, [])

    def _start_dial(self, network: Network, peer: bytes, frames: list[bytes]) -> None:
        addresses = self.addresses_of(peer)
        if not addresses or len(self._dialling) >= DIALS_MAX or self._nursery is None:
            return
        if peer in self.core.connected:
            return  # Its queue is full; the outbox tries again.
        self._dialling[peer] = frames
        self._nursery.start_soon(self._dial, network, peer, addresses)

    async def _dial(self, network: Network, peer: bytes, addresses: tuple[str, ...]) -> None:
        try:
            for address in addresses:
                with trio.move_on_after(DIAL_TIMEOUT_S):
                    try:
                        await network.dial(address)
                    except NetworkError as error:
                        log.info("dial failed", peer=short_id(peer), address=address, why=str(error))
                        continue
                    for frame in self._dialling[peer]:
                        await network.send(peer, frame)
                    return
        finally:
            del self._dialling[peer]
