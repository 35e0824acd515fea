"""The odds of escape, measured on the machines that live peers run, and computed beside.

Each run is one segment: an executor forges chosen chunks and commits, every elector's `Duty` draws by
its own VRF, the requester's `Round` widens, assigns, has the chunks opened and compares, and the
simulated workload is recomputed where they differ. Messages are handed over at once and none is lost,
so that what is measured is the odds. Colluders that are drawn answer with the executor's digests.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from p2p_node.sim.crypto import SimCrypto, SimKeys
from p2p_node.sim.workload import chunk_digest, derive_unit, recompute
from protocols.digest import tagged
from protocols.effects import Effect, Publish, Recompute, Run, Send, SetTimer
from protocols.envelope import Signed, seal
from protocols.events import Heard, RunRecomputed, TimerFired
from protocols.messages import Acceptance, Award, OpeningRequest
from protocols.units import input_digest, units_digest
from verification.draw_odds import Assumptions, DrawOdds, forged_chunks, miss_chance
from verification.duty import Duty, draw_level, draw_proof
from verification.electorate import Electorate, Member
from verification.evidence import Contract
from verification.odds import escape_probability
from verification.prover import Prover
from verification.round import Round, RoundState, Verdict
from verification.sortition import alpha

__all__ = ["Cell", "Measured", "measure_cell"]

NETWORK = "odds"
NOW_MS = 1_700_000_000_000
_CHUNK_UNITS = 2
_CRYPTO = SimCrypto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One situation: who is there, what is checked, what is forged."""

    electors: int
    expected_milli: int
    samples: int
    chunks: int
    forged_share: float
    colluding: int = 0
    """How many electors work for the cheater: the first ones."""
    weights: tuple[int, ...] = ()
    """Of the electors; empty if all are even."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out of the runs of a cell, beside what should."""

    cell: Cell
    runs: int
    accepted: int
    """Runs in which the forged segment ended verified."""
    undetected: int
    """Runs in which nobody had found the forgery when the first draw window closed."""
    widened: int
    """Runs in which the draw had to be widened."""
    accepted_odds: float
    undetected_odds: float
    formula: float

    def error(self, odds: float) -> float:
        """Standard deviation of a measured share, if these are the odds."""
        return math.sqrt(max(odds * (1 - odds), 1 / self.runs) / self.runs)

    @property
    def agrees(self) -> bool:
        """Whether both shares lie within three standard deviations of their odds."""
        pairs = ((self.accepted, self.accepted_odds), (self.undetected, self.undetected_odds))
        return all(abs(count / self.runs - odds) <= 3 * self.error(odds) for count, odds in pairs)


def measure_cell(cell: Cell, *, runs: int, seed: int) -> Measured:
    """Run a cell's situation ``runs`` times; the same seed gives the same outcome."""
    weights = cell.weights or (1,) * cell.electors
    luck = random.Random(seed)  # noqa: S311 - the point is that it repeats
    forged = forged_chunks(cell.chunks, cell.forged_share)
    accepted = undetected = widened = 0
    for number in range(runs):
        table = _Table(cell, weights, luck.randbytes(16) + number.to_bytes(8, "little"))
        chosen = frozenset(luck.sample(range(cell.chunks), forged))
        verdict, level, is_seen_at_once = table.play(chosen)
        accepted += verdict is Verdict.VERIFIED
        undetected += not is_seen_at_once
        widened += level > 0
    colluding = [float(index < cell.colluding) for index in range(cell.electors)]
    odds = DrawOdds(weights, Assumptions(colluding=0.0), colluding=colluding)
    miss = miss_chance(cell.chunks, forged, cell.samples)
    share = sum(weights[: cell.colluding]) / sum(weights)
    return Measured(
        cell,
        runs,
        accepted,
        undetected,
        widened,
        accepted_odds=odds.accepted(cell.expected_milli, miss),
        undetected_odds=math.prod(
            1 - odds.drawn(weight, cell.expected_milli) * (1 - miss) for weight in weights[cell.colluding :]
        ),
        formula=escape_probability(
            expected_verifiers=cell.expected_milli / 1_000,
            samples_per_verifier=cell.samples,
            forged_share=forged / cell.chunks,
            colluding_share=share,
        ),
    )


