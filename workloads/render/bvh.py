"""Which triangle of a mesh each ray meets first, by a tree of boxes.

The tree is a complete binary one: triangles are halved at the median of their middles along the longest side
of their box, over integers, so everybody builds the same. Rays go down all of its levels together: what is
left of a level are pairs of a ray and a box that it meets. Of two triangles at one distance the one with the
lower number counts, so no result depends on the order in which they were met.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workloads.render.mesh import Mesh

__all__ = ["Met", "Tree", "build_tree", "first_met"]

LEAF_FACES = 4
_MILLION = 1e6
_MARGIN = 1e-6
_TINY = 1e-20
_FAR = 1e12
# Rays are taken down the tree so many at a time: it bounds memory.
_RAYS = 4_096


class Tree(NamedTuple):
    """A mesh, ready to be met.

    Args:
        lower: one tensor a level, (boxes, 3) float64; so is ``upper``.
        upper: the other corner.
        order: (leaves, `LEAF_FACES`) int64, numbers of faces, -1 for none.
        first: (faces, 3) float64: a corner of each; the next two are the sides that begin there.
        second: see there.
        third: see there.
        materials: (faces,) int64.
    """

    lower: list[Tensor]
    upper: list[Tensor]
    order: Tensor
    first: Tensor
    second: Tensor
    third: Tensor
    materials: Tensor


class Met(NamedTuple):
    """What rays meet: each (rays,); the distance is 1e12 and the face -1 where they meet nothing."""

    distance: Tensor
    face: Tensor


def build_tree(mesh: Mesh) -> Tree:
    """The tree of a mesh."""
    corners = mesh.corners.astype(np.int64)
    triangles = corners[mesh.faces.astype(np.int64)]
    middles = triangles.sum(axis=1)
    levels = 0
    while len(triangles) > LEAF_FACES << levels:
        levels += 1
    groups: list[NDArray[np.int64]] = [np.arange(len(triangles))]
    for _ in range(levels):
        groups = [half for group in groups for half in _halves(group, middles)]
    order = np.full((len(groups), LEAF_FACES), -1, np.int64)
    for leaf, group in enumerate(groups):
        order[leaf, : len(group)] = group
    # A leaf without a triangle has a box that nothing meets.
    low = np.where(order[..., None] >= 0, triangles.min(axis=1)[order], np.iinfo(np.int32).max).min(axis=1)
    high = np.where(order[..., None] >= 0, triangles.max(axis=1)[order], np.iinfo(np.int32).min).max(axis=1)
    lower, upper = [low], [high]
    for _ in range(levels):
        lower.append(lower[-1].reshape(-1, 2, 3).min(axis=1))
        upper.append(upper[-1].reshape(-1, 2, 3).max(axis=1))
    a, b, c = (_units(triangles[:, corner]) for corner in range(3))
    return Tree(
        [_units(box) - _MARGIN for box in reversed(lower)],
        [_units(box) + _MARGIN for box in reversed(upper)],
        torch.from_numpy(order),
        a,
        b - a,
        c - a,
        torch.from_numpy(mesh.materials.astype(np.int64)),
    )


def first_met(tree: Tree, origin: Tensor, direction: Tensor, nearest: float) -> Met:
    """The first triangle along each ray.

    Args:
        tree: of the mesh.
        origin: (rays, 3) float64.
        direction: (rays, 3) float64.
        nearest: what is no further away doesn't count.
    """
    parts = [
        _first_met(tree, *each, nearest)
        for each in zip(torch.split(origin, _RAYS), torch.split(direction, _RAYS), strict=True)
    ]
    return Met(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _first_met(tree: Tree, origin: Tensor, direction: Tensor, nearest: float) -> Met:
    rays = len(origin)
    # No ray lies in a plane of boxes, or 0 x infinity would be no number.
    steep = torch.where(direction.abs() < _TINY, _TINY, direction)
    ray, box = torch.arange(rays), torch.zeros(rays, dtype=torch.int64)
    for level, (lower, upper) in enumerate(zip(tree.lower, tree.upper, strict=True)):
        if level:
            ray, box = ray.repeat_interleave(2), torch.stack((2 * box, 2 * box + 1), dim=1).view(-1)
        start, slope = origin[ray], steep[ray]
        one, other = (lower[box] - start) / slope, (upper[box] - start) / slope
        entry, leave = torch.minimum(one, other).amax(1), torch.maximum(one, other).amin(1)
        is_met = (entry <= leave) & (leave > nearest)
        ray, box = ray[is_met], box[is_met]
    face = tree.order[box]
    ray = ray[:, None].expand_as(face)[face >= 0]
    face = face[face >= 0]
    distance = _distance(tree, face, origin[ray], direction[ray], nearest)
    best = torch.full((rays,), _FAR, dtype=torch.float64)
    best.scatter_reduce_(0, ray, distance, "amin")
    is_best = (distance == best[ray]) & (distance < _FAR)
    chosen = torch.full((rays,), len(tree.first), dtype=torch.int64)
    chosen.scatter_reduce_(0, ray[is_best], face[is_best], "amin")
    return Met(best, torch.where(best < _FAR, chosen, -1))


def _distance(tree: Tree, face: Tensor, origin: Tensor, direction: Tensor, nearest: float) -> Tensor:
    # Möller and Trumbore, "Fast, minimum storage ray-triangle intersection", 1997.
    side, other = tree.second[face], tree.third[face]
    sideways = _cross(direction, other)
    volume = _dot(side, sideways)
    is_steep = volume.abs() > _TINY
    volume = torch.where(is_steep, volume, 1.0)
    from_corner = origin - tree.first[face]
    u = _dot(from_corner, sideways) / volume
    across = _cross(from_corner, side)
    v = _dot(direction, across) / volume
    distance = _dot(other, across) / volume
    is_inside = is_steep & (u >= 0) & (v >= 0) & (u + v <= 1) & (distance > nearest)
    return torch.where(is_inside, distance, _FAR)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    # Products first, then sums from the left: nothing that could be fused or reordered.
    products = a * b
    return products[:, 0] + products[:, 1] + products[:, 2]


def _cross(a: Tensor, b: Tensor) -> Tensor:
    (x, y, z), (p, q, r) = a.unbind(1), b.unbind(1)
    return torch.stack((y * r - z * q, z * p - x * r, x * q - y * p), dim=1)


def _halves(group: NDArray[np.int64], middles: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    if len(group) < 2:
        return group, group[:0]
    places = middles[group]
    axis = int((places.max(axis=0) - places.min(axis=0)).argmax())
    ordered = group[np.argsort(places[:, axis], kind="stable")]
    half = (len(ordered) + 1) // 2
    return ordered[:half], ordered[half:]


def _units(micro: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(micro.astype(np.float64)) / torch.tensor(_MILLION, dtype=torch.float64)
