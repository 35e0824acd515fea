"""`p2p-node verify odds`: what verifiers and chunks are worth, and what the machines measure."""

from __future__ import annotations

from typing import Any

import click

from p2p_node.cli.options import output_option
from p2p_node.errors import UserError

__all__ = ["odds"]

SHARE = click.FloatRange(0, 0.99)


def _numbers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} must be numbers with commas between them", ctx, param) from None
    if not all(0 < number <= 1_000 for number in numbers):
        raise click.BadParameter(f"{value!r} must be numbers above 0 and up to 1000", ctx, param)
    return numbers


@click.command(short_help="Print how likely a cheater is to escape.")
@click.option("--verifiers", default="1,2,4,8", callback=_numbers, help="Verifiers expected of a segment.")
@click.option("--chunks", default="1,2,4", callback=_numbers, help="Chunks that each recomputes.")
@click.option("--forged", default="0.01,0.1,0.25,1", callback=_numbers, help="Shares of chunks forged.")
@click.option("--colluding", default=0.2, type=SHARE, show_default=True, help="Share that keeps silent.")
@click.option(
    "--lazy", default=0.0, type=SHARE, show_default=True, help="Of the others, share that is silent."
)
@click.option(
    "--segment", default=4, type=click.IntRange(1, 256), show_default=True, help="Chunks of a segment."
)
@click.option(
    "--electors", default=20, type=click.IntRange(1, 4096), show_default=True, help="Peers that may be drawn."
)
@click.option(
    "--target", type=click.FloatRange(1e-9, 0.5), help="Show what a chance of escape takes instead."
)
@click.option(
    "--simulate", type=click.IntRange(1, 1_000_000), metavar="RUNS", help="Measure each row on the machines."
)
@click.option("--seed", default=1, type=int, show_default=True, help="Of the simulation.")
@output_option
def odds(
    *,
    verifiers: tuple[float, ...],
    chunks: tuple[float, ...],
    forged: tuple[float, ...],
    colluding: float,
    lazy: float,
    segment: int,
    electors: int,
    target: float | None,
    simulate: int | None,
    seed: int,
    output: str,
) -> None:
    """Print how likely a cheater is to escape. Needs no node.

    formula is exp(-k (1-c) (1-r) (1-(1-f)^s)), for many even electors. undetected counts these electors as
    they are, drawn for certain where k exceeds their number, and chunks without replacement, of which at
    least one is forged. accepted is less: where nobody answers the draw widens, and what nobody verified
    isn't accepted. With --simulate each row is also played by the protocol's own machines, whose measured
    share stands with its standard deviation.
    """
    from p2p_node.cli.output import print_rows

    if any(share > 1 for share in forged):
        raise UserError(f"--forged must be shares up to 1, got {max(forged):g}")
    if simulate and lazy:
        raise UserError("--simulate knows no lazy electors; leave --lazy at 0")
    if any(count != int(count) for count in chunks):
        raise UserError("--chunks must be whole numbers")
    if target is not None:
        rows = _choices(target, forged, colluding=colluding, lazy=lazy, segment=segment, electors=electors)
    else:
        rows = [
            _row(k, int(s), f, colluding=colluding, lazy=lazy, segment=segment, electors=electors)
            for f in forged
            for k in verifiers
            for s in chunks
        ]
        if simulate:
            rows = [
                row
                | _measured(
                    row,
                    colluding=colluding,
                    segment=segment,
                    electors=electors,
                    runs=simulate,
                    seed=seed + number,
                )
                for number, row in enumerate(rows)
            ]
    print_rows(rows if output != "table" else [_rounded(row) for row in rows], output)


def _row(
    k: float, s: int, f: float, *, colluding: float, lazy: float, segment: int, electors: int
) -> dict[str, Any]:
    from verification.draw_odds import Assumptions, DrawOdds, forged_chunks, miss_chance
    from verification.odds import escape_probability

    here = DrawOdds((1,) * electors, Assumptions(colluding=colluding, lazy=lazy))
    count = forged_chunks(segment, f)
    miss, milli = miss_chance(segment, count, s), max(1, round(1_000 * k))
    return {
        "forged": f,
        "verifiers": k,
        "chunks": s,
        "formula": escape_probability(
            expected_verifiers=k,
            samples_per_verifier=s,
            forged_share=f,
            colluding_share=colluding,
            lazy_share=lazy,
        ),
        "undetected": here.undetected(milli, miss),
        "accepted": here.accepted(milli, miss),
    }


def _choices(
    target: float, forged: tuple[float, ...], *, colluding: float, lazy: float, segment: int, electors: int
) -> list[dict[str, Any]]:
    """What the node would choose for a chance of escape, by the share forged."""
    from verification.draw_odds import Assumptions, OutOfReach, choose_for

    rows = []
    for share in forged:
        assumptions = Assumptions(forged=share, colluding=colluding, lazy=lazy)
        try:
            choice = choose_for(
                (1,) * electors, escape_target=target, assumptions=assumptions, segment_chunks=segment
            )
        except OutOfReach as error:
            raise UserError(str(error)) from error
        rows.append(
            {
                "forged": share,
                "verifiers": choice.expected_milli / 1_000,
                "chunks": choice.samples,
                "drawn": choice.verifiers,
                "undetected": choice.escape,
            }
        )
    return rows


def _measured(
    row: dict[str, Any], *, colluding: float, segment: int, electors: int, runs: int, seed: int
) -> dict[str, Any]:
    from p2p_node.sim.odds import Cell, measure_cell

    cell = Cell(
        electors=electors,
        expected_milli=max(1, round(1_000 * row["verifiers"])),
        samples=row["chunks"],
        chunks=segment,
        forged_share=row["forged"],
        colluding=round(colluding * electors),
    )
    measured = measure_cell(cell, runs=runs, seed=seed)
    return {
        # With so many colluders exactly, not each elector by chance.
        "undetected": measured.undetected_odds,
        "accepted": measured.accepted_odds,
        "undetected_measured": measured.undetected / runs,
        "accepted_measured": measured.accepted / runs,
        "deviation": measured.error(measured.accepted_odds),
        "agrees": measured.agrees,
    }


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: f"{value:.3g}" if type(value) is float else value for name, value in row.items()}
