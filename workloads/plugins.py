"""Kinds of work that other packages add, found by entry points; readable without torch.

A package names a `workloads.workload.Kind` in the group `GROUP`, and a node that has the package installed
offers it beside the built-in ones. Nodes match by the kind's name and its model's digest. `package_digest`
makes one of a version and the package's own sources, so that two nodes deal with each other only if both run
the same code: an honest node with other code would be convicted of its difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from importlib.metadata import EntryPoint, entry_points
from importlib.resources.abc import Traversable

from protocols.digest import tagged
from protocols.limits import NAME_BYTES_MAX, SEGMENT_CHUNKS_MAX, UNITS_MAX
from workloads.workload import EXACT_PROFILES, Kind

__all__ = ["GROUP", "load_plugins", "package_digest"]

GROUP = "p2p_node.workloads"

_SOURCES = (".py", ".json", ".txt", ".safetensors")


def load_plugins(
    taken: Iterable[str], found: Iterable[EntryPoint] | None = None
) -> tuple[dict[str, Kind], dict[str, str]]:
    """The kinds that installed packages add.

    Args:
        taken: names that a kind can't have.
        found: the entry points; those of the group unless given.

    Returns:
        Kinds by name, and why the others can't be used, by the entry point's name.
    """
    kinds: dict[str, Kind] = {}
    faults: dict[str, str] = {}
    for entry in entry_points(group=GROUP) if found is None else found:
        try:
            kind = entry.load()
            _check(entry.name, kind, {*taken, *kinds})
        # Whatever somebody else's module raises while it is imported must not keep the node from starting.
        except Exception as error:
            faults[entry.name] = f"{type(error).__name__}: {error}"
        else:
            kinds[kind.name] = kind
    return kinds, faults


def package_digest(name: str, version: int, package: str) -> bytes:
    """A digest for a workload without weights that is defined by a package's sources.

    Args:
        name: of the workload.
        version: raised where the same sources come to mean something else.
        package: its importable name. Python, JSON, text and safetensors files in it count.

    Raises:
        ModuleNotFoundError: there is no such package.
    """
    parts = [name.encode(), version.to_bytes(8, "little")]
    for path, file in sorted(_files(resources.files(package), "").items()):
        parts += [path.encode(), file.read_bytes()]
    return tagged("p2p-node/plugin/1", *parts)


def _files(folder: Traversable, prefix: str) -> Mapping[str, Traversable]:
    found: dict[str, Traversable] = {}
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name != "__pycache__":
            found.update(_files(entry, f"{prefix}{entry.name}/"))
        elif entry.is_file() and entry.name.endswith(_SOURCES):
            found[prefix + entry.name] = entry
    return found


def _check(name: str, kind: object, taken: set[str]) -> None:
    """Hold a kind against what nodes rely on.

    Raises:
        TypeError: it is no kind.
        ValueError: a field breaks a rule.
    """
    if not isinstance(kind, Kind):
        raise TypeError(f"must be a workloads.workload.Kind, got {type(kind).__name__}")
    if kind.name != name:
        raise ValueError(f"the kind's name {kind.name!r} must be the entry point's")
    if kind.name in taken:
        raise ValueError(f"the name {kind.name!r} is taken")
    parts = kind.name.split(".")
    if len(parts) < 2 or not all(part.isidentifier() and part.isascii() for part in parts):
        raise ValueError(f"the name {kind.name!r} must be words with dots between them")
    if len(kind.name) > NAME_BYTES_MAX:
        raise ValueError(f"the name {kind.name!r} must have at most {NAME_BYTES_MAX} characters")
    if not kind.profiles or kind.profiles[0] not in EXACT_PROFILES:
        raise ValueError(f"profiles {kind.profiles} must begin with one of {EXACT_PROFILES}")
    if not 1 <= kind.chunk_units <= UNITS_MAX or not 1 <= kind.segment_chunks <= SEGMENT_CHUNKS_MAX:
        raise ValueError(f"chunks of {kind.chunk_units} units, {kind.segment_chunks} in a segment, can't be")
    if kind.plan is None:
        raise ValueError("plan must say what a job file's fields ask for")
    if kind.present is None:
        raise ValueError("present must make a file of the output")
    if any(len(model.digest) != 32 for model in kind.models()):
        raise ValueError("a model's digest must have 32 bytes")
