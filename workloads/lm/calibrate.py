"""How far honest native runs of a model are apart, and how far cheats are: the bounds of its native profile.

Honest is whoever runs the model's float32 weights in torch's own kernels, whatever its threads, vector
extensions, library and split into passes. Each such setting is a process of its own, since libraries
choose their kernels once. Cheats run half-precision kernels, cheaper weights or fewer layers. All go over
the same tokens, and the exact run is the yardstick. Bounds lie between the two; where there is no room,
that is said.

    python -m workloads.lm.calibrate MODEL_DIR          print the measurements as JSON
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from protocols.limits import LM_CHUNK_UNITS
from protocols.messages import Tolerance
from workloads.lm.input import LmInput

__all__ = [
    "Observation",
    "Setting",
    "bounds_of",
    "calibrate",
    "in_setting",
    "observe",
    "settings_here",
    "trial_jobs",
]

HONEST_MARGIN = 16
"""Bounds are this many times what honest machines here are apart: others may be farther."""
ROOM_MIN = 4
"""A cheat nearer than this many times the honest spread can't be told from it."""
MISS_FLOOR_PPB = 1_000
_JOB_TOKENS = 64
_PREFILL_SPLITS = (256, 32, 7)
_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class Setting:
    """How one honest machine may be set up: a name, its threads and the environment of its libraries."""

    name: str
    threads: int
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Observation:
    """What one run over the trial jobs gave."""

    prints: NDArray[np.int64]
    """(tokens, 4): the fingerprints, unpacked."""
    misses_ppb: tuple[int, ...]
    """Of each trial token under this run's logits."""

    def distance(self, other: Observation) -> NDArray[np.int64]:
        """(chunks,): as `verification.findings.distance` has it, by chunks of the trial."""
        apart = np.abs(self.prints - other.prints).sum(axis=1) // self.prints.shape[1]
        whole = len(apart) // LM_CHUNK_UNITS * LM_CHUNK_UNITS
        farthest: NDArray[np.int64] = apart[:whole].reshape(-1, LM_CHUNK_UNITS).max(axis=1)
        return farthest


def settings_here() -> list[Setting]:
    """The settings that this machine can pretend to."""
    settings = [Setting("one thread", 1), Setting("two threads", 2)]
    settings.append(Setting("aten without vectors", 1, (("ATEN_CPU_CAPABILITY", "default"),)))
    for branch in ("COMPATIBLE", "AVX2", "AVX512"):
        settings.append(Setting(f"mkl {branch}", 1, (("MKL_CBWR", branch),)))
    settings.append(Setting("onednn sse41", 1, (("ONEDNN_MAX_CPU_ISA", "SSE41"),)))
    return settings


def trial_jobs(vocabulary: int, positions: int) -> list[LmInput]:
    """Jobs of several lengths and ways to draw; the prompts are of any tokens."""
    rng = np.random.default_rng(20_240)
    jobs = []
    for index, (length, temperature, top_k) in enumerate(
        ((1, 1_000, 0), (7, 700, 40), (60, 1_000, 0), (200, 1_300, 0), (33, 0, 0))
    ):
        fitting = max(1, min(length, positions - _JOB_TOKENS))
        prompt = tuple(int(token) for token in rng.integers(0, vocabulary, fitting))
        jobs.append(LmInput((prompt,), min(_JOB_TOKENS, positions - len(prompt)), index, temperature, top_k))
    return jobs


def observe(
    decoder: Any, model: bytes, trials: Sequence[tuple[LmInput, Sequence[int]]], split: int
) -> Observation:
    """Go over the trials' tokens.

    Args:
        decoder: a `workloads.lm.engine.Decoder`.
        model: its digest.
        trials: jobs with outputs that an honest native run gave.
        split: tokens of a pass; 1 decodes.
    """
    from workloads.fingerprint import fingerprint, projection_signs
    from workloads.lm.misses import misses_ppb

    signs = projection_signs(model, decoder.config.hidden_size)
    prints, misses = [], []
    for job, units in trials:
        tokens = np.array((*job.prompts[0], *units[:-1]), dtype=np.int64)
        cache = decoder.new_cache(1, len(tokens))
        passes = [
            decoder.forward(tokens[None, start : start + split], cache)[0]
            for start in range(0, len(tokens), split)
        ]
        states = np.concatenate(passes)[len(job.prompts[0]) - 1 :]
        values = np.frombuffer(fingerprint(states, signs), dtype="<i4")
        prints.append(values.reshape(len(units), -1).astype(np.int64))
        misses += misses_ppb(decoder.logits(states), units, range(len(units)), job)
    return Observation(np.concatenate(prints), tuple(misses))


