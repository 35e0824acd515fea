"""A chunk of language-model output as a program: the decoder's bits, whatever the cut."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from protocols.codec import decode, encode
from protocols.effects import Case
from protocols.units import FALSE_UNITS
from tests.workloads.conftest import TINY, random_weights, write_model
from workloads.blobs import MemoryBlobs
from workloads.errors import InputRefused, ModelRefused
from workloads.llama.config import load_config
from workloads.lm.input import END_UNIT, LmInput, encode_input
from workloads.lm.manifest import builtin_models, load_manifest
from workloads.lm.workload import LmWorkload
from workloads.program import context, lm
from workloads.program.disputes import rebuild
from workloads.program.interpreter import infer, run
from workloads.program.program import Program, value_digest

PROMPT = (1, 2, 3, 4, 250, 17)
SAMPLED = LmInput((PROMPT,), 70, seed=2**64 - 1, temperature_milli=900, top_k=40)
GREEDY = LmInput((PROMPT,), 70, seed=0, temperature_milli=0)
UNTIED = TINY | {"tie_word_embeddings": False, "num_hidden_layers": 2, "num_key_value_heads": 3}


@dataclass(frozen=True)
class Generated:
    """A workload, a job and its output."""

    workload: LmWorkload
    job: LmInput
    units: list[int]
    digests: dict[int, bytes]

    @property
    def input(self) -> bytes:
        return encode_input(self.job)

    def last_value(self, chunk: int, units: list[int] | None = None) -> bytes:
        program, values = self.workload.chunk_program(self.input, units or self.units, chunk)
        *_, last = run(program, values)
        return bytes(last.numpy())

    def case(self, chunk: int, **changes: Any) -> Case:
        program, _ = self.workload.chunk_program(self.input, self.units, chunk)
        fields: dict[str, Any] = {
            "workload": "lm.generate",
            "model": self.workload.model,
            "profile": self.workload.profile,
            "input": self.input,
            "units": tuple(self.units),
            "chunk": chunk,
            "program": program.digest,
            "values_total": program.value_count,
            "index": 0,
            "claimed": b"",
            "values": (),
            "context": self.workload.context(self.input),
        }
        return Case(**fields | changes)


def generated(model: Path, profile: str, job: LmInput) -> Generated:
    workload = LmWorkload(model, profile, blobs=MemoryBlobs())
    units: list[int] = []
    digests: dict[int, bytes] = {}
    workload.generate(
        encode_input(job),
        (),
        lambda _, new: units.extend(new),
        digests.__setitem__,
        lambda: False,
    )
    return Generated(workload, job, units, digests)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another shape, its own head, weights in bfloat16."""
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in random_weights(UNTIED, seed=5).items()}
    return write_model(tmp_path_factory.mktemp("other"), UNTIED, weights)


@pytest.mark.parametrize("profile", ["exact14", "exact21"])
@pytest.mark.parametrize("job", [SAMPLED, GREEDY], ids=["sampled", "greedy"])
def test_a_program_ends_in_the_chunk_digest(tiny_model: Path, profile: str, job: LmInput) -> None:
    made = generated(tiny_model, profile, job)
    assert sorted(made.digests) == [0, 1, 2]
    for chunk, digest in made.digests.items():
        assert made.last_value(chunk) == digest
    # The output up to the chunk's end is enough.
    assert made.last_value(1, made.units[:64]) == made.digests[1]


