"""The models that this machine has: those that ship with the package, and those in an operator's directories.

A model is a directory, and is called by the directory's name. Which kind of work it belongs to, the kinds say
themselves; a directory that looks like a model and isn't one is an error, not something to pass over.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from p2p_node.config import load_config
from p2p_node.datadir import DataDir
from p2p_node.errors import UserError
from p2p_node.executor import ModelPlace
from p2p_node.modelarchive import unpack_model
from protocols.limits import NAME_BYTES_MAX
from workloads.errors import WorkloadRefused
from workloads.registry import KINDS
from workloads.workload import Kind, Model

__all__ = [
    "Served",
    "add_model",
    "builtin_models",
    "find_models",
    "model_folders",
    "models_here",
    "models_in",
    "places_of",
    "read_model",
    "refuse_name",
    "remove_model",
    "size_bytes",
    "take_model",
]

Served = tuple[Kind, Model]
"""A model with the kind of work it is run as."""

TRIAL_S_MAX = 600
TRIAL_REFUSED = 2

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MARKS = ("config.json", "model.safetensors")
"""A directory that holds one of these is meant to be a model."""


def builtin_models() -> list[Served]:
    """The models that ship with the package, workloads without weights included."""
    return [(kind, model) for kind in KINDS.values() for model in kind.models()]


def read_model(directory: Path) -> Served | None:
    """The model that a directory is, or None if it doesn't look like one.

    Raises:
        UserError: it is broken, no kind of work runs it, or its name can't be written in a job file.
    """
    for kind in KINDS.values():
        try:
            model = kind.read_model(directory)
        except WorkloadRefused as error:
            raise UserError(f"model {directory}: {error}") from error
        if model is not None:
            if not _NAME.fullmatch(model.name) or len(model.name) > NAME_BYTES_MAX:
                raise UserError(
                    f"model {directory}: its name must be up to {NAME_BYTES_MAX} letters, digits, '.', '_' "
                    "and '-', beginning with a letter or digit"
                )
            return kind, model
    if any((directory / mark).is_file() for mark in _MARKS):
        raise UserError(f"model {directory}: must be a model of one of {', '.join(KINDS)}")
    return None


def models_in(folder: Path) -> list[Served]:
    """The model that ``folder`` is, or else the models directly under it, by name.

    Raises:
        UserError: as `read_model`; or the folder can't be read, or holds none.
    """
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    except OSError as error:
        raise UserError(f"can't read the models in {folder}: {error.strerror}") from error
    own = read_model(folder)
    found = [own] if own is not None else [m for m in map(read_model, inside) if m is not None]
    if not found:
        raise UserError(f"{folder} is no model and holds none")
    return found


def model_folders(place: DataDir, others: Sequence[str | Path]) -> list[str | Path]:
    """Where a node looks for models: what was added to its data directory, then other folders."""
    has_added = place.models.is_dir() and any(path.name[0] != "." for path in place.models.iterdir())
    return [*([place.models] if has_added else []), *others]


def models_here(datadir: Path | None, folders: Sequence[Path]) -> list[Served]:
    """What `p2p-node start` would find.

    Args:
        datadir: of the node; None for the user's default. It may be absent.
        folders: those of ``--models``, which win over the configuration's.

    Raises:
        UserError: as `find_models`, or the configuration is broken.
    """
    place = DataDir.existing(datadir)
    if place is None:
        return find_models(folders)
    config = load_config(place.config, {"models": [str(folder) for folder in folders] or None})
    return find_models(model_folders(place, config.models))


def find_models(folders: Sequence[str | Path]) -> list[Served]:
    """Every model that can be run here: the built-in ones, and those in some folders.

    Raises:
        UserError: as `models_in`, or two models have one name.
    """
    served = builtin_models()
    for folder in folders:
        served += models_in(Path(folder).expanduser().resolve())
    by_name: dict[str, Served] = {}
    for kind, model in served:
        known = by_name.setdefault(model.name, (kind, model))
        if known[1].digest != model.digest or known[0] is not kind:
            raise UserError(
                f"models {known[1].path} and {model.path} are both called {model.name!r}: rename one"
            )
    return list(by_name.values())


def places_of(served: Iterable[Served]) -> dict[str, ModelPlace]:
    """Where each model lies, by name."""
    return {model.name: ModelPlace(model.name, model.path, model.digest, kind.name) for kind, model in served}


def size_bytes(model: Model) -> int:
    """Bytes of a model's files; 0 for a workload without weights."""
    if model.path == Path():
        return 0
    return sum(path.stat().st_size for path in model.path.iterdir() if path.is_file())


