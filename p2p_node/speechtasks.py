"""``speech.transcribe``: what a job file may ask for, and from a recording to an input, from units to a text.

A job file names a WAV file. It is read where the job file lies (`p2p_node.packing`); what is handed to a node
has 16 kHz samples in its place, or names them as a blob, and says where they are cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from msgspec import Struct

from p2p_node.errors import UserError
from p2p_node.itemspec import PACKED_BYTES_MAX, PATH_BYTES_MAX, blob_field
from p2p_node.yamltree import (
    Fault,
    Field,
    Reader,
    choice,
    encoded_bytes,
    identifier,
    integer,
    listing,
    mapping,
    text,
)
from protocols import limits
from protocols.blobs import parse_blob_name
from workloads.lm.tokenizer import TextTokenizer
from workloads.speech.config import load_config
from workloads.speech.input import SAMPLE_RATE_HZ, TranscribeInput, decode_input
from workloads.speech.transcript import as_json, as_subtitles, spoken
from workloads.workload import Artifact

__all__ = ["TRANSCRIBE_FIELDS", "AudioSpec", "TranscribeTask", "recording_input", "transcript_file"]

PACKED_WINDOWS_MAX = 4_096
FORMATS = ("json", "srt", "txt")


class AudioSpec(Struct, frozen=True, kw_only=True):
    """A recording: in a file, or as it was packed for a node."""

    file: str = ""
    packed: bytes = b""
    """Mono, 16 kHz, signed 16-bit little-endian."""
    blob: str = ""
    """The same, by `protocols.blobs.blob_name`."""
    ends: tuple[int, ...] = ()
    """Of each window, in samples."""


class TranscribeTask(Struct, frozen=True, kw_only=True):
    """What is said in a recording, and when."""

    workload: str
    model: str
    audio: AudioSpec
    format: str = "json"


_PACKED = mapping(
    AudioSpec,
    {
        "packed": Field("packed", encoded_bytes(bytes_max=PACKED_BYTES_MAX)),
        "blob": Field("blob", blob_field),
        "ends": Field(
            "ends",
            listing(integer(1, limits.INTEGER_MAX), length_min=1, length_max=PACKED_WINDOWS_MAX),
            required=True,
        ),
    },
)


def _audio(node: yaml.Node, path: str) -> AudioSpec:
    if isinstance(node, yaml.ScalarNode):
        return AudioSpec(file=text(bytes_max=PATH_BYTES_MAX)(node, path))
    spec = _PACKED(node, path)
    if bool(spec.packed) == bool(spec.blob):
        raise Fault(node.start_mark.line + 1, path, "must have exactly one of packed and blob")
    return spec


TRANSCRIBE_FIELDS: Reader[TranscribeTask] = mapping(
    TranscribeTask,
    {
        "workload": Field("workload", choice("speech.transcribe"), required=True),
        "model": Field("model", identifier(bytes_max=limits.NAME_BYTES_MAX), required=True),
        "audio": Field("audio", _audio, required=True),
        "format": Field("format", choice(*FORMATS)),
    },
)
"""Reads the task."""


def recording_input(task: TranscribeTask) -> TranscribeInput:
    """The recording of a task.

    Raises:
        UserError: it isn't packed.
    """
    audio = task.audio
    if audio.file:
        raise UserError(f"task.audio: the file {audio.file!r} must be packed before a node takes it")
    return TranscribeInput(audio.packed, parse_blob_name(audio.blob) if audio.blob else None, 0, audio.ends)


def transcript_file(task: TranscribeTask, input: bytes, units: Sequence[int], model_dir: Path) -> Artifact:
    """A finished job's text: as JSON with times, as subtitles, or plain.

    Raises:
        ModelRefused: the model's tokenizer can't be read.
    """
    job = decode_input(input, is_whole=True)
    tokenizer = TextTokenizer(model_dir)
    said = spoken(job, units, load_config(model_dir), tokenizer.decode)
    what = f"{len(said)} passages of {job.samples_total / SAMPLE_RATE_HZ:.0f} s of speech"
    match task.format:
        case "srt":
            return Artifact("application/x-subrip", as_subtitles(said).encode(), f"subtitles of {what}")
        case "txt":
            plain = "".join(f"{part.text}\n" for part in said)
            return Artifact("text/plain", plain.encode(), f"text of {what}")
    return Artifact("application/json", as_json(said).encode(), f"JSON of {what}")
