"""The story of one job: the scenario is played again, and each event that concerns the job is written down.

An event concerns a job if a message in it names the job's offers, awards, commitments, draws or vouchers,
which are learned as the story goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from p2p_node.core.node import Act
from p2p_node.core.outbox import Transmit, split_frame
from p2p_node.sim.invariants import InvariantBroken
from p2p_node.sim.play import Play
from p2p_node.sim.reader import RememberingReader
from p2p_node.sim.scenariofile import Scenario, ScenarioRefused
from p2p_node.sim.world import NETWORK, Peer
from protocols.effects import CancelRun, Notify, Persist, Publish, Run, SetTimer
from protocols.envelope import Signed, open_envelope
from protocols.errors import PeerFault
from protocols.messages import Award, Commitment, CommitmentNotice, Proposal

__all__ = ["Teller", "story_of"]

SHORT_STEPS = 60
"""Of a long story: the last so many steps before it went wrong."""

_ID_FIELDS = ("job_id", "award_id", "commitment_id", "voucher_id", "lane", "evidence")


def story_of(scenario: Scenario, job: str, *, is_short: bool = False) -> Iterator[str]:
    """Play a scenario again and tell one job's events, a line each.

    Args:
        scenario: as it was played before.
        job: its number, the start of its id in hex, or ``broken`` for one whose promise breaks.
        is_short: without timers of messages that are sent again, and only the last steps.

    Raises:
        ScenarioRefused: there is no such job.
    """
    wanted = job
    if job == "broken":
        first = Play(scenario)
        try:
            first.run()
        except InvariantBroken as error:
            wanted = error.job_id.hex()
            yield f"{error}"
        else:
            raise ScenarioRefused(f"--replay broken: with seed {scenario.seed} every promise held")
    play = Play(scenario)
    teller = Teller(play, wanted, is_short=is_short)
    try:
        play.run()
    except InvariantBroken as error:
        teller.lines.append(f"{play.world.elapsed_ms:>9} ms  BROKEN: {error}")
    if not teller.lines:
        raise ScenarioRefused(
            f"--replay: no job {job!r}; there were {len(play.measures.jobs)}, numbered from 0"
        )
    lines = teller.lines
    if is_short and len(lines) > SHORT_STEPS:
        yield f"({len(lines) - SHORT_STEPS} steps before)"
        lines = lines[-SHORT_STEPS:]
    yield from lines


class Teller:
    """Listens to a play and keeps a line for each step of one job."""

    def __init__(self, play: Play, wanted: str, *, is_short: bool) -> None:
        self.lines: list[str] = []
        self._play = play
        self._wanted = wanted
        self._is_short = is_short
        self._ids: set[bytes] = set()
        self._crypto = play.world.peers[0].core.crypto
        self._reader = RememberingReader(network=NETWORK, crypto=self._crypto)
        self._cause = self._pending = ""
        self._see = play.world.on_step
        play.world.on_step = self._step
        play.world.on_event = self._event

    # --- What reaches a peer ---------------------------------------------------------------------

    def _event(self, peer: Peer, sort: str, what: Any) -> None:
        self._cause = self._pending = ""
        if not self._ids:
            return
        if sort == "timer":
            if self._is_mine(what) and not (self._is_short and what[0] == "outbox"):
                self._cause = f"timer {_key(what)}"
        elif sort == "run":
            if self._is_mine(what.key):
                self._cause = f"{type(what).__name__} {_key(what.key)}"
        else:
            sender, data = what
            message = self._message(data if sort == "gossip" else data[1:], is_frame=sort == "frame")
            if message is not None and self._names(message):
                self._cause = f"hears {message.body.KIND} {message.id.hex()[:8]} from {sender.index}"
                if sort == "gossip":
                    # Everybody hears it; it is told of those that do something about it.
                    self._pending = f"{self._cause} by gossip"
                    return
        if self._cause:
            self._tell(peer, self._cause)

    def _step(self, peer: Peer, acts: list[Act]) -> None:
        if not self._ids:
            self._begin(peer, acts)
        if self._ids:
            for act in acts:
                self._act(peer, act)
        self._see(peer, acts)

    def _begin(self, peer: Peer, acts: list[Act]) -> None:
        for act in acts:
            if isinstance(act, Notify) and act.event == "offered":
                number = len(self._play.measures.jobs)
                is_it = str(number) == self._wanted or act.subject.hex().startswith(self._wanted)
                if is_it and len(peer.core.jobs[act.subject].offers) == 1:
                    self._ids |= {act.subject}
                    self._tell(peer, f"submits job {number}, id {act.subject.hex()[:8]}")

    def _act(self, peer: Peer, act: Act) -> None:
        match act:
            case Notify(subject, event, details) if subject in self._ids or self._is_mine(details.values()):
                if isinstance(details.get("offer"), bytes):
                    self._ids.add(details["offer"])
                self._tell(peer, f"  {event} {_details(details)}")
            case Transmit(to, frame):
                message = self._message(frame[1:], is_frame=True) if frame[:1] == b"\0" else None
                if message is not None and self._learn(message):
                    receiver = self._play.world.by_key.get(to)
                    whom = "nobody" if receiver is None else receiver.index
                    self._tell(peer, f"  says {message.body.KIND} {message.id.hex()[:8]} to {whom}")
            case Publish(_, message) if self._learn(message):
                self._tell(peer, f"  gossips {message.body.KIND} {message.id.hex()[:8]}")
            case Run(key, task) if self._is_mine(key):
                self._tell(peer, f"  runs {type(task).__name__} {_key(key)}")
            case CancelRun(key) if self._is_mine(key):
                self._tell(peer, f"  stops {_key(key)}")
            case Persist(table, key, value) if self._is_mine((key, key[:32], key[32:])):
                self._tell(peer, f"  {'keeps' if value is not None else 'drops'} {table} {key.hex()[:8]}")
            case SetTimer(key, at_ms) if self._is_mine(key) and key[0] != "outbox":
                after_ms = at_ms - self._play.world.clock_ms(peer)
                self._tell(peer, f"  sets timer {_key(key)} in {after_ms} ms")

    # --- What it is about ------------------------------------------------------------------------

    def _is_mine(self, parts: Any) -> bool:
        return any(part in self._ids for part in parts if isinstance(part, bytes))

    def _message(self, raw: bytes, *, is_frame: bool) -> Signed[Any] | None:
        try:
            if is_frame:
                split_frame(b"\0" + raw)
            return open_envelope(raw, network=NETWORK, crypto=self._crypto)
        except PeerFault:
            return None

    def _names(self, message: Signed[Any]) -> bool:
        body = message.body
        if message.id in self._ids:
            return True
        if isinstance(body, CommitmentNotice):
            return any(self._names(inner) for inner in self._inner(body.award, body.commitment))
        if isinstance(body, Proposal):
            return any(self._names(inner) for inner in self._inner(body.award, body.offer))
        return any(getattr(body, name, b"") in self._ids for name in _ID_FIELDS)

    def _learn(self, message: Signed[Any]) -> bool:
        """Whether a message that is said is the job's; then it is itself something that others name."""
        if not self._names(message):
            return False
        body = message.body
        if isinstance(body, Award | Commitment) or body.KIND in ("offer", "voucher"):
            self._ids.add(message.id)
        if isinstance(body, Proposal):
            self._ids |= {inner.id for inner in self._inner(body.award)}
        if isinstance(body, CommitmentNotice):
            self._ids |= {inner.id for inner in self._inner(body.commitment)}
        return True

    def _inner(self, *raws: bytes) -> Iterator[Signed[Any]]:
        for raw in raws:
            message = self._message(raw, is_frame=False)
            if message is not None:
                yield message

    def _tell(self, peer: Peer, what: str) -> None:
        cheat = f" ({peer.cheat})" if peer.cheat else ""
        if self._pending:
            pending, self._pending = self._pending, ""
            self._tell(peer, pending)
        self.lines.append(f"{self._play.world.elapsed_ms:>9} ms  peer {peer.index}{cheat} {what}")


def _key(key: tuple[Any, ...]) -> str:
    return " ".join(part.hex()[:8] if isinstance(part, bytes) else str(part) for part in key)


def _details(details: dict[str, Any]) -> str:
    shown = {
        name: value.hex()[:8] if isinstance(value, bytes) else value
        for name, value in details.items()
        if not isinstance(value, tuple | list)
    }
    return msgspec.json.encode(shown).decode() if shown else ""
