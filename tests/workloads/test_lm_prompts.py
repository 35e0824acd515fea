"""Several prompts in one job: batches that don't show, ends that are checked, log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from protocols.limits import LM_CHUNK_UNITS
from protocols.units import FALSE_UNITS
from workloads.blobs import BLOB_WORDS, MemoryBlobs, blob_from_words
from workloads.errors import InputRefused
from workloads.lm import continued
from workloads.lm.generate import LmExecutor, Outcome
from workloads.lm.hostile import VARIANTS
from workloads.lm.input import END_UNIT, LmInput, encode_input
from workloads.lm.kind import LM
from workloads.lm.layout import outputs_of, words_of
from workloads.lm.logprobs import read_logprobs
from workloads.lm.manifest import builtin_models
from workloads.lm.native import NativeExecutor, open_executor
from workloads.lm.pieces import TokenBytes
from workloads.numeric_class import numeric_class

PROMPTS = ((3, 1, 4), (1,), (5, 9, 2, 6, 5, 3, 5), (8, 9), (7, 9, 3, 2))
PLAIN = LmInput(PROMPTS, 19, seed=11, temperature_milli=1_000)
VOWELS = tuple(bytes([vowel]) for vowel in b"aeiouAEIOU")
"""Texts that the tiny model, whose tokens are bytes, comes to soon."""


def replaced(job: LmInput, **changes: Any) -> LmInput:
    return msgspec.structs.replace(job, **changes)


STOPPED = replaced(PLAIN, max_tokens=60, stop=(*VOWELS, b"never this"), top_p_milli=900)
JOBS = {
    "plain": PLAIN,
    "stopped": STOPPED,
    "penalty": replaced(PLAIN, repetition_milli=1_300, temperature_milli=700, top_k=40),
    "logprobs": replaced(PLAIN, logprobs=3),
    "stopped with logprobs": replaced(STOPPED, logprobs=0),
    "greedy": replaced(PLAIN, temperature_milli=0),
}
every_job = pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)


@dataclass
class Made:
    """What an executor reported."""

    units: list[int]
    chunks: dict[int, bytes]
    outcome: Outcome
    blobs: MemoryBlobs


def run(model: Path, job: LmInput, prefix: list[int] | None = None, **changes: Any) -> Made:
    blobs = MemoryBlobs()
    executor = LmExecutor(model, "exact14", blobs=blobs, **changes)
    units, chunks = list(prefix or ()), dict[int, bytes]()

    def on_units(first: int, new: list[int]) -> None:
        assert first == len(units)
        units.extend(new)

    outcome = executor.generate(job, tuple(units), on_units, chunks.__setitem__, lambda: False)
    return Made(units, chunks, outcome, blobs)


def pieces(model: Path) -> TokenBytes:
    return TokenBytes((model / "tokenizer.json").read_bytes())


@every_job
def test_a_verifier_derives_every_digest(tiny_model: Path, job: LmInput) -> None:
    made = run(tiny_model, job)
    assert sorted(made.chunks) == list(range(-(-len(made.units) // LM_CHUNK_UNITS))) and len(made.chunks) > 1
    verifier = LmExecutor(tiny_model, "exact14")
    assert verifier.recompute(job, made.units, made.chunks) == made.chunks
    # Any chunk, without what comes after it.
    for chunk, digest in made.chunks.items():
        seen = made.units[: (chunk + 1) * LM_CHUNK_UNITS]
        assert verifier.recompute(job, seen, [chunk]) == {chunk: digest}


@every_job
def test_a_prompt_gets_what_it_would_get_alone(tiny_model: Path, job: LmInput) -> None:
    together = outputs_of(job, run(tiny_model, job).units, pieces(tiny_model))
    assert len(together) == len(PROMPTS)
    for output in together:
        alone = replaced(job, prompts=(PROMPTS[output.prompt],), first_prompt=output.prompt)
        (found,) = outputs_of(alone, run(tiny_model, alone).units, pieces(tiny_model))
        assert (found.tokens, found.reason) == (output.tokens, output.reason)


@pytest.mark.parametrize("places", [1, 2, 16])
def test_the_size_of_the_batch_does_not_show(
    tiny_model: Path, places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(tiny_model, STOPPED)
    monkeypatch.setattr(continued, "_SEQUENCES_MAX", places)
    made = run(tiny_model, STOPPED)
    assert (made.units, made.chunks) == (expected.units, expected.chunks)
    assert LmExecutor(tiny_model, "exact14").recompute(STOPPED, made.units, made.chunks) == made.chunks


@pytest.mark.parametrize("job", [PLAIN, JOBS["stopped with logprobs"]], ids=["plain", "stopped"])
def test_a_job_goes_on_after_any_chunk(tiny_model: Path, job: LmInput) -> None:
    whole = run(tiny_model, job)
    for chunks in range(1, len(whole.units) // LM_CHUNK_UNITS + 1):
        resumed = run(tiny_model, job, whole.units[: chunks * LM_CHUNK_UNITS])
        assert resumed.units == whole.units
        assert resumed.chunks == {n: digest for n, digest in whole.chunks.items() if n >= chunks}
        assert resumed.outcome == whole.outcome
    assert run(tiny_model, job, whole.units).chunks == {}


def test_a_run_that_is_stopped_says_how_far_it_came(tiny_model: Path) -> None:
    units: list[int] = []
    job = replaced(PLAIN, prompts=PROMPTS * 5)
    outcome = LmExecutor(tiny_model, "exact14").generate(
        job, (), lambda _, new: units.extend(new), lambda *_: None, lambda: len(units) >= 40
    )
    assert outcome == Outcome(len(units), "cancelled") and 40 <= len(units) < job.tokens_max


def test_parts_follow_one_another_as_in_the_whole(tiny_model: Path) -> None:
    assert LM.split is not None
    for job in (PLAIN, STOPPED):
        data = encode_input(job)
        assert LM.split.items(data) == 5
        units: list[int] = []
        for first, count in ((0, 2), (2, 1), (3, 2)):
            part = msgspec.msgpack.decode(LM.split.part(data, first, count).input, type=LmInput)
            units += run(tiny_model, part).units
        whole = outputs_of(job, run(tiny_model, job).units, pieces(tiny_model))
        assert outputs_of(job, units, pieces(tiny_model)) == whole
    with pytest.raises(InputRefused, match="isn't split"):
        LM.split.part(encode_input(JOBS["logprobs"]), 0, 1)


# --- Ends --------------------------------------------------------------------------------------


def test_outputs_end_with_their_stop_texts(tiny_model: Path) -> None:
    made = run(tiny_model, STOPPED)
    assert made.outcome == Outcome(len(made.units), "stop")
    assert made.units[-1] == END_UNIT and made.units.count(END_UNIT) == 1
    outputs = outputs_of(STOPPED, made.units, pieces(tiny_model))
    table = pieces(tiny_model)
    for output in outputs:
        text = b"".join(table.of(token) for token in output.tokens)
        first = min(text.find(vowel) % (len(text) + 1) for vowel in VOWELS)
        assert (first, output.reason) == (len(text) - 1, "stop")


def ends_at(tiny_model: Path, count: int) -> tuple[LmInput, list[int]]:
    """A job of one prompt whose output ends with an end token after so many, and its tokens."""
    free = LmInput(PROMPTS[:1], 90, seed=3, temperature_milli=1_000)
    units = run(tiny_model, free).units
    last = next(i for i in range(count - 1, 90) if units[i] not in units[:i])
    return replaced(free, eos=(units[last],)), units[: last + 1]


@pytest.mark.parametrize("logprobs", [-1, 1])
@pytest.mark.parametrize("count", [20, 21, 22, 31, 32, 33])
def test_an_end_stands_where_there_is_room(tiny_model: Path, count: int, logprobs: int) -> None:
    job, tokens = ends_at(tiny_model, count)
    job = replaced(job, logprobs=logprobs)
    made = run(tiny_model, job)
    whole, rest = divmod(len(tokens), job.chunk_tokens)
    words = 0 if logprobs < 0 else BLOB_WORDS
    assert len(made.units) == whole * LM_CHUNK_UNITS + (rest + words if rest else 0) + 1
    assert made.units[-1] == END_UNIT
    verifier = LmExecutor(tiny_model, "exact14")
    assert verifier.recompute(job, made.units, made.chunks) == made.chunks
    # Digests know the model, also that of an end alone.
    assert len(set(made.chunks.values())) == len(made.chunks)
    assert LmExecutor(tiny_model, "exact21").recompute(job, made.units, made.chunks) != made.chunks


def test_a_false_end_is_false_wherever_it_stands(tiny_model: Path) -> None:
    job, tokens = ends_at(tiny_model, 40)
    made = run(tiny_model, job)
    verifier = LmExecutor(tiny_model, "exact14")

    def judged(units: list[int]) -> dict[int, bool]:
        found = verifier.recompute(job, units, range(-(-len(units) // LM_CHUNK_UNITS)))
        return {chunk: digest != FALSE_UNITS for chunk, digest in found.items()}

    assert judged(made.units) == {0: True, 1: True}
    # Too soon, left out, twice, one token beyond, and in a chunk of its own though there was room.
    assert judged([*tokens[:33], END_UNIT]) == {0: True, 1: False}
    assert judged([*tokens[:20], END_UNIT]) == {0: False}
    assert judged(tokens) == {0: True, 1: False}
    assert judged([*made.units, END_UNIT]) == {0: True, 1: False}
    assert judged([*tokens, 1, END_UNIT]) == {0: True, 1: False}
    assert judged([*tokens[:32], END_UNIT]) == {0: True, 1: False}
    full = replaced(job, eos=(), max_tokens=32)
    whole = run(tiny_model, full).units
    assert verifier.recompute(full, whole, [0])[0] != FALSE_UNITS
    assert verifier.recompute(replaced(full, max_tokens=40), whole[:31], [0]) == {0: FALSE_UNITS}


def test_a_prefix_that_can_not_be_is_refused(tiny_model: Path) -> None:
    job, tokens = ends_at(tiny_model, 20)
    with pytest.raises(InputRefused, match="can't follow the ones before"):
        run(tiny_model, job, [*tokens, *([1] * (LM_CHUNK_UNITS - len(tokens)))])
    with pytest.raises(InputRefused, match="whole chunks of 32"):
        run(tiny_model, job, tokens)


# --- Log-probabilities -------------------------------------------------------------------------


def test_log_probabilities_are_the_models(tiny_model: Path) -> None:
    job = JOBS["logprobs"]
    made = run(tiny_model, job)
    found = [
        value
        for words in words_of(job, made.units)
        for value in read_logprobs(made.blobs.read(blob_from_words(words)), job.logprobs)
    ]
    outputs = outputs_of(job, made.units, None)
    assert len(found) == job.tokens_max == sum(len(output.tokens) for output in outputs)
    decoder = LmExecutor(tiny_model, "exact14")._honest
    values = iter(found)
    for output in outputs:
        prompt = PROMPTS[output.prompt]
        tokens = np.array([[*prompt, *output.tokens[:-1]]])
        states = decoder.forward(tokens, decoder.new_cache(1, 40))[0, len(prompt) - 1 :]
        logits = decoder.logits(states)
        best = logits.max(axis=1, keepdims=True)
        truth = logits - best - np.log(np.exp(logits - best).sum(axis=1, keepdims=True))
        for row, token in zip(truth, output.tokens, strict=True):
            value = next(values)
            assert abs(value.own + row[token] * 1e6) < 1
            assert [other for other, _ in value.likeliest] == np.argsort(-row, kind="stable")[:3].tolist()
            assert all(abs(micro + row[other] * 1e6) < 1 for other, micro in value.likeliest)


def test_false_log_probabilities_are_found(tiny_model: Path) -> None:
    job = JOBS["logprobs"]
    made = run(tiny_model, job)
    forged = list(made.units)
    forged[LM_CHUNK_UNITS - 1] ^= 1
    found = LmExecutor(tiny_model, "exact14").recompute(job, forged, made.chunks)
    assert found[0] == FALSE_UNITS
    assert {n: d for n, d in found.items() if n} == {n: d for n, d in made.chunks.items() if n}
    assert LM.output_blobs(encode_input(job), made.units) == tuple(
        blob_from_words(words) for words in words_of(job, made.units)
    )


# --- Other ways to run -------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_way_to_cheat_is_caught_in_each_chunk(tiny_model: Path, variant: str) -> None:
    made = run(tiny_model, STOPPED, variant=variant)
    truth = LmExecutor(tiny_model, "exact14").recompute(STOPPED, made.units, made.chunks)
    caught = [chunk for chunk, digest in made.chunks.items() if truth[chunk] != digest]
    assert len(caught) >= len(made.chunks) / 2


NATIVE_JOB = LmInput(PROMPTS[:4], 24, 5, 900, top_k=50, stop=(b".",), top_p_milli=950)


@pytest.mark.parametrize("job", [NATIVE_JOB, replaced(NATIVE_JOB, logprobs=2)], ids=["plain", "logprobs"])
def test_a_homogeneous_verifier_runs_the_executors_passes(job: LmInput) -> None:
    model, profile = builtin_models()["kjv-2m"], f"homogeneous/{numeric_class()}"
    executor = open_executor(model, profile, blobs=MemoryBlobs())
    units, chunks = list[int](), dict[int, bytes]()
    executor.generate(job, (), lambda _, new: units.extend(new), chunks.__setitem__, lambda: False)
    verifier = open_executor(model, profile)
    assert len(chunks) >= 2
    for chunk in reversed(chunks):
        assert verifier.recompute(job, units[: 32 * chunk + 32], [chunk]) == {chunk: chunks[chunk]}
    assert verifier.recompute(job, units, chunks) == chunks
    again = list(units[:32])
    executor.generate(job, tuple(again), lambda _, new: again.extend(new), lambda *_: None, lambda: False)
    assert again == units


def test_native_runs_draw_what_they_state() -> None:
    model = builtin_models()["kjv-2m"]
    units, chunks = list[int](), dict[int, bytes]()
    NativeExecutor(model, "native").generate(
        NATIVE_JOB, (), lambda _, new: units.extend(new), chunks.__setitem__, lambda: False
    )
    found = NativeExecutor(model, "native-reference").recompute(NATIVE_JOB, units, chunks)
    assert FALSE_UNITS not in found.values()
    with pytest.raises(InputRefused, match="no logprobs"):
        NativeExecutor(model, "native").recompute(replaced(NATIVE_JOB, logprobs=1), units, [0])
