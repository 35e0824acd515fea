"""What a training job file becomes: tokens and weights as blobs; and what is refused before it costs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from p2p_node.errors import UserError
from p2p_node.executor import builtin_places
from p2p_node.jobspec import parse_job_spec
from p2p_node.packing import pack_files
from p2p_node.tasks import prepare
from p2p_node.taskspec import ClassifierSpec, TrainingTask
from protocols.blobs import blob_name
from workloads.blobs import MemoryBlobs
from workloads.lm.tokenizer import TextTokenizer
from workloads.training.input import Nesterov, Rounds, TrainingInput, decode_input

MODELS = builtin_places()
BASE = "kjv-2m"
TEXT = "In the beginning God created the heaven and the earth. " * 8


def task_of(**changes: object) -> TrainingTask:
    task = TrainingTask(workload="training.run", base=BASE, text=TEXT, positions=16, batch=2, segment_steps=2)
    return msgspec.structs.replace(task, **changes)


def input_of(task: TrainingTask, blobs: MemoryBlobs) -> TrainingInput:
    return decode_input(prepare(task, MODELS, {}, blobs=blobs).input)


def test_a_base_becomes_weights_and_tokens() -> None:
    blobs = MemoryBlobs()
    job = input_of(task_of(lora_rank=4), blobs)
    assert job.is_large
    assert job.base is not None
    assert blobs.read(job.base) == (MODELS[BASE].path / "model.safetensors").read_bytes()
    tokens = TextTokenizer(MODELS[BASE].path).encode(TEXT)
    assert list(memoryview(job.data).cast("H")) == list(tokens)
    assert job.adapters is not None
    assert (job.adapters.rank, job.adapters.alpha_milli) == (4, 8_000)
    assert job.llama is not None
    # As config.json has them.
    assert (job.llama.hidden, job.llama.layers, job.llama.norm_epsilon_nano) == (192, 5, 1_000)


def test_scratch_takes_the_shape_and_leaves_the_weights() -> None:
    job = input_of(task_of(scratch=True), MemoryBlobs())
    assert job.base is None
    assert job.is_large
    assert job.parameters > 2_000_000


def test_small_models_keep_their_states_in_words() -> None:
    task = task_of(base="", text="", data=bytes([1, 2, 0] * 9), classifier=ClassifierSpec(widths=(2, 3, 2)))
    assert not input_of(task, MemoryBlobs()).is_large


def test_a_text_file_travels_as_a_blob(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(TEXT * 200, encoding="utf-8")
    document = (
        f"apiVersion: p2p/v1\nkind: Job\nname: x\ntask: {{workload: training.run, base: {BASE},"
        " scratch: true, text_file: book.txt, positions: 16}  # a comment\n"
    ).encode()
    blobs = MemoryBlobs()
    packed = pack_files(document, tmp_path / "job.yaml", blobs)
    task = parse_job_spec(packed, source="job.yaml").task
    assert isinstance(task, TrainingTask)
    assert task.text_blob == blob_name(blobs.write((TEXT * 200).encode()))
    # Too many tokens for the job itself.
    job = input_of(task, blobs)
    assert job.data == b""
    assert job.data_blob is not None
    assert len(blobs.read(job.data_blob)) == job.data_bytes > 2 * 2_000
    for content, words in ((b"\xff\xfe", "must be UTF-8"), (b"", "must have 1 to")):
        (tmp_path / "book.txt").write_bytes(content)
        with pytest.raises(UserError, match=words):
            pack_files(document, tmp_path / "job.yaml", blobs)
    (tmp_path / "book.txt").unlink()
    with pytest.raises(UserError, match="can't read"):
        pack_files(document, tmp_path / "job.yaml", blobs)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": "no-such"}, "'no-such' isn't a decoder known here; known: kjv-2m"),
        ({"base": "digits"}, "isn't a decoder known here"),
        ({"base": ""}, "exactly one of base, llama and classifier"),
        ({"data": b"x"}, "exactly one of text, text_file and data"),
        ({"text": ""}, "exactly one of text, text_file and data"),
        ({"text": "", "text_file": "x"}, "exactly one of text, text_file and data"),
        ({"text": "", "data": b"\xff"}, "must be text"),
        ({"scratch": True, "lora_rank": 2}, "can't be trained from scratch"),
        ({"base": "", "lora_rank": 2, "classifier": ClassifierSpec(widths=(2, 2))}, "need a base"),
        ({"positions": 2_000}, "must be at most 1024"),
        ({"positions": 1_000}, "hold no example"),
        ({"start": blob_name(MemoryBlobs().write(b"x"))}, "start and start_step go together"),
        ({"segments": 33}, "must be at most 65536 words"),
    ],
)
def test_tasks_that_break_a_rule(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        input_of(task_of(**changes), MemoryBlobs())


SHARED = "llama: {hidden: 16, inner: 24}, text: 'a text that is long enough', peers: 3"


def spec_of(task: str, rest: str = "") -> bytes:
    head = "apiVersion: p2p/v1\nkind: Job\nname: x\n"
    return f"{head}task: {{workload: training.run, {task}}}\n{rest}".encode()


def test_a_run_by_several_peers_is_in_parts_and_keeps_its_states_in_blobs() -> None:
    spec = parse_job_spec(spec_of(f"{SHARED}, rounds: 2, outer: nesterov, outer_learning_rate: 0.5"))
    assert (spec.parts, spec.auction.mode) == ("auto", "posted")
    packed = prepare(spec.task, MODELS, {}, is_whole=True, blobs=MemoryBlobs())
    job = decode_input(packed.input, is_whole=True)
    assert job.rounds == Rounds(3, 2, Nesterov(500_000, 900_000))
    assert job.is_large
    assert packed.units_max == (3 * 2 * 4 + 1) * 2_048
    assert parse_job_spec(spec_of(SHARED.replace("peers: 3", "peers: 1"))).parts is None


@pytest.mark.parametrize(
    ("task", "rest", "words"),
    [
        (SHARED, "parts: 4", "line 5: parts: must not be given together with task.peers"),
        ("text: x, rounds: 2", "", "line 4: task.rounds: needs peers more than 1"),
        (f"{SHARED}, outer_momentum: 0.5", "", "line 4: task.outer_momentum: needs outer: nesterov"),
    ],
)
def test_what_only_several_peers_have_needs_them(task: str, rest: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_job_spec(spec_of(task, rest))


def test_more_turns_than_parts_are_refused_before_anything_is_offered() -> None:
    spec = parse_job_spec(spec_of(f"{SHARED}, rounds: 22"))
    with pytest.raises(UserError, match="peers x rounds = 66 must be at most 63"):
        prepare(spec.task, MODELS, {}, is_whole=True, blobs=MemoryBlobs())
