"""lm.generate: what is asked, how tokens are drawn, and that a verifier derives the executor's digests."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.limits import LM_CHUNK_UNITS
from protocols.units import FALSE_UNITS
from workloads.errors import InputRefused, ModelRefused, NumericsRefused
from workloads.lm.generate import LmExecutor, Outcome
from workloads.lm.hostile import VARIANTS
from workloads.lm.input import END_UNIT, LmInput, chunk_range, decode_input, encode_input
from workloads.lm.sampling import noise, sample
from workloads.lm.tokenizer import TextTokenizer

JOB = LmInput(prompts=((3, 1, 4, 1, 5),), max_tokens=75, seed=2**63 + 11, temperature_milli=1000)


def replaced(job: LmInput, **changes: Any) -> LmInput:
    return msgspec.structs.replace(job, **changes)


# --- input ------------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.integers(0, 2**32 - 2), min_size=1, max_size=9).map(tuple), min_size=1, max_size=4),
    st.integers(1, 16_000),
    st.integers(0, 2**64 - 1),
    st.integers(0, 100_000),
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 2**32 - 2), max_size=3),
    st.lists(st.binary(min_size=1, max_size=20), max_size=3),
)
def test_input_survives_the_wire(
    prompts: list[tuple[int, ...]],
    tokens: int,
    seed: int,
    heat: int,
    k: int,
    eos: list[int],
    stop: list[bytes],
) -> None:
    job = LmInput(tuple(prompts), tokens, seed, heat, k, tuple(eos), 900, 1_200, tuple(stop), -1, 3)
    assert decode_input(encode_input(job)) == job


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": ()}, "0 prompts must be 1 to 1024"),
        ({"prompts": ((1,), ())}, "prompt 1 must hold at least one token"),
        ({"prompts": ((1, -1),)}, "token -1 of prompt 0 must be in [0, 4294967295)"),
        ({"max_tokens": 0}, "max_tokens=0 must be in [1, 65536]"),
        ({"max_tokens": 65_535}, "need 65540 positions, more than 65536"),
        ({"seed": 2**64}, "seed=18446744073709551616 must be in"),
        ({"seed": -1}, "seed=-1 must be in"),
        ({"temperature_milli": -1}, "temperature_milli=-1 must be in"),
        ({"top_k": -1}, "top_k=-1 must be in"),
        ({"eos": (-2,)}, "eos token=-2 must be in"),
        ({"eos": tuple(range(9))}, "eos tokens=9 must be in [0, 8]"),
        ({"top_p_milli": 0}, "top_p_milli=0 must be in [1, 1000]"),
        ({"repetition_milli": 99}, "repetition_milli=99 must be in [100, 10000]"),
        ({"stop": (b"",)}, "bytes of a stop text=0 must be in [1, 256]"),
        ({"stop": (b"x",) * 17}, "stop texts=17 must be in [0, 16]"),
        ({"logprobs": 21}, "logprobs=21 must be in [-1, 20]"),
        ({"first_prompt": -1}, "first_prompt=-1 must be in"),
        ({"prompts": ((1,),) * 1024, "max_tokens": 65}, "make up to 66560 units, more than 65536"),
        ({"prompts": ((1,),) * 1024, "logprobs": 0, "max_tokens": 64}, "make up to 95326 units"),
    ],
)
def test_input_beyond_the_limits_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputRefused, match=re.escape(message)):
        encode_input(replaced(JOB, **changes))


@pytest.mark.parametrize("data", [b"", b"\x90", b"junk", encode_input(JOB) + b"\x00", encode_input(JOB)[:-1]])
def test_malformed_input_is_refused(data: bytes) -> None:
    with pytest.raises(InputRefused):
        decode_input(data)


def test_chunks_are_runs_of_units() -> None:
    assert chunk_range(2, 75) == range(64, 75)
    for chunk in (-1, 3):
        with pytest.raises(InputRefused, match=f"chunk {chunk} does not exist"):
            chunk_range(chunk, 75)


# --- sampling ---------------------------------------------------------------------------------


def test_noise_depends_on_seed_and_position_and_is_pinned() -> None:
    assert len({noise(seed, position) for seed in range(20) for position in range(20)}) == 400
    assert noise(0, 0) == 15525092667775542429


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.tile(np.array([[0.5, 0.3, 0.2]]), (6000, 1)))
    counts = Counter(sample(logits, range(6000), replaced(JOB, temperature_milli=1000)))
    assert [counts[token] / 6000 for token in range(3)] == pytest.approx([0.5, 0.3, 0.2], abs=0.02)
    colder = Counter(sample(logits, range(6000), replaced(JOB, temperature_milli=500)))
    assert colder[0] / 6000 == pytest.approx(0.25 / 0.38, abs=0.02)


def test_rows_are_drawn_independently_of_each_other() -> None:
    logits = np.random.default_rng(0).standard_normal((40, 50))
    together = sample(logits, range(40), JOB)
    assert together == [sample(logits[i : i + 1], [i], JOB)[0] for i in range(40)]
    assert together != sample(logits, range(1, 41), JOB)


def test_ties_go_to_the_lowest_token() -> None:
    logits = np.array([[1.0, 5.0, 5.0, 5.0, 0.0]])
    assert sample(logits, [0], replaced(JOB, temperature_milli=0)) == [1]
    drawn = {sample(logits, [i], replaced(JOB, top_k=2))[0] for i in range(200)}
    assert drawn == {1, 2}
    assert {sample(logits, [i], replaced(JOB, top_k=1))[0] for i in range(50)} == {1}


def test_logits_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(NumericsRefused):
        sample(np.array([[0.0, np.nan]]), [0], JOB)


# --- generation -------------------------------------------------------------------------------


class Record:
    """What an executor reported."""

    def __init__(
        self, executor: LmExecutor, job: LmInput, prefix: tuple[int, ...] = (), stop_at: int = 10**9
    ) -> None:
        self.units = list(prefix)
        self.positions: list[int] = []
        self.chunks: dict[int, bytes] = {}
        self.outcome: Outcome = executor.generate(
            job, prefix, self._on_units, self.chunks.__setitem__, lambda: len(self.units) >= stop_at
        )

    def _on_units(self, position: int, units: list[int]) -> None:
        self.positions.append(position)
        self.units += units


@pytest.mark.parametrize("profile", ["exact14", "exact21"])
def test_a_verifier_derives_the_executors_digests(tiny_model: Path, profile: str) -> None:
    executor, verifier = LmExecutor(tiny_model, profile), LmExecutor(tiny_model, profile)
    record = Record(executor, JOB)
    assert record.outcome == Outcome(75, "length")
    assert record.positions == list(range(75))
    assert list(record.chunks) == [0, 1, 2]
    assert verifier.recompute(JOB, record.units, [0, 1, 2]) == record.chunks
    # One chunk needs nothing after it.
    assert verifier.recompute(JOB, record.units[:64], [1]) == {1: record.chunks[1]}
    assert verifier.recompute(JOB, record.units, []) == {}


def test_the_digest_is_bound_to_model_profile_and_place(tiny_model: Path, tmp_path: Path) -> None:
    executor = LmExecutor(tiny_model, "exact14")
    job = replaced(JOB, temperature_milli=0, max_tokens=64)
    units = Record(executor, job).units
    digests = list(executor.recompute(job, units, [0, 1]).values())
    digests += LmExecutor(tiny_model, "exact21").recompute(job, units, [0, 1]).values()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((tiny_model / name).read_bytes())
    with (tmp_path / "tokenizer.json").open("a") as file:
        file.write(" ")
    digests += LmExecutor(tmp_path, "exact14").recompute(job, units, [0, 1]).values()
    assert len(set(digests)) == 6


def test_one_wrong_token_shows_in_its_chunk_and_in_later_ones_only(tiny_model: Path) -> None:
    executor = LmExecutor(tiny_model, "exact14")
    record = Record(executor, JOB)
    forged = list(record.units)
    forged[40] = (forged[40] + 1) % 256
    derived = executor.recompute(JOB, forged, [0, 1, 2])
    assert [derived[chunk] == record.chunks[chunk] for chunk in range(3)] == [True, False, False]


@pytest.mark.parametrize("whole_chunks", [1, 2])
def test_output_resumes_as_if_it_had_never_stopped(tiny_model: Path, whole_chunks: int) -> None:
    executor = LmExecutor(tiny_model, "exact14")
    record = Record(executor, JOB)
    kept = tuple(record.units[: whole_chunks * LM_CHUNK_UNITS])
    resumed = Record(LmExecutor(tiny_model, "exact14"), JOB, prefix=kept)
    assert resumed.units == record.units
    assert resumed.outcome == record.outcome
    assert resumed.chunks == {n: d for n, d in record.chunks.items() if n >= whole_chunks}


def test_a_run_that_is_stopped_leaves_its_chunk_open(tiny_model: Path) -> None:
    record = Record(LmExecutor(tiny_model, "exact14"), JOB, stop_at=40)
    assert record.outcome == Outcome(40, "cancelled")
    assert list(record.chunks) == [0]


def test_a_token_that_ends_the_output_is_its_last(tiny_model: Path) -> None:
    executor = LmExecutor(tiny_model, "exact14")
    units = Record(executor, JOB).units
    job = replaced(JOB, eos=(units[37],))
    first = units.index(units[37])
    record = Record(executor, job)
    assert record.units == [*units[: first + 1], END_UNIT]
    assert record.outcome == Outcome(first + 2, "stop")
    assert executor.recompute(job, record.units, record.chunks) == record.chunks


def test_what_does_not_fit_the_model_is_refused(tiny_model: Path) -> None:
    executor = LmExecutor(tiny_model, "exact14")
    for job, units, message in (
        (replaced(JOB, prompts=((256,),)), [], "token 256 of prompt 0 must be in [0, 256)"),
        (replaced(JOB, max_tokens=316), [], "need 321 positions, more than 320"),
        (JOB, [0] * 31, "prefix of 31 units must be whole chunks of 32"),
        (JOB, [300] * 32, "prefix: token 300 must be in [0, 256)"),
        (JOB, [0] * 96, "output of 96 units exceeds the 75 there can be"),
    ):
        with pytest.raises(InputRefused, match=re.escape(message)):
            Record(executor, job, prefix=tuple(units))
    with pytest.raises(InputRefused, match="chunk 1 does not exist"):
        executor.recompute(JOB, [0] * 32, [1])
    with pytest.raises(InputRefused, match="profile 'fast' must be one of"):
        LmExecutor(tiny_model, "fast")
    with pytest.raises(ModelRefused, match="model digest"):
        LmExecutor(tiny_model, "exact14", expected_digest=bytes(32))


def test_a_finished_prefix_is_not_gone_on_from(tiny_model: Path) -> None:
    job = replaced(JOB, max_tokens=64)
    executor = LmExecutor(tiny_model, "exact14")
    units = tuple(Record(executor, job).units)
    again = Record(executor, job, prefix=units)
    assert (again.positions, again.outcome) == ([], Outcome(64, "length"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_way_to_cheat_is_caught(tiny_model: Path, variant: str) -> None:
    cheat = LmExecutor(tiny_model, "exact14", variant)
    record = Record(cheat, JOB)
    assert record.outcome.units_total == 75
    derived = LmExecutor(tiny_model, "exact14").recompute(JOB, record.units, record.chunks)
    assert any(derived[chunk] != digest for chunk, digest in record.chunks.items())
    # What a cheater recomputes for others is honest.
    assert cheat.recompute(JOB, record.units, record.chunks) == derived


def test_a_false_last_token_shows_though_no_hidden_state_depends_on_it(tiny_model: Path) -> None:
    executor = LmExecutor(tiny_model, "exact14")
    record = Record(executor, JOB)
    for wrong in ((record.units[-1] + 1) % 256, 2**32 - 1):
        claimed = [*record.units[:-1], wrong]
        digests = executor.recompute(JOB, claimed, [1, 2])
        assert digests == {1: record.chunks[1], 2: FALSE_UNITS}


def test_a_token_that_does_not_exist_is_judged_and_not_refused(tiny_model: Path) -> None:
    executor = LmExecutor(tiny_model, "exact14")
    record = Record(executor, JOB)
    claimed = [2**32 - 1, *record.units[1:]]
    digests = executor.recompute(JOB, claimed, [0, 1])
    assert digests[0] == FALSE_UNITS
    assert digests[1] != record.chunks[1]


def test_spoofed_tokens_have_honest_hidden_states(tiny_model: Path) -> None:
    """The cheat is only visible because tokens are drawn again: greedy, its tokens would look right."""
    spoof = LmExecutor(tiny_model, "exact14", "spoofed-tokens")
    record = Record(spoof, JOB)
    honest = LmExecutor(tiny_model, "exact14")
    mine = [honest._digest(0, record.units[:32], states) for states in _honest_states(honest, record.units)]
    assert mine == [record.chunks[0]]


def _honest_states(executor: LmExecutor, units: list[int]) -> list[np.ndarray]:
    decoder = executor._honest
    tokens = np.array([(*JOB.prompts[0], *units[:31])])
    return [decoder.forward(tokens, decoder.new_cache(1, 36))[0, 4:]]


# --- text -------------------------------------------------------------------------------------


def test_text_survives_tokens_and_streams_whole_characters(tiny_model: Path) -> None:
    tokenizer = TextTokenizer(tiny_model)
    text = "Let there be light: é 光 \N{GRINNING FACE}!"
    units = tokenizer.encode(text)
    assert tokenizer.vocabulary == 256
    assert tokenizer.decode(units) == text
    stream = tokenizer.stream()
    pieces = [stream.feed([unit]) for unit in units]
    assert "".join(pieces) + stream.finish() == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
    assert stream.feed(tokenizer.encode("é")[:1]) == ""
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


def test_a_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    for content in (None, b"{}", b"\xff"):
        if content is not None:
            (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(ModelRefused, match=r"tokenizer\.json"):
            TextTokenizer(tmp_path)


def test_positions_are_contiguous_in_every_chunk() -> None:
    ranges = [chunk_range(chunk, 75) for chunk in range(3)]
    assert all(a.stop == b.start for a, b in pairwise(ranges))
