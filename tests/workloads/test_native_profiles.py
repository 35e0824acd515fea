"""The homogeneous and native profiles of ``lm.generate``, and the calibration of the native one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from protocols.messages import EQUAL_BITS
from protocols.units import FALSE_UNITS
from verification.findings import distance
from workloads.errors import InputRefused, ModelRefused
from workloads.fingerprint import fingerprint, projection_signs
from workloads.lm import calibrate, native
from workloads.lm.calibrate import Observation, Setting, bounds_of
from workloads.lm.engine import build_decoder, load_model
from workloads.lm.generate import LmExecutor
from workloads.lm.input import LmInput
from workloads.lm.manifest import builtin_models, load_manifest
from workloads.lm.misses import misses_ppb
from workloads.lm.native import HomogeneousExecutor, NativeExecutor, open_executor
from workloads.lm.sampling import draw_weights, sample
from workloads.lm.tolerance import TOLERANCE_FILE, load_tolerance
from workloads.numeric_class import numeric_class

MODEL = builtin_models()["kjv-2m"]
JOB = LmInput(prompts=((5, 6, 7, 8, 9),), max_tokens=80, seed=3, temperature_milli=900, top_k=50)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(
    executor: LmExecutor, job: LmInput = JOB, prefix: tuple[int, ...] = ()
) -> tuple[list[int], dict[int, bytes]]:
    units, chunks = list(prefix), dict[int, bytes]()
    executor.generate(job, prefix, lambda _, new: units.extend(new), chunks.__setitem__, lambda: False)
    return units, chunks


# --- Homogeneous -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def homogeneous() -> HomogeneousExecutor:
    return HomogeneousExecutor(MODEL, f"homogeneous/{numeric_class()}")


@pytest.fixture(scope="module")
def made(homogeneous: HomogeneousExecutor) -> tuple[list[int], dict[int, bytes]]:
    return run(homogeneous)


def test_passes_give_the_executors_digests(made: Any) -> None:
    units, chunks = made
    verifier = HomogeneousExecutor(MODEL, f"homogeneous/{numeric_class()}")
    assert len(units) == 80 and sorted(chunks) == [0, 1, 2]
    # Out of order, in part, and one after another: what was remembered doesn't show.
    assert verifier.recompute(JOB, units, [2]) == {2: chunks[2]}
    assert verifier.recompute(JOB, units[:32], [0]) == {0: chunks[0]}
    assert verifier.recompute(JOB, units[:64], [1]) == {1: chunks[1]}
    assert verifier.recompute(JOB, units, range(3)) == chunks


def test_a_job_goes_on_after_a_verified_chunk(homogeneous: HomogeneousExecutor, made: Any) -> None:
    units, chunks = made
    again, rest = run(homogeneous, prefix=tuple(units[:32]))
    assert again == units
    assert rest == {1: chunks[1], 2: chunks[2]}


def test_a_token_that_is_not_drawn_from_its_pass_is_mended(
    homogeneous: HomogeneousExecutor, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder whose drafts err, as native decoding might: the passes decide, and everybody agrees."""
    honest = native._Passes.decode

    def broken(self: Any, token: int, position: int) -> Any:
        hidden = honest(self, token, position)
        return -hidden if position % 13 == 4 else hidden

    monkeypatch.setattr(native._Passes, "decode", broken)
    assert run(homogeneous) == made


def test_a_changed_token_is_false(homogeneous: HomogeneousExecutor, made: Any) -> None:
    units, chunks = made
    forged = [*units[:40], (units[40] + 1) % 1_024, *units[41:]]
    found = homogeneous.recompute(JOB, forged, range(3))
    assert found[0] == chunks[0] and found[1] == FALSE_UNITS


def test_another_class_is_not_for_this_machine() -> None:
    with pytest.raises(InputRefused, match="class 'mars-1' isn't this machine's"):
        open_executor(MODEL, "homogeneous/mars-1")


def test_a_class_has_a_name_that_fits() -> None:
    assert numeric_class() == numeric_class()
    assert 8 < len(numeric_class()) <= 48 and "/" not in numeric_class()


# --- Native ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def native_run() -> tuple[list[int], dict[int, bytes]]:
    return run(NativeExecutor(MODEL, "native"))


def test_honest_native_runs_are_near_and_the_exact_run_acquits_them(native_run: Any) -> None:
    units, chunks = native_run
    bounds = load_tolerance(MODEL)
    seen = NativeExecutor(MODEL, "native").recompute(JOB, units, range(3))
    exact = NativeExecutor(MODEL, "native-reference").recompute(JOB, units, range(3))
    for chunk, stated in chunks.items():
        assert len(stated) == 16 * min(32, 80 - 32 * chunk)
        assert distance(stated, seen[chunk]) <= bounds.agree_steps
        assert distance(stated, exact[chunk]) <= bounds.convict_steps


@pytest.mark.parametrize("cheat", ["quantized-weights", "skipped-layer"])
def test_cheaper_models_are_convicted_by_the_exact_run(cheat: str) -> None:
    units, chunks = run(NativeExecutor(MODEL, "native", cheat))
    exact = NativeExecutor(MODEL, "native-reference").recompute(JOB, units, range(3))
    bound = load_tolerance(MODEL).convict_steps
    assert all(
        exact[chunk] == FALSE_UNITS or distance(stated, exact[chunk]) > bound
        for chunk, stated in chunks.items()
    )


def test_honest_states_under_a_cheap_models_tokens_miss_their_draw() -> None:
    units, chunks = run(NativeExecutor(MODEL, "native", "spoofed-tokens"))
    assert set(NativeExecutor(MODEL, "native-reference").recompute(JOB, units, chunks).values()) == {
        FALSE_UNITS
    }


