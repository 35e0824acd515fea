"""Whether a surface can be a thing's skin: each edge between two faces at most, and no face without area.

A path tracer renders any triangles, but a file in which three faces meet at one edge is nearly always
damaged, and light leaks where its author sees a wall. Readable without torch.
"""

from __future__ import annotations

import numpy as np

from workloads.errors import InputRefused
from workloads.render.mesh import Mesh

__all__ = ["check_sound"]


def check_sound(mesh: Mesh) -> None:
    """Refuse a mesh that isn't a manifold, borders allowed.

    Corners are the file's: things that only touch aren't one surface. Faces without area belong to none and
    are left out, as long as there are others.

    Raises:
        InputRefused: an edge has more than two faces, or no face has an area.
    """
    faces = mesh.faces.astype(np.int64)
    a, b, c = (mesh.corners[faces[:, at]].astype(np.float64) for at in range(3))
    flat = ~np.cross(b - a, c - a).any(axis=1)
    if flat.all():
        raise InputRefused(f"none of its {len(faces)} faces has an area")
    # The same triangle twice, in whatever order, is drawn once.
    distinct = np.unique(np.sort(faces[~flat], axis=1), axis=0)
    pairs = np.concatenate([distinct[:, [0, 1]], distinct[:, [1, 2]], distinct[:, [0, 2]]])
    edges, counts = np.unique(pairs, axis=0, return_counts=True)
    if counts.max() > 2:
        worst = int(counts.argmax())
        places = " to ".join(str((mesh.corners[end] / 1_000_000).tolist()) for end in edges[worst])
        raise InputRefused(f"{int(counts[worst])} faces meet at the edge from {places}, 2 at most may")
