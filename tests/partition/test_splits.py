"""What a kind's split promises: parts are jobs of their own, and together they are the whole, bit for bit."""

from __future__ import annotations

import pytest

from protocols.limits import UNITS_MAX
from workloads.diffusion.input import SampleInput
from workloads.diffusion.input import encode_input as encode_sample
from workloads.errors import InputRefused
from workloads.linalg.input import MatmulInput, Matrix
from workloads.linalg.input import encode_input as encode_product
from workloads.registry import KINDS, open_workload
from workloads.render.scene import Camera, Material, RenderInput, Sphere
from workloads.render.scene import encode_input as encode_scene
from workloads.split import Split


def scene(width: int, height: int) -> bytes:
    return encode_scene(
        RenderInput(
            width=width,
            height=height,
            samples=1,
            depth=2,
            seed=5,
            cameras=(Camera((0, 500, 3_000), (0, 0, 0), 1_000),),
            background=(300, 600, 900),
            materials=(Material((800, 700, 600)),),
            spheres=(Sphere((-500, 0, 0), 700, 0), Sphere((900, 200, 300), 500, 0)),
        ),
        is_whole=True,
    )


WHOLES = {
    "render.trace": scene(48, 32),
    "diffusion.sample": encode_sample(SampleInput((3, 1, 4, 1), 2, 9)),
    "drawn": encode_product(MatmulInput(7, 3, 4, 6, Matrix(seed=1), Matrix(seed=2))),
    "given": encode_product(MatmulInput(3, 2, 2, 4, Matrix((1, 2, 3, 4, 5, 6)), Matrix((1, 0, 0, 1)))),
}
every_whole = pytest.mark.parametrize("name", WHOLES)


def split_of(name: str) -> tuple[str, Split]:
    workload = name if "." in name else "linalg.matmul"
    split = KINDS[workload].split
    assert split is not None
    return workload, split


def done(workload: str, job: bytes) -> list[int]:
    (model,) = KINDS[workload].models()
    units: list[int] = []
    opened = open_workload(workload, model.path, "exact14")
    opened.generate(job, (), lambda _, new: units.extend(new), lambda *_: None, lambda: False)
    return units


@every_whole
def test_parts_are_the_whole_bit_for_bit(name: str) -> None:
    workload, split = split_of(name)
    whole = WHOLES[name]
    items = split.items(whole)
    units: list[int] = []
    for first, count in ((0, 1), (1, items - 2), (items - 1, 1)):
        part = split.part(whole, first, count)
        made = done(workload, part.input)
        assert len(made) == part.units_max
        units += made
    assert units == done(workload, whole)


@every_whole
def test_the_only_part_does_the_same_work_as_the_whole(name: str) -> None:
    _, split = split_of(name)
    whole = WHOLES[name]
    part = split.part(whole, 0, split.items(whole))
    assert split.items(part.input) == split.items(whole)


@every_whole
@pytest.mark.parametrize(("first", "count"), [(-1, 1), (0, 0), (0, 10**6), (10**6, 1)])
def test_items_that_there_are_not_are_refused(name: str, first: int, count: int) -> None:
    _, split = split_of(name)
    with pytest.raises(InputRefused):
        split.part(WHOLES[name], first, count)


@every_whole
def test_rubbish_is_refused(name: str) -> None:
    _, split = split_of(name)
    with pytest.raises(InputRefused):
        split.items(b"rubbish")


def test_a_whole_may_be_larger_than_a_job_and_a_part_may_not() -> None:
    split = KINDS["render.trace"].split
    assert split is not None
    whole = scene(512, 512)
    assert split.items(whole) == 1_024
    assert split.part(whole, 1_000, 24).units_max == 24 * 256
    with pytest.raises(InputRefused, match=f"must be at most {UNITS_MAX}"):
        split.part(whole, 0, 257)
    with pytest.raises(InputRefused):
        done("render.trace", whole)


def test_a_parts_picture_shows_its_tiles_in_their_places() -> None:
    kind = KINDS["render.trace"]
    assert kind.present is not None
    assert kind.split is not None
    whole = WHOLES["render.trace"]
    part = kind.split.part(whole, 2, 3).input
    black = kind.present(part, [0] * 3 * 256).content
    assert black == kind.present(whole, [0] * 6 * 256).content
    assert (
        kind.present(part, [255] * 3 * 256).content
        == kind.present(whole, [0] * 512 + [255] * 768 + [0] * 256).content
    )