@pytest.mark.parametrize("profile", ["exact14", "exact21"])
def test_the_cut_into_blocks_changes_no_bit(
    other_model: Path, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = generated(other_model, profile, SAMPLED)
    counts = set()
    for size in (1 << 12, 1 << 15, 1 << 19):
        monkeypatch.setattr(lm, "_BLOCK_BYTES", size)
        counts.add(len(made.workload.chunk_program(made.input, made.units, 2)[0].steps))
        assert [made.last_value(chunk) for chunk in range(3)] == [made.digests[i] for i in range(3)]
    assert len(counts) == 3


def test_false_tokens_end_in_false_units(tiny_model: Path) -> None:
    made = generated(tiny_model, "exact14", SAMPLED)
    for position, token in ((69, 0), (40, made.units[40] ^ 1), (64, 2**32 - 1)):
        units = list(made.units)
        units[position] = token
        recomputed = made.workload.recompute(made.input, units, range(3))
        assert FALSE_UNITS in recomputed.values()
        for chunk, digest in recomputed.items():
            assert made.last_value(chunk, units) == digest


SEVERAL = LmInput(
    ((3, 1, 4), (1,), (5, 9, 2, 6)),
    19,
    seed=11,
    temperature_milli=1_000,
    top_p_milli=900,
    repetition_milli=1_200,
)
STOPPED = msgspec.structs.replace(SEVERAL, max_tokens=60, stop=tuple(bytes([c]) for c in b"aeiouAEIOU"))
LAYOUTS = {
    "several": SEVERAL,
    "stopped": STOPPED,
    "logprobs": msgspec.structs.replace(SEVERAL, logprobs=2),
    "stopped with logprobs": msgspec.structs.replace(STOPPED, logprobs=0),
}


@pytest.mark.parametrize("job", LAYOUTS.values(), ids=LAYOUTS)
def test_programs_of_several_prompts_end_in_their_digests(tiny_model: Path, job: LmInput) -> None:
    made = generated(tiny_model, "exact14", job)
    assert len(made.digests) > 1
    for chunk, digest in made.digests.items():
        assert made.last_value(chunk) == digest
        rebuilt = rebuild(made.case(chunk))
        program, values = made.workload.chunk_program(made.input, made.units, chunk)
        assert rebuilt.program == program
        assert list(rebuilt.inputs) == [value_digest(value) for value in values]


def test_programs_of_units_that_can_not_follow_end_in_false_units(tiny_model: Path) -> None:
    made = generated(tiny_model, "exact14", STOPPED)
    logprobs = generated(tiny_model, "exact14", LAYOUTS["logprobs"])
    words = [*logprobs.units[:31], logprobs.units[31] ^ 1]
    for chosen, units, chunk in (
        (made, [*made.units[:20], END_UNIT], 0),
        (made, made.units[:-1], len(made.digests) - 1),
        (made, [*made.units, 1], len(made.digests) - 1),
        (made, [*made.units, END_UNIT], len(made.digests) - 1),
        (logprobs, words, 0),
    ):
        assert chosen.workload.recompute(chosen.input, units, [chunk]) == {chunk: FALSE_UNITS}
        assert chosen.last_value(chunk, units) == FALSE_UNITS


def test_an_end_alone_is_a_program_of_the_state_before_it(tiny_model: Path) -> None:
    free = generated(tiny_model, "exact14", LmInput((PROMPT,), 64, seed=0, temperature_milli=1_000))
    last = free.units[31]
    assert last not in free.units[:31]
    for logprobs in (-1, 1):
        made = generated(
            tiny_model, "exact14", msgspec.structs.replace(free.job, eos=(last,), logprobs=logprobs)
        )
        assert made.units[-1] == END_UNIT
        assert [made.last_value(chunk) for chunk in made.digests] == list(made.digests.values())
        if logprobs < 0:
            assert made.units == [*free.units[:32], END_UNIT]
            # Who claims that it didn't end there is wrong about the next chunk.
            assert made.last_value(1, free.units) == FALSE_UNITS


def test_a_judge_without_the_tokenizer_can_not_judge_stop_texts(tiny_model: Path) -> None:
    made = generated(tiny_model, "exact14", STOPPED)
    manifest = load_manifest(tiny_model)
    without = context.write_context(manifest, tiny_model / "config.json")
    with pytest.raises(InputRefused, match="need the model's tokenizer"):
        rebuild(made.case(0, context=without))


def test_what_an_operator_takes_stays_small() -> None:
    workload = LmWorkload(builtin_models()["kjv-2m"], "exact14")
    job = LmInput((tuple(range(450)),), 64, seed=1, temperature_milli=0)
    program, _ = workload.chunk_program(encode_input(job), [0] * 64, 1)
    specs = infer(program)
    largest = max(sum(specs[value].size_bytes for value in set(step.inputs)) for step in program.steps)
    assert largest < 1_500_000
    assert program.value_count < 512


def test_the_program_of_the_builtin_model_is_pinned() -> None:
    """Peers of other releases derive the same one, or they couldn't settle a dispute."""
    folder = builtin_models()["kjv-2m"]
    manifest = load_manifest(folder)
    assert manifest.digest.hex() == "1a717fdb5f2b7aa1bb04adf28f04124ccd9ef458a215d059bd68c9ff9abb741f"
    program = lm.build_program(
        load_config(folder),
        {parameter.name: parameter.dtype for parameter in manifest.parameters},
        model=bytes(32),
        profile="exact14",
        given=lm.ChunkJob(
            LmInput(((1,) * 150,), 64, seed=5, temperature_milli=800, top_k=40), [0] * 64, 1, None
        ),
    )
    assert program.value_count == 148
    assert program.digest.hex() == "0bb79c86db06a5892e9dfb5bddf2981cda14040af49971585c93306e27a9b9f3"


def test_programs_are_refused(tiny_model: Path) -> None:
    made = generated(tiny_model, "exact14", GREEDY)
    for units, chunk, message in (
        (made.units, 3, "chunk 3 does not exist"),
        (made.units, -1, "chunk -1 does not exist"),
        ([*made.units, 0], 0, "exceeds the 70 there can be"),
    ):
        with pytest.raises(InputRefused, match=message):
            made.workload.chunk_program(made.input, units, chunk)
    with pytest.raises(InputRefused, match="'native' has no programs"):
        rebuild(made.case(0, profile="native"))


def test_a_judge_derives_the_same_program_without_the_model(other_model: Path) -> None:
    made = generated(other_model, "exact14", SAMPLED)
    for chunk in range(3):
        program, values = made.workload.chunk_program(made.input, made.units, chunk)
        rebuilt = rebuild(made.case(chunk))
        assert rebuilt.program == program
        assert rebuilt.program.digest == program.digest
        assert list(rebuilt.inputs) == [value_digest(value) for value in values]


def programs(made: Generated, chunk: int, **changes: Any) -> Program:
    return rebuild(made.case(chunk, **changes)).program


def test_programs_differ_by_all_that_decides_them(tiny_model: Path) -> None:
    made = generated(tiny_model, "exact14", SAMPLED)
    digests = {programs(made, 0).digest, programs(made, 1).digest}
    for changes in (
        {"profile": "exact21"},
        {"input": encode_input(msgspec.structs.replace(SAMPLED, seed=3))},
        {"input": encode_input(msgspec.structs.replace(SAMPLED, top_k=41))},
        {"input": encode_input(msgspec.structs.replace(SAMPLED, prompts=(PROMPT * 2,)))},
    ):
        digests.add(programs(made, 0, **changes).digest)
    assert len(digests) == 6


def test_a_context_of_another_model_is_refused(tiny_model: Path, other_model: Path) -> None:
    made = generated(tiny_model, "exact14", GREEDY)
    opened = decode(made.workload.context(made.input), context._Context)
    stranger = LmWorkload(other_model, "exact14").context(made.input)
    swapped = msgspec.structs.replace(opened, contents=(opened.contents[0].replace(b"320", b"321"),))
    for bad in (b"", stranger, made.workload.context(made.input)[:-1], encode(swapped)):
        with pytest.raises(ModelRefused, match="context"):
            rebuild(made.case(0, context=bad))


def test_a_model_that_lacks_a_tensor_has_no_program(tmp_path: Path) -> None:
    weights = random_weights(TINY)
    del weights["model.layers.1.mlp.up_proj.weight"]
    folder = write_model(tmp_path, TINY, weights)
    manifest = load_manifest(folder)
    made = Case(
        "lm.generate", manifest.digest, "exact14", encode_input(GREEDY), (0,) * 70, 0, b"", 0, 0, b"", (),
        context.write_context(manifest, folder / "config.json"),
    )  # fmt: skip
    with pytest.raises(ModelRefused, match="up_proj"):
        rebuild(made)
