"""Triangles by the thousand, as a job carries them: corners in millionths, faces, a material for each face.

A mesh is a triangle soup: nothing that a path tracer does needs it to be closed or its faces to agree on a
side. Readable without torch.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workloads.errors import InputRefused

__all__ = ["FACES_MAX", "MICRO_MAX", "Mesh", "decode_mesh", "encode_mesh"]

FACES_MAX = 1 << 18
CORNERS_MAX = 3 * FACES_MAX
MICRO_MAX = 1_000_000_000
"""A coordinate is a thousand units from the origin at most."""
_HEAD = struct.Struct("<16sII")
_MAGIC = b"p2p-node mesh 1\n"


class Mesh(NamedTuple):
    """A mesh.

    Args:
        corners: (corners, 3) int32, in millionths.
        faces: (faces, 3) uint32, numbers of corners.
        materials: (faces,) uint16, numbers of materials.
    """

    corners: NDArray[np.int32]
    faces: NDArray[np.uint32]
    materials: NDArray[np.uint16]


def encode_mesh(mesh: Mesh) -> bytes:
    """The canonical bytes of a mesh.

    Raises:
        InputRefused: it breaks a rule of `decode_mesh`.
    """
    _check(mesh)
    return b"".join(
        (
            _HEAD.pack(_MAGIC, len(mesh.corners), len(mesh.faces)),
            mesh.corners.astype("<i4").tobytes(),
            mesh.faces.astype("<u4").tobytes(),
            mesh.materials.astype("<u2").tobytes(),
        )
    )


def decode_mesh(data: bytes) -> Mesh:
    """Read the bytes of `encode_mesh`.

    Raises:
        InputRefused: they aren't a mesh, it has too many faces or none, a face has a corner that isn't there,
            or a corner lies too far away.
    """
    if len(data) < _HEAD.size or not data.startswith(_MAGIC):
        raise InputRefused(f"mesh of {len(data)} bytes must begin with {_MAGIC!r}")
    _, corners, faces = _HEAD.unpack_from(data)
    if corners > CORNERS_MAX or faces > FACES_MAX:
        raise InputRefused(
            f"mesh of {corners} corners and {faces} faces must have {CORNERS_MAX} and {FACES_MAX} at most"
        )
    ends = np.cumsum([_HEAD.size, 12 * corners, 12 * faces, 2 * faces]).tolist()
    if len(data) != ends[-1]:
        raise InputRefused(f"mesh of {len(data)} bytes must have {ends[-1]} for its corners and faces")
    mesh = Mesh(
        np.frombuffer(data, "<i4", 3 * corners, ends[0]).reshape(-1, 3),
        np.frombuffer(data, "<u4", 3 * faces, ends[1]).reshape(-1, 3),
        np.frombuffer(data, "<u2", faces, ends[2]),
    )
    _check(mesh)
    return mesh


def _check(mesh: Mesh) -> None:
    corners, faces = len(mesh.corners), len(mesh.faces)
    if not 1 <= faces <= FACES_MAX or not 1 <= corners <= CORNERS_MAX:
        raise InputRefused(
            f"mesh of {corners} corners and {faces} faces must have 1 to {CORNERS_MAX} and 1 to {FACES_MAX}"
        )
    if int(mesh.faces.max()) >= corners:
        raise InputRefused(f"a face has corner {int(mesh.faces.max())}, there are {corners}")
    # Not by abs: the smallest integer has none.
    farthest = max(int(mesh.corners.max()), -int(mesh.corners.min()))
    if farthest > MICRO_MAX:
        raise InputRefused(f"a corner at {farthest} millionths must be at most {MICRO_MAX} away")
