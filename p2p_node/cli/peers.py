"""`p2p-node peers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from p2p_node.cli.options import datadir_option, output_option

__all__ = ["peers"]

_GIB = 1 << 30


@click.group(
    short_help="Show the peers that the running node knows, or find others.", invoke_without_command=True
)
@datadir_option
@output_option
@click.pass_context
def peers(context: click.Context, datadir: Path | None, output: str) -> None:
    """Show the peers that the running node knows: connected ones first.

    Capabilities are what each peer measured of itself and signed. JSON and YAML tell more.
    """
    from p2p_node.cli.output import print_rows
    from p2p_node.client import connect

    if context.invoked_subcommand is not None:
        return
    with connect(datadir) as client:
        rows = client.peers()
    if output == "table":
        if not rows:
            click.echo("no peers yet", err=True)
            return
        rows = [_brief(row) for row in rows]
    print_rows(rows, output)


@peers.command(short_help="Find peers that the node doesn't know.")
@click.argument("peer", required=False)
@click.option("--workload", help="Those that run this kind of work, e.g. lm.generate.")
@click.option("--model", help="Of these, those that run this model: its digest, or its name on this node.")
@datadir_option
@output_option
def find(
    *, peer: str | None, workload: str | None, model: str | None, datadir: Path | None, output: str
) -> None:
    """Find where PEER is, or who runs a kind of work, beyond the peers that the running node knows.

    Asks the directory that all peers keep together. That somebody runs something is its own claim, signed.
    """
    from p2p_node.cli.output import print_rows
    from p2p_node.client import connect

    if (peer is None) == (workload is None) or (model is not None and workload is None):
        raise click.UsageError("give a peer's id, or --workload and perhaps --model")
    query = {"peer": peer, "workload": workload, "model": model}
    with connect(datadir) as client:
        rows = client.find_providers(**{name: value for name, value in query.items() if value is not None})
    if output == "table" and not rows:
        click.echo("nobody found", err=True)
        return
    print_rows(rows, output)


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    offerings = row["offerings"] or []
    prices = [offering["price_micros"] for offering in offerings]
    return {
        "peer": row["peer_id"],
        "link": row["direction"] or "no",
        "rtt ms": row["rtt_ms"],
        "faults": row["points"],
        "standing": "convicted" if row["convicted"] else f"{row['reputation_ppm'] / 10_000:.0f}%",
        "slots": None if row["slots_total"] is None else f"{row['slots_free']}/{row['slots_total']}",
        "cores": row["cores"],
        "RAM GiB": None if row["ram_bytes"] is None else round(row["ram_bytes"] / _GIB, 1),
        "fp32 GFLOPS": _giga(row["gemm_fp32_mflops"]),
        "bf16 GFLOPS": _giga(row["gemm_bf16_mflops"]),
        "devices": [device["name"] for device in row["accelerators"] or []] or None,
        "models": [offering["model"] or offering["digest"][:12] for offering in offerings] or None,
        "price": min(prices) if prices else None,
    }


def _giga(mflops: int | None) -> float | None:
    return None if mflops is None else round(mflops / 1_000, 1)
