"""Chunk digests as they are on every machine: a change of any bit of a workload's arithmetic shows here."""

from __future__ import annotations

import pytest

from tests.support.tiny_models import model_of
from workloads.blobs import MemoryBlobs
from workloads.registry import KINDS, open_workload
from workloads.workload import EXACT_PROFILES

PUBLISHED = {
    ("lm.generate", "exact14"): "0cbc003c354ca48b",
    ("lm.generate", "exact21"): "7c7f40d50dbb70d3",
    ("diffusion.sample", "exact14"): "91a4f741016cd2f7",
    ("diffusion.sample", "exact21"): "398b115a8f2053ea",
    ("render.trace", "exact14"): "204ab975a140a695",
    ("render.trace", "exact21"): "462eb4aadccdea8c",
    ("linalg.matmul", "exact14"): "dcb2ac09defe0d17",
    ("linalg.matmul", "exact21"): "881e8a90f741ae2c",
    ("program.run", "exact14"): "d23a2c5228f74d19",
    ("program.run", "exact21"): "015aba359cccd3ab",
    ("training.run", "exact14"): "f1b93f8b4be4f1d9",
    ("training.run", "exact21"): "7c4b5740782ba48a",
    ("embed.text", "exact14"): "817510c1b72bb091",
    ("embed.text", "exact21"): "b9909d54aa8835d7",
    ("classify.image", "exact14"): "7578a6089d3adc7a",
    ("classify.image", "exact21"): "90676ff2d8e07297",
    ("speech.transcribe", "exact14"): "bf600c934be19950",
    ("speech.transcribe", "exact21"): "ef9e78b6dedc98fa",
    ("diffusion.terrain", "exact14"): "0dfd3645433374a7",
    ("diffusion.terrain", "exact21"): "9d5776bd085b3da9",
}


@pytest.mark.parametrize(
    ("name", "profile"), [(kind.name, p) for kind in KINDS.values() for p in EXACT_PROFILES]
)
def test_a_probes_first_chunk_is_the_published_one(name: str, profile: str) -> None:
    model = model_of(KINDS[name])
    digests: dict[int, bytes] = {}
    workload = open_workload(name, model.path, profile, blobs=MemoryBlobs())
    workload.generate(KINDS[name].probe(), (), lambda *_: None, digests.__setitem__, lambda: False)
    assert digests[0].hex()[:16] == PUBLISHED[name, profile]
