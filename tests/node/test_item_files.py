"""Texts and pictures in files: what a node gets of them, what results look like, how faults are told."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import yaml
from PIL import Image
from pyarrow import parquet
from safetensors.numpy import load

from p2p_node import batchfiles, imagefiles, itemtasks
from p2p_node.batchfiles import Item, pack_items, read_items, unpack_items
from p2p_node.documents import with_task_field
from p2p_node.errors import UserError
from p2p_node.executor import ModelPlace
from p2p_node.imagefiles import image_paths, read_image
from p2p_node.itemspec import PACKED_BYTES_MAX
from p2p_node.jobspec import JobSpecError, parse_job_spec
from p2p_node.packing import pack_files
from p2p_node.tasks import artifact, prepare
from protocols.blobs import blob_name, parse_blob_name
from tests.support.tiny_models import tiny_bert, tiny_vision
from workloads.blobs import MemoryBlobs
from workloads.embedding.input import decode_input as decode_texts
from workloads.embedding.tokens import TokenLists
from workloads.registry import open_workload
from workloads.vision.input import decode_input as decode_images

MODELS = {
    "bert": ModelPlace("bert", tiny_bert(), bytes(32), "embed.text"),
    "vision": ModelPlace("vision", tiny_vision(), bytes(32), "classify.image"),
}
ITEMS = [Item("one", "a b"), Item("two", "c é"), Item("3", "d")]
JSON_LINES = b'{"id": "one", "text": "a b"}\n\n{"id": "two", "text": "c \\u00e9"}\n{"id": 3, "text": "d"}\n'


def job(fields: str) -> bytes:
    return f"apiVersion: p2p/v1\nkind: Job\nname: n\ntask:\n{fields}".encode()


def texts_job(texts: str, more: str = "") -> bytes:
    return job(f"  workload: embed.text\n  model: bert\n  texts: {texts}\n{more}")


def images_job(images: str, more: str = "  size: 32\n") -> bytes:
    return job(f"  workload: classify.image\n  images:{images}\n  model: vision\n{more}")


class Ready:
    """A job file as a node gets it, and its input."""

    def __init__(self, document: bytes, folder: Path) -> None:
        self.blobs = MemoryBlobs()
        self.document = pack_files(document, folder / "job.yaml", self.blobs)
        self.task: Any = parse_job_spec(self.document).task
        self.prepared = prepare(self.task, MODELS, {}, blobs=self.blobs)

    def done(self) -> Any:
        place = MODELS[self.task.model]
        units: list[int] = []
        workload = open_workload(place.workload, place.path, "exact14", blobs=self.blobs)
        workload.generate(
            self.prepared.input, (), lambda _, new: units.extend(new), lambda *_: None, lambda: False
        )
        import msgspec

        # As it is kept: plain data.
        plain = json.loads(msgspec.json.encode(self.task))
        return artifact(plain, units, MODELS, self.blobs)


# --- Texts -------------------------------------------------------------------------------------------


def written(folder: Path, ending: str) -> Path:
    path = folder / f"texts{ending}"
    if ending == ".parquet":
        columns = {"id": [item.id for item in ITEMS], "text": [item.text for item in ITEMS], "n": [1, 2, 3]}
        parquet.write_table(pyarrow.table(columns), path)
    elif ending == ".jsonl":
        path.write_bytes(JSON_LINES)
    else:
        path.write_text("a b\n\nc é\r\nd")
    return path


def test_a_list_right_below_its_key_is_replaced_too() -> None:
    document = b"task:\n  images:\n  - a.jpg\n  - b.jpg\n  model: m\n"
    written = yaml.safe_load(with_task_field(document, "images", '{packed: "eA=="}'))
    assert written == {"task": {"images": {"packed": "eA=="}, "model": "m"}}


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".txt"])
def test_texts_are_read_from_files_of_three_kinds(tmp_path: Path, ending: str) -> None:
    found = read_items(written(tmp_path, ending), column="text", id_column="id")
    assert [item.text for item in found] == ["a b", "c é", "d"]
    assert [item.id for item in found] == (["0", "2", "3"] if ending == ".txt" else ["one", "two", "3"])


def test_items_are_packed_and_unpacked() -> None:
    assert unpack_items(pack_items(ITEMS)) == ITEMS
    # A separator of lines for str.splitlines and none for JSON.
    odd = [Item("x", "a\u2028b\x85c")]
    assert unpack_items(pack_items(odd)) == odd


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("a.jsonl", b"", "must not be empty"),
        ("a.jsonl", b"{", "line 1: must be JSON"),
        ("a.jsonl", b'{"text": "x"}\n[1]', "line 2: must be an object, got list"),
        ("a.jsonl", b'{"body": "x", "id": 1}', "line 1: must have text in 'text', has body, id"),
        ("a.jsonl", b'{"text": 5}', "line 1: must have text in 'text'"),
        ("a.jsonl", b'{"text": "x", "id": [1]}', "an id must be text or an integer, got list"),
        ("a.jsonl", b'{"text": "x", "id": ""}', "an id must have 1 to 256 bytes"),
        ("a.jsonl", b'{"text": "\\ud800"}', "without lone surrogates"),
        ("a.jsonl", b"[" * 100_000, "line 1: must be JSON"),
        ("a.txt", b"\xff", "line 1: must be UTF-8"),
        (
            "a.txt",
            b"ok\n" + b"x" * (batchfiles.LINE_BYTES_MAX + 1),
            "line 2: must have at most 1048576 bytes",
        ),
        ("a.parquet", b"PAR1 nonsense", "can't read .*a.parquet"),
        ("a.csv", b"a,b", "must be called .jsonl, .parquet or .txt"),
    ],
)
def test_files_of_texts_that_break_a_rule_are_named(
    tmp_path: Path, name: str, content: bytes, rule: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"(?s){name}.*{rule}" if "can't" not in rule else rule):
        read_items(tmp_path / name, column="text", id_column="id")


def test_parquet_with_the_wrong_columns_is_told_what_it_has(tmp_path: Path) -> None:
    path = written(tmp_path, ".parquet")
    with pytest.raises(UserError, match="must have a column 'body', has id, text, n"):
        read_items(path, column="body", id_column="id")
    with pytest.raises(UserError, match="column 'n' must hold text, holds int64"):
        read_items(path, column="n", id_column="id")
    parquet.write_table(pyarrow.table({"text": ["a", None]}), path)
    with pytest.raises(UserError, match="row 1: must have text in 'text'"):
        read_items(path, column="text", id_column="id")


def test_a_file_that_is_not_there_or_has_too_many_texts_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"can't read .*none\.jsonl: No such file"):
        read_items(tmp_path / "none.jsonl", column="text", id_column="id")
    monkeypatch.setattr(batchfiles, "ITEMS_MAX", 2)
    with pytest.raises(UserError, match="at most 2 texts"):
        read_items(written(tmp_path, ".txt"), column="text", id_column="id")


def test_texts_become_tokens_each_as_if_alone(tmp_path: Path) -> None:
    written(tmp_path, ".jsonl")
    ready = Ready(texts_job("texts.jsonl"), tmp_path)
    texts = decode_texts(ready.prepared.input)
    lists = TokenLists(texts.packed)
    # [CLS] a b [SEP] and so on; what the file says of cutting and filling up doesn't count.
    assert [lists[n] for n in range(3)] == [(2, 4, 5, 3), (2, 6, 8, 3), (2, 7, 3)]
    assert (texts.pooling, texts.is_normalised, ready.prepared.units_max) == ("mean", True, 10)
    assert ready.task.texts.packed == pack_items(ITEMS)


def test_long_texts_are_cut_at_what_the_model_or_the_job_takes(tmp_path: Path) -> None:
    long = " ".join("abcdefghijklmnopqrstuvwxyz")
    for more, count in (("", 20), ("  max_tokens: 5\n", 5)):
        lists = TokenLists(
            decode_texts(Ready(texts_job(f'["{long}"]', more), tmp_path).prepared.input).packed
        )
        assert len(lists[0]) == count
        assert (lists[0][0], lists[0][-1]) == (2, 3)
    with pytest.raises(UserError, match=r"task\.max_tokens: must be at most the model's 20, got 21"):
        Ready(texts_job('["a"]', "  max_tokens: 21\n"), tmp_path)


def test_many_texts_travel_as_blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(itemtasks, "INLINE_BYTES_MAX", 10)
    items = [*ITEMS[:2], Item("3", "d " * PACKED_BYTES_MAX)]
    (tmp_path / "texts.jsonl").write_bytes(pack_items(items))
    ready = Ready(texts_job("texts.jsonl", "  pooling: cls\n"), tmp_path)
    assert ready.blobs.read(parse_blob_name(ready.task.texts.blob)) == pack_items(items)
    blob = decode_texts(ready.prepared.input).blob
    assert blob is not None
    assert len(TokenLists(ready.blobs.read(blob))) == 3
    assert ready.task.pooling == "cls"
    rows = [json.loads(line) for line in ready.done().content.splitlines()]
    assert [row["id"] for row in rows] == ["one", "two", "3"]


@pytest.mark.parametrize("output", ["jsonl", "safetensors"])
def test_vectors_come_with_their_ids(tmp_path: Path, output: str) -> None:
    written(tmp_path, ".parquet")
    made = Ready(texts_job("texts.parquet", f"  output: {output}\n"), tmp_path).done()
    if output == "jsonl":
        rows = [json.loads(line) for line in made.content.splitlines()]
        ids, vectors = [row["id"] for row in rows], np.array([row["embedding"] for row in rows])
        assert made.description == "JSON lines of 3 vectors of 24 numbers"
    else:
        vectors = load(made.content)["embeddings"]
        header = json.loads(made.content[8 : 8 + int.from_bytes(made.content[:8], "little")])
        ids = json.loads(header["__metadata__"]["ids"])
    assert ids == ["one", "two", "3"]
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_numbers_in_json_are_the_very_vectors(tmp_path: Path) -> None:
    line = json.loads(Ready(texts_job('["a b c"]'), tmp_path).done().content)
    made = Ready(texts_job('["a b c"]', "  output: safetensors\n"), tmp_path).done()
    expected = load(made.content)["embeddings"][0]
    assert np.array(line["embedding"], dtype=np.float32).tobytes() == expected.tobytes()


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    fields = json.loads((tiny_bert() / "config.json").read_text()) | {"vocab_size": 30}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "tokenizer.json").write_bytes((tiny_bert() / "tokenizer.json").read_bytes())
    place = ModelPlace("bert", tmp_path, bytes(32), "embed.text")
    task = parse_job_spec(texts_job('["a"]')).task
    with pytest.raises(UserError, match=r"tokenizer\.json has 37 tokens, the model 30"):
        prepare(task, {"bert": place}, {})


@pytest.mark.parametrize(
    ("texts", "rule"),
    [
        ("[]", "at least 1 elements"),
        ("{packed: aGk=, blob: x}", "texts.blob: must name a blob"),
        ("{}", "exactly one of packed and blob"),
        ("{blob: '12:3'}", "must begin with 64 digits"),
        ("{lines: [a]}", "is not a field"),
    ],
)
def test_texts_that_break_a_rule_of_the_job_file(texts: str, rule: str) -> None:
    with pytest.raises(JobSpecError, match=rule):
        parse_job_spec(texts_job(texts))


def test_what_clients_of_the_api_pack_is_checked_too(tmp_path: Path) -> None:
    missing = blob_name(MemoryBlobs().write(b"elsewhere"))
    for texts, rule in (
        ("{packed: aGk=}", "packed texts: line 1: must be JSON"),
        (f'{{blob: "{missing}"}}', "isn't here"),
    ):
        with pytest.raises(UserError, match=rule):
            Ready(texts_job(texts), tmp_path)
    with pytest.raises(UserError, match="must be packed before a node takes it"):
        prepare(parse_job_spec(texts_job("a.txt")).task, MODELS, {})


# --- Pictures ----------------------------------------------------------------------------------------


def picture(path: Path, width: int = 40, height: int = 30, mode: str = "RGB") -> Path:
    made = np.random.default_rng(width).integers(0, 256, (height, width, 4 if mode == "RGBA" else 3))
    Image.fromarray(made.astype(np.uint8)).convert(mode).save(path)
    return path


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_pictures_of_any_colours_become_samples(tmp_path: Path, mode: str) -> None:
    path = picture(tmp_path / "a.png", mode=mode)
    assert len(read_image(path, side=16, crop_permille=1_000)) == 16 * 16 * 3


def test_the_middle_is_taken(tmp_path: Path) -> None:
    made = np.zeros((20, 60, 3), dtype=np.uint8)
    made[5:15, 25:35] = 255
    Image.fromarray(made).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", side=10, crop_permille=500) == b"\xff" * 300


def test_a_picture_is_turned_as_its_camera_was_held(tmp_path: Path) -> None:
    made = np.zeros((20, 20, 3), dtype=np.uint8)
    made[:10] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(made).save(tmp_path / "a.jpg", exif=exif, quality=100)
    samples = np.frombuffer(read_image(tmp_path / "a.jpg", side=20, crop_permille=1_000), np.uint8)
    assert samples.reshape(20, 20, 3)[15, 10].min() > 200


def bomb() -> bytes:
    """A PNG of a few bytes that claims to be 40,000 pixels wide and high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("fault", ["text", "truncated", "bomb", "gif", "missing"])
