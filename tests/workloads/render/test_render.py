"""render.trace: what is asked, what is seen, and that a pixel doesn't depend on its tile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from msgspec.structs import replace

from protocols.codec import encode
from workloads.errors import InputRefused
from workloads.png import png
from workloads.render.kind import picture
from workloads.render.scene import (
    Camera,
    Material,
    Plane,
    RenderInput,
    Sphere,
    Triangle,
    decode_input,
    encode_input,
)
from workloads.render.trace import packed, radiance

RED, LAMP, MIRROR = (
    Material((1_000, 0, 0)),
    Material((0, 0, 0), (2_000, 1_000, 500)),
    Material((900,) * 3, mirror=True),
)
AHEAD = Camera((0, 0, 5_000), (0, 0, 0), 1_000)
WHITE = (1_000, 1_000, 1_000)


def scene(**changes: Any) -> RenderInput:
    fields: dict[str, Any] = {
        "width": 16,
        "height": 16,
        "samples": 1,
        "depth": 2,
        "seed": 0,
        "cameras": (AHEAD,),
        "background": (0, 0, 0),
        "materials": (RED, LAMP, MIRROR),
    }
    return RenderInput(**{**fields, **changes})


def seen(job: RenderInput, x: int, y: int) -> list[float]:
    across = job.width // 16
    light = radiance(job, y // 16 * across + x // 16)
    colour: list[float] = light[y % 16 * 16 + x % 16].tolist()
    return colour


@pytest.mark.parametrize(
    "shapes",
    [
        {"spheres": (Sphere((0, 0, 0), 1_000, 1),)},
        {"planes": (Plane((0, 0, -1_000), (0, 0, 7), 1),)},
        {"planes": (Plane((0, 0, -1_000), (0, 0, -7), 1),)},
        {"triangles": (Triangle((-4_000, -2_000, 0), (4_000, -2_000, 0), (0, 4_000, 0), 1),)},
        {"triangles": (Triangle((4_000, -2_000, 0), (-4_000, -2_000, 0), (0, 4_000, 0), 1),)},
    ],
    ids=["sphere", "plane", "plane from behind", "triangle", "triangle from behind"],
)
def test_a_lamp_ahead_is_seen_as_bright_as_it_is(shapes: dict[str, Any]) -> None:
    assert seen(scene(**shapes), 8, 8) == [2.0, 1.0, 0.5]


def test_what_is_nearer_hides_what_is_behind_it() -> None:
    lamp, red = Sphere((0, 0, 0), 1_000, 1), Sphere((0, 0, 2_500), 500, 0)
    for spheres in ((lamp, red), (red, lamp)):
        # In the dark, so that the lamp would show.
        assert seen(scene(spheres=spheres, depth=1), 8, 8) == [0.0, 0.0, 0.0]


def test_a_red_ball_under_a_white_sky_returns_red_light_alone() -> None:
    red, green, blue = seen(scene(spheres=(Sphere((0, 0, 0), 1_000, 0),), background=WHITE, samples=8), 8, 8)
    assert red == pytest.approx(1.0)
    assert (green, blue) == (0.0, 0.0)
    assert seen(scene(spheres=(Sphere((0, 0, 0), 1_000, 0),), background=WHITE), 0, 0) == [1.0, 1.0, 1.0]


def test_a_mirror_shows_what_is_behind_the_camera() -> None:
    mirror = Plane((0, 0, 0), (0, 0, 1_000), 2)
    lamp = Sphere((0, 0, 9_000), 3_000, 1)
    assert seen(scene(planes=(mirror,), spheres=(lamp,)), 8, 8) == pytest.approx([1.8, 0.9, 0.45])


def test_shapes_without_area_are_never_hit() -> None:
    flat = Triangle((0, 0, 0), (1_000, 0, 0), (2_000, 0, 0), 1)
    aside = Plane((0, 0, 0), (1, 0, 0), 1)
    assert seen(scene(triangles=(flat,), background=WHITE), 8, 8) == [1.0, 1.0, 1.0]
    assert all(light == light for light in seen(scene(planes=(aside,)), 8, 8))


def test_a_tile_follows_from_its_number_and_the_seed_alone() -> None:
    ball = (Sphere((0, 0, 0), 1_500, 0),)
    low = scene(width=32, height=32, spheres=ball, background=WHITE, samples=3)
    whole = torch.cat([radiance(low, tile) for tile in range(4)])
    assert len({tuple(row) for row in whole.tolist()}) == 4
    assert torch.equal(radiance(low, 2), whole[512:768])
    assert not torch.equal(radiance(replace(low, seed=1), 2), whole[512:768])


def test_words_hold_red_green_and_blue_and_brightness_is_compressed() -> None:
    light = torch.tensor([[0.0, 1.0, 1e9], [1 / 3, 0.0, 0.0]], dtype=torch.float64)
    assert packed(light) == [0 | 180 << 8 | 255 << 16, 128]


def test_tiles_come_together_as_a_picture() -> None:
    job = scene(width=32, height=16, spheres=(Sphere((0, 0, 0), 1_000, 1),))
    units = [(tile << 16) | (pixel % 16 << 8) | pixel // 16 for tile in range(2) for pixel in range(256)]
    artifact = picture(encode_input(job), units)
    expected = bytes(part for y in range(16) for x in range(32) for part in (y, x % 16, x // 16))
    assert artifact.content == png(32, 16, expected)
    assert artifact.description == "PNG image of 32 x 16 pixels, 1 samples each"


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"width": 8}, r"width=8 must be in \[16, 1024\]"),
        ({"height": 24}, r"height=24 must be a multiple of 16"),
        ({"width": 1_024, "height": 1_024}, r"1048576 pixels must be at most 65536"),
        ({"samples": 0}, r"samples=0"),
        ({"samples": 64, "depth": 8}, r"131072 rays in a tile, more than 65536"),
        ({"depth": 9}, r"depth=9"),
        ({"seed": -1}, r"seed=-1"),
        (
            {"cameras": (Camera((0, 5, 0), (0, 9, 0), 1_000),)},
            r"cameras\[0\].target must not lie straight above",
        ),
        ({"cameras": (Camera((0, 0, 1), (0, 0, 0), 0),)}, r"cameras\[0\].focal=0"),
        ({"cameras": (Camera((0, 0, 2_000_000), (0, 0, 0), 1),)}, r"cameras\[0\].position=2000000"),
        ({"background": (0, -1, 0)}, r"background=-1"),
        ({"materials": ()}, r"0 materials must be 1 to 32"),
        ({"materials": (Material((1_001, 0, 0)),)}, r"materials\[0\].albedo=1001"),
        ({"spheres": ()}, r"0 spheres, planes and triangles must be 1 to 32"),
        ({"spheres": (Sphere((0, 0, 0), 1, 0),) * 33}, r"33 spheres, planes and triangles"),
        ({"spheres": (Sphere((0, 0, 0), 0, 0),)}, r"spheres\[0\].radius=0"),
        ({"spheres": (Sphere((0, 0, 0), 1, 3),)}, r"spheres\[0\].material=3 must be in \[0, 2\]"),
        ({"planes": (Plane((0, 0, 0), (0, 0, 0), 0),)}, r"planes\[0\].normal must not be 0"),
        ({"triangles": (Triangle((0, 0, 0), (0, 0, 10**7), (0, 0, 0), 0),)}, r"triangles\[0\].b=10000000"),
    ],
)
def test_what_breaks_a_rule_is_refused(changes: dict[str, Any], rule: str) -> None:
    job = scene(**({"spheres": (Sphere((0, 0, 0), 1_000, 0),)} | changes))
    with pytest.raises(InputRefused, match=rule):
        encode_input(job)
    with pytest.raises(InputRefused, match=rule):
        decode_input(encode(job))
