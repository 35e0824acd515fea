"""Coverage-guided fuzzing by atheris of what `targets` lists.

    python -m tests.fuzzing [--seconds S] [--jobs J] [--keep] [TARGET ...]

Each target runs in a process of its own over a corpus in ``.fuzz/``, which grows from run to run and begins
with `corpus/`. A finding ends its target with a traceback and leaves the input in ``.fuzz/found/``; whoever
mends the bug moves it to ``corpus/TARGET/``, where the tests play it from then on. ``--keep`` writes a small
corpus back.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

WORK = Path(".fuzz")
KEPT = Path(__file__).with_name("corpus")
KEPT_FILES_MAX = 24
KEPT_BYTES_MAX = 2_048


def main() -> int:
    """Fuzz what was asked for; 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="of each target")
    parser.add_argument("--jobs", type=int, default=1, help="targets at once")
    parser.add_argument("--keep", action="store_true", help="write a minimal corpus back")
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    arguments = parser.parse_args()

    from tests.fuzzing.targets import TARGETS

    if unknown := sorted(set(arguments.targets) - TARGETS.keys()):
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    names = arguments.targets or list(TARGETS)
    print(f"{'target':28} {'inputs':>9} {'covered':>8} {'corpus':>7}  result", flush=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(lambda name: _fuzz(name, arguments.seconds, keep=arguments.keep), names))
    return 0 if all(results) else 1


def _fuzz(name: str, seconds: int, *, keep: bool) -> bool:
    corpus, found = WORK / "corpus" / name, WORK / "found"
    corpus.mkdir(parents=True, exist_ok=True)
    found.mkdir(parents=True, exist_ok=True)
    began = time.time()
    command = [sys.executable, "-m", "tests.fuzzing.one", name]
    flags = [
        f"-max_total_time={seconds}",
        f"-artifact_prefix={found}/{name}-",
        "-timeout=20",
        "-rss_limit_mb=3000",
    ]
    kept = [str(KEPT / name)] if (KEPT / name).is_dir() else []
    log = WORK / f"{name}.log"
    with log.open("wb") as out:
        run = subprocess.run(
            [*command, *flags, str(corpus), *kept], stdout=out, stderr=out, check=False, env=_environment()
        )
    inputs, covered = _figures(log.read_text(errors="replace"))
    size = sum(1 for _ in corpus.iterdir())
    new = [path.name for path in found.glob(f"{name}-*") if path.stat().st_mtime >= began]
    result = "ok" if run.returncode == 0 and not new else f"exit {run.returncode}: {' '.join(new) or log}"
    print(f"{name:28} {inputs:>9} {covered:>8} {size:>7}  {result}", flush=True)
    if keep and run.returncode == 0:
        _keep(name, corpus, command)
    return result == "ok"


def _figures(log: str) -> tuple[str, str]:
    """Inputs tried and edges covered, as libFuzzer's last line tells them."""
    lines = [line.split() for line in log.splitlines() if line.startswith("#") and " cov: " in line]
    if not lines:
        return "0", "0"
    last = lines[-1]
    return last[0].lstrip("#"), last[last.index("cov:") + 1]


def _keep(name: str, corpus: Path, command: list[str]) -> None:
    merged = WORK / "merged" / name
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir(parents=True)
    subprocess.run(
        [*command, "-merge=1", str(merged), str(corpus)], capture_output=True, check=False, env=_environment()
    )
    small = sorted(
        (path for path in merged.iterdir() if path.stat().st_size <= KEPT_BYTES_MAX),
        key=lambda path: (path.stat().st_size, path.name),
    )
    target = KEPT / name
    target.mkdir(parents=True, exist_ok=True)
    step = max(1, len(small) // KEPT_FILES_MAX)
    for path in small[::step][:KEPT_FILES_MAX]:
        shutil.copyfile(path, target / path.name[:16])


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    sys.exit(main())
