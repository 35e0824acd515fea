"""One attack against honest peers in a simulated world, from its start to what came of it.

Tests assert on a battle, and benchmarks count many of them: who was caught, who escaped, whether the
client got the right answer, and whether anybody honest was harmed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from p2p_node.core.attempt import Attempt, Outcome
from p2p_node.core.request import JobRequest, JobState
from p2p_node.core.requester import Job
from p2p_node.hostile import ATTACKS, Role
from p2p_node.sim.invariants import Invariants
from p2p_node.sim.scenario import job_request, sim_capability
from p2p_node.sim.workload import derive_unit
from p2p_node.sim.world import START_MS, Conditions, Peer, World
from verification.round import VerifierEntry

__all__ = ["Battle", "Setting", "fight", "mount", "run_for", "run_job"]

CLIENT = 0
WARM_UP_MS = 2_500
AFTERMATH_MS = 12_000
"""After the last job, for convictions to spread and vouchers to be confirmed."""

JOB_MS_MAX = 400_000
CHEAP, DEAR = 50, 400
"""What hostile executors ask, to win, and hostile verifiers, to lose: honest peers ask 100 and more."""

_HOSTILE_COUNT = {Role.EXECUTOR: 1, Role.VERIFIER: 3, Role.REQUESTER: 1, Role.STRANGER: 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How an attack is mounted.

    Args:
        kind: of `p2p_node.hostile.ATTACKS`, or ``""`` for none.
        honest: honest peers that serve; the client is one more, and doesn't.
        executors: hostile ones that underbid; None for as many as the kind's role takes.
        colluders: hostile peers that only verify.
        jobs: one after another; each asks for another input.
        is_repeated: all ask for one input, and the first of them excludes the hostile executors.
        chunks: of each job, in one segment where they fit.
        verifiers: expected of each segment.
        samples: chunks that each recomputes.
        forged_each: a cheating worker cheats in each so many-th chunk.
        honest_links: where the client is surrounded, how many honest neighbours it has all the same.
    """

    kind: str
    honest: int = 8
    executors: int | None = None
    colluders: int = 0
    jobs: int = 1
    chunks: int = 4
    verifiers: int = 3
    samples: int = 4_096
    forged_each: int = 1
    honest_links: int = 1
    is_repeated: bool = False
    real_keys: bool = False
    conditions: Conditions = field(default_factory=Conditions)


