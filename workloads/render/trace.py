"""Path tracing that gives the same bits everywhere.

Every operation is one that IEEE 754 pins (+, -, x, /, comparison) or an operator of `workloads.exact`, on
float64, one at a time: no dot product or cross product of a library, whose order and fusing differ. Random
choices are a function of seed, pixel, sample and depth, so a pixel's colour doesn't depend on the tile it is
in. Source of the estimator: Kajiya, "The rendering equation", SIGGRAPH 1986; lights found by chance alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workloads import exact
from workloads.philox import philox, uniforms
from workloads.render.bvh import Tree, first_met
from workloads.render.scene import TILE, TILE_UNITS, Camera, Plane, RenderInput, Sphere, Triangle, Vector

__all__ = ["packed", "radiance", "shared_exponent"]

_FAR = 1e12
_NEAR = 1e-6
_OFF_SURFACE = 1e-5
_TINY = 1e-20
_SHARED_MAX = 65_408.0


class _Vectors(NamedTuple):
    """Three coordinates of every ray, each (rays,) float64."""

    x: Tensor
    y: Tensor
    z: Tensor

    def plus(self, other: _Vectors) -> _Vectors:
        return _Vectors(self.x + other.x, self.y + other.y, self.z + other.z)

    def minus(self, other: _Vectors) -> _Vectors:
        return _Vectors(self.x - other.x, self.y - other.y, self.z - other.z)

    def times(self, factor: Tensor) -> _Vectors:
        return _Vectors(self.x * factor, self.y * factor, self.z * factor)

    def by(self, other: _Vectors) -> _Vectors:
        return _Vectors(self.x * other.x, self.y * other.y, self.z * other.z)

    def dot(self, other: _Vectors) -> Tensor:
        return self.x * other.x + self.y * other.y + self.z * other.z

    def cross(self, other: _Vectors) -> _Vectors:
        return _Vectors(
            self.y * other.z - self.z * other.y,
            self.z * other.x - self.x * other.z,
            self.x * other.y - self.y * other.x,
        )

    def unit(self) -> _Vectors:
        """Of length 1; a vector of almost no length stays one."""
        length = exact.sqrt(self.dot(self))
        return _Vectors(*(part / length.clamp(min=_TINY) for part in self))


class _Hits(NamedTuple):
    """The nearest surface of each ray: its distance, unnormalised normal and material, -1 for none."""

    distance: Tensor
    normal: _Vectors
    material: Tensor


def radiance(job: RenderInput, tile: int, mesh: Tree | None = None) -> Tensor:
    """Light that arrives at each pixel of a tile.

    Args:
        job: the pictures; already checked.
        tile: number of the tile, row by row from the top left, frame after frame.
        mesh: the job's, if it has one.

    Returns:
        (`TILE` x `TILE`, 3) float64, row by row: the mean over the pixel's samples.
    """
    across = job.width // TILE
    frame, tile = divmod(tile, job.frame_tiles)
    rows, columns = np.divmod(np.arange(TILE_UNITS), TILE)
    x, y = columns + tile % across * TILE, rows + tile // across * TILE
    # Samples in the outer order, so that those of a pixel are added one after another.
    x, y = np.tile(x, job.samples), np.tile(y, job.samples)
    sample = np.repeat(np.arange(job.samples), TILE_UNITS)

    def chances(depth: int) -> list[Tensor]:
        counters = np.stack(
            (y * job.width + x, sample, np.full_like(x, depth), np.full_like(x, frame)), axis=1
        )
        drawn = uniforms(philox(job.seed, counters.astype(np.uint64)))
        return [torch.from_numpy(np.ascontiguousarray(column)) for column in drawn.T]

    places = torch.from_numpy(x), torch.from_numpy(y)
    origin, direction = _camera_rays(job, job.cameras[frame], *places, chances(0))
    light = _follow(job, mesh, origin, direction, chances)
    total = [torch.zeros(TILE_UNITS, dtype=torch.float64) for _ in light]
    for first in range(0, TILE_UNITS * job.samples, TILE_UNITS):
        total = [sum_ + part[first : first + TILE_UNITS] for sum_, part in zip(total, light, strict=True)]
    count = torch.tensor(float(job.samples), dtype=torch.float64)
    return torch.stack([sum_ / count for sum_ in total], dim=1)


def packed(light: Tensor) -> list[int]:
    """Radiance (pixels, 3) as 8-bit colours: red, green and blue from the lowest byte up.

    Brightness is compressed as L / (1 + L), then its root is taken, as screens expect.
    """
    levels = torch.floor(exact.sqrt(light / (light + 1.0)) * 255.0 + 0.5).to(torch.int64)
    words: list[int] = (levels[:, 0] + (levels[:, 1] << 8) + (levels[:, 2] << 16)).tolist()
    return words


def shared_exponent(light: Tensor) -> list[int]:
    """Radiance (pixels, 3) as three mantissas of 9 bits over an exponent of 5, red in the lowest bits.

    Source: the OpenGL extension EXT_texture_shared_exponent.
    """
    clamped = light.clamp(max=_SHARED_MAX)
    largest = clamped.amax(1, keepdim=True)
    exponent = torch.zeros_like(largest)
    for power in range(-15, 16):
        exponent += (largest >= 2.0**power).to(torch.float64)
    scale = torch.full_like(exponent, 2.0**24)
    for step in range(1, 32):
        scale = torch.where(exponent >= step, scale * 0.5, scale)
    # What rounds up to a mantissa of ten bits takes the next exponent.
    is_over = torch.floor(largest * scale + 0.5) >= 512.0
    scale, exponent = torch.where(is_over, scale * 0.5, scale), exponent + is_over
    mantissas = torch.floor(clamped * scale + 0.5).to(torch.int64)
    shifted = mantissas[:, 0] + (mantissas[:, 1] << 9) + (mantissas[:, 2] << 18)
    words: list[int] = (shifted + (exponent[:, 0].to(torch.int64) << 27)).tolist()
    return words


def _follow(
    job: RenderInput,
    mesh: Tree | None,
    origin: _Vectors,
    direction: _Vectors,
    chances: Callable[[int], list[Tensor]],
) -> _Vectors:
    """Light along each path."""
    albedo = (
        torch.tensor([[*material.albedo] for material in job.materials], dtype=torch.float64) / _thousand()
    )
    emission = (
        torch.tensor([[*material.emission] for material in job.materials], dtype=torch.float64) / _thousand()
    )
    mirror = torch.tensor([material.mirror for material in job.materials])
    background = _constant(job.background)
    zero = torch.zeros_like(origin.x)
    light = _Vectors(zero, zero, zero)
    share = _Vectors(zero + 1, zero + 1, zero + 1)
    for depth in range(1, job.depth + 1):
        hits = _nearest(job, mesh, origin, direction)
        is_hit = hits.material >= 0
        material = hits.material.clamp(min=0)
        seen = _Vectors(
            *(torch.where(is_hit, emission[material, axis], background[axis]) for axis in range(3))
        )
        light = light.plus(share.by(seen))
        share = _Vectors(
            *(torch.where(is_hit, part * albedo[material, axis], zero) for axis, part in enumerate(share))
        )
        normal = hits.normal.unit()
        facing = torch.where(normal.dot(direction) > 0, -1.0, 1.0).to(torch.float64)
        normal = normal.times(facing)
        scattered = _scattered(normal, chances(depth))
        reflected = direction.minus(normal.times(direction.dot(normal) * 2.0))
        is_mirror = mirror[material]
        distance = torch.where(is_hit, hits.distance, zero)
        origin = origin.plus(direction.times(distance)).plus(normal.times(zero + _OFF_SURFACE))
        direction = _Vectors(
            *(torch.where(is_mirror, r, s) for r, s in zip(reflected, scattered, strict=True))
        )
    return light


def _scattered(normal: _Vectors, chances: list[Tensor]) -> _Vectors:
    """Directions about a normal, as likely as their cosine: the normal plus a point of the unit sphere."""
    height = chances[0] * 2.0 - 1.0
    radius = exact.sqrt(1.0 - height * height)
    angle = chances[1] * (2.0 * math.pi)
    point = _Vectors(radius * exact.cos(angle), radius * exact.sin(angle), height)
    return normal.plus(point).unit()


def _camera_rays(
    job: RenderInput, camera: Camera, x: Tensor, y: Tensor, chances: list[Tensor]
) -> tuple[_Vectors, _Vectors]:
    eye, target = _constant(camera.position), _constant(camera.target)
    forward = target.minus(eye).unit()
    up = _constant((0, 1_000, 0))
    right = forward.cross(up).unit()
    upward = right.cross(forward)
    height = torch.tensor(float(job.height), dtype=torch.float64)
    across = (x + chances[0] - job.width / 2.0) / height
    down = (y + chances[1] - job.height / 2.0) / height
    ahead = torch.full_like(across, camera.focal) / _thousand()
    direction = _spread(forward, ahead).plus(_spread(right, across)).minus(_spread(upward, down))
    return _spread(eye, torch.ones_like(across)), direction.unit()


def _nearest(job: RenderInput, mesh: Tree | None, origin: _Vectors, direction: _Vectors) -> _Hits:
    nothing = torch.zeros_like(origin.x)
    best = _Hits(
        nothing + _FAR, _Vectors(nothing, nothing, nothing), torch.full_like(nothing, -1).to(torch.int64)
    )
    found = [_meet_sphere(_constant(s.centre), s.radius, origin, direction) for s in job.spheres]
    found += [_meet_plane(_constant(p.point), _constant(p.normal), origin, direction) for p in job.planes]
    found += [
        _meet_triangle(_constant(t.a), _constant(t.b), _constant(t.c), origin, direction)
        for t in job.triangles
    ]
    # One after another, so that of two at the same distance it is always the first.
    shapes: tuple[Sphere | Plane | Triangle, ...] = (*job.spheres, *job.planes, *job.triangles)
    for (distance, normal), shape in zip(found, shapes, strict=True):
        is_nearer = (distance > _NEAR) & (distance < best.distance)
        best = _Hits(
            torch.where(is_nearer, distance, best.distance),
            _Vectors(*(torch.where(is_nearer, n, b) for n, b in zip(normal, best.normal, strict=True))),
            torch.where(is_nearer, shape.material, best.material),
        )
    return best if mesh is None else _nearer_of_mesh(mesh, best, origin, direction)


def _nearer_of_mesh(mesh: Tree, best: _Hits, origin: _Vectors, direction: _Vectors) -> _Hits:
    met = first_met(mesh, torch.stack(origin, dim=1), torch.stack(direction, dim=1), _NEAR)
    is_nearer = (met.face >= 0) & (met.distance < best.distance)
    face = met.face.clamp(min=0)
    sides = (_Vectors(*side[face].unbind(1)) for side in (mesh.second, mesh.third))
    normal = next(sides).cross(next(sides))
    return _Hits(
        torch.where(is_nearer, met.distance, best.distance),
        _Vectors(*(torch.where(is_nearer, n, b) for n, b in zip(normal, best.normal, strict=True))),
        torch.where(is_nearer, mesh.materials[face], best.material),
    )


def _meet_sphere(
    centre: _Vectors, radius_milli: int, origin: _Vectors, direction: _Vectors
) -> tuple[Tensor, _Vectors]:
    radius = torch.tensor(float(radius_milli), dtype=torch.float64) / _thousand()
    between = origin.minus(centre)
    half = between.dot(direction)
    square = half * half - (between.dot(between) - radius * radius)
    root = exact.sqrt(square.clamp(min=0.0))
    entry, exit_ = -half - root, -half + root
    distance = torch.where(entry > _NEAR, entry, exit_)
    distance = torch.where(square > 0, distance, _FAR)
    return distance, between.plus(direction.times(distance))


def _meet_plane(
    point: _Vectors, normal: _Vectors, origin: _Vectors, direction: _Vectors
) -> tuple[Tensor, _Vectors]:
    slope = normal.dot(direction)
    height = normal.dot(point.minus(origin))
    is_steep = slope.abs() > _TINY
    distance = torch.where(is_steep, height / torch.where(is_steep, slope, 1.0), _FAR)
    return distance, _spread(normal, torch.ones_like(distance))


def _meet_triangle(
    a: _Vectors, b: _Vectors, c: _Vectors, origin: _Vectors, direction: _Vectors
) -> tuple[Tensor, _Vectors]:
    # Möller and Trumbore, "Fast, minimum storage ray-triangle intersection", 1997.
    first, second = b.minus(a), c.minus(a)
    sideways = direction.cross(second)
    volume = first.dot(sideways)
    is_steep = volume.abs() > _TINY
    volume = torch.where(is_steep, volume, 1.0)
    from_a = origin.minus(a)
    u = from_a.dot(sideways) / volume
    across = from_a.cross(first)
    v = direction.dot(across) / volume
    is_inside = is_steep & (u >= 0) & (v >= 0) & (u + v <= 1)
    distance = torch.where(is_inside, second.dot(across) / volume, _FAR)
    return distance, _spread(first.cross(second), torch.ones_like(distance))


def _constant(milli: Vector) -> _Vectors:
    """One vector for all rays, from thousandths."""
    return _Vectors(*(torch.tensor([float(part)], dtype=torch.float64) / _thousand() for part in milli))


def _spread(vector: _Vectors, factor: Tensor) -> _Vectors:
    return _Vectors(*(part * factor for part in vector))


def _thousand() -> Tensor:
    return torch.tensor(1000.0, dtype=torch.float64)
