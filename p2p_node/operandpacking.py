"""Matrices in files, in the form in which a node takes them: blobs of 16-bit integers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2p_node.documents import with_task_field
from p2p_node.errors import UserError
from p2p_node.taskspec import MatmulTask, OperandSpec
from protocols.blobs import blob_name
from protocols.limits import WHOLE_UNITS_MAX
from workloads.blobs import Blobs
from workloads.linalg.input import BLOB_ENTRIES_MAX

if TYPE_CHECKING:
    import numpy as np

__all__ = ["pack_operands"]

FILE_BYTES_MAX = 1 << 30


def pack_operands(task: MatmulTask, document: bytes, folder: Path, blobs: Blobs) -> bytes:
    """A job file with the names of blobs that hold what its factors' files do.

    Args:
        task: of the job file.
        document: the job file's content.
        folder: that the names of files are relative to.
        blobs: where the factors are left.

    Raises:
        UserError: a file can't be read, or isn't such a matrix.
    """
    for name, operand, rows, columns in (
        ("left", task.left, task.rows, task.inner),
        ("right", task.right, task.inner, task.columns),
    ):
        if not isinstance(operand, OperandSpec) or not operand.file:
            continue
        path = folder / operand.file
        matrix = _checked(name, path, _read(name, path), (rows, columns), task.bits)
        blob = blobs.write(matrix.astype("<i2").tobytes())
        document = with_task_field(document, name, f'{{blob: "{blob_name(blob)}"}}')
    return document


def _read(name: str, path: Path) -> np.ndarray[Any, Any]:
    import numpy as np

    field = f"task.{name}"
    try:
        size = path.stat().st_size
        if size > FILE_BYTES_MAX:
            raise UserError(f"{field}: {path} of {size} bytes must have at most {FILE_BYTES_MAX}")
        if path.suffix == ".npy":
            # Mapped: a header that promises more than there is is found before memory is taken for it.
            mapped: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            return mapped
        if path.suffix == ".safetensors":
            from safetensors.numpy import load

            found: dict[str, np.ndarray[Any, Any]] = load(path.read_bytes())
            if len(found) != 1 and name not in found:
                held = ", ".join(sorted(found)) or "none"
                raise UserError(f"{field}: {path} must hold one tensor, or one called {name!r}; holds {held}")
            return found[name] if name in found else next(iter(found.values()))
    except OSError as error:
        raise UserError(f"{field}: can't read {path}: {error.strerror or error}") from error
    except UserError:
        raise
    except Exception as error:
        # Readers of formats raise what they please.
        raise UserError(f"{field}: {path} can't be read as {path.suffix}: {str(error)[:200]}") from error
    raise UserError(f"{field}: {path} must be called .npy or .safetensors")


def _checked(
    name: str, path: Path, matrix: np.ndarray[Any, Any], shape: tuple[int, int], bits: int
) -> np.ndarray[Any, Any]:
    field = f"task.{name}: {path}"
    if matrix.shape != shape:
        raise UserError(f"{field} has shape {list(matrix.shape)}, must have {list(shape)}")
    if matrix.dtype.kind not in "iu":
        raise UserError(f"{field} holds {matrix.dtype}, must hold integers")
    entries_max = BLOB_ENTRIES_MAX * WHOLE_UNITS_MAX // 2**16
    if matrix.size > entries_max:
        raise UserError(f"{field} has {matrix.size} entries, must have at most {entries_max}")
    largest = max(abs(int(matrix.min())), abs(int(matrix.max())))
    if largest >= 2**bits:
        raise UserError(f"{field} has an entry of magnitude {largest}, must be below 2**{bits}, task.bits")
    return matrix
