"""Archives of models, as strangers make them: what is in order is added, all else is refused by its rule."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from p2p_node import modelarchive, models
from p2p_node.datadir import DataDir
from p2p_node.errors import UserError
from p2p_node.executor import builtin_places
from p2p_node.models import add_model, places_of

SAMPLER = builtin_places()["digits-8x8"]
FILES = {path.name: path.read_bytes() for path in SAMPLER.path.iterdir() if path.is_file()}


def zipped(path: Path, files: dict[str, bytes], *, links: dict[str, str] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for name, target in (links or {}).items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
    return path


def tarred(path: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> Path:
    mode = "w:gz" if path.name.endswith("gz") else "w"
    with tarfile.open(path, mode) as archive:
        for entry, content in entries:
            entry.size = entry.size or len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry


def files_of(place: DataDir) -> list[Path]:
    return [path for path in place.path.rglob("*") if path.is_file()]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataDir:
    # Trying a model takes a process and seconds; what comes out of the archive is compared here.
    monkeypatch.setattr(models, "_refuse_what_doesnt_run", lambda directory: None)
    return DataDir.open(tmp_path / "node")


@pytest.mark.parametrize("folder", ["", "digits/", "./"])
@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz"])
def test_a_model_comes_out_of_an_archive(tmp_path: Path, place: DataDir, ending: str, folder: str) -> None:
    path = tmp_path / f"ours{ending}"
    if ending == ".zip":
        zipped(path, {folder + name: content for name, content in FILES.items()})
    else:
        tarred(path, *((tarfile.TarInfo(folder + name), content) for name, content in FILES.items()))
    added = add_model(place, path, "ours")
    assert places_of([added])["ours"].digest == SAMPLER.digest
    assert {path.name for path in files_of(place)} == FILES.keys()


ZIPS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "out of it": (lambda p: zipped(p, {"../evil": b"x"}), "must be a plain name"),
    "absolute": (lambda p: zipped(p, {"/etc/evil": b"x"}), "must be a plain name"),
    "backslash": (lambda p: zipped(p, {"a\\..\\evil": b"x"}), "must be a plain name"),
    "deep": (lambda p: zipped(p, {"a/b/c": b"x"}), "must be a plain name"),
    "hidden": (lambda p: zipped(p, {".bashrc": b"x"}), "must be a plain name"),
    "link": (lambda p: zipped(p, {}, links={"model.safetensors": "/etc/passwd"}), "must be a plain file"),
    "two folders": (lambda p: zipped(p, {"a/x": b"x", "b/y": b"y"}), "must lie in one folder"),
    "same name": (lambda p: zipped(p, {"a/x": b"x", "a//x": b"y"}), "comes twice"),
    "many": (lambda p: zipped(p, {f"f{n}": b"" for n in range(65)}), "64 files at most"),
    "bomb": (lambda p: zipped(p, {"model.safetensors": bytes(20 << 20)}), "must not exceed 100 times"),
    "empty": (lambda p: zipped(p, {}), "holds no file"),
    "no zip": (lambda p: p.write_bytes(b"PK\x03\x04 no") and p, "can't be unpacked"),
    "no model": (lambda p: zipped(p, {"notes.txt": b"x"}), "is no model"),
}


@pytest.mark.parametrize("case", ZIPS)
def test_a_zip_that_isnt_a_models(tmp_path: Path, place: DataDir, case: str) -> None:
    make, rule = ZIPS[case]
    with pytest.raises(UserError, match=rule):
        add_model(place, make(tmp_path / "evil.zip"), "evil")
    assert files_of(place) == []
    assert not (tmp_path / "evil").exists()


TARS: dict[str, tuple[list[tuple[tarfile.TarInfo, bytes]], str]] = {
    "out of it": ([(tarfile.TarInfo("../evil"), b"x")], "must be a plain name"),
    "absolute": ([(tarfile.TarInfo("/etc/evil"), b"x")], "must be a plain name"),
    "symbolic link": (
        [(special("config.json", tarfile.SYMTYPE, "/etc/passwd"), b"")],
        "must be a plain file",
    ),
    "hard link": ([(special("config.json", tarfile.LNKTYPE, "../x"), b"")], "must be a plain file"),
    "device": ([(special("config.json", tarfile.CHRTYPE), b"")], "must be a plain file"),
    "pipe": ([(special("config.json", tarfile.FIFOTYPE), b"")], "must be a plain file"),
    "bomb": ([(tarfile.TarInfo("model.safetensors"), bytes(20 << 20))], "must not exceed 100 times"),
}


@pytest.mark.parametrize("case", TARS)
def test_a_tar_that_isnt_a_models(tmp_path: Path, place: DataDir, case: str) -> None:
    entries, rule = TARS[case]
    with pytest.raises(UserError, match=rule):
        add_model(place, tarred(tmp_path / "evil.tar.gz", *entries), "evil")
    assert files_of(place) == []


def test_archives_that_were_cut_off(tmp_path: Path, place: DataDir) -> None:
    whole = tarred(tmp_path / "ours.tar.gz", *((tarfile.TarInfo(name), data) for name, data in FILES.items()))
    for cut in (3, len(whole.read_bytes()) // 2):
        short = tmp_path / "short.tar.gz"
        short.write_bytes(whole.read_bytes()[:cut])
        with pytest.raises(UserError):
            add_model(place, short, "short")
    assert files_of(place) == []


def test_a_zip_that_lies_about_a_size(tmp_path: Path, place: DataDir) -> None:
    content = zipped(tmp_path / "lies.zip", {"config.json": bytes(5_000)}).read_bytes()
    lies = content.replace((5_000).to_bytes(4, "little"), (50).to_bytes(4, "little"))
    (tmp_path / "lies.zip").write_bytes(lies)
    with pytest.raises(UserError, match=r"can't be unpacked|announces 50 bytes"):
        add_model(place, tmp_path / "lies.zip", "lies")


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("graph.onnx", "a graph isn't a model but a job's program"),
        ("graph.pt2", "a graph isn't a model but a job's program"),
        ("model.safetensors", "weights alone aren't a model: config.json belongs to it"),
        ("model.gguf", "GGUF isn't read"),
        ("pytorch_model.bin", "pickles aren't read"),
        ("model.rar", "a model is a directory, or an archive of one"),
    ],
)
def test_files_that_are_no_archive(tmp_path: Path, place: DataDir, name: str, rule: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=rule):
        add_model(place, tmp_path / name, "x")


def test_a_disk_without_room_is_told_before_it_is_full(
    tmp_path: Path, place: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modelarchive, "DISK_MARGIN_BYTES", 1 << 62)
    with pytest.raises(UserError, match="that the disk has room for"):
        add_model(place, zipped(tmp_path / "ours.zip", FILES), "ours")