@dataclass(slots=True)
class Battle:
    """A world in which hostile peers have done their worst."""

    setting: Setting
    world: World
    invariants: Invariants
    jobs: list[Job] = field(default_factory=list)

    # --- Who is who ------------------------------------------------------------------------------

    @property
    def client(self) -> Peer:
        """The honest peer that wants work done."""
        return self.world.peers[CLIENT]

    @property
    def honest(self) -> list[Peer]:
        """Every honest peer, the client included."""
        return [peer for peer in self.world.peers if not peer.cheat]

    @property
    def hostile(self) -> list[Peer]:
        """Every hostile peer."""
        return [peer for peer in self.world.peers if peer.cheat]

    @property
    def elapsed_ms(self) -> int:
        """Since the world began."""
        return self.world.now_ms - START_MS

    # --- What happened ---------------------------------------------------------------------------

    def hostile_attempts(self) -> list[Attempt]:
        """Contracts that hostile executors took."""
        keys = {peer.core.key for peer in self.hostile}
        return [
            attempt
            for job in self.jobs
            for attempt in job.attempts
            if attempt.candidate.peer in keys and attempt.contract is not None
        ]

    def outcomes(self) -> list[Outcome | None]:
        """How those ended."""
        return [attempt.outcome for attempt in self.hostile_attempts()]

    def hostile_entries(self) -> list[VerifierEntry]:
        """Draws of hostile verifiers in honest clients' rounds."""
        keys = {peer.core.key for peer in self.hostile}
        return [entry for entry in self._entries() if entry.claim.signer in keys]

    def _entries(self) -> Iterator[VerifierEntry]:
        for job in self.jobs:
            for attempt in job.attempts:
                for round_ in attempt.rounds.values():
                    yield from round_.entries.values()

    def convictions(self) -> dict[int, int]:
        """By hostile peer, how many honest peers convicted it."""
        return {
            cheat.index: sum(peer.core.standings.of(cheat.core.key).convicted for peer in self.honest)
            for cheat in self.hostile
        }

    def has_right_answers(self) -> bool:
        """Whether every job of the client ended verified, with the only right output."""
        return all(
            job.state is JobState.VERIFIED
            and job.units == tuple(derive_unit(job.request.input, i) for i in range(job.request.units_max))
            for job in self.jobs
        )

    def has_false_answer(self) -> bool:
        """Whether a job ended verified with a result that no honest executor would have signed."""
        return any(attempt.outcome is Outcome.VERIFIED for attempt in self.hostile_attempts())

    def harm(self) -> list[str]:
        """What honest peers suffered from honest ones: convictions, penalties, exclusion, missing pay."""
        keys = {peer.core.key: peer.index for peer in self.honest}
        found = []
        for peer in self.honest:
            for key, standing in peer.core.standings.peers.items():
                if key in keys and (standing.convicted or standing.failed):
                    found.append(f"{keys[key]} lost its standing with {peer.index}")
            found += [
                f"{keys[key]} was penalised by {peer.index}: {why}"
                for key, points, why in peer.penalties
                if key in keys and points
            ]
        return found + [f"{index} wasn't paid" for index in self._unpaid(keys)]

    def _unpaid(self, keys: dict[bytes, int]) -> Iterator[int]:
        for job in self.jobs:
            for attempt in job.attempts:
                paid = {payee for _, payee in attempt.payouts.vouchers}
                executor = attempt.candidate.peer
                if attempt.outcome is Outcome.VERIFIED and executor in keys and executor not in paid:
                    yield keys[executor]
                for round_ in attempt.rounds.values():
                    for key, entry in round_.entries.items():
                        if round_.verdict and entry.is_payable and key in keys and key not in paid:
                            yield keys[key]

    def earned_micros(self) -> int:
        """What hostile peers got for it, by the vouchers of honest clients."""
        keys = {peer.core.key for peer in self.hostile}
        best: dict[tuple[bytes, bytes], int] = {}
        for job in self.jobs:
            for attempt in job.attempts:
                for (_, payee), voucher in attempt.payouts.vouchers.items():
                    if payee in keys:
                        lane = (attempt.award.id, payee)
                        best[lane] = max(best.get(lane, 0), voucher.body.settled_micros)
        return sum(best.values())

    def penalties_of_hostile(self) -> list[tuple[int, str]]:
        """(points, reason) that honest peers charged hostile ones."""
        keys = {peer.core.key for peer in self.hostile}
        return [(points, why) for peer in self.honest for key, points, why in peer.penalties if key in keys]

    def notes(self, event: str) -> int:
        """How often honest peers told of an event."""
        honest = {peer.index for peer in self.honest}
        return sum(note.event == event and index in honest for _, index, note in self.world.notes)

    # --- Mounted, and caught ---------------------------------------------------------------------

    @property
    def is_mounted(self) -> bool:
        """Whether the attack happened at all: luck decides who is drawn."""
        match self.setting.kind:
            case "silent-verifier":
                return bool(self.hostile_entries())
            case "false-verdict":
                return any(entry.reveal is not None for entry in self.hostile_entries())
            case "rubber-stamp" | "false-accusation":
                return any(entry.blind is not None for entry in self.hostile_entries())
            case "copied-verdict":
                return bool(self._copies())
            case "copied-result":
                return bool(self._copied_roots())
        return ATTACKS[self.setting.kind].role is not Role.EXECUTOR or bool(self.hostile_attempts())

    def _copies(self) -> list[VerifierEntry]:
        """Hostile entries whose blind verdict is another's."""
        first: dict[tuple[tuple[int, bytes], ...], bytes] = {}
        copies = []
        for entry in sorted(self._entries(), key=lambda entry: entry.claim.signer):
            if entry.blind is None or not entry.blind.body.hidden:
                continue
            if first.setdefault(entry.blind.body.hidden, entry.claim.signer) != entry.claim.signer:
                copies.append(entry)
        return copies

    def _copied_roots(self) -> set[bytes]:
        """Roots that a hostile executor committed to after somebody else did."""
        roots: dict[bytes, set[bytes]] = {}
        for job in self.jobs:
            for attempt in job.attempts:
                for round_ in attempt.rounds.values():
                    roots.setdefault(round_.commitment.body.root, set()).add(attempt.candidate.peer)
        return {root for root, executors in roots.items() if len(executors) > 1}

    @property
    def is_caught(self) -> bool:
        """Whether the check that is named for the attack did what it is there for."""
        kind = self.setting.kind
        if ATTACKS[kind].role is Role.EXECUTOR:
            wanted = {
                "equivocation": {Outcome.INCONSISTENT},
                "copied-result": {Outcome.WITHHELD},
                "withheld-opening": {Outcome.WITHHELD},
                "withheld-blob": {Outcome.OUTPUT_WITHHELD},
            }.get(kind, {Outcome.FRAUD})
            guilty = {attempt.candidate.peer for attempt in self.hostile_attempts()}
            convicted = all(self.client.core.standings.of(key).convicted for key in guilty)
            is_shown = convicted or not ATTACKS[kind].is_provable
            return set(self.outcomes()) == wanted and is_shown
        match kind:
            case "silent-verifier" | "rubber-stamp":
                return not any(entry.is_payable for entry in self.hostile_entries())
            case "copied-verdict":
                return not any(entry.is_payable for entry in self._copies())
            case "false-verdict":
                liars = [entry for entry in self.hostile_entries() if entry.reveal is not None]
                standings = self.client.core.standings
                return all(e.false_verdict and standings.of(e.claim.signer).convicted for e in liars)
            case "false-accusation":
                return self.notes("false-accusation") > 0
        return True


