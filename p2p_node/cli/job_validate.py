"""`p2p-node job validate`."""

from __future__ import annotations

from pathlib import Path

import click

from p2p_node.cli.options import output_option

__all__ = ["validate"]


@click.command(short_help="Check a job file without running it.")
@click.argument("file", type=click.Path(path_type=Path))
@output_option
def validate(file: Path, output: str) -> None:
    """Check a job file without running it, and print every field with its default filled in.

    A fault is named by line, field, rule and value, and ends with exit code 2.
    """
    import msgspec

    from p2p_node.cli.output import print_record
    from p2p_node.jobspec import load_job_spec
    from protocols.identity import peer_id

    spec = load_job_spec(file)
    fields = msgspec.to_builtins(spec)
    fields["placement"]["exclude"] = [peer_id(key) for key in spec.placement.exclude]
    print_record(fields, output)
