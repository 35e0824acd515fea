"""`p2p-node program check`."""

from __future__ import annotations

from pathlib import Path

import click

from p2p_node.cli.options import output_option
from p2p_node.errors import UserError

__all__ = ["check"]


def _read_shapes(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, list[int]]:
    shapes = {}
    for value in values:
        name, _, sizes = value.rpartition("=")
        parts = sizes.split(",")
        if not name or not all(part.isascii() and part.isdecimal() for part in parts):
            raise click.BadParameter(f"{value!r} must be NAME=SIZES, e.g. image=1,3,224,224", ctx, param)
        shapes[name] = [int(part) for part in parts]
    return shapes


@click.command(short_help="Say whether a graph will run, and what it costs.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME=SIZES",
    callback=_read_shapes,
    help="Of an ONNX input whose sizes the file leaves open.",
)
@output_option
def check(file: Path, shapes: dict[str, list[int]], output: str) -> None:
    """Say whether the graph in FILE (.pt2 or .onnx) will run as a job, on what, and what it costs.

    The file is read as data; nothing in it is executed, nothing is unpickled and nothing is sent. What stands
    in the way is named, with the first operator concerned, and ends with exit code 2. Times are one core's of
    this machine; prices are what a node asks by default, and the ceiling that a job sets by
    default.
    """
    import json

    from p2p_node.cli.output import print_record
    from p2p_node.config import NodeConfig
    from p2p_node.jobspec import AuctionSpec
    from p2p_node.offerings import PROFILE_PERCENT
    from p2p_node.packing import read_program

    if not file.is_file():
        raise UserError(f"{file} isn't a file")
    found = json.loads(read_program({"do": "check", "file": str(file), "shapes": shapes}))
    asked, words = NodeConfig().price_micros, found["batch"]["words"]
    found["batch"]["price_micros"] = {
        **{name: words * asked * PROFILE_PERCENT[name] // 100 for name in found["profiles"]},
        "ceiling": words * AuctionSpec().price_micros_max,
    }
    print_record({"runs": True} | found, output)
