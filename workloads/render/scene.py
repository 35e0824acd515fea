"""What a job of the workload ``render.trace`` asks for; readable without torch.

Lengths, colours and light are integers in thousandths: a job carries no floats, and every peer must read the
same scene.
"""

from __future__ import annotations

from collections.abc import Sequence

from protocols.blobs import Blob
from protocols.codec import Wire
from protocols.limits import UNITS_MAX, WHOLE_UNITS_MAX
from workloads.errors import InputRefused
from workloads.inputs import InputCodec, blob_rule, within

__all__ = [
    "CODEC",
    "TILE",
    "TILE_UNITS",
    "Camera",
    "Material",
    "Plane",
    "RenderInput",
    "Sphere",
    "Triangle",
    "Vector",
    "decode_input",
    "encode_input",
]

TILE = 16
"""Pixels of a tile's side; a tile is a chunk."""
TILE_UNITS = TILE * TILE
SIDE_MAX = 1_024
FRAMES_MAX = 1_024
SAMPLES_MAX = 64
DEPTH_MAX = 8
MATERIALS_MAX = 32
SHAPES_MAX = 32
RAYS_MAX = TILE_UNITS * SAMPLES_MAX * 4
"""Segments of paths in one tile, so that a tile never takes long: samples and depth trade off."""
COORDINATE_MILLI_MAX = 1_000_000
LIGHT_MILLI_MAX = 1_000_000
_SEED_MAX = 2**64 - 1

Vector = tuple[int, int, int]
"""Right, up and towards the viewer, or red, green and blue; in thousandths."""


class Material(Wire, frozen=True):
    """How a surface looks.

    Args:
        albedo: share of light that it returns, of each colour, 1000 at most.
        emission: light of its own.
        mirror: whether it reflects like a mirror rather than in all directions.
    """

    albedo: Vector
    emission: Vector = (0, 0, 0)
    mirror: bool = False


class Sphere(Wire, frozen=True):
    """A sphere, and the number of its material."""

    centre: Vector
    radius: int
    material: int


class Plane(Wire, frozen=True):
    """The plane through a point, perpendicular to a direction of any length but 0."""

    point: Vector
    normal: Vector
    material: int


class Triangle(Wire, frozen=True):
    """A triangle, seen from both sides."""

    a: Vector
    b: Vector
    c: Vector
    material: int


class Camera(Wire, frozen=True):
    """Where the picture is taken from; up is the second axis.

    Args:
        position: of the eye.
        target: what it looks at.
        focal: distance at which the picture is as high as it is far.
    """

    position: Vector
    target: Vector
    focal: int


