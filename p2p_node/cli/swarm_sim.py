"""`p2p-node swarm sim`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from p2p_node.cli.options import output_option

__all__ = ["sim"]


@click.command(short_help="Play a scenario with many simulated peers.")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--seed", type=click.IntRange(0), help="Instead of the scenario's.")
@click.option("--peers", type=click.IntRange(4), help="Instead of the scenario's.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Instead of the scenario's.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.png",
    help="Draw completion, times, traffic and earnings.",
)
@click.option(
    "--replay",
    metavar="JOB",
    help="Tell one job's story event by event: its number, the start of its id, or 'broken'.",
)
@click.option(
    "--only", multiple=True, metavar="WORD", help="With --replay: only steps that name this peer or message."
)
@click.option("--step", is_flag=True, help="With --replay: wait for Enter after each step.")
@output_option
def sim(
    *,
    file: Path,
    seed: int | None,
    peers: int | None,
    minutes: float | None,
    plot: Path | None,
    replay: str | None,
    only: tuple[str, ...],
    step: bool,
    output: str,
) -> None:
    """Play the scenario FILE with simulated peers, and say what came of it.

    The peers are the ones that run for real, on a clock and a network that are made up. The same file and
    seed give the same report, byte for byte. Every promise of the protocol is checked after every event; if
    one breaks, the job's story is told and the exit status is 4.
    """
    from p2p_node.cli.output import print_record
    from p2p_node.errors import ExitCode
    from p2p_node.sim.invariants import InvariantBroken
    from p2p_node.sim.play import Play
    from p2p_node.sim.scenariofile import load_scenario
    from p2p_node.sim.summary import speed, summary

    scenario = load_scenario(file, seed=seed, peers=peers, minutes=minutes)
    if replay is not None:
        _replay(scenario, replay, only, step)
        return
    started = time.perf_counter()
    play = Play(scenario)
    broken: InvariantBroken | None = None
    try:
        play.run()
    except InvariantBroken as error:
        broken = error
    report = play.report(broken)
    if output == "table":
        summary(report)
    else:
        print_record(report, output)
    click.echo(speed(report, time.perf_counter() - started), err=True)
    if plot is not None:
        from p2p_node.sim.plot import draw

        plot.write_bytes(draw(report))
        click.echo(f"{plot} written", err=True)
    if broken is not None:
        click.echo(f"broken with --seed {scenario.seed}: {broken}", err=True)
        _tell(play, broken)
        sys.exit(ExitCode.TASK_FAILED)


def _tell(play: Any, broken: Any) -> None:
    from p2p_node.sim.story import story_of

    if broken.job_id:
        for line in story_of(play.scenario, broken.job_id.hex(), is_short=True):
            click.echo(line, err=True)


def _replay(scenario: Any, job: str, only: tuple[str, ...], step: bool) -> None:
    from p2p_node.sim.story import story_of

    for line in story_of(scenario, job):
        if only and not any(word in line for word in only):
            continue
        click.echo(line)
        if step:
            click.pause("")
