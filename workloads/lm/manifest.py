"""What a model is, by content: the three files that decide its output, hashed. Readable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from protocols.digest import tagged
from workloads.errors import ModelRefused

__all__ = ["MODEL_FILES", "ModelFile", "ModelManifest", "builtin_models", "load_manifest"]

# In the order of their names, which is the order of the digest.
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")
_MODELS = Path(__file__).resolve().parent.parent / "models"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model: its name, size and BLAKE3-256."""

    name: str
    size_bytes: int
    blake3: bytes


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """The files of a model, sorted by name."""

    files: tuple[ModelFile, ...]

    @property
    def digest(self) -> bytes:
        """The 32 bytes by which a job names the model."""
        parts: list[bytes] = []
        for file in self.files:
            parts += (file.name.encode(), file.size_bytes.to_bytes(8, "little"), file.blake3)
        return tagged("p2p-node/model/1", *parts)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)


def load_manifest(model_dir: Path) -> ModelManifest:
    """Hash the files of a model directory.

    Raises:
        ModelRefused: a file is missing or can't be read.
    """
    files = []
    for name in MODEL_FILES:
        path = model_dir / name
        try:
            size = path.stat().st_size
            digest = blake3(max_threads=1).update_mmap(path).digest() if size else blake3().digest()
        except OSError as error:
            raise ModelRefused(f"{name} cannot be read: {error.strerror or error}") from error
        files.append(ModelFile(name, size, digest))
    return ModelManifest(tuple(files))


def builtin_models() -> dict[str, Path]:
    """Names and directories of the models that ship with the package."""
    return {path.name: path for path in sorted(_MODELS.iterdir()) if (path / "config.json").is_file()}
