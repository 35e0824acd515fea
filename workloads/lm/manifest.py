"""What a model is, by content: its small files, hashed, and the root over its tensors. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from blake3 import blake3

from protocols.parameters import FileHash, Manifest
from workloads.errors import ModelRefused
from workloads.tensorfile import hash_tensors

__all__ = ["SMALL_FILES", "WEIGHTS_FILE", "builtin_models", "load_manifest"]

# In the order of their names, which is the order of the digest.
SMALL_FILES = ("config.json", "tokenizer.json")
WEIGHTS_FILE = "model.safetensors"
_FILE_BYTES_MAX = 64 << 20
_MODELS = Path(__file__).resolve().parent.parent / "models"


def load_manifest(model_dir: Path, small_files: tuple[str, ...] = SMALL_FILES) -> Manifest:
    """Hash the files of a model directory.

    Args:
        model_dir: holds ``model.safetensors`` and the small files.
        small_files: their names, sorted.

    Raises:
        ModelRefused: a file is missing, too large or can't be read, or as `hash_tensors`.
    """
    files = []
    for name in small_files:
        try:
            with (model_dir / name).open("rb") as file:
                data = file.read(_FILE_BYTES_MAX + 1)
        except OSError as error:
            raise ModelRefused(f"{name} cannot be read: {error.strerror or error}") from error
        if len(data) > _FILE_BYTES_MAX:
            raise ModelRefused(f"{name} is larger than {_FILE_BYTES_MAX} bytes")
        files.append(FileHash(name, blake3(data).digest()))
    return Manifest(tuple(files), hash_tensors(model_dir / WEIGHTS_FILE))


def builtin_models() -> dict[str, Path]:
    """Names and directories of the models that ship with the package."""
    return {path.name: path for path in sorted(_MODELS.iterdir()) if (path / "config.json").is_file()}
