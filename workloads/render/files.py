"""Meshes from the files that people have: Wavefront OBJ here, glTF and others by trimesh where installed.

The client's side: what a job carries is `workloads.render.mesh`. Readable without torch.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workloads.errors import InputRefused
from workloads.render.mesh import FACES_MAX, MICRO_MAX, Mesh

__all__ = ["Placing", "Surface", "mesh_of", "read_surfaces"]

_TRIMESH_KINDS = ("glb", "gltf", "ply", "stl")
_LINE_BYTES_MAX = 1 << 16
_MILLION = 1_000_000


class Surface(NamedTuple):
    """Triangles of one material, as a file has them.

    Args:
        corners: (corners, 3) float64.
        faces: (faces, 3) int64.
        material: its name in the file; empty if it has none.
    """

    corners: NDArray[np.float64]
    faces: NDArray[np.int64]
    material: str


class Placing(NamedTuple):
    """Where a file's content goes in the scene: scaled, then turned about the upward axis, then moved.

    Args:
        scale_milli: thousandths.
        turn_milli: thousandths of a degree, from the right axis towards the viewer's.
        position_milli: of its origin, in thousandths.
    """

    scale_milli: int = 1_000
    turn_milli: int = 0
    position_milli: tuple[int, int, int] = (0, 0, 0)


def read_surfaces(data: bytes, kind: str) -> list[Surface]:
    """The triangles in a file.

    Args:
        data: all of it.
        kind: ``obj``, or ``glb``, ``gltf``, ``ply`` or ``stl`` where trimesh is installed.

    Raises:
        InputRefused: it isn't such a file, holds no faces or too many, or trimesh is missing.
    """
    kind = kind.lower().lstrip(".")
    if kind == "obj":
        surfaces = _read_obj(data)
    elif kind in _TRIMESH_KINDS:
        surfaces = _read_by_trimesh(data, kind)
    else:
        raise InputRefused(f"mesh of kind {kind!r} must be one of obj, {', '.join(_TRIMESH_KINDS)}")
    count = sum(len(surface.faces) for surface in surfaces)
    if not 1 <= count <= FACES_MAX:
        raise InputRefused(f"mesh of {count} faces must have 1 to {FACES_MAX}")
    return surfaces


def mesh_of(parts: Sequence[tuple[Surface, Placing, int]]) -> Mesh:
    """Surfaces put into one scene.

    Args:
        parts: each with its place and the number of its material.

    Raises:
        InputRefused: there are too many faces, or a corner lies too far away or nowhere.
    """
    corners, faces, materials = [], [], []
    first = 0
    for surface, placing, material in parts:
        corners.append(_placed(surface.corners, placing))
        faces.append(surface.faces + first)
        materials.append(np.full(len(surface.faces), material, np.uint16))
        first += len(surface.corners)
    if (count := sum(map(len, faces))) > FACES_MAX:
        raise InputRefused(f"meshes of {count} faces must have at most {FACES_MAX} together")
    return Mesh(
        np.concatenate(corners).astype(np.int32),
        np.concatenate(faces).astype(np.uint32),
        np.concatenate(materials),
    )


def _placed(corners: NDArray[np.float64], placing: Placing) -> NDArray[np.float64]:
    if not np.isfinite(corners).all():
        raise InputRefused("a corner of the mesh lies nowhere: it isn't a finite number")
    angle = math.radians(placing.turn_milli / 1_000)
    cosine, sine = math.cos(angle), math.sin(angle)
    x, y, z = (corners * (placing.scale_milli / 1_000)).T
    moved = np.stack([x * cosine - z * sine, y, x * sine + z * cosine], axis=1)
    micro: NDArray[np.float64] = np.rint(moved * _MILLION) + np.array(placing.position_milli) * 1_000
    # Written so that NaN is refused too.
    if not np.all(np.abs(micro) <= MICRO_MAX):
        raise InputRefused(
            f"a corner of the mesh lies more than {MICRO_MAX // _MILLION} units away, or nowhere"
        )
    return micro


def _read_obj(data: bytes) -> list[Surface]:
    """Corners, faces of any number of sides, and materials; the rest is of no use to a path tracer."""
    corners: list[tuple[float, float, float]] = []
    faces: dict[str, list[tuple[int, int, int]]] = {}
    material = ""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputRefused(f"OBJ isn't UTF-8 at byte {error.start}") from error
    for number, line in enumerate(text.replace("\\\n", " ").splitlines(), start=1):
        if len(line) > _LINE_BYTES_MAX:
            raise InputRefused(f"OBJ line {number} is longer than {_LINE_BYTES_MAX} characters")
        word, *rest = line.split("#", 1)[0].split() or [""]
        try:
            if word == "v":
                x, y, z = map(float, rest[:3])
                corners.append((x, y, z))
            elif word == "f":
                _add_face(faces.setdefault(material, []), rest, len(corners))
            elif word == "usemtl":
                material = " ".join(rest)
        except ValueError as error:
            raise InputRefused(f"OBJ line {number}: {line.strip()[:80]!r}: {error}") from error
    table = np.array(corners, dtype=np.float64).reshape(-1, 3)
    return [Surface(table, np.array(each, dtype=np.int64), name) for name, each in faces.items()]


def _add_face(faces: list[tuple[int, int, int]], words: Sequence[str], count: int) -> None:
    """A face as a fan of triangles.

    Raises:
        ValueError: it has fewer than three corners, or one that isn't there yet.
    """
    numbers = []
    for word in words:
        number = int(word.split("/", 1)[0])
        place = number - 1 if number > 0 else count + number
        if number == 0 or not 0 <= place < count:
            raise ValueError(f"corner {number} must be one of the {count} before")
        numbers.append(place)
    if len(numbers) < 3:
        raise ValueError(f"a face of {len(numbers)} corners must have 3")
    faces += [(numbers[0], numbers[at], numbers[at + 1]) for at in range(1, len(numbers) - 1)]


def _read_by_trimesh(data: bytes, kind: str) -> list[Surface]:
    try:
        import trimesh
    except ImportError as error:
        raise InputRefused(f"{kind} files need trimesh: pip install 'p2p-node[render]'") from error
    load: Callable[..., object] = trimesh.load_scene
    try:
        scene = load(io.BytesIO(data), file_type=kind, process=False)
        meshes = [mesh for mesh in scene.dump() if hasattr(mesh, "faces")]  # type: ignore[attr-defined]
        return [
            Surface(
                np.asarray(mesh.vertices, dtype=np.float64),
                np.asarray(mesh.faces, dtype=np.int64),
                str(getattr(getattr(mesh.visual, "material", None), "name", None) or ""),
            )
            for mesh in meshes
        ]
    # It has no error of its own: what a damaged file meets inside it may be anything.
    except Exception as error:
        raise InputRefused(f"not a {kind} file: {type(error).__name__}: {str(error)[:200]}") from error
