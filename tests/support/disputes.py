"""A dispute at one table: executor, verifier and requester, with toy workers and messages in any order."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from p2p_node.sim import program
from p2p_node.sim.program import final_digest
from protocols.effects import CancelRun, Effect, Judge, OpenValues, Penalise, Run, Send, SetTimer, Trace
from protocols.envelope import Signed
from protocols.errors import PeerFault
from protocols.events import Event, Heard, RunFailed, RunJudged, RunOpened, RunTraced, TimerFired
from protocols.messages import Commitment, Dispute, OperatorFraud
from protocols.units import FALSE_UNITS
from tests.support.builders import (
    CRYPTO,
    EXECUTOR,
    INPUT,
    NETWORK,
    NOW_MS,
    REQUESTER,
    UNITS,
    blind,
    contract,
    key,
    opening,
    prover,
    reveal,
    signed,
)
from verification.dispute import Quarrel, open_dispute
from verification.dispute_party import Party
from verification.dispute_umpire import Umpire
from verification.evidence import Contract

__all__ = ["CHUNK", "VERIFIER", "Table", "Worker", "quarrel_of"]

VERIFIER = 2
CHUNK = 1


@dataclass(frozen=True, slots=True)
class Worker:
    """How one party computes; honest unless told otherwise."""

    variant: bytes = b""
    denies: bool = False
    model: bytes = b""
    """Other weights than the contract's."""
    input: bytes = b""
    """Another input than the job's."""
    program: bytes = b""
    """Another program, as it says."""
    fails: frozenset[str] = frozenset()

    def digest(self, terms: Any, units: Sequence[int], chunk: int) -> bytes:
        """What it states for a chunk."""
        return final_digest(
            model=self.model or terms.model,
            profile=terms.profile,
            input=self.input or INPUT,
            units=units,
            chunk=chunk,
            chunk_units=32,
            variant=self.variant,
        )

    def run(self, run: Run) -> Event:
        """What its worker answers."""
        role, task = run.key[0], run.task
        if role in self.fails:
            return RunFailed(run.key, "unsupported", "")
        if isinstance(task, Judge):
            finding, detail = program.judge(task.case, chunk_units=32)
            return RunJudged(run.key, finding, detail, 1)
        assert isinstance(task, Trace | OpenValues)
        true_digest = program.trace(replace_task(task), chunk_units=32)[0]
        task = replace(task, model=self.model or task.model, input=self.input or task.input)
        lies: dict[str, Any] = {"chunk_units": 32, "variant": self.variant, "denies": self.denies}
        if isinstance(task, Trace):
            return RunTraced(run.key, self.program or true_digest, program.trace(task, **lies)[1], 1)
        values, _ = program.open_values(task, **lies)
        honest = program.open_values(replace(run.task, index=0), chunk_units=32)[1]
        return RunOpened(run.key, values, honest, 1)


def replace_task(task: Trace | OpenValues) -> Trace:
    """The trace that a task asks for."""
    return Trace(task.workload, task.model, task.profile, task.input, task.units, task.chunk)


def quarrel_of(
    executor: Worker, verifier: Worker, *, units: tuple[int, ...] = UNITS
) -> tuple[Contract, Signed[Commitment], Signed[Dispute]]:
    """The contract, the commitment and the requester's dispute about `CHUNK`."""
    agreed = contract()
    committing = prover(agreed)
    stated = [executor.digest(agreed.terms, units, chunk) for chunk in (0, 1)]
    commitment = committing.commit(stated, units, final=True)
    found = [verifier.digest(agreed.terms, units, chunk) for chunk in (0, 1)]
    if units != UNITS and not verifier.denies:
        found = [found[0], FALSE_UNITS]
    hidden = blind(VERIFIER, commitment, found)
    body = Dispute(
        commitment.id,
        CHUNK,
        opening(committing, commitment, found).raw,
        reveal(VERIFIER, commitment, hidden, found).raw,
    )
    return agreed, commitment, signed(REQUESTER, body)


@dataclass
class Table:
    """One dispute between two workers; `play` takes it to its end."""

    executor: Worker = field(default_factory=Worker)
    verifier: Worker = field(default_factory=Worker)
    units: tuple[int, ...] = UNITS
    luck: random.Random | None = None
    """Shuffles and doubles messages, if given."""
    silent: frozenset[int] = frozenset()
    tamper: Callable[[int, Signed[Any]], Signed[Any]] = lambda number, message: message

    def __post_init__(self) -> None:
        self.contract, self.commitment, self.message = quarrel_of(
            self.executor, self.verifier, units=self.units
        )
        self.quarrel: Quarrel = open_dispute(
            self.message,
            contract=self.contract,
            commitment=self.commitment,
            network=NETWORK,
            crypto=CRYPTO,
        )
        self.umpire = Umpire(self.quarrel, self.message, input=INPUT, units=self.units)
        self.parties = {
            number: Party(
                self.quarrel,
                key(number),
                input=INPUT,
                units=self.units,
                network=NETWORK,
                crypto=CRYPTO,
                sign=lambda body, number=number: signed(number, body),
            )
            for number in (EXECUTOR, VERIFIER)
        }
        self.waiting: list[tuple[int, Signed[Any]]] = []
        self.faults: list[str] = []
        self.said: list[Signed[Any]] = []
        self.timers: dict[tuple[Any, ...], int] = {}

    def play(self) -> Table:
        """Start, deliver all messages, and let the timers fire when nothing else is left."""
        self.perform(REQUESTER, self.umpire.start(NOW_MS))
        for number, party in self.parties.items():
            if number not in self.silent:
                self.perform(number, party.start(NOW_MS))
        while self.waiting:
            at = self.luck.randrange(len(self.waiting)) if self.luck else 0
            to, message = self.waiting[at]
            if self.luck is None or self.luck.random() > 0.2:
                del self.waiting[at]
            self.deliver(to, message)
        return self

    def expire(self) -> None:
        """Nothing more comes: the umpire's deadline passes."""
        move = ("dispute", self.quarrel.id, "move")
        self.perform(REQUESTER, self.umpire.handle(TimerFired(move), self.timers[move]))

    def deliver(self, to: int, message: Signed[Any]) -> None:
        """Hand one message over."""
        if to in self.silent or isinstance(message.body, Dispute):
            return
        machine: Any = self.umpire if to == REQUESTER else self.parties[to]
        try:
            self.perform(to, machine.handle(Heard(message), NOW_MS))
        except PeerFault as fault:
            self.faults.append(str(fault))

    def perform(self, number: int, effects: list[Effect]) -> None:
        """Do what a machine asks for."""
        numbers = {key(n): n for n in (REQUESTER, EXECUTOR, VERIFIER)}
        for effect in effects:
            match effect:
                case Send(peer, message):
                    if number != REQUESTER:
                        message = self.tamper(number, message)
                        self.said.append(message)
                    self.waiting.append((numbers[peer], message))
                case Run() as run:
                    worker = self.executor if number == EXECUTOR else self.verifier
                    self.perform(number, self.parties[number].handle(worker.run(run), NOW_MS))
                case SetTimer(timer, at_ms):
                    self.timers[timer] = at_ms
                case Penalise(reason=reason):
                    self.faults.append(reason)
                case CancelRun():
                    pass

    def accusation(self, number: int) -> OperatorFraud | None:
        """The proof that a party ended with."""
        return self.parties[number].accusation
