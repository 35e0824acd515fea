"""`p2p-node swarm attack`."""

from __future__ import annotations

from typing import Any

import click

from p2p_node.cli.options import output_option

__all__ = ["attack"]


@click.command(short_help="Have hostile peers attack a swarm on this machine, once each way.")
@click.argument("kinds", nargs=-1, metavar="[KIND]...")
@click.option(
    "-n", "count", type=click.IntRange(3, 16), default=4, show_default=True, help="How many honest peers."
)
@output_option
def attack(kinds: tuple[str, ...], count: int, output: str) -> None:
    """Mount attacks on a swarm of real processes, one after another, and say what came of each.

    Without KIND all of them are mounted. Exits with 4 if one wasn't caught, if the client's answer was
    wrong, or if an honest peer was convicted.
    """
    from p2p_node.cli.output import print_rows
    from p2p_node.errors import ExitCode
    from p2p_node.hostile import ATTACKS, CHEATS
    from p2p_node.hostile.live import attack_live
    from p2p_node.swarm import running_swarm

    for kind in kinds:
        if kind not in CHEATS:
            raise click.BadParameter(f"{kind!r} must be one of {', '.join(CHEATS)}", param_hint="KIND")
        if ATTACKS[kind].needs_model:
            raise click.BadParameter(
                f"{kind!r} takes a model of its own: job run FILE --swarm 5 --models DIR --cheat {kind}=1",
                param_hint="KIND",
            )
    rows: list[dict[str, Any]] = []
    with running_swarm(count, seed=1) as swarm:
        known: dict[str, tuple[int, ...]] = {}
        for kind in kinds or [kind for kind, attack in ATTACKS.items() if not attack.needs_model]:
            report = attack_live(swarm, kind, known)
            row = {
                "attack": kind,
                "what happened": report.happened,
                "caught": report.is_caught,
                "convicted by": f"{report.convicted_by} of {count}" if report.convicted_by else "",
                "answer right": report.is_answer_right,
                "honest harmed": report.harmed,
                "seconds": round(report.seconds, 1),
            }
            rows.append(row)
            click.echo(f"{kind}: {report.happened}; caught: {report.is_caught}", err=True)
    print_rows(rows, output)
    if not all(row["caught"] and row["answer right"] and not row["honest harmed"] for row in rows):
        raise SystemExit(ExitCode.TASK_FAILED)