def test_pictures_that_cannot_be_read_are_named(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "a.png"
    whole = picture(tmp_path / "whole.png").read_bytes()
    if fault == "gif":
        Image.new("RGB", (4, 4)).save(path, format="GIF")
    elif fault != "missing":
        path.write_bytes({"text": b"hello", "truncated": whole[: len(whole) // 2], "bomb": bomb()}[fault])
    rule = {
        "text": "must be a PNG or JPEG",
        "gif": "must be a PNG or JPEG",
        "truncated": "can't read the picture",
        "bomb": "can't read the picture|pixels must be at most",
        "missing": "No such file",
    }[fault]
    with pytest.raises(UserError, match=rf"a\.png.*({rule})|({rule}).*a\.png"):
        read_image(path, side=8, crop_permille=1_000)


def test_a_folder_stands_for_its_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for name in ("b.png", "a.JPG", "notes.txt"):
        (folder / name).write_bytes(b"")
    assert [path.name for path in image_paths(["many", "x.png"], tmp_path)] == ["a.JPG", "b.png", "x.png"]
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none: must hold pictures"):
        image_paths(["none"], tmp_path)


@pytest.mark.parametrize("images", [" [a.png, b.png]", "\n    - a.png\n    - b.png"])
def test_pictures_are_classified_by_name(tmp_path: Path, images: str) -> None:
    for number, name in enumerate(("a.png", "b.png")):
        picture(tmp_path / name, 40 + number)
    ready = Ready(images_job(images, "  size: 32\n  top: 2\n"), tmp_path)
    job = decode_images(ready.prepared.input)
    assert (job.side, job.count, ready.prepared.units_max) == (32, 2, 20)
    rows = [json.loads(line) for line in ready.done().content.splitlines()]
    assert [row["image"] for row in rows] == ["a.png", "b.png"]
    for row in rows:
        first, second = row["classes"]
        assert first["score"] >= second["score"]
        assert first["label"] == f"class {first['class']}"


def test_pictures_of_another_size_than_the_models_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"task\.size: must be the model's 32, got 224"):
        Ready(images_job(" a.png", ""), tmp_path)


def test_too_many_pictures_for_memory_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2p_node.itempacking.IMAGES_BYTES_MAX", 3_000)
    with pytest.raises(UserError, match="1 pictures take 3072 bytes, 3000 at most"):
        Ready(images_job(" a.png"), tmp_path)


def test_blobs_are_named_and_found_by_name() -> None:
    blob = MemoryBlobs().write(b"x")
    assert parse_blob_name(blob_name(blob)) == blob
    for wrong in ("", "ab:1", f"{bytes(32).hex()}:{10**12 - 1}", f"{bytes(32).hex()}:-1"):
        with pytest.raises(ValueError, match=r"blob|digest"):
            parse_blob_name(wrong)


def test_without_what_reads_them_the_files_are_refused_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UserError, match=r"p2p-node\[parquet\]"):
        read_items(tmp_path / "a.parquet", column="text", id_column="id")
    with pytest.raises(UserError, match=r"p2p-node\[images\]"):
        imagefiles.read_image(tmp_path / "a.png", side=8, crop_permille=1_000)
