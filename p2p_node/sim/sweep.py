"""Many seeds of some scenarios, in as many processes as there are cores, until one breaks a promise."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from p2p_node.sim.invariants import InvariantBroken
from p2p_node.sim.play import Play
from p2p_node.sim.scenariofile import load_scenario

__all__ = ["Ran", "run_seed", "sweep"]


@dataclass(frozen=True, slots=True)
class Ran:
    """One scenario with one seed."""

    file: str
    seed: int
    broken: str
    """Which promise broke, or what went wrong in the program; empty if nothing did."""
    submitted: int = 0
    verified: int = 0
    false_answers: int = 0
    false_convictions: int = 0


def run_seed(file: str, seed: int, peers: int | None, minutes: float | None) -> Ran:
    """Play a scenario with a seed; whatever is raised is part of the answer."""
    play = Play(load_scenario(Path(file), seed=seed, peers=peers, minutes=minutes))
    try:
        play.run()
    except InvariantBroken as error:
        return Ran(file, seed, str(error))
    except Exception:
        # A bug of a peer's machine is what a sweep is for, whatever it raises.
        return Ran(file, seed, traceback.format_exc(limit=-6))
    jobs = play.measures.completion()
    convicted, false = play.measures.false_convictions(), jobs["false_answers"]
    broken = f"{convicted} honest peers convicted, {false} false answers" if convicted or false else ""
    return Ran(file, seed, broken, jobs["submitted"], jobs["verified"], false, convicted)


def sweep(
    files: Sequence[Path],
    seeds: range,
    *,
    peers: int | None = None,
    minutes: float | None = None,
    processes: int | None = None,
) -> Iterator[Ran]:
    """Play each scenario with each seed, in any order; ends after the first that breaks.

    Args:
        files: scenarios.
        seeds: which.
        peers: instead of the scenarios'.
        minutes: instead of the scenarios'.
        processes: at a time; as many as there are cores if not given.

    Raises:
        ScenarioRefused: a file can't be read or breaks a rule.
    """
    for file in files:
        load_scenario(file, peers=peers, minutes=minutes)
    work = [(str(file), seed, peers, minutes) for seed in seeds for file in files]
    count = processes or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0])
    with multiprocessing.get_context("spawn").Pool(min(count, len(work)) or 1, maxtasksperchild=16) as pool:
        for raw in pool.imap_unordered(_run_packed, work):
            ran = msgspec.json.decode(raw, type=Ran)
            yield ran
            if ran.broken:
                pool.terminate()
                return


def _run_packed(work: tuple[str, int, int | None, float | None]) -> bytes:
    return msgspec.json.encode(run_seed(*work))
