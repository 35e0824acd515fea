"""`p2p-node job run`."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from p2p_node.cli.durations import DURATION
from p2p_node.cli.options import datadir_option, models_option, output_option
from p2p_node.cli.resultfiles import (
    Target,
    force_option,
    output_file_option,
    refuse_existing,
    write_result,
)
from p2p_node.errors import ExitCode, UserError
from workloads.blobs import NO_BLOBS, Blobs, MemoryBlobs

if TYPE_CHECKING:
    from p2p_node.cli.story import Story
    from p2p_node.client import NodeClient

__all__ = ["read_job", "run"]

DISPUTES_S_MAX = 30
"""How long the proofs of a job's disputes are waited for."""

INTERRUPTED = 130
"""What a shell expects of a program that Ctrl-C ended."""


def _read_cheats(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    cheats: dict[str, int] = {}
    for value in values:
        kind, _, count = value.partition("=")
        if not kind or not (count.isascii() and count.isdecimal()):
            raise click.BadParameter(f"{value!r} must be KIND=COUNT, e.g. quantized-weights=1", ctx, param)
        cheats[kind] = cheats.get(kind, 0) + int(count)
    return cheats


@click.command(short_help="Have a job done and verified.")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@datadir_option
@output_option
@click.option("--resume", metavar="ID", help="Go on with a job in parts, of which some are done.")
@click.option(
    "--follow/--no-follow", default=None, help="Show progress until the job is over.  [default: follow]"
)
@click.option("--id-only", is_flag=True, help="Print the job's id and nothing else; implies --no-follow.")
@click.option("--timeout", "timeout_ms", type=DURATION, help="Cancel the job after this long, e.g. 90s.")
@output_file_option
@force_option
@click.option("--receipt", type=click.Path(dir_okay=False, path_type=Path), help="Write receipt.json here.")
@click.option("--swarm", type=int, metavar="N", help="Run N peers on this machine, for this job alone.")
@click.option(
    "--cheat", multiple=True, metavar="KIND=COUNT", callback=_read_cheats, help="Peers of --swarm that cheat."
)
@models_option
@click.pass_context
def run(
    ctx: click.Context,
    *,
    file: Path | None,
    datadir: Path | None,
    output: str,
    resume: str | None,
    follow: bool | None,
    id_only: bool,
    timeout_ms: int | None,
    output_file: Target | None,
    force: bool,
    receipt: Path | None,
    swarm: int | None,
    cheat: dict[str, int],
    models: tuple[Path, ...],
) -> None:
    """Have the job in FILE done by other peers, and its result verified.

    Asks the running node, or with --swarm a swarm that exists for this job alone. Verified text goes to
    stdout, progress to stderr; what isn't text goes to the file that --output-file names.

    With --resume instead of FILE, go on with what is missing of a job in parts: after it failed, ran out of
    time or was cancelled. One that goes on by itself, as after a restart of the node, is followed.

    Exit codes: 0 verified, 2 usage, 3 no bids, 4 task failed, 5 verification failed, 6 timed out.
    """
    follow = (not id_only) if follow is None else follow
    if not follow and any(given is not None for given in (swarm, receipt, output_file, timeout_ms)):
        raise click.UsageError("--swarm, --receipt, --output-file and --timeout need --follow")
    if (cheat or models) and swarm is None:
        raise click.UsageError("--cheat and --models need --swarm; a node gets its models when it starts")
    if swarm is not None and ctx.get_parameter_source("datadir") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--swarm and --datadir exclude each other")
    if (file is None) == (resume is None):
        raise click.UsageError("give either a job FILE or --resume ID")
    if resume is not None and swarm is not None:
        raise click.UsageError("--resume needs the node that the job ran on, so it excludes --swarm")
    refuse_existing(output_file, force=force)
    # A bad file is told before a swarm is started for it.
    blobs = MemoryBlobs()
    document = b"" if file is None else read_job(file, blobs)
    from p2p_node.client import connect

    code = ExitCode.OK
    with _node(datadir, swarm, cheat, models) as place, connect(place) as client:
        for content in blobs.contents():
            client.add_blob(content)
        job = client.submit(document) if resume is None else client.resume(resume)
        if id_only:
            click.echo(job["id"])
        if follow:
            shown = "none" if id_only else output
            code = _see_through(
                client,
                job["id"],
                output=shown,
                timeout_ms=timeout_ms,
                receipt=receipt,
                output_file=output_file,
                force=force,
            )
        elif not id_only:
            from p2p_node.cli.output import print_record

            print_record(job, output)
    ctx.exit(code)


def read_job(file: Path, blobs: Blobs = NO_BLOBS) -> bytes:
    """The content of a job file that breaks no rule, and in it that of the files that it names.

    Args:
        file: the job file.
        blobs: where content is left that is too large for it.

    Raises:
        UserError: it can't be read, or breaks one.
    """
    from p2p_node.packing import pack_files
    from p2p_node.yamltree import DOCUMENT_BYTES_MAX

    try:
        with file.open("rb") as opened:
            document = opened.read(DOCUMENT_BYTES_MAX + 1)
    except OSError as error:
        raise UserError(f"can't read the job file {file}: {error.strerror}") from error
    return pack_files(document, file, blobs)


@contextlib.contextmanager
def _node(
    datadir: Path | None, swarm: int | None, cheats: dict[str, int], models: tuple[Path, ...]
) -> Iterator[Path | None]:
    """The data directory of the node to ask."""
    if swarm is None:
        yield datadir
        return
    from p2p_node.cli.follow import say
    from p2p_node.swarm import running_swarm

    def on_event(event: str, details: dict[str, Any]) -> None:
        if event == "up":
            peer = details["peer"]
            say("peer", f"{peer.peer_id[-8:]} is up{f', and cheats: {peer.cheat}' if peer.cheat else ''}")
        elif event == "acquainted":
            say("swarm", f"{len(details['peers'])} peers know each other")

    say("swarm", f"starting {swarm} peers")
    with running_swarm(swarm, cheats=cheats, models=models, on_event=on_event) as running:
        yield running.requester.datadir


def _see_through(
    client: NodeClient,
    job_id: str,
    *,
    output: str,
    timeout_ms: int | None,
    receipt: Path | None,
    output_file: Target | None,
    force: bool,
) -> ExitCode:
    """Follow a job to its end, print its result, and tell how it ended."""
    from p2p_node.cli.follow import follow, say
    from p2p_node.cli.story import EXIT_CODES

    status = client.status()
    say("node", f"{status['connected']} peers connected, {status['known_peers']} known; job {job_id[:12]}")
    try:
        with _deadline(client, job_id, timeout_ms) as has_passed:
            story = follow(client.events(job_id), unit=client.job(job_id)["unit"])
    except KeyboardInterrupt:
        click.echo(f"\nthe job goes on; follow it with: p2p-node job logs -f {job_id[:12]}", err=True)
        sys.exit(INTERRUPTED)
    job = client.job(job_id)
    if receipt is not None and job["receipt_available"]:
        _write("receipt", receipt, client.receipt(job_id))
        _write_frauds(client, job_id, receipt)
    _print_result(job, story, output)
    if job["state"] == "verified":
        _hand_over(client, job, output_file, force=force)
    if job["state"] == "no_bids":
        _explain(client, job_id)
    if has_passed.is_set() and job["state"] == "cancelled":
        return ExitCode.TIMED_OUT
    return EXIT_CODES.get(job["state"], ExitCode.TASK_FAILED)


def _write_frauds(client: NodeClient, job_id: str, receipt: Path) -> None:
    """Write the fraud proofs that came of a job beside its receipt, once its disputes have ended."""
    from p2p_node.cli.follow import say

    give_up_at = time.monotonic() + DISPUTES_S_MAX
    job = client.job(job_id)
    if job["disputes_open"]:
        say("dispute", f"waiting for {job['disputes_open']} disputes, {DISPUTES_S_MAX} s at most")
    while job["disputes_open"] and time.monotonic() < give_up_at:
        time.sleep(0.2)
        job = client.job(job_id)
    for number in range(job["fraud_proofs"]):
        path = receipt.with_name(f"fraud-{number}.bin")
        _write("fraud proof", path, client.fraud(job_id, number))
        say("fraud", f"proof in {path}; judge it: p2p-node job verify {path}")


@contextlib.contextmanager
def _deadline(client: NodeClient, job_id: str, timeout_ms: int | None) -> Iterator[threading.Event]:
    """Cancel the job when the time is over; the event is set if that happened."""
    has_passed = threading.Event()
    if timeout_ms is None:
        yield has_passed
        return

    def give_up() -> None:
        has_passed.set()
        # If the node is gone, whoever follows the job hears of it.
        with contextlib.suppress(UserError):
            client.cancel(job_id)

    timer = threading.Timer(timeout_ms / 1_000, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield has_passed
    finally:
        timer.cancel()


def _write(what: str, path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"can't write the {what} to {path}: {error.strerror}") from error


def _hand_over(client: NodeClient, job: dict[str, Any], target: Target | None, *, force: bool) -> None:
    """Write the result to a file, if it was asked for or can't be printed."""
    from p2p_node.cli.follow import say
    from p2p_node.cli.story import harmless

    if target is None:
        if not job["is_text"]:
            say("result", "isn't text: --output-file FILE would have kept it")
        return
    if job["is_text"]:
        content, description, media_type = job["text"].encode(), "text", "text/plain"
    else:
        content, description, media_type = client.result_file(job["id"])
    for path in write_result(target, content, job=job["name"], media_type=media_type, force=force):
        say("written", f"{path}: {harmless(description)}")


def _print_result(job: dict[str, Any], story: Story, output: str) -> None:
    from p2p_node.cli.durations import duration_text
    from p2p_node.cli.follow import say
    from p2p_node.cli.output import print_record
    from p2p_node.cli.story import harmless, plural, short_peer

    if output in ("json", "yaml"):
        facts = {
            "executor": story.executor or None,
            "price_micros": story.price_micros,
            "paid_micros": story.paid_micros,
            "verifiers": story.verifiers,
            "milestones_ms": story.milestones_ms,
        }
        print_record(job | facts, output)
        return
    if "parts" in job:
        _print_parts(job, story)
    elif story.executor:
        cost = sum(story.paid_micros.values())
        took = duration_text(max(0, job["finished_ms"] - job["created_ms"]))
        say(
            "result",
            f"{job['units']} {plural(job['unit'])} by {short_peer(story.executor)} for {cost} micro-units, "
            f"in {took}",
        )
    if output == "table" and job["state"] == "verified" and job["is_text"]:
        text = job["text"]
        # What a model wrote must not act on a terminal; a pipe gets it as it is.
        click.echo(harmless(text) if sys.stdout.isatty() else text)


def _print_parts(job: dict[str, Any], story: Story) -> None:
    from p2p_node.cli.durations import duration_text
    from p2p_node.cli.follow import say
    from p2p_node.cli.story import plural, short_peer

    parts, done = job["parts"], job["parts_verified"]
    took = duration_text(max(0, job["finished_ms"] - job["created_ms"]))
    peers = ", ".join(map(short_peer, story.parts.peers))
    by = f" by {peers}" if peers else ""
    say(
        "result",
        f"{job['units']} {plural(job['unit'])}, {done} of {len(parts)} parts{by}, for {job['paid_micros']} "
        f"micro-units, in {took}",
    )
    if job["state"] != "verified":
        missing = [str(part["part"]) for part in parts if part["verified_by"] is None]
        say("kept", f"what is done stays; parts {', '.join(missing)} are missing")
        say("", f"go on with: p2p-node job run --resume {job['id'][:12]}")


def _explain(client: NodeClient, job_id: str) -> None:
    from p2p_node.cli.follow import say
    from p2p_node.cli.story import harmless

    for group in client.explain(job_id)["declines"]:
        change = f"; {group['change']}" if group["change"] else ""
        say("declined", f"{group['count']} peers: {harmless(group['reason'])}{change}")
