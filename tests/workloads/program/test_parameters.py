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
from protocols.errors import Malformed, Rejected
from protocols.parameters import FileHash, Manifest, Parameter, ParameterProof, check_parameter
from protocols.values import value_digest as digest_of_bytes
from workloads.errors import ModelRefused
from workloads.lm.manifest import builtin_models, load_manifest
from workloads.program.program import spec_of, value_bytes, value_digest
from workloads.tensorfile import hash_tensors, read_places

BUILTIN = builtin_models()["kjv-2m"]
QUERY = "model.layers.3.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return load_manifest(BUILTIN)


def test_every_tensor_of_the_builtin_model_is_proved(manifest: Manifest) -> None:
    tensors = load_file(BUILTIN / "model.safetensors")
    assert [parameter.name for parameter in manifest.parameters] == sorted(tensors)
    for name, tensor in tensors.items():
        proof = manifest.prove(name)
        parameter = check_parameter(manifest.digest, decode(encode(proof), ParameterProof))
        assert (parameter.name, parameter.shape) == (name, tuple(tensor.shape))
        assert parameter.value == value_digest(tensor)
    assert manifest.files[0] == FileHash(
        "config.json", blake3((BUILTIN / "config.json").read_bytes()).digest()
    )


def test_the_digest_of_a_value_needs_no_tensor_library(manifest: Manifest) -> None:
    tensor = load_file(BUILTIN / "model.safetensors")[QUERY]
    spec = spec_of(tensor)
    assert (
        digest_of_bytes(spec.dtype, spec.shape, value_bytes(tensor)) == manifest.prove(QUERY).parameter.value
    )
    with pytest.raises(ValueError, match="takes 8 bytes, got 4"):
        digest_of_bytes("float32", (2,), b"abcd")
    with pytest.raises(ValueError, match="dtype 'int8' must be one of"):
        digest_of_bytes("int8", (4,), b"abcd")
    with pytest.raises(ValueError, match="more than"):
        digest_of_bytes("uint8", (1 << 30, 1 << 30), b"")


@pytest.mark.parametrize(
    "lie",
    [
        {"parameter": Parameter(QUERY, "float16", (192, 192), b"\1" * 32)},
        {"index": 0},
        {"count": 45},
        {"count": 2**20},
        {"path": ()},
        {"files": (FileHash("config.json", b"\0" * 32),)},
    ],
)
def test_a_bent_proof_leads_elsewhere(manifest: Manifest, lie: dict[str, Any]) -> None:
    with pytest.raises(Rejected, match="isn't proved of model"):
        check_parameter(manifest.digest, msgspec.structs.replace(manifest.prove(QUERY), **lie))


@pytest.mark.parametrize(
    "lie",
    [
        {"name": "model.layers.2.self_attn.q_proj.weight"},
        {"dtype": "bfloat16"},
        {"dtype": "int4"},
        {"shape": (192 * 192,)},
        {"shape": (2**40, 2**40)},
        {"value": b"\1" * 32},
    ],
)
def test_a_proof_fixes_everything_about_its_tensor(manifest: Manifest, lie: dict[str, Any]) -> None:
    proof = manifest.prove(QUERY)
    bent = msgspec.structs.replace(proof.parameter, **lie)
    with pytest.raises(Rejected, match=r"isn't proved of model|must be one of|more than"):
        check_parameter(manifest.digest, msgspec.structs.replace(proof, parameter=bent))
    parameters = tuple(bent if item.name == QUERY else item for item in manifest.parameters)
    with pytest.raises(Rejected, match="manifest"):
        Manifest(manifest.files, parameters).check(manifest.digest)


def test_a_manifest_is_of_one_model(manifest: Manifest) -> None:
    decode(encode(manifest), Manifest).check(manifest.digest)
    with pytest.raises(Rejected, match="the manifest is of model"):
        manifest.check(b"\0" * 32)
    for files, parameters in (
        (manifest.files[::-1], manifest.parameters),
        (manifest.files, manifest.parameters[::-1]),
        (manifest.files, manifest.parameters[:1] * 2),
    ):
        with pytest.raises(Rejected, match="must strictly rise"):
            Manifest(files, parameters).check(manifest.digest)
    with pytest.raises(Malformed):
        decode(encode(Manifest(manifest.files, ())), Manifest)


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
