"""Bytes on the wire, read by a second implementation that shares no code with the first."""

from __future__ import annotations

import json
from typing import Any

import pytest
from nacl.exceptions import BadSignatureError

from protocols.codec import decode, encode
from protocols.envelope import Signed, open_envelope
from protocols.messages import KINDS
from tests.support.keys import CRYPTO
from tests.vectors import spec
from tests.vectors.generate import FOLDER, plain, written

KIND_NAMES = sorted(kind for kind, _ in KINDS)


def load(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def test_every_kind_has_its_vector() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted([*KIND_NAMES, "digests", "exact"])


def test_the_code_still_writes_the_same_bytes() -> None:
    for name, text in written().items():
        assert (FOLDER / name).read_text() == text, f"{name} changed: this is a change of the protocol"


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_a_second_implementation_writes_the_message(kind: str) -> None:
    vector = load(kind)
    body = spec.pack([spec.from_json(value) for value in vector["fields"].values()])
    assert body.hex() == vector["body"]
    seed = bytes.fromhex(vector["signer_seed"])
    raw = spec.envelope_of(vector["network"], kind, vector["version"], seed, body)
    assert raw.hex() == vector["envelope"]


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_a_second_implementation_reads_the_message(kind: str) -> None:
    vector = load(kind)
    raw = bytes.fromhex(vector["envelope"])
    network, named, version, signer, fields, identifier = spec.open_envelope(raw)
    assert (network, named, version) == (vector["network"], kind, vector["version"])
    assert (signer.hex(), identifier.hex()) == (vector["signer"], vector["id"])
    assert fields == [spec.from_json(value) for value in vector["fields"].values()]
    spoiled = bytearray(raw)
    spoiled[-1] ^= 1
    with pytest.raises(BadSignatureError):
        spec.open_envelope(bytes(spoiled))


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_we_read_the_message(kind: str) -> None:
    vector = load(kind)
    raw = bytes.fromhex(vector["envelope"])
    message: Signed[Any] = open_envelope(raw, network=vector["network"], crypto=CRYPTO)
    assert kind == message.body.KIND
    assert message.id.hex() == vector["id"]
    body_type = KINDS[(kind, vector["version"])]
    assert list(vector["fields"]) == list(body_type.__struct_fields__)
    assert {name: plain(getattr(message.body, name)) for name in vector["fields"]} == vector["fields"]
    assert encode(decode(bytes.fromhex(vector["body"]), body_type)).hex() == vector["body"]


# --- Digests -----------------------------------------------------------------------------------

DIGESTS = load("digests")


def test_plain_digests() -> None:
    case = DIGESTS["tagged"]
    parts = [bytes.fromhex(part) for part in case["parts"]]
    assert spec.tagged(case["tag"], *parts).hex() == case["digest"]
    assert spec.peer_id(bytes.fromhex(DIGESTS["peer_id"]["key"])) == DIGESTS["peer_id"]["text"]
    assert spec.units_digest(DIGESTS["units"]["units"]).hex() == DIGESTS["units"]["digest"]
    given = bytes.fromhex(DIGESTS["input"]["input"])
    assert spec.tagged("p2p-node/input/1", given).hex() == DIGESTS["input"]["digest"]
    case = DIGESTS["bid_seal"]
    seal = spec.tagged("p2p-node/bid-seal/1", bytes.fromhex(case["bidder"]), bytes.fromhex(case["bid"]))
    assert seal.hex() == case["digest"]


def test_commitment_digests() -> None:
    case = DIGESTS["chunk_leaf"]
    leaf = spec.chunk_leaf(
        bytes.fromhex(case["executor"]),
        bytes.fromhex(case["award_id"]),
        case["segment"],
        case["chunk"],
        bytes.fromhex(case["salt"]),
        bytes.fromhex(case["chunk_digest"]),
    )
    assert leaf.hex() == case["digest"]
    case = DIGESTS["blind_digest"]
    blind = spec.blind_digest(
        bytes.fromhex(case["verifier"]),
        bytes.fromhex(case["root"]),
        case["chunk"],
        bytes.fromhex(case["chunk_digest"]),
        bytes.fromhex(case["nonce"]),
    )
    assert blind.hex() == case["digest"]


def test_values_and_models() -> None:
    value, model = DIGESTS["value"], DIGESTS["model"]
    shape = b"".join(spec.u64(size) for size in value["shape"])
    data = bytes.fromhex(value["data"])
    digest = spec.tagged("p2p-node/value/1", value["dtype"].encode(), shape, data)
    assert digest.hex() == value["digest"]
    files, parameters = spec.from_json(model["manifest"])
    leaves = [
        spec.tagged(
            "p2p-node/parameter/1",
            name.encode(),
            dtype.encode(),
            b"".join(spec.u64(size) for size in shape),
            digest,
        )
        for name, dtype, shape, digest in parameters
    ]
    root = spec.merkle_root(leaves)
    assert root.hex() == model["root"]
    parts = [part for name, digest in files for part in (name.encode(), digest)]
    assert spec.tagged("p2p-node/model/2", *parts, root).hex() == model["digest"]


def test_merkle_roots_and_proofs() -> None:
    case = DIGESTS["merkle"]
    leaves = [bytes.fromhex(leaf) for leaf in case["leaves"]]
    assert [spec.merkle_root(leaves[:count]).hex() for count in range(1, 6)] == case["roots"]

    def join(left: bytes, right: bytes) -> bytes:
        return spec.tagged("p2p-node/merkle-node/1", left, right)

    zero_one = join(leaves[0], leaves[1])
    four = join(zero_one, join(leaves[2], leaves[3]))
    assert case["proof_of_2_in_5"] == [leaves[3].hex(), zero_one.hex(), leaves[4].hex()]
    # Leaf 4 moves up twice without a sibling.
    assert case["proof_of_4_in_5"] == [four.hex()]


def test_electorate_root_and_proof() -> None:
    case = DIGESTS["electorate"]
    members = [(bytes.fromhex(key), weight) for key, weight in case["members"]]
    assert members == sorted(members)
    assert spec.electorate_root(members).hex() == case["root"]
    proof = spec.from_json(case["proof_of_first"])
    assert spec.weighted_climb(members[0][0], len(members), proof).hex() == case["root"]
    assert sum(weight for _, weight in members) == case["total_weight"]


def test_sortition() -> None:
    case = DIGESTS["sortition"]
    commitment_id = bytes.fromhex(case["commitment_id"])
    alpha = spec.tagged("p2p-node/sortition-alpha/1", case["network"].encode(), commitment_id)
    assert alpha.hex() == case["alpha"]
    beta = CRYPTO.vrf_output(bytes.fromhex(case["signer"]), alpha, bytes.fromhex(case["proof"]))
    assert beta is not None
    assert beta.hex() == case["beta"]
    for expected, drawn in case["drawn"]:
        assert spec.is_drawn(beta, weight=1, total=10, expected_milli=expected, widening=0) is drawn
    for samples, chunks in zip((1, 4, 19, 20), case["chunks_of_20"], strict=True):
        assert spec.drawn_chunks(beta, chunks=20, samples=samples) == chunks