def add_model(place: DataDir, source: Path, name: str) -> Served:
    """Copy a model into a node's data directory; it is there whole and checked, or not at all.

    Args:
        place: the node's.
        source: the model's directory, links in which are not followed out of it; or an archive of one.
        name: what it is to be called.

    Raises:
        UserError: it is broken, the name is taken or can't be one, or it can't be copied.
    """
    refuse_name(place, name)
    # Before gigabytes are copied.
    if source.is_dir() and read_model(source) is None:
        raise UserError(f"{source} is no model: none of {', '.join(KINDS)} reads it")
    place.models.mkdir(mode=0o700, exist_ok=True)
    # In a folder of its own, so that it is checked under its own name.
    with tempfile.TemporaryDirectory(dir=place.models, prefix=".adding-") as folder:
        copied = Path(folder) / name
        try:
            copied.mkdir()
            if not source.is_dir():
                unpack_model(source, copied)
            for path in sorted(source.iterdir()) if source.is_dir() else ():
                if path.is_file():
                    shutil.copyfile(path, copied / path.name)
        except OSError as error:
            raise UserError(f"can't copy {source}: {error.strerror or error}") from error
        return take_model(place, copied)


def refuse_name(place: DataDir, name: str) -> None:
    """Check what a new model is to be called.

    Raises:
        UserError: it can't be a name, or is taken.
    """
    if not _NAME.fullmatch(name) or len(name) > NAME_BYTES_MAX:
        raise UserError(f"name {name!r} must be letters, digits, '.', '_' and '-', {NAME_BYTES_MAX} at most")
    if (place.models / name).exists() or name in places_of(builtin_models()):
        raise UserError(f"a model called {name!r} is there already: give another --name")


def take_model(place: DataDir, directory: Path, *, digest: bytes | None = None) -> Served:
    """Check a model that lies on the data directory's disk, and make it one of the node's.

    Args:
        place: the node's.
        directory: of the model, which is moved.
        digest: what it must hash to; None takes it as it is.

    Raises:
        UserError: as `read_model`, or it is none, or another.
    """
    found = read_model(directory)
    if found is None:
        raise UserError(f"{directory.name} is no model: none of {', '.join(KINDS)} reads it")
    kind, model = found
    if digest is not None and model.digest != digest:
        raise UserError(f"model {model.name} hashes to {model.digest.hex()}, and must to {digest.hex()}")
    _refuse_what_doesnt_run(directory)
    target = place.models / model.name
    directory.rename(target)
    return kind, replace(model, path=target)


def _refuse_what_doesnt_run(directory: Path) -> None:
    """Try a model before it is taken: in a process of its own, since that takes torch.

    Raises:
        UserError: it doesn't do its kind's smallest job.
    """
    command = [sys.executable, "-I", "-m", "workloads.trial", str(directory)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=TRIAL_S_MAX, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise UserError(f"model {directory.name}: its smallest job took more than {TRIAL_S_MAX} s") from None
    if done.returncode == TRIAL_REFUSED:
        raise UserError(f"model {directory.name}: {done.stdout.decode(errors='replace').strip()[:400]}")
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise UserError(f"model {directory.name}: trying it failed: {' '.join(last)[:400]}")


def remove_model(place: DataDir, name: str) -> None:
    """Remove a model from a node's data directory.

    Raises:
        UserError: there is none of this name.
    """
    known = (
        [path.name for path in place.models.iterdir() if path.name[0] != "."] if place.models.is_dir() else []
    )
    if name not in known:
        there = f"there: {', '.join(sorted(known))}" if known else "none was added"
        raise UserError(f"no model called {name!r} was added to {place.path}; {there}")
    shutil.rmtree(place.models / name)
