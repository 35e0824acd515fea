"""`p2p-node swarm sweep`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

__all__ = ["sweep"]


@click.command(short_help="Play scenarios with many seeds, until one breaks a promise.")
@click.argument("files", nargs=-1, required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--seeds", type=click.IntRange(1), default=100, show_default=True, help="How many.")
@click.option("--first", type=click.IntRange(0), default=0, show_default=True, help="The first of them.")
@click.option("--peers", type=click.IntRange(4), help="Instead of the scenarios'.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Instead of the scenarios'.")
@click.option("--processes", type=click.IntRange(1), help="At a time; else as many as there are cores.")
def sweep(
    *,
    files: tuple[Path, ...],
    seeds: int,
    first: int,
    peers: int | None,
    minutes: float | None,
    processes: int | None,
) -> None:
    """Play the scenarios FILES with many seeds, and stop at the first that breaks a promise.

    Prints its seed and the story of the job, and exits with 4.
    """
    from p2p_node.errors import ExitCode
    from p2p_node.sim.scenariofile import load_scenario
    from p2p_node.sim.story import story_of
    from p2p_node.sim.sweep import sweep as swept

    played = submitted = verified = 0
    for ran in swept(files, range(first, first + seeds), peers=peers, minutes=minutes, processes=processes):
        played, submitted, verified = played + 1, submitted + ran.submitted, verified + ran.verified
        if not ran.broken:
            if played % 20 == 0:
                click.echo(f"{played} of {seeds * len(files)}", err=True)
            continue
        click.echo(f"{ran.file} --seed {ran.seed}: {ran.broken}")
        if " job " in ran.broken:
            scenario = load_scenario(Path(ran.file), seed=ran.seed, peers=peers, minutes=minutes)
            for line in story_of(scenario, "broken", is_short=True):
                click.echo(line)
        sys.exit(ExitCode.TASK_FAILED)
    click.echo(f"{played} worlds, {submitted} jobs submitted, {verified} verified, every promise held")
