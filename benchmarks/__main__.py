"""All benchmarks, one after another, each in a process of its own.

python -m benchmarks [--quick] [--only NAME]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence

__all__ = ["PROGRAMS", "commands", "main"]

PROGRAMS = {
    "attacks": "what the checks catch, beside the formula, and what honest peers do to each other",
    "blobs": "a blob between two processes against a libp2p stream and raw TCP, and the memory it takes",
    "crashes": "one crash at each write of a job, in each role: what every account says in the end",
    "directory": "finding a provider among strangers, as the directory grows and a third of it is hostile",
    "disputes": "from a chunk that differs to one operator: tracing, bytes, referee",
    "exact_ops": "each exact operator over native float32",
    "faults": "peers killed and stopped at every phase of real jobs, and started again",
    "floods": "fifteen attacks on one live peer, and on a bystander: what it pays, and what jobs are left",
    "generation": "text: prompts decoded together, and checking against doing",
    "growth": "what a job costs those it doesn't concern, as a simulated network grows",
    "items": "embeddings and image classes: exact over native, and checking one chunk over the job",
    "kernels": "linear layers, prefill and decode: compiled kernels, numpy and native float32",
    "local_sgd": "a training run shared by several peers: loss at equal tokens, bytes for each token",
    "model": "what exactness costs: native, exact14 and exact21 on the model that ships",
    "network": "gossip and direct streams, against raw TCP",
    "odds": "chances of escape: the formula, these electors, and the machines measured",
    "partition": "a swarm of real processes cut in two in the middle of a job, and healed",
    "restart": "a node that starts again with 100,000 receipts, against one with none",
    "sandbox": "a worker's start, cold and warm, and what each layer of the sandbox costs",
    "peers": "every kind of work through 1, 2 and 4 peers, against no peers; a worker's start, cold and warm",
    "simulator": "virtual peers and jobs for each second of real time",
    "soak": "real peers for an hour under churn and faults: what is lost, what fails, what grows",
    "swarm": "jobs through five real peers, against the model called directly",
    "training": "an exact optimiser step against native torch, and checking a run",
    "verification": "draws, trees, receipts: what believing costs",
    "workloads": "checking against doing, for every kind of work, and Freivalds' check",
}
QUICK = {"model": ["--tokens", "128", "--rounds", "2"]}
"""What makes a program quick, where it isn't ``--quick``."""


def commands(only: Sequence[str], *, quick: bool) -> list[list[str]]:
    """The command line of each program to run, in order."""
    return [
        [sys.executable, "-m", f"benchmarks.{name}", *(QUICK.get(name, ["--quick"]) if quick else [])]
        for name in PROGRAMS
        if not only or name in only
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the programs; the exit status is the number of those that failed."""
    lines = "\n".join(f"  {name:10} {text}" for name, text in PROGRAMS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{__doc__}\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter samples")
    parser.add_argument(
        "--only", action="append", default=[], choices=PROGRAMS, metavar="NAME", help="may be repeated"
    )
    arguments = parser.parse_args(argv)
    failed = 0
    for command in commands(arguments.only, quick=arguments.quick):
        print(f"\n=== {command[2]}: {PROGRAMS[command[2].partition('.')[2]]}", flush=True)
        # One thread for each process: peers of one swarm share the cores.
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        if done.returncode != 0:
            failed += 1
            print(f"{command[2]} failed with status {done.returncode}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
