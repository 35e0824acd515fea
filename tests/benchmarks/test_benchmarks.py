"""The benchmarks' arguments, arithmetic and tables. What they measure is not for tests to judge."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import footprint
from benchmarks.__main__ import PROGRAMS, commands
from benchmarks.swarm import (
    Generation,
    Job,
    dispatch_rows,
    job_file,
    run_job,
    streaming_row,
    verifying_row,
)
from benchmarks.table import format_table, machine_line, percentile
from p2p_node.jobspec import parse_job_spec

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


# --- Arguments --------------------------------------------------------------------------------


def test_every_program_runs_by_default_and_only_those_named_otherwise() -> None:
    assert [command[1:3] for command in commands([], quick=False)] == [
        ["-m", f"benchmarks.{name}"] for name in PROGRAMS
    ]
    assert [command[2] for command in commands(["swarm", "model"], quick=True)] == [
        "benchmarks.model",
        "benchmarks.swarm",
    ]


ALL_HELP = """
import json, runpy, sys
for name, *arguments in json.loads(sys.argv[1]):
    sys.argv = [name, *arguments, "--help"]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert end.code == 0, name
    else:
        raise AssertionError(f"{name} ran")
"""


def test_programs_take_the_arguments_they_are_given() -> None:
    # Before --help ends a program, argparse has accepted what stands before it.
    chosen = [command[2:] for command in commands([], quick=True)]
    # One process for all imports torch once.
    done = subprocess.run(
        [sys.executable, "-c", ALL_HELP, json.dumps(chosen)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage:") == len(chosen)


def test_a_program_nobody_wrote_is_refused() -> None:
    done = run("benchmarks", "--only", "nothing")
    assert done.returncode == 2
    assert "invalid choice: 'nothing'" in done.stderr


# --- Tables -----------------------------------------------------------------------------------


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert format_table("Speed", ["path", "ms"], [["direct", "9.5"], ["swarm", "12.0"]]) == (
        "Speed\n  path      ms\n  direct   9.5\n  swarm   12.0"
    )
    with pytest.raises(ValueError, match=r"row \['a'\] must have 2 cells"):
        format_table("", ["x", "y"], [["a"]])


def test_percentiles_are_values_that_occurred() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, percent) for percent in (0, 50, 95, 100)] == [1.0, 3.0, 5.0, 5.0]
    assert percentile(range(1, 101), 95) == 95
    with pytest.raises(ValueError, match="at least one value"):
        percentile([], 50)


def test_the_machine_is_named_with_its_torch() -> None:
    assert "cores" in machine_line()
    assert "torch 2." in machine_line()


def job(first_s: float, last_s: float, **fields: Any) -> Job:
    return Job(
        Generation(10, first_s, last_s, 1),
        verified_s=last_s + 0.5,
        receipt_s=last_s + 0.6,
        executor="A",
        verifiers=2,
        **fields,
    )


def test_latencies_are_compared_with_the_direct_call() -> None:
    direct = [Generation(10, 0.010, 0.1, 1)] * 3
    rows = dispatch_rows(direct, [job(0.040, 0.2)], [job(0.110, 0.3)])
    assert rows[0] == ["direct, to first token", "3", "10.0", "10.0", "+0.0", "1.0x"]
    assert rows[2] == ["posted, to first token", "1", "40.0", "40.0", "+30.0", "4.0x"]
    assert rows[4] == ["posted, to verified", "1", "700.0", "700.0", "+600.0", "7.0x"]


def test_streaming_counts_from_the_first_token() -> None:
    node_cpu_us = {"requester": 100, "executor": 50, "others": 10}
    direct = [Generation(10, 0.1, 1.0, 1), Generation(10, 0.1, 1.0, 1), Generation(10, 0.1, 0.55, 1)]
    jobs = [job(0.2, 1.2, node_cpu_us=node_cpu_us)] * 2
    assert streaming_row("exact14", direct, jobs) == [
        *("exact14", "10", "9", "0.900", "20", "9", "0.450"),
        *("10", "5", "1"),
    ]


def test_verifying_is_shared_among_those_who_did_it() -> None:
    jobs = [job(0.1, 0.2, executed_cpu_us=1_000_000, recomputed_cpu_us=100_000)] * 3
    assert verifying_row("exact14", jobs) == ["exact14", "1000 ms", "100 ms", "2.0", "0.050", "0.100"]


def test_memory_is_compared_with_the_model_alone() -> None:
    model = footprint.Started(2.0, footprint.Footprint(200, 100))
    peer = footprint.Started(5.0, footprint.Footprint(600, 250))
    node, workers = footprint.Footprint(100, 50), footprint.Footprint(500, 300)
    rows = footprint.rows(model, peer, [6.0, 8.0], [(node, workers)] * 2)
    assert rows[1] == ["one peer, just started", "5.0", "2.5x", "600", "250", "2.5x"]
    assert rows[2] == ["each of 2 peers, after jobs", "7.0", "3.5x", "600", "350", "3.5x"]
    assert rows[4] == ["  its workers", "", "", "500", "300", "3.0x"]


# --- Jobs -------------------------------------------------------------------------------------


class Answers:
    """A client of a node that has this to say of any job."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self._events = events
        self.submitted: bytes = b""

    def submit(self, document: bytes) -> dict[str, Any]:
        self.submitted = document
        return {"id": "ab" * 32}

    def events(self, prefix: str) -> list[dict[str, Any]]:
        return self._events


STORY: list[dict[str, Any]] = [
    {"event": "awarded", "peer": "A"},
    {"event": "output", "units_total": 1},
    {"event": "output", "units_total": 33},
    {"event": "verifier-drawn", "peer": "B"},
    {"event": "verifier-drawn", "peer": "C"},
    {"event": "verifier-drawn", "peer": "B"},
    {"event": "concluded", "state": "verified"},
    {"event": "finished"},
]


def test_a_jobs_story_is_read_from_its_events() -> None:
    client: Any = Answers(STORY)
    ran = run_job(client, job_file(mode="posted", profile="exact21", tokens=33, seed=1))
    assert (ran.executor, ran.verifiers) == ("A", 2)
    assert (ran.generation.tokens, ran.generation.tokens_first) == (33, 1)
    assert ran.generation.first_s <= ran.generation.last_s <= ran.verified_s <= ran.receipt_s


def test_a_job_that_wasnt_verified_at_once_spoils_the_run() -> None:
    client: Any = Answers([*STORY[:1], *STORY])
    with pytest.raises(RuntimeError, match="ended 'verified' after 2 awards"):
        run_job(client, b"")


def test_the_job_file_is_valid() -> None:
    key = "12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5"
    spec = parse_job_spec(
        job_file(mode="auction", profile="exact21", tokens=40, seed=9, verifiers=3, exclude=[key])
    )
    assert (spec.auction.mode, spec.auction.window_ms, spec.verify.verifiers) == ("auction", 300, 3)
    assert (spec.task.max_tokens, spec.task.seed, spec.verify.profile) == (40, 9, "exact21")
    assert len(spec.placement.exclude) == 1