def calibrate(
    model_dir: Path,
    settings: Sequence[Setting] | None = None,
    *,
    told: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure a model and choose its bounds.

    Args:
        model_dir: a directory in Hugging Face layout.
        settings: of honest machines; None takes `settings_here`.
        told: hears what is being measured.

    Returns:
        The content of ``tolerance.json``: ``model``, ``bounds``, and the measurements they rest on.

    Raises:
        ModelRefused: the directory is not a model we run.
        RuntimeError: a process of a setting failed.
    """
    from workloads.lm.manifest import load_manifest

    model = load_manifest(model_dir).digest
    # Imported late: a directory that is no model is told before torch is there.
    from workloads.lm.engine import build_decoder, load_model

    config, weights = load_model(model_dir)
    native = build_decoder(config, weights, "native")
    told("native run")
    trials = [
        (job, _generate(native, job)) for job in trial_jobs(config.vocab_size, config.max_position_embeddings)
    ]
    told("exact run")
    exact = observe(build_decoder(config, weights, "exact21"), model, trials, _PREFILL_SPLITS[0])
    honest: dict[str, Observation] = {}
    for setting in settings_here() if settings is None else settings:
        told(setting.name)
        honest |= _observed_in_a_process(model_dir, setting, trials)
    cheats = {}
    for name, decoder in _cheaters(config, weights):
        told(name)
        cheats[name] = observe(decoder, model, trials, _PREFILL_SPLITS[0])
    return {"model": model.hex(), **bounds_of(exact, honest, cheats)}


class Observed(Protocol):
    """What bounds are chosen from."""

    @property
    def misses_ppb(self) -> tuple[int, ...]:
        """Of each trial unit, or chunk of them."""

    def distance(self, other: Any) -> NDArray[np.int64]:
        """(chunks,) from another of its type over the same trials, in steps."""


ObservedT = TypeVar("ObservedT", bound=Observed)


def bounds_of(
    exact: ObservedT, honest: Mapping[str, ObservedT], cheats: Mapping[str, ObservedT]
) -> dict[str, Any]:
    """Bounds between honest runs and cheats, the measurements, and which cheats can't be told apart.

    A bound is `HONEST_MARGIN` times the honest spread, or halfway (in factors) to the nearest cheat that
    can be told apart, whichever is less.
    """
    runs = list(honest.values())
    native_spread = max(1, *(int(a.distance(b).max()) for a in runs for b in runs))
    exact_spread = max(1, *(int(run.distance(exact).max()) for run in runs))
    miss = max(MISS_FLOOR_PPB, *(max(run.misses_ppb) for run in (exact, *runs)))
    nearest = {name: int(run.distance(exact).min()) for name, run in cheats.items()}
    overlaps = sorted(name for name, steps in nearest.items() if steps < ROOM_MIN * exact_spread)
    apart = min((steps for name, steps in nearest.items() if name not in overlaps), default=0)

    def bound(spread: int) -> int:
        wide = HONEST_MARGIN * spread
        return wide if not apart else min(wide, max(ROOM_MIN * spread // 2, math.isqrt(spread * apart)))

    # An honest verifier and an honest executor may lie on either side of the exact run.
    convict = bound(exact_spread)
    tolerance = Tolerance(
        agree_steps=max(bound(native_spread), 2 * exact_spread),
        convict_steps=convict,
        agree_margin_ppb=HONEST_MARGIN * miss,
        convict_margin_ppb=2 * HONEST_MARGIN * miss,
    )
    return {
        "bounds": {name: getattr(tolerance, name) for name in Tolerance.__struct_fields__},
        "honest": {
            name: {
                "native_steps_max": max(int(run.distance(other).max()) for other in runs),
                "exact_steps_max": int(run.distance(exact).max()),
                "miss_ppb_max": max(run.misses_ppb),
            }
            for name, run in honest.items()
        },
        "cheats": {
            name: {
                "exact_steps_min": nearest[name],
                "exact_steps_median": int(np.median(run.distance(exact))),
                "tokens_missed_share_ppm": _share_ppm(run.misses_ppb, tolerance.convict_margin_ppb),
                "is_caught": nearest[name] > convict,
            }
            for name, run in cheats.items()
        },
        "overlaps": overlaps,
    }


def _share_ppm(misses: Sequence[int], margin: int) -> int:
    return 1_000_000 * sum(miss > margin for miss in misses) // max(1, len(misses))


# --- Runs ------------------------------------------------------------------------------------------


def _generate(decoder: Any, job: LmInput) -> list[int]:
    from workloads.lm.sampling import sample

    cache = decoder.new_cache(1, job.positions)
    hidden = decoder.forward(np.array([job.prompts[0]], dtype=np.int64), cache)[0][-1:]
    units: list[int] = []
    while len(units) < job.max_tokens:
        units += sample(decoder.logits(hidden), [len(units)], job)
        hidden = decoder.forward(np.array([units[-1:]], dtype=np.int64), cache)[0]
    return units


def _cheaters(config: Any, weights: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Decoders of cheaper models, each with what is cheaper about it."""
    import torch

    from workloads.lm.engine import build_decoder
    from workloads.lm.hostile import cheaper_model

    def eight_bits(tensor: Any) -> Any:
        step = tensor.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127
        return torch.round(tensor / step) * step

    for dtype in (torch.float16, torch.bfloat16):
        yield f"{str(dtype).removeprefix('torch.')} kernels", _HalfPrecision(config, weights, dtype)
    rounded = {name: eight_bits(tensor) if tensor.dim() > 1 else tensor for name, tensor in weights.items()}
    yield "int8 weights", build_decoder(config, rounded, "native")
    yield "int4 weights", build_decoder(*cheaper_model(config, dict(weights), "quantized-weights"), "native")
    if config.num_hidden_layers > 1:
        yield (
            "a layer left out",
            build_decoder(*cheaper_model(config, dict(weights), "skipped-layer"), "native"),
        )


class _HalfPrecision:
    """The native decoder with its matrix products in half precision."""

    def __init__(self, config: Any, weights: Mapping[str, Any], dtype: Any) -> None:
        from workloads.lm.engine import build_decoder

        self.config = config
        self._decoder: Any = build_decoder(config, dict(weights), "native")
        self._dtype = dtype

    def new_cache(self, batch: int, capacity: int) -> Any:
        return self._decoder.new_cache(batch, capacity)

    def forward(self, tokens: NDArray[np.int64], cache: Any) -> NDArray[np.float32]:
        import torch

        with torch.autocast("cpu", dtype=self._dtype):
            states: NDArray[np.float32] = self._decoder.forward(tokens, cache).astype(np.float32)
        return states

    def logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float64]:
        import torch

        with torch.autocast("cpu", dtype=self._dtype):
            logits: NDArray[np.float64] = self._decoder.logits(hidden)
        return logits


