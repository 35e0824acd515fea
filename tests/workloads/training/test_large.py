"""Runs whose states are blobs: what is learnt, checked and handed on, and what is refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load, save

from protocols.blobs import Blob
from protocols.units import FALSE_UNITS
from workloads.blobs import BLOB_WORDS, MemoryBlobs, blob_words
from workloads.errors import InputRefused, NumericsRefused
from workloads.llama.config import LlamaConfig
from workloads.training.input import (
    CHUNK_UNITS,
    Adapters,
    LlamaShape,
    TrainingInput,
    encode_input,
    losses,
    state_blob,
)
from workloads.training.kind import ALTERED_STEP, SKIPPED_STEP, TRAINING, run_files
from workloads.training.llama import adapter_shapes, llama_shapes
from workloads.training.run import material_of, segment_inputs
from workloads.training.states import read_state
from workloads.training.workload import TrainingRun

TEXT = (Path(__file__).parent / "genesis.txt").read_bytes()
SHAPE = LlamaShape(128, 16, 24, 2, 2, 1, 8, 16)


def job_of(**changes: object) -> TrainingInput:
    job = TrainingInput(
        classifier=None,
        llama=SHAPE,
        segments=3,
        segment_steps=4,
        batch=6,
        learning_rate_micro=20_000,
        beta1_micro=900_000,
        beta2_micro=950_000,
        weight_decay_micro=10_000,
        seed=7,
        data=TEXT,
        is_large=True,
    )
    return msgspec.structs.replace(job, **changes)


def run_of(
    job: TrainingInput, blobs: MemoryBlobs, variant: str | None = None, prefix: list[int] | None = None
) -> tuple[list[int], dict[int, bytes]]:
    units = list(prefix or [])
    digests: dict[int, bytes] = {}
    TrainingRun("exact21", variant, blobs=blobs).generate(
        encode_input(job), tuple(units), lambda _, new: units.extend(new), digests.__setitem__, lambda: False
    )
    assert len(units) == job.units_total
    return units, digests


@pytest.fixture(scope="module")
def trained() -> tuple[TrainingInput, MemoryBlobs, list[int], dict[int, bytes]]:
    blobs = MemoryBlobs()
    job = job_of()
    return job, blobs, *run_of(job, blobs)


def config_of(shape: LlamaShape) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_width,
        max_position_embeddings=shape.positions,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        tie_word_embeddings=shape.tied,
    )


def test_states_are_the_ones_that_words_would_say(
    trained: tuple[TrainingInput, MemoryBlobs, list[int], dict[int, bytes]],
) -> None:
    job, blobs, units, _ = trained
    small = msgspec.structs.replace(job, is_large=False, segments=2)
    words, _ = run_of(small, MemoryBlobs())
    expected = segment_inputs(material_of(small), words, 1)
    found = segment_inputs(material_of(job, blobs), units, 1)
    assert len(found) == len(expected)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_the_losses_of_each_segment_are_output(
    trained: tuple[TrainingInput, MemoryBlobs, list[int], dict[int, bytes]],
) -> None:
    job, blobs, units, _ = trained
    curve = losses(job, units)
    assert len(curve) == 12
    assert curve[0] > 4.7 > 4.3 > curve[-1]
    assert losses(job, units[:CHUNK_UNITS]) == curve[:4]
    said = [TRAINING.remark(encode_input(job), units[:count]) for count in (0, CHUNK_UNITS - 1, CHUNK_UNITS)]
    assert said == ["", "", f"loss {curve[3]:.4f} before step 4"]
    result = run_files(encode_input(job), units, blobs)
    with zipfile.ZipFile(io.BytesIO(result.content)) as archive:
        assert archive.namelist() == ["loss.csv", "loss.png", "model.safetensors"]
        tensors = load(archive.read("model.safetensors"))
        assert archive.read("loss.csv").splitlines()[0].startswith(b"1,4.8")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == llama_shapes(config_of(SHAPE))
    last = read_state(blobs.read(state_blob(units, 2)), llama_shapes(config_of(SHAPE)), 12)
    assert all(torch.equal(tensors[name], last[3 * place]) for place, name in enumerate(sorted(tensors)))


def test_a_verifier_needs_the_state_before_a_segment_and_no_other(
    trained: tuple[TrainingInput, MemoryBlobs, list[int], dict[int, bytes]],
) -> None:
    job, blobs, units, digests = trained
    input = encode_input(job)
    (before,) = TRAINING.chunk_blobs(input, units, 2)
    assert TRAINING.chunk_blobs(input, units, 0) == ()
    assert TRAINING.output_blobs(input, units) == tuple(state_blob(units, segment) for segment in range(3))
    fetched = MemoryBlobs(blobs.read(before))
    assert TrainingRun("exact21", blobs=fetched).recompute(input, units, [2]) == {2: digests[2]}
    with pytest.raises(InputRefused, match="isn't here"):
        TrainingRun("exact21", blobs=fetched).recompute(input, units, [1])


def test_a_run_goes_on_after_a_segment_elsewhere(
    trained: tuple[TrainingInput, MemoryBlobs, list[int], dict[int, bytes]],
) -> None:
    job, blobs, units, digests = trained
    fetched = MemoryBlobs(blobs.read(state_blob(units, 1)))
    again, found = run_of(job, fetched, prefix=units[: 2 * CHUNK_UNITS])
    assert again == units
    assert found == {2: digests[2]}


def test_another_run_goes_on_from_a_state(
    trained: tuple[TrainingInput, MemoryBlobs, list[int], dict[int, bytes]],
) -> None:
    job, blobs, units, _ = trained
    start = state_blob(units, 1)
    later = msgspec.structs.replace(job, segments=1, start=start, start_step=8)
    assert TRAINING.input_blobs(encode_input(later)) == (start,)
    assert run_of(later, blobs)[0] == units[2 * CHUNK_UNITS :]
    wrong = msgspec.structs.replace(later, start_step=7)
    with pytest.raises(InputRefused, match="no state after 7 steps"):
        run_of(wrong, blobs)


@pytest.mark.parametrize("variant", [ALTERED_STEP, SKIPPED_STEP])
def test_cheats_are_caught(variant: str) -> None:
    job, blobs = job_of(segments=2), MemoryBlobs()
    units, digests = run_of(job, blobs, variant)
    found = TrainingRun("exact21", blobs=blobs).recompute(encode_input(job), units, range(2))
    assert all(found[chunk] == FALSE_UNITS != digests[chunk] for chunk in range(2))


def test_what_is_no_state_makes_the_next_chunk_false(
    trained: tuple[TrainingInput, MemoryBlobs, list[int], dict[int, bytes]],
) -> None:
    job, blobs, units, _ = trained
    for state in (b"", b"x" * 99, blobs.read(state_blob(units, 0)), blobs.read(state_blob(units, 1))[:-4]):
        claimed = list(units)
        claimed[CHUNK_UNITS : CHUNK_UNITS + BLOB_WORDS] = blob_words(blobs.write(state))
        checked = TrainingRun("exact21", blobs=blobs).recompute(encode_input(job), claimed, [2])
        assert checked == {2: FALSE_UNITS}
    spoiled = bytearray(blobs.read(state_blob(units, 1)))
    spoiled[-4:] = b"\xff\xff\xff\x7f"
    claimed[CHUNK_UNITS : CHUNK_UNITS + BLOB_WORDS] = blob_words(blobs.write(bytes(spoiled)))
    checked = TrainingRun("exact21", blobs=blobs).recompute(encode_input(job), claimed, [2])
    assert checked == {2: FALSE_UNITS}


def base_of(dtype: torch.dtype = torch.float16) -> bytes:
    generator = torch.Generator().manual_seed(5)
    return save(
        {
            name: (torch.randn(shape, generator=generator) * 0.1 + (len(shape) == 1)).to(dtype)
            for name, shape in llama_shapes(config_of(SHAPE)).items()
        }
    )


def test_adapters_learn_beside_a_frozen_base() -> None:
    blobs = MemoryBlobs()
    base = blobs.write(base_of())
    job = job_of(base=base, adapters=Adapters(rank=4, alpha_milli=8_000), learning_rate_micro=50_000)
    units, digests = run_of(job, blobs)
    curve = losses(job, units)
    assert curve[-1] < curve[0]
    shapes = adapter_shapes(config_of(SHAPE), 4)
    assert job.parameters == sum(torch.Size(shape).numel() for shape in shapes.values())
    result = run_files(encode_input(job), units, blobs)
    with zipfile.ZipFile(io.BytesIO(result.content)) as archive:
        tensors = load(archive.read("adapter_model.safetensors"))
        assert b'"lora_alpha": 8.0' in archive.read("adapter_config.json")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
    found = TrainingRun("exact21", blobs=blobs).recompute(encode_input(job), units, [1])
    assert found == {1: digests[1]}


def test_a_base_is_trained_whole_and_from_where_it_is() -> None:
    blobs = MemoryBlobs()
    job = job_of(base=blobs.write(base_of()), segments=1, learning_rate_micro=0)
    units, _ = run_of(job, blobs)
    shapes = llama_shapes(config_of(SHAPE))
    state = read_state(blobs.read(state_blob(units, 0)), shapes, 4)
    expected = load(base_of())
    for place, name in enumerate(shapes):
        assert torch.equal(state[3 * place], expected[name].float())


def test_data_and_tokens_of_two_bytes_come_from_a_blob() -> None:
    shape = msgspec.structs.replace(SHAPE, vocabulary=700)
    tokens = torch.tensor(list(TEXT), dtype=torch.int16) * 5
    data = tokens.numpy().astype("<u2").tobytes()
    blobs = MemoryBlobs()
    inline = job_of(llama=shape, data=data, segments=1)
    named = job_of(llama=shape, data=b"", data_blob=blobs.write(data), segments=1)
    assert TRAINING.input_blobs(encode_input(named)) == (named.data_blob,)
    assert run_of(inline, blobs)[0] == run_of(named, blobs)[0]
    small = msgspec.structs.replace(shape, vocabulary=300)
    with pytest.raises(InputRefused, match="must be below 300"):
        job_of(llama=small, data=data).check()
    with pytest.raises(InputRefused, match="must be below 300"):
        run_of(msgspec.structs.replace(named, llama=small), blobs)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": b""}, "either with the input or as a blob"),
        ({"data_blob": Blob(bytes(32), 10)}, "either with the input or as a blob"),
        ({"start": Blob(bytes(32), 10)}, "start and start_step go together"),
        ({"adapters": Adapters(4, 1_000)}, "adapters need a base"),
        ({"base": Blob(bytes(32), 10), "is_large": False}, "keeps its states in blobs"),
        ({"base": Blob(bytes(32), 10), "adapters": Adapters(0, 1)}, "rank=0 must be in"),
        ({"base": Blob(b"short", 10)}, "digest"),
        (
            {"batch": 256, "segment_steps": 64, "llama": LlamaShape(128, 512, 512, 8, 8, 8, 64, 512)},
            "multiply-adds",
        ),
    ],
)
def test_inputs_that_break_a_rule(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputRefused, match=words):
        job_of(**changes).check()


def test_a_base_must_fit_its_shape() -> None:
    blobs = MemoryBlobs()
    for content, words in ((b"nothing", "no safetensors"), (save({"x": torch.ones(2)}), "must hold")):
        with pytest.raises(InputRefused, match=words):
            run_of(job_of(base=blobs.write(content)), blobs)
    spoiled = load(base_of())
    spoiled["model.norm.weight"][3] = float("nan")
    with pytest.raises(NumericsRefused):
        run_of(job_of(base=blobs.write(save(spoiled))), blobs)


def test_there_is_no_program_to_dispute() -> None:
    job, blobs = job_of(segments=1), MemoryBlobs()
    units, _ = run_of(job, blobs)
    with pytest.raises(InputRefused, match="has no programs"):
        TrainingRun("exact21", blobs=blobs).chunk_program(encode_input(job), units, 0)
