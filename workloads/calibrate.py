"""The bounds of a model's native profile, for every kind of work whose chunks are derived one by one.

As `workloads.lm.calibrate` has it: honest runs and cheats are held against the exact run, and the bounds lie
between the two. Each setting of an honest machine is a process of its own, which checks what one of them did.

    python -m workloads.calibrate MODEL_DIR          print the measurements as JSON
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from protocols.units import chunk_count
from workloads.blobs import MemoryBlobs
from workloads.errors import ModelRefused
from workloads.fingerprint import steps_apart
from workloads.lm.calibrate import Setting, bounds_of, in_setting, settings_here
from workloads.profiled import Profiled
from workloads.registry import native_kind_of
from workloads.trials import cheaper_models, stand_in, trial_inputs
from workloads.workload import Kind

__all__ = ["Trial", "calibrate"]


@dataclass(frozen=True, slots=True)
class Trial:
    """A job as somebody did it: its input, its units, and the finding of each chunk."""

    input: bytes
    units: list[int]
    findings: list[bytes]


@dataclass(frozen=True, slots=True)
class _Checked:
    """What a checker found of the chunks of all trials."""

    findings: tuple[bytes, ...]
    misses_ppb: tuple[int, ...]
    against: tuple[bytes, ...] = ()
    """For a cheat: what the exact run finds of its own units."""

    def distance(self, other: _Checked) -> NDArray[np.int64]:
        """(chunks,): as `workloads.lm.calibrate.Observation` has it."""
        pairs = zip(self.findings, self.against or other.findings, strict=True)
        return np.array([steps_apart(*pair) for pair in pairs])


def calibrate(
    model_dir: Path,
    settings: Sequence[Setting] | None = None,
    *,
    told: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure a model and choose its bounds; arguments and errors as `workloads.lm.calibrate.calibrate`."""
    found = native_kind_of(model_dir)
    if found is None or not (inputs := trial_inputs(found[0].name, model_dir)):
        raise ModelRefused(f"{model_dir} holds no model that is calibrated for native runs")
    kind, model = found
    with tempfile.TemporaryDirectory() as folder:
        honest_dir = stand_in(model_dir, Path(folder) / "honest")
        blobs = MemoryBlobs()
        told("native run")
        executor = _opened(kind, honest_dir, "native", model.digest, blobs)
        trials = [_done(executor, input) for input in inputs]
        told("exact run")
        judge = _opened(kind, honest_dir, "native-reference", model.digest, blobs)
        exact = _check(judge, trials)
        honest = {"executor": _Checked(tuple(f for trial in trials for f in trial.findings), (0,))}
        for setting in settings_here() if settings is None else settings:
            told(setting.name)
            honest[setting.name] = _checked_in_a_process(honest_dir, setting, trials, blobs)
        cheats = {}
        for number, (name, weights) in enumerate(cheaper_models(model_dir)):
            told(name)
            cheat = _opened(
                kind,
                stand_in(model_dir, Path(folder) / f"cheat-{number}", weights),
                "native",
                model.digest,
                blobs,
            )
            cheats[name] = _judged(judge, [_done(cheat, input) for input in inputs])
        for dtype in (torch.float16, torch.bfloat16):
            told(name := f"{str(dtype).removeprefix('torch.')} kernels")
            with torch.autocast("cpu", dtype=dtype):
                done = [_done(executor, input) for input in inputs]
            cheats[name] = _judged(judge, done)
    return {"model": model.digest.hex(), **bounds_of(exact, honest, cheats)}


def _opened(kind: Kind, model_dir: Path, profile: str, model: bytes, blobs: MemoryBlobs) -> Profiled[Any]:
    workload = kind.open(model_dir, profile, None, None, blobs)
    assert isinstance(workload, Profiled)  # noqa: S101
    # A cheat states its findings as the true model's.
    workload.model = model
    return workload


def _done(workload: Profiled[Any], input: bytes) -> Trial:
    units: list[int] = []
    findings: list[bytes] = []
    with torch.inference_mode():
        workload.generate(
            input,
            (),
            lambda _, new: units.extend(new),
            lambda _, found: findings.append(found),
            lambda: False,
        )
    return Trial(input, units, findings)


def _check(workload: Profiled[Any], trials: Sequence[Trial]) -> _Checked:
    findings, misses = [], []
    for trial in trials:
        for chunk in range(chunk_count(len(trial.units), workload.chunk_units)):
            findings.append(workload.recompute(trial.input, trial.units, [chunk])[chunk])
            misses.append(workload.missed_ppb)
    return _Checked(tuple(findings), tuple(misses))


def _judged(judge: Profiled[Any], trials: Sequence[Trial]) -> _Checked:
    truth = _check(judge, trials)
    return _Checked(tuple(f for trial in trials for f in trial.findings), truth.misses_ppb, truth.findings)


def _checked_in_a_process(
    model_dir: Path, setting: Setting, trials: Sequence[Trial], blobs: MemoryBlobs
) -> _Checked:
    request = {
        "trials": [[trial.input.hex(), trial.units] for trial in trials],
        "blobs": [data.hex() for data in blobs.contents()],
    }
    findings, misses = in_setting("workloads.calibrate", model_dir, setting, request)
    return _Checked(tuple(map(bytes.fromhex, findings)), tuple(misses))


def _observe_here(model_dir: Path, request: Mapping[str, Any]) -> None:
    """What one process of `_checked_in_a_process` does."""
    found = native_kind_of(model_dir)
    assert found is not None  # noqa: S101
    kind, model = found
    blobs = MemoryBlobs(*map(bytes.fromhex, request["blobs"]))
    workload = _opened(kind, model_dir, "native", model.digest, blobs)
    seen = _check(workload, [Trial(bytes.fromhex(input), units, []) for input, units in request["trials"]])
    print(json.dumps([[finding.hex() for finding in seen.findings], seen.misses_ppb]))


def main() -> None:
    """Print the measurements of a model."""
    parser = argparse.ArgumentParser(prog="workloads.calibrate", description=__doc__)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--observe", type=int, metavar="THREADS", help="one setting, for the program itself")
    arguments = parser.parse_args()
    if arguments.observe:
        torch.set_num_threads(arguments.observe)
        _observe_here(arguments.model_dir, json.load(sys.stdin))
        return
    told = lambda what: print(what, file=sys.stderr, flush=True)  # noqa: E731
    print(json.dumps(calibrate(arguments.model_dir, told=told), indent=2))


if __name__ == "__main__":
    main()