def mount(setting: Setting, *, seed: int) -> Battle:
    """Make the world of an attack; `fight` runs it."""
    kind = setting.kind
    role = ATTACKS[kind].role if kind else None
    count = setting.executors
    if count is None:
        count = _HOSTILE_COUNT[role] if role else 0
    price = CHEAP if role is Role.EXECUTOR else DEAR
    capabilities = [sim_capability(serves=False)]
    capabilities += [sim_capability(price_micros=100 + number, slots=4) for number in range(setting.honest)]
    first = len(capabilities)
    capabilities += [sim_capability(price_micros=price + n, slots=4) for n in range(count)]
    capabilities += [sim_capability(price_micros=DEAR + n, slots=4) for n in range(setting.colluders)]
    hostile = range(first, len(capabilities))
    surrounding = frozenset({*hostile, *range(1, 1 + setting.honest_links)})
    world = World(
        seed=seed,
        capabilities=capabilities,
        conditions=setting.conditions,
        cheats=dict.fromkeys(hostile, kind),
        forged_each=setting.forged_each,
        eclipsed={CLIENT: surrounding} if kind == "eclipse" else None,
        real_keys=setting.real_keys,
    )
    invariants = Invariants(world)
    world.on_step = invariants.check
    return Battle(setting, world, invariants)


def fight(setting: Setting, *, seed: int, requests: Sequence[JobRequest] = ()) -> Battle:
    """Mount an attack, give the client its jobs one after another, and see what comes of it.

    Args:
        setting: how.
        seed: everything follows from it.
        requests: the client's jobs; empty for as many as the setting says.
    """
    battle = mount(setting, seed=seed)

    def excludes(number: int) -> bool:
        return setting.is_repeated and number == 0

    wanted = list(requests) or [
        replace(
            job_request(seed if setting.is_repeated else 1_000 * seed + number, units=32 * setting.chunks),
            exclude=tuple(sorted(peer.core.key for peer in battle.hostile)) if excludes(number) else (),
            expected_verifiers_milli=1_000 * setting.verifiers,
            samples=setting.samples,
            has_output_blobs=setting.kind == "withheld-blob",
        )
        for number in range(setting.jobs)
    ]
    battle.world.run(until_ms=WARM_UP_MS)
    for request in wanted:
        run_job(battle, battle.client, request)
    run_for(battle, AFTERMATH_MS)
    return battle


def run_job(battle: Battle, peer: Peer, request: JobRequest) -> Job:
    """Give ``peer`` a job and run the world until it has ended; the client's are kept in the battle."""
    job = peer.core.jobs[battle.world.submit(peer, request)]
    if peer is battle.client:
        battle.jobs.append(job)
    battle.world.run(until_ms=battle.elapsed_ms + JOB_MS_MAX, stop=partial(_is_final, job))
    return job


def run_for(battle: Battle, duration_ms: int) -> None:
    """Let the world go on for a while."""
    battle.world.run(until_ms=battle.elapsed_ms + duration_ms)


def _is_final(job: Job) -> bool:
    return job.is_final