def in_setting(module: str, model_dir: Path, setting: Setting, request: object) -> Any:
    """What ``python -m module model_dir --observe`` answers in a process with this setting; JSON both ways.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", module, str(model_dir), "--observe", str(setting.threads)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
        env={**os.environ, **dict(setting.environment)},
    )
    if done.returncode:
        tail = done.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"the setting {setting.name!r} failed: {' '.join(tail)}")
    return json.loads(done.stdout)


def _observed_in_a_process(
    model_dir: Path, setting: Setting, trials: Sequence[tuple[LmInput, Sequence[int]]]
) -> dict[str, Observation]:
    request = [
        [list(job.prompts[0]), job.max_tokens, job.seed, job.temperature_milli, job.top_k, units]
        for job, units in trials
    ]
    found = in_setting("workloads.lm.calibrate", model_dir, setting, request)
    return {
        f"{setting.name}, {name}": Observation(np.array(prints, dtype=np.int64), tuple(misses))
        for name, (prints, misses) in found.items()
    }


def _observe_here(model_dir: Path, threads: int) -> None:
    """What one process of `_observed_in_a_process` does: trials on stdin, observations on stdout."""
    import torch

    from workloads.lm.engine import build_decoder, load_model
    from workloads.lm.manifest import load_manifest

    torch.set_num_threads(threads)
    trials = [
        (LmInput((tuple(p),), n, seed, t, k), units) for p, n, seed, t, k, units in json.load(sys.stdin)
    ]
    config, weights = load_model(model_dir)
    decoder, model = build_decoder(config, weights, "native"), load_manifest(model_dir).digest
    observed = {
        "decoded" if split == 1 else f"passes of {split}": observe(decoder, model, trials, split)
        for split in (*_PREFILL_SPLITS, 1)
    }
    print(json.dumps({name: (run.prints.tolist(), run.misses_ppb) for name, run in observed.items()}))


def main() -> None:
    """Print the measurements of a model."""
    parser = argparse.ArgumentParser(prog="workloads.lm.calibrate", description=__doc__)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--observe", type=int, metavar="THREADS", help="one setting, for the program itself")
    arguments = parser.parse_args()
    if arguments.observe:
        _observe_here(arguments.model_dir, arguments.observe)
        return
    told = lambda what: print(what, file=sys.stderr, flush=True)  # noqa: E731
    print(json.dumps(calibrate(arguments.model_dir, told=told), indent=2))


if __name__ == "__main__":
    main()
