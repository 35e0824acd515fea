"""Text jobs as people write and read them: what a model allows, text as it comes, each prompt's result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2p_node.errors import UserError
from p2p_node.executor import ModelPlace
from p2p_node.jobspec import parse_job_spec
from p2p_node.lmtask import TextOutput, text_input, text_output
from p2p_node.packing import pack_files
from p2p_node.taskspec import LmTask
from p2p_node.yamltree import DOCUMENT_BYTES_MAX
from workloads.blobs import MemoryBlobs, blob_words
from workloads.errors import InputRefused, ModelRefused
from workloads.lm.input import END_UNIT, LmInput, encode_input
from workloads.lm.kind import LM
from workloads.lm.logprobs import Logprobs, logprobs_blob
from workloads.lm.manifest import builtin_models
from workloads.lm.tokenizer import TextTokenizer

MODEL = builtin_models()["kjv-2m"]
TOKENIZER = TextTokenizer(MODEL)


def task(**changes: Any) -> LmTask:
    return LmTask(**{"workload": "lm.generate", "model": "kjv-2m", "prompt": "In the"} | changes)


def asked(folder: Path = MODEL, **changes: Any) -> LmInput:
    return text_input(task(**changes), folder, TOKENIZER, is_whole=False)


def with_config(folder: Path, **changes: Any) -> Path:
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(MODEL / name, folder / name)
    fields = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


# --- What is asked -----------------------------------------------------------------------------


def test_every_field_reaches_the_input() -> None:
    job = asked(
        prompt="",
        prompts=("And", "Now the"),
        max_tokens=9,
        seed=4,
        temperature_milli=500,
        top_k=7,
        top_p_milli=800,
        repetition_penalty_milli=1_100,
        stop=("é\n",),
        logprobs=0,
    )
    prompts = tuple(map(TOKENIZER.encode, ("And", "Now the")))
    assert job == LmInput(prompts, 9, 4, 500, 7, (), 800, 1_100, ("é\n".encode(),), 0)
    assert asked() == LmInput((TOKENIZER.encode("In the"),), 64, 0, 1_000)


def test_a_models_own_ends_are_taken_unless_told_otherwise(tmp_path: Path) -> None:
    for given, tokens in ((7, (7,)), ([7, 9], (7, 9)), (None, ())):
        folder = with_config(tmp_path, eos_token_id=given)
        assert asked(folder).eos == tokens
        assert asked(folder, eos=False).eos == ()
    with pytest.raises(ModelRefused, match="eos_token_id must be"):
        asked(with_config(tmp_path, eos_token_id="</s>"))
    with pytest.raises(InputRefused, match="eos token=5000"):
        asked(with_config(tmp_path, eos_token_id=5_000))


def test_what_does_not_fit_the_model_is_told_before_anything_is_spent(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="more than 1024"):
        asked(prompt="In the beginning " * 300)
    with pytest.raises(InputRefused, match=r"prompt 1 of .* more than 1024"):
        asked(prompt="", prompts=("And", "In the beginning " * 300))
    with pytest.raises(ModelRefused, match="has 1024 tokens, its model 1000"):
        asked(with_config(tmp_path, vocab_size=1_000))
    for fields in ({"prompt": ""}, {"prompts": ("And",)}):
        with pytest.raises(InputRefused, match="exactly one of prompt"):
            asked(**fields)
    with pytest.raises(InputRefused, match="make up to 65600 units"):
        asked(prompt="", prompts=("And",) * 820, max_tokens=80)


# --- Prompts in a file -------------------------------------------------------------------------

SPEC = """\
apiVersion: p2p/v1
kind: Job
name: lines
task: {workload: lm.generate, model: kjv-2m, prompts_file: lines.txt, max_tokens: 8}  # of a poem
"""


def test_lines_of_a_file_are_prompts(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text('And "God" said: é\n\n  \nBehold\t\\n\n', encoding="utf-8")
    packed = pack_files(SPEC.encode(), tmp_path / "job.yaml")
    found = parse_job_spec(packed).task
    assert found == task(prompt="", prompts=('And "God" said: é', "Behold\t\\n"), max_tokens=8)
    block = SPEC.replace("{", "\n  ").replace("}", "").replace(", ", "\n  ")
    assert parse_job_spec(pack_files(block.encode(), tmp_path / "job.yaml")).task == found


def test_a_file_of_prompts_that_is_none_is_refused(tmp_path: Path) -> None:
    for content, rule in (
        (None, "can't read"),
        (b"\n \n", "holds no prompt"),
        (b"\xff\n", "must be UTF-8"),
        (b"x" * (DOCUMENT_BYTES_MAX + 1), "must have at most"),
        (b"ab\n" * (DOCUMENT_BYTES_MAX // 4), "the job has"),
    ):
        if content is not None:
            (tmp_path / "lines.txt").write_bytes(content)
        with pytest.raises(UserError, match=f"prompts_file: .*{rule}"):
            pack_files(SPEC.encode(), tmp_path / "job.yaml")
    with pytest.raises(InputRefused, match="prompts_file is read where"):
        asked(prompt="", prompts_file="lines.txt")


# --- What comes out ----------------------------------------------------------------------------


def tokens(text: str) -> list[int]:
    return list(TOKENIZER.encode(text))


def fed(output: TextOutput, units: list[int], size: int) -> str:
    return "".join(output.feed(units[start : start + size]) for start in range(0, len(units), size))


@pytest.mark.parametrize("size", [1, 3, 1_000])
def test_several_texts_are_numbered_and_cut_before_their_stop_texts(size: int) -> None:
    job = asked(prompt="", prompts=("In the", "And God", "Now"), max_tokens=40, stop=("light", "\n\n"))
    units = [*tokens(" dark there was light"), *tokens(" said\n\n"), *tokens(" the lord" * 14)[:40], END_UNIT]
    expected = "[1] In the dark there was \n\n[2] And God said\n\n[3] Now" + TOKENIZER.decode(units[-41:-1])
    assert fed(TextOutput(job, MODEL, TOKENIZER), units, size) == expected
    assert TextOutput(job, MODEL, TOKENIZER).text(units) == expected
    rows = TextOutput(job, MODEL, TOKENIZER).results(units)
    assert [(row["number"], row["prompt"], row["finish"]) for row in rows] == [
        (1, "In the", "stop"),
        (2, "And God", "stop"),
        (3, "Now", "length"),
    ]
    assert [row["text"] for row in rows[:2]] == [" dark there was ", " said"]
    assert sum(row["tokens"] for row in rows) == len(units) - 1


def test_what_may_begin_a_stop_text_is_held_back() -> None:
    output = TextOutput(asked(max_tokens=40, stop=("the end",)), MODEL, TOKENIZER)
    shown = ""
    for unit in tokens(" and the earth and the end"):
        shown += output.feed([unit])
        assert "the end" not in shown and " and the earth and the ".startswith(shown[:23])
    assert shown == " and the earth and "


def test_one_text_is_no_list() -> None:
    output = TextOutput(asked(max_tokens=40), MODEL, TOKENIZER)
    assert output.feed(tokens(" beginning")) == " beginning"
    (row,) = output.results(tokens(" beginning"))
    assert (row["number"], row["text"], row["finish"]) == (1, " beginning", None)


def test_a_part_is_numbered_as_in_the_whole() -> None:
    whole = asked(prompt="", prompts=("In the", "And God", "Now"), max_tokens=3)
    assert LM.split is not None
    part = LM.split.part(encode_input(whole), 1, 2).input
    place = ModelPlace("kjv-2m", MODEL, bytes(32))
    described = msgspec.to_builtins(task(prompt="", prompts=("In the", "And God", "Now"), max_tokens=3))
    output = text_output(described, part, {"kjv-2m": place}, {"kjv-2m": TOKENIZER})
    assert output is not None
    assert output.feed(tokens(" said")[:1] * 6).startswith("\n\n[2] And God")
    whole_output = text_output(described, None, {"kjv-2m": place}, {"kjv-2m": TOKENIZER})
    assert whole_output is not None and whole_output.feed([5]).startswith("[1] In the")
    assert text_output(described, None, {}, {}) is None
    assert text_output({"workload": "render.trace"}, None, {}, {}) is None


def test_log_probabilities_stand_beside_their_tokens() -> None:
    job = asked(prompt="", prompts=("In the", "Now"), max_tokens=15, logprobs=1)
    values = [Logprobs(index, ((index + 300, index),)) for index in range(30)]
    blobs, units = MemoryBlobs(), list[int]()
    for start in (0, 22):
        blob, data = logprobs_blob(values[start : start + 22])
        blobs.write(data)
        units += [*range(300 + start, 300 + min(start + 22, 30)), *blob_words(blob)]
    first, second = TextOutput(job, MODEL, TOKENIZER).results(units, blobs.read)
    assert [entry["token"] for entry in first["logprobs"] + second["logprobs"]] == list(range(300, 330))
    assert [entry["micronats"] for entry in second["logprobs"]] == [-index for index in range(15, 30)]
    text = TOKENIZER.decode([303])
    assert first["logprobs"][3]["top"] == [{"token": 303, "text": text, "micronats": -3}]
    assert "logprobs" not in TextOutput(job, MODEL, TOKENIZER).results(units, MemoryBlobs().read)[0]
    # What comes in whole chunks is shown so; the rest when it is over.
    shown = fed(TextOutput(job, MODEL, TOKENIZER), units, 32)
    assert shown == TextOutput(job, MODEL, TOKENIZER).text(units[:32])
