"""Which models a kind of work finds in a directory; without torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from protocols.limits import UNITS_MAX
from workloads.lm.manifest import SMALL_FILES, load_manifest
from workloads.modelconfig import has_model_type
from workloads.workload import Model

__all__ = ["model_reader"]


def model_reader(
    model_type: str, load_config: Callable[[Path], object], small_files: tuple[str, ...] = SMALL_FILES
) -> Callable[[Path], Model | None]:
    """A `Kind.read_model` for the models whose ``config.json`` says that they are of a type.

    Args:
        model_type: as ``config.json`` has it.
        load_config: reads a directory's; raises `ModelRefused` if it is broken.
        small_files: that the model's digest covers.
    """

    def read_model(model_dir: Path) -> Model | None:
        if not has_model_type(model_dir, model_type):
            return None
        load_config(model_dir)
        return Model(model_dir.name, model_dir, load_manifest(model_dir, small_files).digest, UNITS_MAX)

    return read_model