class RenderInput(Wire, frozen=True):
    """A picture and how finely it is sampled.

    Args:
        width: pixels, a multiple of `TILE`.
        height: pixels, a multiple of `TILE`.
        samples: paths through each pixel.
        depth: surfaces that a path may touch.
        seed: fixes every random choice.
        cameras: the point of view of each frame; frames are as large as each other.
        background: light that comes from beyond all surfaces.
        materials: by number.
        spheres: of the scene.
        planes: of the scene.
        triangles: of the scene.
        mesh: more triangles, as `workloads.render.mesh` writes them; empty if there are none or it is a blob.
        mesh_blob: the same as a blob, or None.
        is_light: the words give light, with a common exponent, instead of colours for a screen.
        first_tile: of those wanted; tiles are numbered row by row from the top left, frame after frame.
        tiles: how many are wanted; 0 is all that follow.
    """

    width: int
    height: int
    samples: int
    depth: int
    seed: int
    cameras: tuple[Camera, ...]
    background: Vector
    materials: tuple[Material, ...]
    spheres: tuple[Sphere, ...] = ()
    planes: tuple[Plane, ...] = ()
    triangles: tuple[Triangle, ...] = ()
    mesh: bytes = b""
    mesh_blob: Blob | None = None
    is_light: bool = False
    first_tile: int = 0
    tiles: int = 0

    @property
    def frame_tiles(self) -> int:
        """Tiles of one frame."""
        return self.width * self.height // TILE_UNITS

    @property
    def tiles_wanted(self) -> int:
        """Tiles that are rendered."""
        return self.tiles or self.frame_tiles * len(self.cameras) - self.first_tile

    @property
    def units_total(self) -> int:
        """Output units: one for each pixel of the tiles wanted."""
        return self.tiles_wanted * TILE_UNITS

    def check(self, *, is_whole: bool = False) -> None:
        """See `workloads.inputs.JobInput`."""
        units_max = WHOLE_UNITS_MAX if is_whole else UNITS_MAX
        for name, side in (("width", self.width), ("height", self.height)):
            within(name, side, TILE, SIDE_MAX)
            if side % TILE:
                raise InputRefused(f"{name}={side} must be a multiple of {TILE}")
        if not 1 <= len(self.cameras) <= FRAMES_MAX:
            raise InputRefused(f"{len(self.cameras)} cameras must be 1 to {FRAMES_MAX}")
        in_all = self.frame_tiles * len(self.cameras)
        within("first_tile", self.first_tile, 0, in_all - 1)
        within("tiles", self.tiles, 0, in_all - self.first_tile)
        if self.units_total > units_max:
            raise InputRefused(
                f"width x height x frames = {self.units_total} pixels must be at most {units_max}"
            )
        within("samples", self.samples, 1, SAMPLES_MAX)
        within("depth", self.depth, 1, DEPTH_MAX)
        if (rays := TILE_UNITS * self.samples * self.depth) > RAYS_MAX:
            raise InputRefused(f"samples x depth needs {rays} rays in a tile, more than {RAYS_MAX}")
        within("seed", self.seed, 0, _SEED_MAX)
        for index, camera in enumerate(self.cameras):
            _check_camera(f"cameras[{index}]", camera)
        _light("background", self.background)
        if not 1 <= len(self.materials) <= MATERIALS_MAX:
            raise InputRefused(f"{len(self.materials)} materials must be 1 to {MATERIALS_MAX}")
        for index, material in enumerate(self.materials):
            _light(f"materials[{index}].emission", material.emission)
            for share in material.albedo:
                within(f"materials[{index}].albedo", share, 0, 1_000)
        self._check_shapes()

    def _check_shapes(self) -> None:
        count = len(self.spheres) + len(self.planes) + len(self.triangles)
        if self.mesh and self.mesh_blob is not None:
            raise InputRefused("mesh and mesh_blob must not both be given")
        blob_rule(self.mesh_blob)
        fewest = 0 if self.mesh or self.mesh_blob else 1
        if not fewest <= count <= SHAPES_MAX:
            raise InputRefused(f"{count} spheres, planes and triangles must be {fewest} to {SHAPES_MAX}")
        for index, sphere in enumerate(self.spheres):
            _point(f"spheres[{index}].centre", sphere.centre)
            within(f"spheres[{index}].radius", sphere.radius, 1, COORDINATE_MILLI_MAX)
        for index, plane in enumerate(self.planes):
            _point(f"planes[{index}].point", plane.point)
            _point(f"planes[{index}].normal", plane.normal)
            if plane.normal == (0, 0, 0):
                raise InputRefused(f"planes[{index}].normal must not be 0")
        for index, triangle in enumerate(self.triangles):
            for name in ("a", "b", "c"):
                _point(f"triangles[{index}].{name}", getattr(triangle, name))
        shapes: dict[str, Sequence[Sphere | Plane | Triangle]] = {
            "spheres": self.spheres,
            "planes": self.planes,
            "triangles": self.triangles,
        }
        for name, members in shapes.items():
            for index, shape in enumerate(members):
                within(f"{name}[{index}].material", shape.material, 0, len(self.materials) - 1)


CODEC = InputCodec(RenderInput)
encode_input, decode_input = CODEC.encode, CODEC.decode


def _check_camera(name: str, camera: Camera) -> None:
    _point(f"{name}.position", camera.position)
    _point(f"{name}.target", camera.target)
    within(f"{name}.focal", camera.focal, 1, COORDINATE_MILLI_MAX)
    if camera.position[::2] == camera.target[::2]:
        raise InputRefused(f"{name}.target must not lie straight above or below {name}.position")


def _point(name: str, value: Vector) -> None:
    for coordinate in value:
        within(name, coordinate, -COORDINATE_MILLI_MAX, COORDINATE_MILLI_MAX)


def _light(name: str, value: Vector) -> None:
    for channel in value:
        within(name, channel, 0, LIGHT_MILLI_MAX)
