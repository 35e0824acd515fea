"""What the checks catch, counted over many seeded worlds, beside what the formula says.

python -m benchmarks.attacks [--quick] [--runs N] [--honest-jobs N] [--table NAME]

Every run is a world of its own: real cores and messages, simulated keys and work, the hostile peers of
`p2p_node.hostile`. A run in which the attack didn't come about (its verifier wasn't drawn, say) is
played but not counted. Errors are 99% Wilson intervals.

The last table is about honest peers only, on a network that loses, doubles, delays and splits.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.table import print_table
from p2p_node.core.request import JobState
from p2p_node.hostile import ATTACKS, Role
from p2p_node.sim.attacks import WARM_UP_MS, Battle, Setting, fight, mount, run_for, run_job
from p2p_node.sim.scenario import job_request, sim_capability
from p2p_node.sim.workload import derive_unit
from p2p_node.sim.world import START_MS, Conditions, World
from protocols.auction import Ranking
from verification.draw_odds import Assumptions, DrawOdds, miss_chance
from verification.odds import escape_probability

__all__ = ["Count", "Sampled", "count_attacks", "count_honest", "main", "odds_of", "wilson"]

RUNS, QUICK_RUNS = 200, 12
HONEST_JOBS, QUICK_HONEST_JOBS = 10_000, 200
JOBS_EACH_WORLD = 50
LOSSY = Conditions(
    latency_ms=(5, 120),
    loss=0.05,
    duplication=0.05,
    gossip_loss=0.05,
    partitions=((9_000, 12_000, 3),),
)


def wilson(hits: int, total: int) -> tuple[float, float]:
    """The 99% interval of a share of ``total`` that was counted as ``hits``.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    if total == 0:
        return 0.0, 1.0
    z = 2.575829
    share = hits / total
    scale = 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


# --- Sampling: measured escape beside the formula ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sampled:
    """A cheater that forges part of its chunks, and the checking it meets."""

    kind: str
    forged_each: int
    verifiers: int
    samples: int
    honest: int = 9
    colluders: int = 0

    @property
    def setting(self) -> Setting:
        """The world it is played in: 8 chunks in one segment."""
        return Setting(
            kind=self.kind,
            honest=self.honest,
            colluders=self.colluders,
            chunks=8,
            verifiers=self.verifiers,
            samples=self.samples,
            forged_each=self.forged_each,
        )


SAMPLED = (
    Sampled("quantized-weights", 8, 1, 1),
    Sampled("quantized-weights", 8, 2, 1),
    Sampled("quantized-weights", 8, 2, 2),
    Sampled("quantized-weights", 4, 2, 2),
    Sampled("quantized-weights", 4, 4, 2),
    Sampled("quantized-weights", 2, 2, 2),
    Sampled("quantized-weights", 8, 3, 8),
    Sampled("spoofed-tokens", 4, 2, 2),
    Sampled("spoofed-tokens", 2, 2, 1),
    Sampled("sybil-swarm", 1, 2, 8, honest=8, colluders=2),
    Sampled("sybil-swarm", 1, 2, 8, honest=5, colluders=5),
    Sampled("sybil-swarm", 1, 4, 8, honest=5, colluders=5),
)


SAMPLED_COLUMNS = ["runs", "convicted", "escape", "99%", "exact", "formula", "agrees", "harmed"]
ATTACK_COLUMNS = ["attack", "check ends in", "runs", "caught", "99%", "convicted", "right answers", "harmed"]
HONEST_COLUMNS = [
    "network",
    "jobs",
    "verified",
    "wrong",
    "disputed",
    "accused",
    "penalties",
    "convicted",
    "at most",
]


def odds_of(case: Sampled) -> tuple[float, float]:
    """(escape by the formula, acceptance for this very electorate with widening)."""
    chunks = case.setting.chunks
    forged = chunks // case.forged_each
    electors = case.honest + case.colluders
    colluding = case.colluders / electors
    formula = escape_probability(
        expected_verifiers=case.verifiers,
        samples_per_verifier=case.samples,
        forged_share=forged / chunks,
        colluding_share=colluding,
    )
    odds = DrawOdds(
        [1] * electors,
        Assumptions(colluding=0.0, lazy=0.0),
        colluding=[1.0] * case.colluders + [0.0] * case.honest,
    )
    return formula, odds.accepted(1_000 * case.verifiers, miss_chance(chunks, forged, case.samples))


def _segment(setting: Setting, seed: int) -> Battle:
    request = replace(
        job_request(seed, units=32 * setting.chunks),
        segment_chunks=setting.chunks,
        expected_verifiers_milli=1_000 * setting.verifiers,
        samples=setting.samples,
    )
    return fight(setting, seed=seed, requests=[request])


