"""`p2p-node job validate`."""

from __future__ import annotations

from pathlib import Path

import click

from p2p_node.cli.options import datadir_option, models_option, output_option

__all__ = ["validate"]


@click.command(short_help="Check a job file without running it.")
@click.argument("file", type=click.Path(path_type=Path))
@datadir_option
@models_option
@output_option
def validate(*, file: Path, datadir: Path | None, models: tuple[Path, ...], output: str) -> None:
    """Check a job file without running it, and print every field with its default filled in.

    A fault is named by line, field, rule and value, and ends with exit code 2. So does a model that isn't
    on this machine, and an input that the workload would refuse.
    """
    import msgspec

    from p2p_node.cli.job_run import read_job
    from p2p_node.cli.output import print_record
    from p2p_node.jobrequest import build_request
    from p2p_node.jobspec import load_job_spec, parse_job_spec
    from p2p_node.models import models_here, places_of
    from p2p_node.tasks import tokenizers_of
    from protocols.identity import peer_id
    from workloads.blobs import MemoryBlobs

    # Files that it names are read too, but not shown.
    blobs = MemoryBlobs()
    document = read_job(file, blobs)
    spec = load_job_spec(file)
    known = places_of(models_here(datadir, models))
    build_request(parse_job_spec(document, source=str(file)), known, tokenizers_of(known), blobs)
    fields = msgspec.to_builtins(spec)
    fields["placement"]["exclude"] = [peer_id(key) for key in spec.placement.exclude]
    print_record(fields, output)