class _Table:
    """One segment's parties around a table: what one sends, the other hears at once."""

    def __init__(self, cell: Cell, weights: Sequence[int], seed: bytes) -> None:
        self._cell = cell
        self._requester, self._executor = (SimKeys(tagged("odds", seed, who)) for who in (b"r", b"e"))
        self._electors = [
            SimKeys(tagged("odds", seed, b"v", index.to_bytes(2, "little"))) for index in range(cell.electors)
        ]
        members = [Member(keys.public, weight) for keys, weight in zip(self._electors, weights, strict=True)]
        self._electorate = Electorate(members)
        self._input = seed
        self._units = tuple(derive_unit(seed, index) for index in range(cell.chunks * _CHUNK_UNITS))
        self._contract = self._agree(max(weights))
        self._task = Recompute("sim.hash", bytes(32), "exact14", seed, self._units, ())

    def _agree(self, heaviest: int) -> Contract:
        cell = self._cell
        terms = Award(
            job_id=tagged("odds-job", self._input),
            attempt=0,
            executor=self._executor.public,
            basis=bytes(32),
            workload="sim.hash",
            model=bytes(32),
            profile="exact14",
            input_digest=input_digest(self._input),
            units_max=len(self._units),
            stop_unit=-1,
            chunk_units=_CHUNK_UNITS,
            segment_chunks=cell.chunks,
            prefix_units=0,
            prefix_digest=units_digest(()),
            price_micros=1,
            verifier_fee_micros=1,
            expected_verifiers_milli=cell.expected_milli,
            samples=cell.samples,
            electorate_root=self._electorate.root,
            electorate_weight=self._electorate.total_weight,
            electorate_count=self._electorate.count,
            electorate_weight_max=heaviest,
            sent_ms=NOW_MS,
            accept_by_ms=NOW_MS,
            finish_by_ms=NOW_MS,
            answer_within_ms=1,
        )
        award = _sign(self._requester, terms)
        return Contract(award, _sign(self._executor, Acceptance(award.id, "cpu", 1)))

    def _digest(self, chunk: int, variant: bytes) -> bytes:
        return chunk_digest(self._task, self._units, chunk, chunk_units=_CHUNK_UNITS, variant=variant)

    def play(self, forged: frozenset[int]) -> tuple[Verdict | None, int, bool]:
        """The verdict over a commitment with these chunks forged, the level of widening that it took,
        and whether an honest elector that the first draw made a verifier looks at a forged chunk.
        """
        self._made = [self._digest(c, b"forged" if c in forged else b"") for c in range(self._cell.chunks)]
        self._prover = Prover(
            self._contract,
            secret=bytes(32),
            network=NETWORK,
            crypto=_CRYPTO,
            sign=lambda body: _sign(self._executor, body),
        )
        commitment = self._prover.commit(self._made, self._units, final=True)
        self._round = Round(
            self._contract,
            commitment,
            electorate=self._electorate,
            input=self._input,
            units=self._units,
            draw_window_ms=1,
            job_id=b"",
            network=NETWORK,
            crypto=_CRYPTO,
            sign=lambda body: _sign(self._requester, body),
        )
        self._duties = {
            keys.public: duty for keys in self._electors if (duty := self._duty(keys, commitment))
        }
        self._timers: list[SetTimer] = []
        self._perform(self._requester.public, self._round.start(NOW_MS))
        for key, duty in self._duties.items():
            self._perform(key, duty.start(NOW_MS))
        honest = {keys.public for keys in self._electors[self._cell.colluding :]}
        seen = any(forged.intersection(e.chunks) for key, e in self._round.entries.items() if key in honest)
        while self._round.state is not RoundState.DONE and self._timers:
            timer = self._timers.pop(0)
            self._perform(self._requester.public, self._round.handle(TimerFired(timer.key), NOW_MS))
        return self._round.verdict, self._round.level, seen

    def _duty(self, keys: SimKeys, commitment: Signed[Any]) -> Duty | None:
        proof = draw_proof(keys, NETWORK, commitment.id)
        beta = _CRYPTO.vrf_output(keys.public, alpha(NETWORK, commitment.id), proof)
        level = None if beta is None else draw_level(beta, self._contract)
        if level is None:
            return None
        return Duty(
            self._contract,
            commitment,
            level=level,
            proof=proof,
            keys=keys,
            secret=keys.public,
            network=NETWORK,
            crypto=_CRYPTO,
            sign=lambda body: _sign(keys, body),
        )

    def _perform(self, actor: bytes, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(peer, message):
                    self._deliver(peer, message)
                case Publish(_, message):
                    for key, duty in self._duties.items():
                        self._perform(key, duty.handle(Heard(message), NOW_MS))
                case Run(key, task) if isinstance(task, Recompute):
                    self._run(actor, key, task)
                case SetTimer() if actor == self._requester.public:
                    self._timers.append(effect)

    def _deliver(self, peer: bytes, message: Signed[Any]) -> None:
        if peer == self._requester.public:
            self._perform(peer, self._round.handle(Heard(message), NOW_MS))
        elif isinstance(message.body, OpeningRequest):
            opening = self._prover.open(message)
            self._perform(self._requester.public, self._round.handle(Heard(opening), NOW_MS))
        elif peer in self._duties:
            self._perform(peer, self._duties[peer].handle(Heard(message), NOW_MS))

    def _run(self, actor: bytes, key: tuple[Any, ...], task: Recompute) -> None:
        digests = recompute(task, chunk_units=_CHUNK_UNITS)
        if actor in {keys.public for keys in self._electors[: self._cell.colluding]}:
            digests = tuple((chunk, self._made[chunk]) for chunk in task.chunks)
        machine: Any = self._duties.get(actor, self._round)
        self._perform(actor, machine.handle(RunRecomputed(key, digests, 1), NOW_MS))


def _sign(keys: SimKeys, body: Any) -> Signed[Any]:
    return seal(body, network=NETWORK, key=keys)
