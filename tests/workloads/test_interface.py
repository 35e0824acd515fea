"""What holds for every kind of work, whatever it computes: one check interface, and one way to cheat it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
from msgspec.structs import replace

from protocols.limits import UNITS_MAX
from protocols.units import FALSE_UNITS, chunk_count
from tests.support.tiny_models import model_of
from workloads.blobs import MemoryBlobs
from workloads.consistency.input import TerrainInput
from workloads.consistency.input import encode_input as encode_maps
from workloads.diffusion.input import SampleInput
from workloads.diffusion.input import encode_input as encode_sample
from workloads.embedding.input import EmbedInput
from workloads.embedding.input import encode_input as encode_texts
from workloads.embedding.tokens import pack
from workloads.errors import InputRefused, ModelRefused
from workloads.exported.input import decode_input as decode_program
from workloads.exported.input import encode_input as encode_program
from workloads.linalg.input import MatmulInput, Matrix
from workloads.linalg.input import encode_input as encode_product
from workloads.lm.input import LmInput
from workloads.lm.input import encode_input as encode_prompt
from workloads.registry import KINDS, kind_of, open_workload
from workloads.render.scene import Camera, Material, RenderInput, Sphere
from workloads.render.scene import encode_input as encode_scene
from workloads.speech.input import TranscribeInput
from workloads.speech.input import encode_input as encode_recording
from workloads.training.input import ClassifierShape, TrainingInput
from workloads.training.input import encode_input as encode_training
from workloads.vision.input import ClassifyInput
from workloads.vision.input import encode_input as encode_images
from workloads.workload import EXACT_PROFILES, Kind, Workload, weightless_model

SCENE = RenderInput(
    width=48,
    height=16,
    samples=2,
    depth=2,
    seed=5,
    cameras=(Camera((0, 500, 3_000), (0, 0, 0), 1_000),),
    background=(300, 600, 900),
    materials=(Material((800, 700, 600)),),
    spheres=(Sphere((-500, 0, 0), 700, 0), Sphere((900, 200, 300), 500, 0)),
)
TRAINING = TrainingInput(
    classifier=ClassifierShape((4, 8, 2)),
    llama=None,
    segments=3,
    segment_steps=2,
    batch=4,
    learning_rate_micro=10_000,
    beta1_micro=900_000,
    beta2_micro=950_000,
    weight_decay_micro=0,
    seed=0,
    data=bytes([0, 50, 100, 150, 0, 250, 200, 150, 100, 1]),
)
PROBED = decode_program(KINDS["program.run"].probe())
"""A graph that ships with the package, and two batches for it."""
JOBS = {
    "lm.generate": encode_prompt(LmInput(((1, 2, 3),), 96, 4, 1_000)),
    "diffusion.sample": encode_sample(SampleInput((3,), 4, 9, 1_500)),
    "render.trace": encode_scene(SCENE),
    "linalg.matmul": encode_product(MatmulInput(192, 32, 256, 6, Matrix(seed=1), Matrix(seed=2))),
    "program.run": encode_program(
        replace(PROBED, batches=5, values=(PROBED.value(0, 0) * 3 + PROBED.value(0, 1) * 2,))
    ),
    "training.run": encode_training(TRAINING),
    "embed.text": encode_texts(
        EmbedInput("mean", True, 0, 40, pack([[2, 4 + n % 20, 3] for n in range(40)]))
    ),
    "classify.image": encode_images(
        ClassifyInput(8, 0, 12, bytes(5 * n % 251 for n in range(12 * 8 * 8 * 3)))
    ),
    "speech.transcribe": encode_recording(
        TranscribeInput(bytes(n * 7 % 251 for n in range(6_000)), None, 0, (900, 1_800, 3_000))
    ),
    "diffusion.terrain": encode_maps(TerrainInput((3,), (80_000, 5_000, 500), 9)),
}
"""A job of each kind, of three chunks or more."""

every_kind = pytest.mark.parametrize("name", KINDS)


class Done:
    """A job done by a workload: its units and the digests of its chunks."""

    def __init__(
        self, workload: Workload, job: bytes, prefix: Sequence[int] = (), stop_at: int = 10**9
    ) -> None:
        self.units = list(prefix)
        self.digests: dict[int, bytes] = {}
        self.outcome = workload.generate(
            job, prefix, self._take, self.digests.__setitem__, lambda: len(self.digests) >= stop_at
        )

    def _take(self, first: int, units: list[int]) -> None:
        assert first == len(self.units)
        self.units += units


@cache
def opened_once(name: str, profile: str, variant: str | None) -> Workload:
    model = model_of(KINDS[name])
    return open_workload(
        name, model.path, profile, variant, expected_digest=model.digest, blobs=MemoryBlobs()
    )


def opened(kind: Kind, variant: str | None = None, profile: str | None = None) -> Workload:
    return opened_once(kind.name, profile or kind.profiles[0], variant)


@cache
def honest(name: str) -> Done:
    return Done(opened(KINDS[name]), JOBS[name])


@every_kind
def test_a_verifier_derives_the_executors_digests(name: str) -> None:
    kind, done = KINDS[name], honest(name)
    count = chunk_count(len(done.units), kind.chunk_units)
    assert sorted(done.digests) == list(range(count))
    assert count >= 3
    assert len(set(done.digests.values())) == count
    assert (done.outcome.units_total, done.outcome.reason) == (len(done.units), "length")
    assert all(0 <= unit < 2**32 for unit in done.units)
    verifier = opened(kind)
    assert verifier.recompute(JOBS[name], done.units, range(count)) == done.digests
    # Any chunk alone, and with no more of the output than it needs.
    for chunk in range(count):
        seen = done.units[: (chunk + 1) * kind.chunk_units]
        assert verifier.recompute(JOBS[name], seen, [chunk]) == {chunk: done.digests[chunk]}


@every_kind
def test_a_job_goes_on_after_any_chunk_as_if_it_had_never_stopped(name: str) -> None:
    kind = KINDS[name]
    whole = honest(name)
    stopped = Done(opened(kind), JOBS[name], stop_at=2)
    assert stopped.outcome.reason == "cancelled"
    first = stopped.units[: 2 * kind.chunk_units]
    assert first == whole.units[: 2 * kind.chunk_units]
    resumed = Done(opened(kind), JOBS[name], prefix=first)
    assert resumed.units == whole.units
    assert stopped.digests | resumed.digests == whole.digests
    assert Done(opened(kind), JOBS[name], prefix=whole.units).digests == {}
    with pytest.raises(InputRefused, match="whole chunks"):
        Done(opened(kind), JOBS[name], prefix=first[:-1])


@every_kind
def test_units_that_do_not_follow_are_false_whatever_they_are(name: str) -> None:
    kind = KINDS[name]
    done, verifier = honest(name), opened(kind)
    for changed in (done.units[0] ^ 1, 0x7FC00000, 0xFFFFFFFF):
        claimed = [changed, *done.units[1:]]
        assert verifier.recompute(JOBS[name], claimed, [0]) == {0: FALSE_UNITS}


@pytest.mark.parametrize(("name", "variant"), [(k.name, v) for k in KINDS.values() for v in k.variants])
def test_every_way_to_cheat_is_caught_by_the_check(name: str, variant: str) -> None:
    kind = KINDS[name]
    done = Done(opened(kind, variant), JOBS[name])
    truth = opened(kind).recompute(JOBS[name], done.units, done.digests)
    differing = [chunk for chunk, digest in done.digests.items() if truth[chunk] != digest]
    assert len(differing) >= len(done.digests) // 3
    # Checking is honest, whoever does it.
    assert opened(kind, variant).recompute(JOBS[name], done.units, done.digests) == truth


@every_kind
def test_a_machine_is_measured_by_a_small_job(name: str) -> None:
    kind = KINDS[name]
    done = Done(opened(kind), kind.probe())
    assert 0 < len(done.units) <= 4 * kind.chunk_units
    assert opened(kind).recompute(kind.probe(), done.units, done.digests) == done.digests


@every_kind
def test_profiles_and_workloads_have_digests_of_their_own(name: str) -> None:
    kind = KINDS[name]
    digests = {Done(opened(kind, profile=profile), kind.probe()).digests[0] for profile in EXACT_PROFILES}
    assert len(digests) == len(EXACT_PROFILES)


@every_kind
def test_what_is_unknown_is_refused(name: str) -> None:
    kind = KINDS[name]
    model = model_of(kind)
    with pytest.raises(InputRefused, match="exact7"):
        open_workload(name, model.path, "exact7")
    with pytest.raises(InputRefused, match="sloth"):
        open_workload(name, model.path, kind.profiles[0], "sloth")
    with pytest.raises(ModelRefused, match="model digest"):
        open_workload(name, model.path, kind.profiles[0], expected_digest=bytes(32))
    for junk in (b"", b"\xc1", b"\x90", bytes(100)):
        with pytest.raises(InputRefused):
            opened(kind).generate(junk, (), lambda *_: None, lambda *_: None, lambda: False)
        with pytest.raises(InputRefused):
            opened(kind).recompute(junk, [0], [0])
    with pytest.raises(InputRefused, match="does not exist"):
        opened(kind).recompute(JOBS[name], [1] * kind.chunk_units, [1])


def test_the_registry_is_by_name_and_no_two_share_a_digest() -> None:
    assert all(kind_of(name).name == name for name in KINDS)
    with pytest.raises(InputRefused, match=r"workload 'lm\.dream' must be one of lm\.generate"):
        kind_of("lm.dream")
    models = [model for kind in KINDS.values() for model in kind.models()]
    assert len({model.digest for model in models}) == len(models)
    assert all(kind.chunk_units * kind.segment_chunks <= UNITS_MAX for kind in KINDS.values())
    assert weightless_model("a", 1) != weightless_model("a", 2)
