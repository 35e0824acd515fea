"""The requester's part in a dispute: relay every move, and know who is silent.

It needs no model. A move is checked before it is passed on, so what a party gets is in order and holds;
one that doesn't is refused, and whoever sends nothing better by the deadline is silent and loses. Silence
can't be proved to third parties: it costs the segment and standing with this requester, no more. A
conviction takes an operator fraud proof, which the umpire is told about by `convicted`.
"""

from __future__ import annotations

import enum
from typing import Any

from protocols import merkle
from protocols.effects import Effect, Penalise, Send, SetTimer
from protocols.envelope import Signed
from protocols.errors import Rejected
from protocols.events import Event, Heard, TimerFired
from protocols.limits import TRACE_PATIENCE
from protocols.messages import Dispute, DisputeDeclined, OperatorFraud, TraceChildren, TraceRoot
from verification.dispute import Quarrel, accuse_contradiction, check_root
from verification.dispute_evidence import chunk_value
from verification.dispute_tree import Descent

__all__ = ["Umpire", "UmpireState"]


class UmpireState(enum.Enum):
    """Where a dispute stands, as its umpire sees it."""

    AWAITING_ROOTS = "awaiting the parties' roots"
    DESCENDING = "walking down"
    AWAITING_PROOF = "awaiting a fraud proof"
    DONE = "done"