def sampled_row(case: Sampled, runs: int) -> list[str]:
    """Play one case ``runs`` times."""
    mounted = escaped = convicted = harmed = 0
    for seed in range(runs):
        battle = _segment(case.setting, 50_000 + seed)
        if not battle.is_mounted:
            continue
        mounted += 1
        escaped += battle.has_false_answer()
        convicted += battle.is_caught
        harmed += bool(battle.harm())
    formula, exact = odds_of(case)
    low, high = wilson(escaped, mounted)
    colluding = case.colluders / (case.honest + case.colluders)
    return [
        case.kind,
        f"{1 / case.forged_each:.3f}",
        str(case.verifiers),
        str(case.samples),
        f"{colluding:.1f}",
        str(mounted),
        str(convicted),
        f"{escaped / mounted:.3f}",
        f"{low:.3f}..{high:.3f}",
        f"{exact:.3f}",
        f"{formula:.3f}",
        "yes" if low <= exact <= high else "NO",
        str(harmed),
    ]


# --- All attacks ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Count:
    """What came of many runs of one attack."""

    mounted: int = 0
    caught: int = 0
    right: int = 0
    harmed: int = 0
    convicted: int = 0


def play_attack(kind: str, seed: int) -> Battle:
    """One run, set up so that the attack comes about as often as not."""
    attack = ATTACKS[kind]
    setting = Setting(kind=kind, colluders={"sybil-swarm": 2, "eclipse": 3}.get(kind, 0))
    if attack.role is Role.VERIFIER:
        setting = replace(setting, executors=2, verifiers=6)
    if kind == "copied-result":
        setting = replace(setting, is_repeated=True, jobs=2, verifiers=9)
    if kind == "eclipse":
        setting = replace(setting, honest_links=3, verifiers=6)
    if kind == "copied-verdict":
        setting = replace(setting, verifiers=9)
    if kind == "forged-capability":
        ranking = Ranking(latency_micros_per_s=10_000)
        requests = [replace(job_request(10 * seed + n, units=128), ranking=ranking) for n in range(3)]
        return fight(setting, seed=seed, requests=requests)
    if attack.role is Role.REQUESTER:
        return _ride(setting, seed)
    return fight(setting, seed=seed)


def _ride(setting: Setting, seed: int) -> Battle:
    battle = mount(replace(setting, honest=3), seed=seed)
    battle.world.run(until_ms=WARM_UP_MS)
    (rider,) = battle.hostile
    for number in range(6):
        request = replace(job_request(10 * seed + number, units=1_024), queue_ms=3_000, rebids=0)
        run_job(battle, rider, request)
    run_job(battle, battle.client, job_request(10 * seed + 9))
    run_for(battle, 12_000)
    return battle


def is_caught(battle: Battle) -> bool:
    """As the battle says, and for those that convict nobody, that they got nothing they shouldn't."""
    kind = battle.setting.kind
    (first, *_) = battle.hostile
    match kind:
        case "free-rider":
            return [job.state for job in first.core.jobs.values()][-1] is JobState.NO_BIDS
        case "over-issued-vouchers":
            return any("delivered" in why for _, why in battle.penalties_of_hostile())
        case "forged-capability":
            return all(job.attempts[-1].candidate.peer != first.core.key for job in battle.jobs[1:])
        case "malformed-bytes":
            return sum(points for points, _ in battle.penalties_of_hostile()) >= 100
        case "replayed-message":
            return all(len(job.attempts) == 1 for job in battle.jobs)
    return battle.is_caught


def count_attacks(kind: str, runs: int) -> Count:
    """Play one attack ``runs`` times."""
    count = Count()
    for seed in range(runs):
        battle = play_attack(kind, 70_000 + seed)
        if not battle.is_mounted:
            continue
        count.mounted += 1
        count.caught += is_caught(battle)
        count.right += battle.has_right_answers()
        count.harmed += bool(battle.harm())
        count.convicted += any(battle.convictions().values())
    return count


def attack_row(kind: str, runs: int) -> list[str]:
    """One line of the table of all attacks."""
    count = count_attacks(kind, runs)
    low, high = wilson(count.caught, count.mounted)
    return [
        kind,
        "conviction" if ATTACKS[kind].is_provable else "refusal",
        str(count.mounted),
        str(count.caught),
        f"{low:.3f}..{high:.3f}",
        str(count.convicted),
        str(count.right),
        str(count.harmed),
    ]


# --- Honest peers --------------------------------------------------------------------------------------


