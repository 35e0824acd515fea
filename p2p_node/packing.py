"""Files that a job file names, put in their place before the job is handed to a node.

A node reads no files for whoever asks it: what a job file names is read where that file lies. Graphs are read
in a process of their own (`workloads.exported.read`), since that takes torch.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import yaml

from p2p_node.documents import with_task_field
from p2p_node.errors import UserError
from p2p_node.itempacking import pack_item_files
from p2p_node.itemspec import ClassifyTask, EmbedTask
from p2p_node.jobspec import parse_job_spec
from p2p_node.mediapacking import pack_meshes, pack_recording
from p2p_node.operandpacking import pack_operands
from p2p_node.programspec import ProgramSpec, ProgramTask
from p2p_node.speechtasks import TranscribeTask
from p2p_node.taskspec import LmTask, MatmulTask, RenderTask, TrainingTask
from p2p_node.trainingtask import pack_text_file
from p2p_node.yamltree import DOCUMENT_BYTES_MAX, parse
from workloads.blobs import NO_BLOBS, Blobs

__all__ = ["pack_files", "read_program"]

READING_S_MAX = 300
_REFUSED = 2


def pack_files(document: bytes, file: Path, blobs: Blobs = NO_BLOBS) -> bytes:
    """A job file with the content of what it names in place of the names.

    Args:
        document: a job file's content.
        file: where it lies; names are relative to its folder.
        blobs: where content is left that is too large for a job file.

    Raises:
        UserError: it breaks a rule, or a file that it names does.
    """
    task = parse_job_spec(document, source=str(file)).task
    if isinstance(task, EmbedTask | ClassifyTask):
        return pack_item_files(task, document, file.parent, blobs)
    if isinstance(task, TranscribeTask) and task.audio.file:
        return pack_recording(task, document, file.parent, blobs)
    if isinstance(task, RenderTask) and task.meshes.files:
        return pack_meshes(task, document, file.parent, blobs)
    if isinstance(task, LmTask) and task.prompts_file:
        return _with_prompts(document, _lines(file.parent / task.prompts_file))
    if isinstance(task, MatmulTask):
        return pack_operands(task, document, file.parent, blobs)
    if isinstance(task, TrainingTask) and task.text_file:
        return pack_text_file(task, document, file.parent, blobs)
    if not isinstance(task, ProgramTask) or task.program.packed:
        return document
    packed = base64.b64encode(_packed(task.program, file.parent, blobs)).decode()
    return with_task_field(document, "program", f'{{packed: "{packed}"}}')


def read_program(request: dict[str, Any]) -> bytes:
    """What `workloads.exported.read` answers.

    Raises:
        UserError: it refused the files, or took too long.
    """
    command = [sys.executable, "-I", "-m", "workloads.exported.read"]
    try:
        done = subprocess.run(  # noqa: S603
            command,
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=READING_S_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{request['file']} wasn't read within {READING_S_MAX} s") from None
    if done.returncode == _REFUSED:
        raise UserError(f"{request['file']}: {done.stdout.decode(errors='replace')}")
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise UserError(f"reading {request['file']} failed: {' '.join(last) or done.returncode}")
    return done.stdout


def _packed(program: ProgramSpec, folder: Path, blobs: Blobs) -> bytes:
    inputs = {
        values.name: {"file": str(folder / values.file)}
        if values.file
        else {"values": json.loads(values.numbers)}
        for values in program.inputs
    }
    answer = read_program(
        {
            "do": "pack",
            "file": str(folder / program.file),
            "inputs": inputs,
            "shapes": {shape.name: shape.sizes for shape in program.shapes},
            "format": program.output,
        }
    )
    packed, contents = msgspec.msgpack.decode(answer, type=tuple[bytes, tuple[bytes, ...]])
    for content in contents:
        blobs.write(content)
    return packed


def _lines(path: Path) -> list[str]:
    """The lines of a file that aren't empty.

    Raises:
        UserError: it can't be read, isn't UTF-8, or is larger than a job file may be.
    """
    try:
        with path.open("rb") as opened:
            content = opened.read(DOCUMENT_BYTES_MAX + 1)
    except OSError as error:
        raise UserError(f"task.prompts_file: can't read {path}: {error.strerror}") from error
    if len(content) > DOCUMENT_BYTES_MAX:
        raise UserError(f"task.prompts_file: {path} must have at most {DOCUMENT_BYTES_MAX} bytes")
    try:
        lines = [line for line in content.decode("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"task.prompts_file: {path} must be UTF-8: {error.reason}") from error
    if not lines:
        raise UserError(f"task.prompts_file: {path} holds no prompt")
    return lines


def _with_prompts(document: bytes, prompts: list[str]) -> bytes:
    content = document.decode("utf-8")
    key, value = next(
        pair for pair in _member(parse(document), "task").value if pair[0].value == "prompts_file"
    )
    # JSON is YAML too, and on one line it fits wherever a name stood.
    written = f"prompts: {json.dumps(prompts)}"
    packed = (content[: key.start_mark.index] + written + content[value.end_mark.index :]).encode()
    if len(packed) > DOCUMENT_BYTES_MAX:
        raise UserError(f"task.prompts_file: the job has {len(packed)} bytes, {DOCUMENT_BYTES_MAX} at most")
    return packed


def _member(node: yaml.Node, name: str) -> yaml.Node:
    found: yaml.Node = next(value for key, value in node.value if key.value == name)
    return found
