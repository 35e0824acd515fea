"""Meshes: the files they come from, their bytes, the tree over them, and frames, animations and light."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.workloads.render.test_render import RED, scene
from workloads.blobs import MemoryBlobs
from workloads.errors import InputRefused
from workloads.png import animation, png
from workloads.render.bvh import build_tree, first_met
from workloads.render.exr import exr
from workloads.render.files import Placing, mesh_of, read_surfaces
from workloads.render.kind import RENDER, picture
from workloads.render.mesh import FACES_MAX, Mesh, decode_mesh, encode_mesh
from workloads.render.scene import Camera, Triangle, encode_input
from workloads.render.trace import radiance, shared_exponent
from workloads.render.workload import Renderer

CUBE = b"""# a cube
mtllib cube.mtl
v -1 -1 -1
v 1 -1 -1
v 1 1 -1
v -1 1 -1
v -1 -1 1
v 1 -1 1
v 1 1 1
v -1 1 1
vn 0 0 1
usemtl side
f 1 2 3 4
f 5//1 6//1 7//1 8//1
f 1/1/1 5/2/1 8/3/1 4/4/1
f 2 6 7 3
usemtl top
f -1 -2 -6 -5
f 1 2 6 5
"""


def soup(count: int, seed: int) -> Mesh:
    drawn = np.random.default_rng(seed)
    middles = drawn.integers(-1_000_000, 1_000_000, (count, 1, 3))
    corners = middles + drawn.integers(-900_000, 900_000, (count, 3, 3))
    faces = np.arange(3 * count).reshape(-1, 3)
    return Mesh(corners.reshape(-1, 3).astype(np.int32), faces.astype(np.uint32), np.zeros(count, np.uint16))


def rays(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    origin = torch.rand((count, 3), generator=made, dtype=torch.float64) * 4 - 2
    direction = torch.rand((count, 3), generator=made, dtype=torch.float64) * 2 - 1
    direction[0] = torch.tensor([0.0, 0.0, 1.0])
    return origin, direction


@pytest.mark.parametrize("count", [1, 4, 5, 33, 200])
def test_the_tree_finds_what_asking_every_triangle_finds(count: int) -> None:
    mesh = soup(count, seed=count)
    origin, direction = rays(300, seed=count)
    tree = build_tree(mesh)
    met = first_met(tree, origin, direction, 1e-6)
    best, face = torch.full((300,), 1e12, dtype=torch.float64), torch.full((300,), -1)
    for number in range(count):
        alone = build_tree(Mesh(mesh.corners, mesh.faces[number : number + 1], mesh.materials[:1]))
        one = first_met(alone, origin, direction, 1e-6).distance
        face = torch.where(one < best, number, face)
        best = torch.minimum(one, best)
    assert torch.equal(met.distance, best) and torch.equal(met.face, face)
    assert count < 33 or int((face >= 0).sum()) > 30


def test_rays_dont_depend_on_each_other() -> None:
    tree = build_tree(soup(50, seed=2))
    origin, direction = rays(9_000, seed=3)
    whole = first_met(tree, origin, direction, 1e-6)
    some = first_met(tree, origin[4_000:4_100], direction[4_000:4_100], 1e-6)
    assert torch.equal(whole.distance[4_000:4_100], some.distance)
    assert torch.equal(whole.face[4_000:4_100], some.face)


def test_of_two_in_one_place_the_first_counts() -> None:
    one = soup(1, seed=5)
    twice = Mesh(np.tile(one.corners, (9, 1)), np.tile(one.faces, (9, 1)), np.arange(9, dtype=np.uint16))
    middle = torch.from_numpy(one.corners.mean(axis=0, keepdims=True)) / 1e6
    met = first_met(
        build_tree(twice), middle - torch.tensor([[0.0, 0, 3]]), torch.tensor([[0.0, 0, 1]]).double(), 0
    )
    assert met.face.tolist() in ([0], [-1])


def test_a_mesh_looks_like_the_same_triangles_one_by_one() -> None:
    corners = ((-900, -700, 0), (800, -900, -200), (100, 950, 300))
    alone = scene(samples=4, background=(1_000, 500, 250), triangles=(Triangle(*corners, 0),))
    mesh = Mesh(np.array(corners, np.int32) * 1_000, np.array([[0, 1, 2]], np.uint32), np.zeros(1, np.uint16))
    meshed = replace(alone, triangles=(), mesh=encode_mesh(mesh))
    assert torch.equal(radiance(alone, 0), radiance(meshed, 0, build_tree(mesh)))


def test_tiles_of_a_mesh_are_committed_to_and_checked() -> None:
    surfaces = read_surfaces(CUBE, "obj")
    assert [(surface.material, len(surface.faces)) for surface in surfaces] == [("side", 8), ("top", 4)]
    placing = Placing(scale_milli=500, turn_milli=30_000)
    mesh = mesh_of([(surface, placing, number) for number, surface in enumerate(surfaces)])
    blobs = MemoryBlobs()
    job = scene(
        width=32,
        background=(500,) * 3,
        cameras=(Camera((1_000, 2_000, 4_000), (0, 0, 0), 1_000),),
        mesh_blob=blobs.write(encode_mesh(mesh)),
    )
    renderer = Renderer("exact14", blobs=blobs)
    digests: dict[int, bytes] = {}
    units: list[int] = []
    renderer.generate(
        encode_input(job), (), lambda _, new: units.extend(new), digests.__setitem__, lambda: False
    )
    assert len(set(units)) == 3
    inline = replace(job, mesh_blob=None, mesh=encode_mesh(mesh))
    assert Renderer("exact14").recompute(encode_input(inline), units, (0, 1)) == digests
    assert RENDER.input_blobs(encode_input(job)) == (job.mesh_blob,)
    with pytest.raises(InputRefused, match="a face has material 1, there are 1"):
        renderer.recompute(encode_input(replace(job, materials=(RED,))), units, (0,))


def test_placing_scales_then_turns_then_moves() -> None:
    (surface,) = read_surfaces(b"v 1 2 0\nv 0 0 1\nv 0 0 0\nf 1 2 3\n", "obj")
    mesh = mesh_of([(surface, Placing(2_000, 90_000, (10_000, 0, -1_000)), 0)])
    assert mesh.corners.tolist() == [
        [10_000_000, 4_000_000, 1_000_000],
        [8_000_000, 0, -1_000_000],
        [10_000_000, 0, -1_000_000],
    ]


def test_other_files_come_by_trimesh() -> None:
    trimesh = pytest.importorskip("trimesh")
    box = trimesh.creation.box()
    box.visual = trimesh.visual.TextureVisuals(material=trimesh.visual.material.PBRMaterial(name="gold"))
    (surface,) = read_surfaces(trimesh.Scene(box).export(file_type="glb"), "glb")
    assert surface.material == "gold" and len(surface.faces) == 12
    (plain,) = read_surfaces(box.export(file_type="stl"), ".STL")
    assert plain.material == "" and len(plain.faces) == 12
    with pytest.raises(InputRefused, match="not a glb file"):
        read_surfaces(b"glTF\x02\x00\x00\x00junk", "glb")


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"", "mesh of 0 faces"),
        (b"v 0 0 0\nf 1 1 2\n", "OBJ line 2: 'f 1 1 2': corner 2 must be one of the 1 before"),
        (b"v 0 0\n", "OBJ line 1"),
        (b"v 0 0 x\n", "OBJ line 1: 'v 0 0 x': could not convert"),
        (b"v 0 0 0\nf 1 1\n", "a face of 2 corners must have 3"),
        (b"v 0 0 0\nf 0 1 1\n", "corner 0"),
        (b"\xff\xfe", "isn't UTF-8 at byte 0"),
        (b"v 0 0 0 " + b"0" * 70_000, "line 1 is longer"),
    ],
)
def test_files_that_are_no_mesh(data: bytes, rule: str) -> None:
    with pytest.raises(InputRefused, match=rule):
        read_surfaces(data, "obj")


@pytest.mark.parametrize("far", [b"1001", b"nan", b"inf", b"1e300"])
def test_corners_that_lie_nowhere(far: bytes) -> None:
    surfaces = read_surfaces(b"v 0 0 " + far + b"\nf 1 1 1\n", "obj")
    with pytest.raises(InputRefused, match=r"more than 1000 units away|lies nowhere"):
        mesh_of([(surface, Placing(), 0) for surface in surfaces])


def test_an_unknown_kind_of_file() -> None:
    with pytest.raises(InputRefused, match="kind 'fbx' must be one of obj, glb"):
        read_surfaces(b"", "fbx")


def _head(corners: int, faces: int) -> bytes:
    return struct.pack("<16sII", b"p2p-node mesh 1\n", corners, faces)


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"p2p-node mesh 1\n", "must begin with"),
        (b"x" * 40, "must begin with"),
        (_head(0, 0), "0 corners and 0 faces"),
        (_head(2**32 - 1, FACES_MAX), "at most"),
        (_head(3, FACES_MAX + 1), "at most"),
        (_head(3, 1) + bytes(49), "must have 74"),
        (_head(1, 1) + bytes(12) + struct.pack("<3IH", 0, 0, 1, 0), "a face has corner 1, there are 1"),
        (_head(1, 1) + struct.pack("<3i", 0, 0, -(2**31)) + bytes(14), "must be at most 1000000000 away"),
    ],
)
def test_bytes_that_are_no_mesh(data: bytes, rule: str) -> None:
    with pytest.raises(InputRefused, match=rule):
        decode_mesh(data)


@settings(max_examples=60)
@given(st.integers(0, 120), st.binary(max_size=6))
def test_a_damaged_mesh_is_refused_or_another_mesh(place: int, junk: bytes) -> None:
    data = encode_mesh(soup(3, seed=1))
    damaged = data[:place] + junk + data[place + len(junk) :]
    try:
        assert encode_mesh(decode_mesh(damaged)) == damaged
    except InputRefused:
        assert damaged != data


# --- Frames and files ---------------------------------------------------------------------------


def test_a_frame_is_the_picture_from_its_camera() -> None:
    cameras = tuple(Camera((x, 1_000, 4_000), (0, 0, 0), 1_000) for x in (0, 900))
    job = scene(background=(900,) * 3, triangles=(Triangle((0, 0, 0), (900, 0, 0), (0, 900, 0), 0),))
    moving = replace(job, cameras=cameras, samples=2)
    assert moving.units_total == 2 * 256
    assert torch.equal(radiance(moving, 0), radiance(replace(job, cameras=cameras[:1], samples=2), 0))
    assert not torch.equal(radiance(moving, 0), radiance(moving, 1))
    still = picture(encode_input(replace(moving, first_tile=1, tiles=1)), list(range(256)))
    assert still.media_type == "image/apng"


def test_an_animation_begins_with_its_first_frame() -> None:
    frames = [bytes([level] * 12) for level in (10, 200)]
    whole, first = animation(2, 2, frames, frame_ms=80), png(2, 2, frames[0])
    assert first[33:].split(b"IEND")[0][:-4] in whole
    assert whole.count(b"fcTL") == 2 and whole.count(b"fdAT") == 1 and b"acTL" in whole


@pytest.mark.parametrize("light", [0.0, 1e-7, 0.001, 0.5, 1.0, 511.9, 700.25, 65_408.0, 1e9])
def test_light_in_a_word_keeps_nine_bits(light: float) -> None:
    colours = torch.tensor([[light, light / 3, light / 7]], dtype=torch.float64)
    (word,) = shared_exponent(colours)
    scale = 2.0 ** ((word >> 27) - 24)
    found = [(word >> shift & 511) * scale for shift in (0, 9, 18)]
    largest = min(light, 65_408.0)
    assert max(abs(a - min(b, 65_408.0)) for a, b in zip(found, colours[0].tolist(), strict=True)) <= max(
        largest / 512, 2.0**-25
    )


def test_an_exr_file_holds_the_light() -> None:
    colours = torch.tensor([[1.0, 0.5, 0.25], [2.0, 0.0, 8.0]], dtype=torch.float64)
    file = exr(2, 1, shared_exponent(colours))
    assert file[:8] == struct.pack("<II", 20_000_630, 2)
    (offset,) = struct.unpack("<Q", file[-20 - 8 : -20])
    assert struct.unpack("<ii", file[offset : offset + 8]) == (0, 12)
    assert np.frombuffer(file[offset + 8 :], "<f2").tolist() == [0.25, 8.0, 0.5, 0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"cameras": ()}, "0 cameras must be 1"),
        ({"mesh": b"x", "mesh_blob": MemoryBlobs().write(b"x")}, "must not both"),
        ({}, "0 spheres, planes and triangles must be 1"),
    ],
)
def test_scenes_that_break_a_rule(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputRefused, match=rule):
        encode_input(scene(**changes))