def test_a_model_without_bounds_has_no_native_profile(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(MODEL / name, tmp_path / name)
    assert load_tolerance(tmp_path) == EQUAL_BITS
    with pytest.raises(ModelRefused, match="isn't calibrated"):
        open_executor(tmp_path, "native")
    for content, rule in (
        ("{", "can't be read"),
        ('{"bounds": {}}', "can't be read: KeyError"),
        (
            json.dumps({"bounds": dict.fromkeys(EQUAL_BITS.__struct_fields__, -1)}),
            "agree_steps must be an integer",
        ),
    ):
        (tmp_path / TOLERANCE_FILE).write_text(content)
        with pytest.raises(ModelRefused, match=rule):
            load_tolerance(tmp_path)


# --- How far a token misses its draw -----------------------------------------------------------


@pytest.mark.parametrize(("temperature", "top_k"), [(1_000, 0), (700, 5), (0, 0)])
def test_drawn_tokens_miss_by_nothing_and_others_by_something(temperature: int, top_k: int) -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(40, 64)) * 3
    job = LmInput(((1,),), 40, 9, temperature, top_k)
    drawn = sample(logits, range(40), job)
    assert misses_ppb(logits, drawn, range(40), job) == [0] * 40
    others = [(token + 1) % 64 for token in drawn]
    assert min(misses_ppb(logits, others, range(40), job)) > 0
    assert misses_ppb(logits[:2], [-1, 64], range(2), job) == [10**9, 10**9]


def test_a_near_draw_misses_by_little() -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(300, 64))
    job = LmInput(((1,),), 300, 2, 1_000)
    other = sample(logits + rng.normal(size=logits.shape) * 1e-3, range(300), job)
    misses = misses_ppb(logits, other, range(300), job)
    assert any(misses) and max(misses) < 3_000_000


def test_the_last_place_of_top_k_may_go_either_way() -> None:
    logits = np.array([[2.0, 1.0, 1.0 - 1e-6, -5.0]])
    swapped = np.array([[2.0, 1.0 - 1e-6, 1.0, -5.0]])
    for seed in range(40):
        job = LmInput(((1,),), 1, seed, 1_000, 2)
        assert misses_ppb(logits, sample(swapped, [0], job), [0], job) < [1_000_000]
    far = np.array([[2.0, 1.0, 0.5, -5.0]])
    assert misses_ppb(far, [2], [0], LmInput(((1,),), 1, 1, 1_000, 2)) == [10**9]
    assert (draw_weights(far, LmInput(((1,),), 1, 1, 1_000, 2)) > 0).sum() == 2


def test_a_fingerprint_feels_every_element() -> None:
    signs = projection_signs(bytes(32), 48)
    states = np.zeros((3, 48), dtype=np.float32)
    before = fingerprint(states, signs)
    for index in (0, 17, 47):
        changed = states.copy()
        changed[1, index] = 0.01
        assert distance(before, fingerprint(changed, signs)) > 100
    assert (projection_signs(bytes(31) + b"1", 48) != signs).any()


# --- Calibration -------------------------------------------------------------------------------


def observation(offset: int, miss: int = 0) -> Observation:
    return Observation(np.arange(256, dtype=np.int64).reshape(64, 4) + offset, (0, miss))


def test_bounds_lie_between_honest_runs_and_cheats() -> None:
    found = bounds_of(
        observation(0),
        {"a": observation(5), "b": observation(-4)},
        {"int4": observation(10_000), "fp16": observation(19)},
    )
    assert found["overlaps"] == ["fp16"]
    assert found["cheats"]["int4"]["is_caught"] and not found["cheats"]["fp16"]["is_caught"]
    bounds = found["bounds"]
    assert 9 < bounds["agree_steps"] < 10_000 and 5 < bounds["convict_steps"] <= 16 * 5
    assert bounds["convict_margin_ppb"] > bounds["agree_margin_ppb"] > 0
    assert found["honest"]["a"] == {"native_steps_max": 9, "exact_steps_max": 5, "miss_ppb_max": 0}


def test_a_cheat_that_is_near_pulls_the_bound_down() -> None:
    near = bounds_of(observation(0), {"a": observation(10)}, {"int8": observation(60)})["bounds"]
    far = bounds_of(observation(0), {"a": observation(10)}, {"int8": observation(10**6)})["bounds"]
    assert 10 < near["convict_steps"] < 60 < far["convict_steps"] == 160


def test_the_built_in_models_bounds_are_its_calibration() -> None:
    content = json.loads((MODEL / TOLERANCE_FILE).read_text())
    assert content["model"] == load_manifest(MODEL).digest.hex()
    assert content["overlaps"] == [] and all(cheat["is_caught"] for cheat in content["cheats"].values())
    spread = max(run["exact_steps_max"] for run in content["honest"].values())
    assert 4 * spread < content["bounds"]["convict_steps"]
    assert len(content["honest"]) >= 20


def test_a_run_is_observed_as_its_chunks_are_stated(native_run: Any) -> None:
    units, chunks = native_run
    config, weights = load_model(MODEL)
    decoder = build_decoder(config, weights, "native")
    seen = calibrate.observe(decoder, load_manifest(MODEL).digest, [(JOB, units)], 256)
    stated = np.frombuffer(b"".join(chunks.values()), dtype="<i4").reshape(80, 4)
    assert np.abs(seen.prints - stated).max() <= 16
    assert max(seen.misses_ppb) == 0
    assert Setting("one thread", 1) in calibrate.settings_here()
