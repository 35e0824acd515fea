"""Chances of escape: the formula, the electorate as it is, and the protocol's machines measured.

Each run is one segment with forged chunks, played by the real machines; see `p2p_node.sim.odds`. A
measured share stands with its standard deviation, were the computed odds true.

    python -m benchmarks.odds [--quick] [--runs N] [--seed N]
"""

from __future__ import annotations

import argparse

from benchmarks.table import machine_line, print_table
from p2p_node.sim.odds import Cell, Measured, measure_cell

CELLS = (
    Cell(electors=20, expected_milli=2_000, samples=1, chunks=4, forged_share=0.25),
    Cell(electors=20, expected_milli=4_000, samples=2, chunks=4, forged_share=0.25),
    Cell(electors=20, expected_milli=4_000, samples=4, chunks=4, forged_share=0.25),
    Cell(electors=20, expected_milli=3_000, samples=2, chunks=8, forged_share=0.5, colluding=4),
    Cell(electors=20, expected_milli=1_000, samples=4, chunks=4, forged_share=1.0, colluding=6),
    # Beyond certainty, and uneven: where the formula doesn't hold.
    Cell(electors=4, expected_milli=8_000, samples=1, chunks=4, forged_share=0.25, colluding=1),
    Cell(electors=6, expected_milli=2_000, samples=2, chunks=4, forged_share=0.5, weights=(8, 1, 1, 1, 1, 1)),
)


def row(measured: Measured) -> tuple[str, ...]:
    """One line of the table."""
    cell, runs = measured.cell, measured.runs

    def share(count: int, odds: float) -> str:
        return f"{count / runs:.3f} ±{measured.error(odds):.3f}"

    return (
        f"{cell.electors}{'*' if cell.weights else ''}",
        f"{cell.expected_milli / 1_000:g}",
        f"{cell.samples}/{cell.chunks}",
        f"{cell.forged_share:g}",
        f"{cell.colluding}",
        f"{measured.formula:.3f}",
        f"{measured.undetected_odds:.3f}",
        share(measured.undetected, measured.undetected_odds),
        f"{measured.accepted_odds:.3f}",
        share(measured.accepted, measured.accepted_odds),
        "yes" if measured.agrees else "NO",
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.odds", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    parser.add_argument("--runs", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    runs = 100 if arguments.quick else arguments.runs
    header = (
        "electors", "k", "s", "f", "colluding", "formula",
        "undetected", "measured", "accepted", "measured", "agrees",
    )  # fmt: skip
    cells = [measure_cell(cell, runs=runs, seed=arguments.seed + number) for number, cell in enumerate(CELLS)]
    print_table(
        f"chances of escape, {runs} runs each (* of uneven weight)",
        header,
        [row(measured) for measured in cells],
    )
    print(machine_line())


if __name__ == "__main__":
    main()
