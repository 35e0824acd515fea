"""The native and homogeneous profiles of all kinds that have them: honest machines, cheats, who is judged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from protocols.messages import Award, Tolerance
from protocols.units import FALSE_UNITS
from tests.support.builders import contract
from tests.support.tiny_models import model_of
from tests.support.tiny_terrain import tiny_terrain
from tests.workloads.test_interface import JOBS
from verification.findings import agree, is_false
from workloads.blobs import MemoryBlobs
from workloads.errors import InputRefused, ModelRefused
from workloads.exported.input import encode_input
from workloads.exported.source import run_input
from workloads.exported.workload import ProgramRun
from workloads.numeric_class import numeric_class
from workloads.program.builder import Builder
from workloads.program.exported import Template
from workloads.program.program import JOB, PARAMETER, ValueSpec
from workloads.registry import KINDS, kind_of, native_kind_of
from workloads.speech.config import parse_config
from workloads.speech.decoding import choose, miss
from workloads.workload import EXACT_PROFILES, Workload

NATIVE = [
    "classify.image",
    "diffusion.sample",
    "diffusion.terrain",
    "embed.text",
    "program.run",
    "speech.transcribe",
]
BOUNDS = Tolerance(
    agree_steps=200, convict_steps=200, agree_margin_ppb=2 * 10**6, convict_margin_ppb=2 * 10**6
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def calibrated(name: str, folder: Path) -> Path:
    """A small model with bounds beside it; for a kind without weights, nothing."""
    place = folder / name
    if name == "diffusion.terrain":
        tiny_terrain(place, convolutions=2)
    elif KINDS[name].models() and name != "diffusion.sample":
        place.mkdir()
    else:
        shutil.copytree(model_of(KINDS[name]).path, place)
    bounds = {field: getattr(BOUNDS, field) for field in Tolerance.__struct_fields__}
    (place / "tolerance.json").write_text(json.dumps({"bounds": bounds}))
    return place


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def opened(name: str, place: Path, profile: str, blobs: MemoryBlobs, variant: str | None = None) -> Workload:
    return kind_of(name).open(place, profile, variant, None, blobs)


def done(workload: Workload, input: bytes) -> tuple[list[int], dict[int, bytes]]:
    units, findings = list[int](), dict[int, bytes]()
    workload.generate(input, (), lambda _, new: units.extend(new), findings.__setitem__, lambda: False)
    return units, findings


@cache
def honest(name: str, folder: Path) -> tuple[list[int], dict[int, bytes], MemoryBlobs]:
    """What an honest native executor did."""
    blobs = MemoryBlobs()
    units, stated = done(opened(name, calibrated(name, folder), "native", blobs), JOBS[name])
    return units, stated, blobs


def terms(name: str, place: Path) -> Award:
    return contract(profile="native", tolerance=kind_of(name).tolerance(place)).terms


@pytest.mark.parametrize("name", NATIVE)
def test_honest_machines_agree_and_the_exact_run_acquits_them(name: str, folder: Path) -> None:
    place, (units, stated, blobs) = calibrated(name, folder), honest(name, folder)
    torch.set_num_threads(2)
    found = opened(name, place, "native", blobs).recompute(JOBS[name], units, stated)
    torch.set_num_threads(1)
    exact = opened(name, place, "native-reference", blobs).recompute(JOBS[name], units, stated)
    bounds = terms(name, place)
    for chunk, finding in stated.items():
        assert finding != FALSE_UNITS and len(finding) <= 2_048
        assert agree(bounds, finding, found[chunk])
        assert not is_false(bounds, finding, exact[chunk])


SEEN = """
import json, sys, torch
from pathlib import Path
from workloads.blobs import MemoryBlobs
from workloads.registry import KINDS
torch.set_num_threads(1)
for name, place, input, units, contents in json.load(sys.stdin):
    blobs = MemoryBlobs(*map(bytes.fromhex, contents))
    workload = KINDS[name].open(Path(place), "native", None, None, blobs)
    count = -(-len(units) // KINDS[name].chunk_units)
    found = workload.recompute(bytes.fromhex(input), units, range(count))
    print(json.dumps([found[chunk].hex() for chunk in range(count)]))
"""


def test_a_machine_with_other_vectors_agrees(folder: Path) -> None:
    """Another process, with kernels of older processors: libraries choose them once."""
    asked, stated = [], []
    for name in NATIVE:
        place, (units, findings, blobs) = calibrated(name, folder), honest(name, folder)
        contents = [data.hex() for data in blobs.contents()]
        asked.append([name, str(place), JOBS[name].hex(), units, contents])
        stated.append(findings)
    older = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}
    answer = subprocess.run(
        [sys.executable, "-c", SEEN],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **older},
    )
    for name, findings, line in zip(NATIVE, stated, answer.stdout.splitlines(), strict=True):
        bounds = terms(name, calibrated(name, folder))
        for chunk, found in enumerate(json.loads(line)):
            assert agree(bounds, findings[chunk], bytes.fromhex(found)), name


CHEATS = [
    ("classify.image", "copied-image"),
    ("classify.image", "quantized-classifier"),
    ("diffusion.sample", "fewer-steps"),
    ("diffusion.terrain", "stale-steps"),
    ("embed.text", "copied-item"),
    ("embed.text", "quantized-encoder"),
    ("program.run", "skipped-operator"),
    ("speech.transcribe", "short-hearing"),
]


@pytest.mark.parametrize(("name", "variant"), CHEATS)
def test_a_cheat_is_disputed_and_the_exact_run_convicts_it(name: str, variant: str, folder: Path) -> None:
    place, blobs = calibrated(name, folder), MemoryBlobs()
    units, stated = done(opened(name, place, "native", blobs, variant), JOBS[name])
    found = opened(name, place, "native", blobs).recompute(JOBS[name], units, stated)
    exact = opened(name, place, "native-reference", blobs).recompute(JOBS[name], units, stated)
    bounds = terms(name, place)
    disputed = {chunk for chunk in stated if not agree(bounds, stated[chunk], found[chunk])}
    # Where a job goes on from step to step, every second one was done.
    assert len(disputed) >= len(stated) // 2 > 0 or disputed == {0}
    assert all(is_false(bounds, stated[chunk], exact[chunk]) for chunk in disputed)
    # The verifier said the truth and is never convicted for it.
    assert not any(is_false(bounds, found[chunk], exact[chunk]) for chunk in disputed)


@pytest.mark.parametrize("name", ["classify.image", "embed.text"])
def test_cheaper_weights_are_false_to_the_exact_run(name: str, folder: Path, tmp_path: Path) -> None:
    """The weights have the seven digits of bfloat16, and everything else is right."""
    place, blobs = calibrated(name, folder), MemoryBlobs()
    cheap = shutil.copytree(place, tmp_path / "cheap")
    weights = {key: x.bfloat16().float() for key, x in load_file(place / "model.safetensors").items()}
    save_file(weights, cheap / "model.safetensors")
    cheat: Any = opened(name, cheap, "native", blobs)
    cheat.model = opened(name, place, "native", blobs).model
    units, stated = done(cheat, JOBS[name])
    exact = opened(name, place, "native-reference", blobs).recompute(JOBS[name], units, stated)
    bounds = terms(name, place)
    assert all(is_false(bounds, stated[chunk], exact[chunk]) for chunk in stated)


@pytest.mark.parametrize("name", NATIVE)
def test_one_class_of_machines_finds_the_same_bits(name: str, folder: Path) -> None:
    place, blobs, profile = calibrated(name, folder), MemoryBlobs(), f"homogeneous/{numeric_class()}"
    units, stated = done(opened(name, place, profile, blobs), JOBS[name])
    verifier = opened(name, place, profile, blobs)
    assert verifier.recompute(JOBS[name], units, stated) == stated
    assert verifier.recompute(JOBS[name], [units[0] ^ 1, *units[1:]], [0]) == {0: FALSE_UNITS}
    with pytest.raises(InputRefused, match="isn't this machine's"):
        opened(name, place, "homogeneous/mars-1", blobs)


@pytest.mark.parametrize("name", sorted(set(NATIVE) - {"program.run"}))
def test_without_bounds_there_is_no_native_profile(name: str, folder: Path, tmp_path: Path) -> None:
    place = shutil.copytree(calibrated(name, folder), tmp_path / "model")
    (place / "tolerance.json").unlink()
    with pytest.raises(ModelRefused, match="isn't calibrated"):
        opened(name, place, "native", MemoryBlobs())


@pytest.mark.parametrize("name", ["linalg.matmul", "render.trace", "training.run"])
def test_kinds_without_a_native_form_say_so(name: str) -> None:
    assert KINDS[name].profiles == EXACT_PROFILES
    with pytest.raises(InputRefused, match="must be one of"):
        opened(name, Path(), "native", MemoryBlobs())


@pytest.mark.parametrize("name", ["diffusion.sample", "diffusion.terrain"])
def test_units_may_miss_by_the_margin_and_no_more(name: str, folder: Path) -> None:
    place, (units, stated, blobs) = calibrated(name, folder), honest(name, folder)
    verifier = opened(name, place, "native", blobs)
    assert verifier.recompute(JOBS[name], [units[0] ^ 1, *units[1:]], [0]) == {0: stated[0]}
    assert verifier.recompute(JOBS[name], [units[0] ^ 2**22, *units[1:]], [0]) == {0: FALSE_UNITS}
    nan = [0x7FC00000, *units[1:]]
    assert verifier.recompute(JOBS[name], nan, [0]) == {0: FALSE_UNITS}


# --- Programs that clients make ----------------------------------------------------------------


def job_of(builder: Builder) -> bytes:
    builder.apply("digest", builder.specs and len(builder.specs) - 1, header=b"")
    parameters = {"w": torch.eye(4) * 0.5}
    return encode_input(
        run_input(Template(builder.build(), parameters), {"x": [[0.1, 0.7, -0.3, 0.9]]}, "npz")
    )


def two_products(between: Any) -> bytes:
    builder = Builder()
    x = builder.input("x", ValueSpec("float32", (1, 4)), JOB)
    w = builder.input("w", ValueSpec("float32", (4, 4)), PARAMETER)
    first = builder.apply("linear", x, w, precision="exact21")
    builder.apply("linear", between(builder, first), w, precision="exact21")
    return job_of(builder)


def test_a_program_that_amplifies_roundings_convicts_nobody() -> None:
    """Honest float32 loses all digits here, and the exact run none: whoever made this wants convictions."""

    def lossy(builder: Builder, x: Any) -> Any:
        return builder.apply("shift", builder.apply("shift", x, term=1e7), term=-1e7)

    for between, is_stable in ((lossy, False), (lambda builder, x: builder.apply("tanh", x), True)):
        input = two_products(between)
        units, stated = done(ProgramRun("native"), input)
        judge = ProgramRun("native-reference")
        if is_stable:
            bounds = terms("program.run", Path())
            assert not is_false(bounds, stated[0], judge.recompute(input, units, [0])[0])
        else:
            with pytest.raises(InputRefused, match="nobody can be judged"):
                judge.recompute(input, units, [0])


def test_programs_that_have_no_native_run() -> None:
    def chosen(builder: Builder, x: Any) -> Any:
        return builder.apply("sign", x)

    with pytest.raises(InputRefused, match=r"step 1 \(sign\) chooses by its values"):
        done(ProgramRun("native"), two_products(chosen))
    builder = Builder()
    x = builder.input("x", ValueSpec("float32", (1, 4)), JOB)
    w = builder.input("w", ValueSpec("float32", (4, 4)), PARAMETER)
    builder.apply("linear", x, w, precision="exact21")
    with pytest.raises(InputRefused, match="give away"):
        done(ProgramRun("native"), job_of(builder))


# --- Tokens that were heard --------------------------------------------------------------------


def test_a_token_misses_by_what_the_rules_would_have_chosen(folder: Path) -> None:
    config = parse_config(json.loads((calibrated("speech.transcribe", folder) / "config.json").read_text()))
    torch.manual_seed(3)
    times = config.first_time_token_id
    for written in ([], [times], [times, 5], [times, 5, times + 2]):
        logits = torch.randn(config.vocab_size, dtype=torch.float64)
        chosen = choose(config, logits, written)
        misses = [miss(config, logits, written, token) for token in range(config.vocab_size)]
        assert misses[chosen] == 0.0 and misses.count(0.0) == 1
        assert misses.count(1.0) > 5
        same_half = range(times) if chosen < times else range(times, config.vocab_size)
        second = min((token for token in same_half if token != chosen), key=lambda token: misses[token])
        close = logits.clone()
        close[second] = logits[chosen] - 1e-6
        if misses[second] < 1.0 and choose(config, close, written) == chosen:
            assert 0.0 < miss(config, close, written, second) < 2e-6


# --- Calibration -------------------------------------------------------------------------------


def test_bounds_of_a_kind_lie_between_honest_runs_and_cheats(folder: Path) -> None:
    from workloads import calibrate as calibration

    place = calibrated("classify.image", folder)
    found = native_kind_of(place)
    assert found is not None and found[0].name == "classify.image"
    measured = calibration.calibrate(place, [])
    assert measured["bounds"]["convict_steps"] > 0 == measured["honest"]["executor"]["native_steps_max"]
    assert measured["cheats"]["int4 weights"]["is_caught"]
    assert set(measured["cheats"]) >= {"bfloat16 weights", "int8 weights", "float16 kernels"}


def test_a_setting_checks_what_another_did(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from workloads import calibrate as calibration

    units, stated, _ = honest("classify.image", folder)
    request = {"trials": [[JOBS["classify.image"].hex(), units]], "blobs": []}
    calibration._observe_here(calibrated("classify.image", folder), request)
    findings, misses = json.loads(capsys.readouterr().out)
    assert [bytes.fromhex(finding) for finding in findings] == [*stated.values()]
    assert misses == [0] * len(stated)