@dataclass(slots=True)
class HonestCount:
    """What honest peers did to each other."""

    jobs: int = 0
    verified: int = 0
    wrong: int = 0
    disputed: int = 0
    convictions: int = 0
    penalties: int = 0
    accusations: int = 0


def count_honest(jobs: int, conditions: Conditions) -> HonestCount:
    """Run at least ``jobs`` jobs among honest peers, `JOBS_EACH_WORLD` in each world."""
    count = HonestCount()
    seed = 0
    while count.jobs < jobs:
        seed += 1
        _count_world(count, seed, min(JOBS_EACH_WORLD, jobs - count.jobs), conditions)
    return count


def _count_world(count: HonestCount, seed: int, jobs: int, conditions: Conditions) -> None:
    capabilities = [sim_capability(price_micros=100 + n, slots=8) for n in range(10)]
    world = World(seed=900_000 + seed, capabilities=capabilities, conditions=conditions)
    submitted = []
    for number in range(jobs):
        peer = world.peers[number % len(world.peers)]
        request = job_request(
            1_000 * seed + number, mode="auction" if number % 2 else "posted", units=(64, 160)[number % 2]
        )
        world.at(
            WARM_UP_MS + 400 * number,
            lambda peer=peer, request=request: submitted.append(  # type: ignore[misc]
                peer.core.jobs[world.submit(peer, request)]
            ),
        )
    world.run(
        until_ms=600_000, stop=lambda: len(submitted) == jobs and all(job.is_final for job in submitted)
    )
    world.run(until_ms=world.now_ms - START_MS + 5_000)
    count.jobs += jobs
    for job in submitted:
        is_verified = job.state is JobState.VERIFIED
        right = tuple(derive_unit(job.request.input, i) for i in range(job.request.units_max))
        count.verified += is_verified
        count.wrong += is_verified and job.units != right
    standings = [s for peer in world.peers for s in peer.core.standings.peers.values()]
    count.convictions += sum(standing.convicted for standing in standings)
    count.penalties += sum(bool(points) for peer in world.peers for _, points, _ in peer.penalties)
    for event, field in (("disputed", "disputed"), ("false-accusation", "accusations")):
        seen = sum(note.event == event for _, _, note in world.notes)
        setattr(count, field, getattr(count, field) + seen)


# --- The program ---------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attacks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_RUNS} runs of each, fewer honest jobs")
    parser.add_argument("--runs", type=int, help=f"runs of each case; {RUNS} by default")
    parser.add_argument("--honest-jobs", type=int, help=f"{HONEST_JOBS} by default")
    parser.add_argument("--table", choices=("sampled", "attacks", "honest"), help="only this one")
    arguments = parser.parse_args(argv)
    runs = arguments.runs or (QUICK_RUNS if arguments.quick else RUNS)
    jobs = arguments.honest_jobs or (QUICK_HONEST_JOBS if arguments.quick else HONEST_JOBS)
    tables = {
        "sampled": lambda: show_sampled(runs),
        "attacks": lambda: show_attacks(runs),
        "honest": lambda: show_honest(jobs),
    }
    for name, show in tables.items():
        if arguments.table in (None, name):
            started = time.perf_counter()
            show()
            print(f"  {time.perf_counter() - started:.0f} s", flush=True)


def show_sampled(runs: int) -> None:
    """Forged shares, measured beside the odds."""
    print_table(
        "Forging a share of 8 chunks: how often a false result was accepted, and how often it should be",
        ["kind", "forged", "verifiers", "samples", "colluding", *SAMPLED_COLUMNS],
        [sampled_row(case, runs) for case in SAMPLED],
    )


def show_attacks(runs: int) -> None:
    """Every attack, counted."""
    print_table(
        "Every attack, fully checked: caught by its check, the client's answer, honest peers harmed",
        ATTACK_COLUMNS,
        [attack_row(kind, runs) for kind in ATTACKS],
    )


def show_honest(jobs: int) -> None:
    """Honest peers, half of the jobs on a bad network."""
    rows = []
    for name, conditions in (("calm", Conditions()), ("lossy", LOSSY)):
        count = count_honest(jobs // 2, conditions)
        seen = (count.verified, count.wrong, count.disputed, count.accusations, count.penalties)
        cells = (name, count.jobs, *seen, count.convictions)
        rows.append([*map(str, cells), f"{wilson(count.convictions, count.jobs)[1]:.5f}"])
    print_table(
        "Honest peers only; lossy: 5% lost, 5% doubled, 5 to 120 ms of delay, a split of 3 s",
        HONEST_COLUMNS,
        rows,
    )


if __name__ == "__main__":
    main()
