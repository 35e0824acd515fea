"""`p2p-node job status`, `list`, `logs`, `get`, `cancel` and `explain`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from p2p_node.cli.options import datadir_option, output_option
from p2p_node.cli.resultfiles import (
    Target,
    force_option,
    output_file_option,
    refuse_existing,
    write_result,
)
from p2p_node.errors import UserError

__all__ = ["cancel", "explain", "get", "list_jobs", "logs", "status"]

_ID_SHOWN = 12
_PART_COLUMNS = ("part", "items", "state", "units", "jobs")
_id_argument = click.argument("job_id", metavar="ID")


@click.command(short_help="Show where a job stands.")
@_id_argument
@datadir_option
@output_option
def status(job_id: str, datadir: Path | None, output: str) -> None:
    """Show where the job stands whose id begins with ID."""
    from p2p_node.cli.output import print_record, print_rows
    from p2p_node.client import connect

    with connect(datadir) as client:
        job = client.job(job_id)
    print_record(_brief(job, job["id"]) if output == "table" else job, output)
    if output == "table" and "parts" in job:
        click.echo()
        rows = [part | {"jobs": [each[:_ID_SHOWN] for each in part["jobs"]]} for part in job["parts"]]
        print_rows(rows, output, columns=_PART_COLUMNS)


@click.command("list", short_help="List jobs, oldest first.")
@datadir_option
@click.option("--parts", is_flag=True, help="Also list the parts of jobs that were split.")
@output_option
def list_jobs(*, datadir: Path | None, parts: bool, output: str) -> None:
    """List the jobs that this node was asked for, oldest first."""
    from p2p_node.cli.output import print_rows
    from p2p_node.client import connect

    with connect(datadir) as client:
        jobs = [job for job in client.jobs() if parts or not job["part_of"]]
    if output == "table" and not jobs:
        click.echo("no jobs yet", err=True)
        return
    print_rows([_brief(job, job["id"][:_ID_SHOWN]) if output == "table" else job for job in jobs], output)


@click.command(short_help="Show what happened to a job.")
@_id_argument
@datadir_option
@click.option("-f", "--follow", is_flag=True, help="Go on until the job is over.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Text, or JSON lines."
)
def logs(job_id: str, datadir: Path | None, follow: bool, output: str) -> None:
    """Show what happened to the job whose id begins with ID, from its start.

    Events are kept as long as the node runs.
    """
    from p2p_node.cli.story import Story
    from p2p_node.client import connect

    with connect(datadir) as client:
        story = Story(unit=client.job(job_id)["unit"])
        for event in client.events(job_id, follow=follow):
            if output == "json":
                click.echo(json.dumps(event))
            elif line := story.hear(event):
                click.echo(str(line))


@click.command(short_help="Print a job's verified text, or write its result to a file.")
@_id_argument
@datadir_option
@output_file_option
@force_option
def get(job_id: str, datadir: Path | None, output_file: Target | None, force: bool) -> None:
    """Print the verified text of the job whose id begins with ID, or write its result to a file."""
    from p2p_node.cli.story import EXIT_CODES, harmless
    from p2p_node.client import connect

    refuse_existing(output_file, force=force)
    result, description, media_type = b"", "", "text/plain"
    with connect(datadir) as client:
        job = client.job(job_id)
        if job["state"] == "verified" and not job["is_text"]:
            result, description, media_type = client.result_file(job_id)
    if job["state"] not in EXIT_CODES:
        raise UserError(f"the job is {job['state']}; follow it with: p2p-node job logs -f {job_id}")
    if job["state"] != "verified":
        reason = f": {harmless(job['reason'])}" if job["reason"] else ""
        click.echo(f"error: the job ended as {job['state']}{reason}", err=True)
        click.get_current_context().exit(EXIT_CODES[job["state"]])
    if output_file is not None:
        content = job["text"].encode() if job["is_text"] else result
        for path in write_result(output_file, content, job=job["name"], media_type=media_type, force=force):
            click.echo(f"{path}: {len(content)} bytes", err=True)
    elif job["is_text"]:
        text = job["text"]
        click.echo(harmless(text) if sys.stdout.isatty() else text)
    else:
        raise UserError(f"the result is a {harmless(description)}: give --output-file to write it")


@click.command(short_help="Cancel a job.")
@_id_argument
@datadir_option
@output_option
def cancel(job_id: str, datadir: Path | None, output: str) -> None:
    """Cancel the job whose id begins with ID.

    What was verified stays paid; a job that is over stays as it is.
    """
    from p2p_node.cli.output import print_record
    from p2p_node.client import connect

    with connect(datadir) as client:
        job = client.cancel(job_id)
    print_record(_brief(job, job["id"]) if output == "table" else job, output)


@click.command(short_help="Show why peers didn't bid on a job.")
@_id_argument
@datadir_option
@output_option
def explain(job_id: str, datadir: Path | None, output: str) -> None:
    """Add up the signed reasons why peers didn't bid, each with the smallest change that would help."""
    from p2p_node.cli.output import print_record, print_rows
    from p2p_node.client import connect

    with connect(datadir) as client:
        explained = client.explain(job_id)
    if output != "table":
        print_record(explained, output)
    elif explained["declines"]:
        rows = [
            {"reason": group["reason"], "peers": group["count"], "what would help": group["change"] or None}
            | {"details": group["details"] or None}
            for group in explained["declines"]
        ]
        print_rows(rows, output)
    else:
        click.echo(f"no peer declined; the job is {explained['state']}", err=True)


def _brief(job: dict[str, Any], shown_id: str) -> dict[str, Any]:
    from p2p_node.cli.durations import duration_text

    took = job["finished_ms"] - job["created_ms"] if job["finished_ms"] else None
    parts = {"parts": f"{job['parts_verified']} of {len(job['parts'])}"} if "parts" in job else {}
    return {
        "id": shown_id,
        "name": job["name"],
        "state": job["state"],
        "units": job["units"],
        **parts,
        "took": None if took is None else duration_text(took),
        "receipt": job["receipt_available"],
        "reason": job["reason"] or None,
    }
