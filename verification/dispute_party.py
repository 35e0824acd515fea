"""One party of a dispute: trace the chunk, walk down with the other, accuse it if a referee would convict.

Executor and verifier play the same part. A party shows two digests of its own for each step down, and
accuses only after it has judged its own case, because an accusation that falls costs its standing.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

from protocols import merkle
from protocols.crypto import Crypto
from protocols.effects import (
    PROGRAM_INDEX,
    CancelRun,
    Effect,
    Judge,
    OpenValues,
    Run,
    Send,
    SetTimer,
    Sources,
    Trace,
)
from protocols.envelope import Signed
from protocols.errors import Rejected
from protocols.events import (
    Event,
    Finding,
    Heard,
    RunFailed,
    RunJudged,
    RunOpened,
    RunTraced,
    TimerFired,
)
from protocols.limits import (
    CASE_CONTEXT_BYTES_MAX,
    DISPUTE_ANSWERS_MAX,
    OPERATOR_BYTES_MAX,
    TRACE_VALUES_MAX,
)
from protocols.messages import DisputeDeclined, OperatorFraud, TraceChildren, TraceRoot
from verification.dispute import Exhibit, Quarrel, accuse, accuse_contradiction, check_root
from verification.dispute_evidence import NO_DIGEST, chunk_value, open_operator_fraud
from verification.dispute_tree import Descent

__all__ = ["Party", "PartyState"]


class PartyState(enum.Enum):
    """Where a party stands."""

    TRACING = "tracing the chunk"
    AWAITING_ROOT = "awaiting the other's root"
    DESCENDING = "walking down"
    OPENING = "opening the first differing value"
    JUDGING = "judging its own case"
    DONE = "done"


class Party:
    """Feed it events with `handle`; once `state` is DONE, `accusation` is the proof, if there is one."""

    def __init__(
        self,
        quarrel: Quarrel,
        own: bytes,
        *,
        input: bytes,
        units: Sequence[int],
        network: str,
        crypto: Crypto,
        sign: Callable[[Any], Signed[Any]],
    ) -> None:
        """Prepare to play.

        Args:
            quarrel: checked by `verification.dispute.open_dispute`.
            own: which of its parties we are.
            input: the job's.
            units: all output units up to the commitment's end.
            network: of the messages.
            crypto: judges signatures.
            sign: seals with our key.
        """
        self.quarrel = quarrel
        self.state = PartyState.TRACING
        self.accusation: OperatorFraud | None = None
        self.outcome = ""
        self._own = own
        self._other = quarrel.other(own)
        self.role = "executor" if own == quarrel.executor else "verifier"
        self._input = input
        self._units = tuple(units)
        self._network = network
        self._crypto = crypto
        self._sign = sign
        self._digests: tuple[bytes, ...] = ()
        self._levels: list[Sequence[bytes]] = []
        self._root: Signed[TraceRoot] | None = None
        self._other_root: Signed[TraceRoot] | None = None
        self._descent: Descent | None = None
        self._moves: dict[int, Signed[TraceChildren]] = {}

    def start(self, now_ms: int) -> list[Effect]:
        """Trace the chunk."""
        lid_ms = now_ms + DISPUTE_ANSWERS_MAX * self._answer_ms
        return [
            SetTimer(("dispute", self.quarrel.id, "over"), lid_ms),
            Run(self._key("trace"), Trace(*self._work, sources=self._sources)),
        ]

    @property
    def _sources(self) -> Sources:
        return (self.quarrel.contract.requester, self._other)

    @property
    def _work(self) -> tuple[str, bytes, str, bytes, tuple[int, ...], int]:
        terms = self.quarrel.contract.terms
        return (terms.workload, terms.model, terms.profile, self._input, self._units, self.quarrel.chunk)

    @property
    def _answer_ms(self) -> int:
        return self.quarrel.contract.terms.answer_within_ms

    def _key(self, role: str) -> tuple[str, bytes, str]:
        return (role, self.quarrel.id, self.role)

    def _say(self, body: Any, now_ms: int) -> Send:
        # By the requester, who passes it on: so it knows who is silent.
        return Send(self.quarrel.contract.requester, self._sign(body), now_ms + self._answer_ms)

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """React to the other party, a worker or the timer.

        Raises:
            Rejected: a message broke a rule.
        """
        if self.state is PartyState.DONE:
            return []
        match event:
            case Heard(message):
                return self._hear(message, now_ms)
            case RunTraced() if self.state is PartyState.TRACING:
                return self._traced(event, now_ms)
            case RunOpened() if self.state is PartyState.OPENING:
                return self._opened(event)
            case RunJudged(finding=finding) if self.state is PartyState.JUDGING:
                return self._judged(finding)
            case RunFailed(reason=reason) if self.state is PartyState.TRACING:
                declined = DisputeDeclined(self.quarrel.id, reason[:64] or "failed")
                return [*self._stop(f"can't trace: {reason}"), self._say(declined, now_ms)]
            case RunFailed(reason=reason):
                return self._stop(f"can't judge: {reason}")
            case TimerFired():
                return self._stop("it took too long")
        return []

    def _hear(self, message: Signed[Any], now_ms: int) -> list[Effect]:
        if message.signer != self._other:
            raise Rejected(f"{message.body.KIND!r} isn't from the other party of the dispute")
        match message.body:
            case TraceRoot():
                return self._hear_root(message, now_ms)
            case TraceChildren(level=level):
                known = self._moves.setdefault(level, message)
                if known.id != message.id:
                    raise Rejected(f"two different moves at level {level}")
                return self._walk(now_ms)
            case DisputeDeclined():
                return self._stop("the other party declined")
        return []

    # --- Roots -----------------------------------------------------------------------------------

    def _traced(self, event: RunTraced, now_ms: int) -> list[Effect]:
        digests, own = event.digests, self.quarrel.digests[self._own]
        if not 1 <= len(digests) <= TRACE_VALUES_MAX:
            declined = DisputeDeclined(self.quarrel.id, "too-many-values")
            return [*self._stop(f"{len(digests)} values"), self._say(declined, now_ms)]
        if digests[-1] != chunk_value(own):
            # To sign this root would convict us. Our machine erred then or errs now.
            return self._stop("our trace doesn't end in what we stated")
        self._digests = digests
        self._levels = merkle.grow(digests, merkle.join)
        self._root = self._sign(
            TraceRoot(
                self.quarrel.id,
                self.quarrel.commitment.id,
                self.quarrel.chunk,
                event.program,
                len(digests),
                merkle.root(digests),
                merkle.prove(digests, len(digests) - 1),
            )
        )
        self.state = PartyState.AWAITING_ROOT
        said = Send(self.quarrel.contract.requester, self._root, now_ms + self._answer_ms)
        return [said, *self._compare_roots(now_ms)]

    def _hear_root(self, message: Signed[TraceRoot], now_ms: int) -> list[Effect]:
        check_root(self.quarrel, message)
        if self._other_root is not None:
            if self._other_root.id != message.id:
                raise Rejected("a party signed two different roots in one dispute")
            return []
        self._other_root = message
        contradiction = accuse_contradiction(self.quarrel, message, input=self._input, units=self._units)
        if contradiction is not None:
            self.accusation = contradiction
            return self._stop("the other's trace contradicts its statement")
        return self._compare_roots(now_ms)

    def _compare_roots(self, now_ms: int) -> list[Effect]:
        if self._root is None or self._other_root is None or self.state is not PartyState.AWAITING_ROOT:
            return []
        own, other = self._root.body, self._other_root.body
        if (own.program, own.values) != (other.program, other.values):
            return self._open(PROGRAM_INDEX)
        top = merkle.ascend(
            leaf=chunk_value(self.quarrel.digests[self._other]),
            index=other.values - 1,
            count=other.values,
            proof=other.path,
        )
        if top is None:
            raise AssertionError("a consistent root has a path")
        self._descent = Descent(own.values, {self._own: self._levels[-1][0], self._other: top})
        self.state = PartyState.DESCENDING
        return self._move(now_ms)

    # --- The way down ----------------------------------------------------------------------------

    def _move(self, now_ms: int) -> list[Effect]:
        """Show our children of the node at which we stand, or open the value that we have reached."""
        descent = self._descent
        if descent is None:
            return []
        if descent.is_at_value:
            return self._open(descent.position)
        left, right = self._children(descent)
        move = TraceChildren(self.quarrel.id, descent.level, descent.position, left, right)
        return [self._say(move, now_ms), *self._walk(now_ms)]

    def _children(self, descent: Descent) -> tuple[bytes, bytes]:
        below = self._levels[descent.level - 1]
        return below[2 * descent.position], below[2 * descent.position + 1]

    def _walk(self, now_ms: int) -> list[Effect]:
        descent = self._descent
        if descent is None or self.state is not PartyState.DESCENDING:
            return []  # It may have overtaken the root, or the move before.
        message = self._moves.pop(descent.level, None)
        if message is None:
            return []
        body = message.body
        if body.position != descent.position:
            raise Rejected(f"move at position {body.position}, the parties stand at {descent.position}")
        theirs = (body.left, body.right)
        descent.check(self._other, theirs)
        descent.step({self._own: self._children(descent), self._other: theirs})
        return self._move(now_ms)

    # --- The value -------------------------------------------------------------------------------

    def _open(self, index: int) -> list[Effect]:
        self.state = PartyState.OPENING
        return [Run(self._key("open"), OpenValues(*self._work, index, sources=self._sources))]

    def _opened(self, event: RunOpened) -> list[Effect]:
        size = sum(len(value.data) for value in event.values)
        if size > OPERATOR_BYTES_MAX or len(event.context) > CASE_CONTEXT_BYTES_MAX:
            return self._stop(f"operator of {size} bytes can't be shown")
        if self._other_root is None:
            return []
        exhibit = self._exhibit(event)
        self.accusation = accuse(
            self.quarrel, self._other_root, exhibit, input=self._input, units=self._units
        )
        try:
            opened = open_operator_fraud(self.accusation, network=self._network, crypto=self._crypto)
        except Rejected as error:
            # The worker opened other values than it had traced.
            self.accusation = None
            return self._stop(f"can't accuse: {error}")
        if opened.case is None:
            return self._stop("the other's trace contradicts its statement")
        self.state = PartyState.JUDGING
        return [Run(self._key("referee"), Judge(opened.case, sources=self._sources))]

    def _exhibit(self, event: RunOpened) -> Exhibit:
        descent = self._descent
        if descent is None:
            return Exhibit(PROGRAM_INDEX, NO_DIGEST, (), (), (), event.context)

        def path(index: int) -> tuple[bytes, ...]:
            return descent.path(self._other, index, self._levels)

        return Exhibit(
            descent.position,
            descent.node(self._other),
            path(descent.position),
            event.values,
            tuple(path(value.index) for value in event.values),
            event.context,
        )

    def _judged(self, finding: Finding) -> list[Effect]:
        if finding is not Finding.GUILTY:
            self.accusation = None
        return self._stop(f"our own case: {finding.value}")

    def _stop(self, outcome: str) -> list[Effect]:
        was = self.state
        self.state, self.outcome = PartyState.DONE, outcome
        self._digests, self._levels, self._moves = (), [], {}
        roles = {
            PartyState.TRACING: "trace",
            PartyState.OPENING: "open",
            PartyState.JUDGING: "referee",
        }
        return [CancelRun(self._key(roles[was]))] if was in roles else []