class Umpire:
    """Feed it events with `handle`; once `state` is DONE, read `loser` and `is_proved`."""

    def __init__(
        self, quarrel: Quarrel, message: Signed[Dispute], *, input: bytes, units: tuple[int, ...]
    ) -> None:
        """Prepare a dispute.

        Args:
            quarrel: what it is about.
            message: our signed request to the parties.
            input: the job's, for a proof that we can build ourselves.
            units: all output units up to the commitment's end.
        """
        self.quarrel = quarrel
        self.state = UmpireState.AWAITING_ROOTS
        self.loser = b""
        self.is_proved = False
        self.outcome = ""
        self.contradiction: OperatorFraud | None = None
        """The proof against a party whose root contradicts its statement: it needs no referee."""
        self.rounds = 0
        self._message = message
        self._input = input
        self._units = units
        self._roots: dict[bytes, Signed[TraceRoot]] = {}
        self._moves: dict[bytes, dict[int, Signed[TraceChildren]]] = {party: {} for party in quarrel.digests}
        self._shown: dict[bytes, tuple[bytes, bytes]] = {}
        self._descent: Descent | None = None

    @property
    def _answer_ms(self) -> int:
        return self.quarrel.contract.terms.answer_within_ms

    def start(self, now_ms: int) -> list[Effect]:
        """Ask both parties."""
        until = now_ms + TRACE_PATIENCE * self._answer_ms
        asked = [Send(party, self._message, until) for party in sorted(self.quarrel.digests)]
        return [*asked, self._timer(until)]

    def _timer(self, at_ms: int) -> SetTimer:
        return SetTimer(("dispute", self.quarrel.id, "move"), at_ms)

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """React to a party or the timer.

        Raises:
            Rejected: a message broke a rule.
        """
        if self.state is UmpireState.DONE:
            return []
        match event:
            case Heard(message) if message.signer not in self.quarrel.digests:
                raise Rejected(f"{message.body.KIND!r} is by neither party of the dispute")
            case Heard(message) if isinstance(message.body, TraceRoot):
                return self._hear_root(message, now_ms)
            case Heard(message) if isinstance(message.body, TraceChildren):
                return self._hear_children(message, now_ms)
            case Heard(message) if isinstance(message.body, DisputeDeclined):
                self._end(b"", f"declined: {message.body.reason}")
                return [self._pass_on(message, now_ms)]
            case TimerFired():
                return self._on_timer()
        return []

    def convicted(self, party: bytes) -> None:
        """A referee convicted a party by an operator fraud proof of this dispute."""
        if self.state is not UmpireState.DONE:
            self._end(party, "convicted")
            self.is_proved = True

    def _pass_on(self, message: Signed[Any], now_ms: int) -> Send:
        return Send(self.quarrel.other(message.signer), message, now_ms + self._answer_ms)

    # --- Moves -----------------------------------------------------------------------------------

    def _hear_root(self, message: Signed[TraceRoot], now_ms: int) -> list[Effect]:
        check_root(self.quarrel, message)
        known = self._roots.setdefault(message.signer, message)
        if known.id != message.id:
            raise Rejected("a party signed two different roots in one dispute")
        if known is not message or self.state is not UmpireState.AWAITING_ROOTS:
            return []
        self.contradiction = accuse_contradiction(self.quarrel, message, input=self._input, units=self._units)
        if self.contradiction is not None:
            self.convicted(message.signer)
            return [self._pass_on(message, now_ms)]
        return [self._pass_on(message, now_ms), *self._compare_roots(now_ms)]

    def _compare_roots(self, now_ms: int) -> list[Effect]:
        if len(self._roots) < 2:
            return []
        bodies = {party: message.body for party, message in self._roots.items()}
        one, other = bodies.values()
        if (one.program, one.values) != (other.program, other.values):
            return self._await_proof(now_ms)
        tops = {party: self._top(party, body) for party, body in bodies.items()}
        self._descent = Descent(one.values, tops)
        self.state = UmpireState.DESCENDING
        return self._await_moves(now_ms)

    def _top(self, party: bytes, root: TraceRoot) -> bytes:
        leaf = chunk_value(self.quarrel.digests[party])
        top = merkle.ascend(leaf=leaf, index=root.values - 1, count=root.values, proof=root.path)
        if top is None:
            raise AssertionError("a consistent root has a path")
        return top

    def _hear_children(self, message: Signed[TraceChildren], now_ms: int) -> list[Effect]:
        known = self._moves[message.signer].setdefault(message.body.level, message)
        if known.id != message.id:
            raise Rejected(f"two different moves at level {message.body.level}")
        return self._walk(message.signer, now_ms)

    def _walk(self, party: bytes, now_ms: int) -> list[Effect]:
        """Take a party's move for the node at which the parties stand, if it is here."""
        descent = self._descent
        if descent is None or descent.is_at_value or party in self._shown:
            return []
        message = self._moves[party].get(descent.level)
        if message is None:
            return []
        body = message.body
        try:
            if body.position != descent.position:
                raise Rejected(f"move at position {body.position}, the parties stand at {descent.position}")
            descent.check(party, (body.left, body.right))
        except Rejected:
            # It may have come early; a better one is still welcome until the deadline.
            del self._moves[party][descent.level]
            raise
        self._shown[party] = (body.left, body.right)
        effects: list[Effect] = [self._pass_on(message, now_ms)]
        if len(self._shown) == len(self._moves):
            descent.step(self._shown)
            self._shown = {}
            self.rounds += 1
            effects += self._await_proof(now_ms) if descent.is_at_value else self._await_moves(now_ms)
        return effects

    def _await_moves(self, now_ms: int) -> list[Effect]:
        if self._descent is None or self._descent.is_at_value:
            return self._await_proof(now_ms)
        effects: list[Effect] = [self._timer(now_ms + self._answer_ms)]
        for party in sorted(self._moves):
            try:
                effects += self._walk(party, now_ms)
            except Rejected as fault:
                effects.append(Penalise(party, fault.points, str(fault)))
        return effects

    def _await_proof(self, now_ms: int) -> list[Effect]:
        self.state = UmpireState.AWAITING_PROOF
        # A party runs the program once more to open the value, and its proof is fetched in parts.
        return [self._timer(now_ms + TRACE_PATIENCE * self._answer_ms)]

    # --- Endings ---------------------------------------------------------------------------------

    def _on_timer(self) -> list[Effect]:
        if self.state is UmpireState.AWAITING_PROOF:
            self._end(b"", "nobody proved anything")
            return []
        moved = self._roots if self.state is UmpireState.AWAITING_ROOTS else self._shown
        silent = [party for party in self.quarrel.digests if party not in moved]
        # Where both are silent the network may be to blame, and nobody is.
        self._end(silent[0] if len(silent) == 1 else b"", "silence")
        return []

    def _end(self, loser: bytes, outcome: str) -> None:
        self.state, self.loser, self.outcome = UmpireState.DONE, loser, outcome
        self._units = ()
        self._moves = {party: {} for party in self._moves}
