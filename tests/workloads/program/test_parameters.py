"""One tensor proved of a model's digest, and files that say untrue things about their tensors."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from protocols.codec import decode, encode
from protocols.errors import Rejected
from protocols.parameters import (
    FileHash,
    Parameter,
    ParameterProof,
    check_files,
    check_parameter,
    parameter_root,
)
from protocols.values import value_digest as digest_of_bytes
from workloads.errors import ModelRefused
from workloads.lm.manifest import ModelManifest, builtin_models, load_manifest
from workloads.program.program import spec_of, value_bytes, value_digest
from workloads.tensorfile import hash_tensors, read_places

BUILTIN = builtin_models()["kjv-2m"]
QUERY = "model.layers.3.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def manifest() -> ModelManifest:
    return load_manifest(BUILTIN)


def test_every_tensor_of_the_builtin_model_is_proved(manifest: ModelManifest) -> None:
    tensors = load_file(BUILTIN / "model.safetensors")
    assert [parameter.name for parameter in manifest.parameters] == sorted(tensors)
    for name, tensor in tensors.items():
        proof = manifest.prove(name)
        check_parameter(manifest.digest, decode(encode(proof), ParameterProof))
        assert proof.value == value_digest(tensor)
    check_files(manifest.digest, manifest.files, manifest.root)
    assert manifest.files[0] == FileHash(
        "config.json", blake3((BUILTIN / "config.json").read_bytes()).digest()
    )


def test_the_digest_of_a_value_needs_no_tensor_library(manifest: ModelManifest) -> None:
    tensor = load_file(BUILTIN / "model.safetensors")[QUERY]
    spec = spec_of(tensor)
    assert digest_of_bytes(spec.dtype, spec.shape, value_bytes(tensor)) == manifest.prove(QUERY).value
    with pytest.raises(ValueError, match="takes 8 bytes, got 4"):
        digest_of_bytes("float32", (2,), b"abcd")
    with pytest.raises(ValueError, match="dtype 'int8' must be one of"):
        digest_of_bytes("int8", (4,), b"abcd")
    with pytest.raises(ValueError, match="more than"):
        digest_of_bytes("uint8", (1 << 30, 1 << 30), b"")


@pytest.mark.parametrize(
    "lie",
    [
        {"name": "model.layers.2.self_attn.q_proj.weight"},
        {"value": b"\1" * 32},
        {"index": 0},
        {"count": 45},
        {"count": 2**20},
        {"path": ()},
        {"files": (FileHash("config.json", b"\0" * 32),)},
    ],
)
def test_a_bent_proof_leads_elsewhere(manifest: ModelManifest, lie: dict[str, Any]) -> None:
    with pytest.raises(Rejected, match="isn't proved of model"):
        check_parameter(manifest.digest, msgspec.structs.replace(manifest.prove(QUERY), **lie))


def test_other_files_are_rejected(manifest: ModelManifest) -> None:
    with pytest.raises(Rejected, match="aren't those of model"):
        check_files(manifest.digest, manifest.files[::-1], manifest.root)


def test_tensors_out_of_order_have_no_root() -> None:
    one, two = (Parameter(name, "uint8", (0,), b"\0" * 32) for name in "ab")
    for order in ([two, one], [one, one], []):
        with pytest.raises(ValueError, match=r"strictly rising|tensors, got 0"):
            parameter_root(order)


def written(path: Path, entries: dict[str, Any] | str, data: bytes = b"\0" * 8) -> Path:
    header = (entries if isinstance(entries, str) else json.dumps(entries)).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("{}", "must hold 1..1048576 tensors, got 0"),
        ("[]", "must be an object"),
        ("[" * 100_000, "is not JSON"),
        ('{"a": 1, "a": 1}', "a name stands twice"),
        ('{"\\ud800": {}}', "lone surrogate"),
        ({"a" * 257: entry()}, "more than 256 bytes"),
        ({"a": entry() | {"more": 1}}, "must have dtype, shape and data_offsets"),
        ({"a": entry("I4")}, "has dtype 'I4'"),
        ({"a": entry(shape=[2.0])}, "list of natural numbers"),
        ({"a": entry(shape=[True, 2])}, "list of natural numbers"),
        ({"a": entry(shape=[-2])}, "list of natural numbers"),
        ({"a": entry(shape=[1] * 8 + [2])}, "at most 8 dimensions"),
        ({"a": entry(shape=[1 << 41, 0])}, "at most 8 dimensions"),
        ({"a": entry(offsets=[8, 0])}, "lies in -8 bytes, must be 8"),
        ({"a": entry(offsets=[0])}, "list of natural numbers"),
        ({"a": entry(offsets=[4, 12])}, "begins at byte"),
        ({"a": entry(shape=[1], offsets=[0, 4])}, "its tensors end at"),
        ({"a": entry(), "b": entry()}, "begins at byte"),
        ({"a": entry(shape=[1], offsets=[0, 4]), "b": entry(shape=[2], offsets=[0, 8])}, "begins at byte"),
    ],
)
def test_a_header_is_held_against_its_file(
    tmp_path: Path, entries: dict[str, Any] | str, message: str
) -> None:
    with pytest.raises(ModelRefused, match=message):
        read_places(written(tmp_path / "model.safetensors", entries))


def test_a_file_that_shrinks_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "model.safetensors", {"a": entry()})
    places = read_places(path)
    path.write_bytes(path.read_bytes()[:-4])
    monkeypatch.setattr("workloads.tensorfile.read_places", lambda _: places)
    with pytest.raises(ModelRefused, match="ends inside tensor a"):
        hash_tensors(path)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_headers_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    good = bytearray(written(path, {"a": entry(), "b": entry(offsets=[8, 16])}, b"\0" * 16).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(good))
    with contextlib.suppress(ModelRefused):
        assert len(hash_tensors(path)) in {1, 2}
