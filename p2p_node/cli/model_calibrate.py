"""`p2p-node model calibrate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from p2p_node.cli.options import output_option
from p2p_node.errors import UserError

__all__ = ["calibrate"]


@click.command(short_help="Measure how far honest native runs are apart.")
@click.argument("model")
@output_option
@click.option("--write", is_flag=True, help="Write tolerance.json beside the model.")
@click.option("--quick", is_flag=True, help="One setting of this machine only; not for bounds in use.")
def calibrate(*, model: str, output: str, write: bool, quick: bool) -> None:
    """Measure MODEL, the name of a model or its directory, for the native profile.

    Runs it as honest machines may be set up (threads, vector extensions, library pins, for text splits of
    the prompt) and as cheats would (half precision, int8 and int4 weights, a layer left out), and chooses
    bounds between them. A cheat that is too near to be told from an honest machine is named, and the
    command then ends with exit code 5. Takes a minute or more.
    """
    from p2p_node.cli.follow import say
    from p2p_node.cli.output import print_record
    from p2p_node.errors import ExitCode
    from workloads.errors import WorkloadRefused
    from workloads.lm.calibrate import settings_here
    from workloads.lm.tolerance import TOLERANCE_FILE
    from workloads.registry import native_kind_of

    if write and quick:
        raise UserError("--write and --quick exclude each other: one setting is too little for bounds in use")
    place = _place_of(model)
    settings = settings_here()[: 1 if quick else None]
    try:
        kind = native_kind_of(place)
        if kind is None or kind[0].name == "lm.generate":
            from workloads.lm.calibrate import calibrate as measure
        else:
            from workloads.calibrate import calibrate as measure
        found = measure(place, settings, told=lambda what: say("measuring", what))
    except (WorkloadRefused, RuntimeError) as error:
        raise UserError(f"calibrating {model}: {error}") from error
    if output == "table":
        _print_tables(found)
    else:
        print_record(found, output)
    for name in found["overlaps"]:
        say(
            "overlap",
            f"{name}: as near to the exact run as honest machines are, so it can't be told from them",
        )
    if write:
        try:
            (place / TOLERANCE_FILE).write_text(json.dumps(found, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"can't write {place / TOLERANCE_FILE}: {error.strerror}") from error
    click.get_current_context().exit(ExitCode.VERIFICATION_FAILED if found["overlaps"] else ExitCode.OK)


def _place_of(name: str) -> Path:
    """The directory of a model that ships, or the one that is named."""
    from workloads.registry import KINDS

    shipped = [model for kind in KINDS.values() for model in kind.models() if "native" in kind.profiles]
    return next((model.path for model in shipped if model.name == name), Path(name))


def _print_tables(found: dict[str, Any]) -> None:
    from p2p_node.cli.output import print_record, print_rows

    print_rows([{"honest": name, **row} for name, row in found["honest"].items()], "table")
    click.echo()
    print_rows([{"cheat": name, **row} for name, row in found["cheats"].items()], "table")
    click.echo()
    print_record(found["bounds"], "table")
