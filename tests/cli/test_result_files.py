"""Where results are written: files and folders, names, and what is there already."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from p2p_node.cli.resultfiles import Target, refuse_existing, write_result
from p2p_node.errors import UserError


def zipped(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "media_type", "names"),
    [
        (b"hello", "text/plain", {"job.txt"}),
        (b"...", "image/png", {"job.png"}),
        (b"\x93NUMPY", "application/octet-stream", {"job.npy"}),
        (zipped("a.npy"), "application/octet-stream", {"job.npz"}),
        (bytes(8) + b"{}", "application/octet-stream", {"job.safetensors"}),
        (b"?", "application/octet-stream", {"job.bin"}),
        (
            zipped("model.safetensors", "loss.csv"),
            "application/zip",
            {"job-model.safetensors", "job-loss.csv"},
        ),
        (zipped("../evil", "loss.csv"), "application/zip", {"job.zip"}),
    ],
)
def test_files_in_a_folder_are_called_like_the_job(
    tmp_path: Path, content: bytes, media_type: str, names: set[str]
) -> None:
    folder = Target(tmp_path / "new" / "folder", is_folder=True)
    written = write_result(folder, content, job="job", media_type=media_type)
    assert {path.name for path in written} == names
    assert {path.name for path in folder.path.iterdir()} == names
    again = write_result(folder, content, job="job", media_type=media_type)
    assert not {path.name for path in again} & names
    assert len(list(folder.path.iterdir())) == 2 * len(names)


def test_what_is_there_stays_unless_force_is_given(tmp_path: Path) -> None:
    target = Target(tmp_path / "out.txt", is_folder=False)
    refuse_existing(target, force=False)
    target.path.write_text("mine")
    with pytest.raises(UserError, match="is there already: give --force"):
        refuse_existing(target, force=False)
    # It may have come while the job ran.
    assert [path.name for path in write_result(target, b"1", job="job")] == ["out-2.txt"]
    assert [path.name for path in write_result(target, b"2", job="job")] == ["out-3.txt"]
    assert target.path.read_text() == "mine"
    refuse_existing(target, force=True)
    assert write_result(target, b"new", job="job", force=True) == [target.path]
    assert target.path.read_text() == "new"
