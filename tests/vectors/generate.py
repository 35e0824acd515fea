"""Write the byte vectors: ``python -m tests.vectors.generate``.

One JSON file for each kind of message, and one for the digests. Bytes are ``{"hex": "..."}``,
records inside a message are lists of their fields in order. They pin what goes over the wire: a
difference after a change of the code is a change of the protocol.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from protocols import merkle
from protocols.auction import bid_seal
from protocols.digest import tagged
from protocols.envelope import Signed
from protocols.identity import peer_id
from protocols.messages import Bid, Body, Member
from protocols.parameters import FileHash, Manifest, Parameter
from protocols.units import input_digest, units_digest
from protocols.values import value_digest
from tests.support.keys import keyring
from tests.vectors.examples import NETWORK, examples
from verification.commitment import blind_digest, chunk_leaf
from verification.ecvrf import proof_to_hash
from verification.electorate import Electorate
from verification.sortition import alpha, drawn_chunks, is_drawn

__all__ = ["FOLDER", "digest_vectors", "message_vector", "written"]

FOLDER = Path(__file__).parent


def plain(value: Any) -> Any:
    """A value of the wire as JSON."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, msgspec.Struct):
        return [plain(getattr(value, name)) for name in value.__struct_fields__]
    if isinstance(value, tuple):
        return [plain(part) for part in value]
    return value


def message_vector(number: int, message: Signed[Body]) -> dict[str, Any]:
    """One message, from its fields to its bytes."""
    body = message.body
    return {
        "network": NETWORK,
        "kind": body.KIND,
        "version": body.VERSION,
        "signer_seed": tagged("p2p-node/test-key/1", number.to_bytes(8, "little")).hex(),
        "signer": message.signer.hex(),
        "fields": {name: plain(getattr(body, name)) for name in body.__struct_fields__},
        "body": msgspec.msgpack.encode(body).hex(),
        "id": message.id.hex(),
        "envelope": message.raw.hex(),
    }


def digest_vectors() -> dict[str, Any]:
    """Every digest of the specification, on small inputs."""
    key, model = keyring(1).public, bytes(range(32))
    bid = Bid(model, bytes(32), 120, 4_000, 45_000, "cpu", True, 0)
    leaves = [tagged("p2p-node/vector/1", bytes([i])) for i in range(5)]
    members = [Member(keyring(n).public, n) for n in (1, 2, 3)]
    electorate = Electorate(members)
    manifest = Manifest(
        (FileHash("config.json", bytes([7]) * 32), FileHash("tokenizer.json", bytes([8]) * 32)),
        tuple(
            Parameter(name, "uint8", (2, 1), value_digest("uint8", (2, 1), name.encode() * 2))
            for name in "abc"
        ),
    )
    draw = keyring(1).vrf_prove(alpha(NETWORK, model))
    beta = proof_to_hash(draw)
    return {
        "tagged": {
            "tag": "p2p-node/vector/1",
            "parts": ["", "00", "ff" * 9],
            "digest": tagged("p2p-node/vector/1", b"", b"\0", b"\xff" * 9).hex(),
        },
        "peer_id": {"key": key.hex(), "text": peer_id(key)},
        "units": {"units": [0, 1, 2**32 - 1], "digest": units_digest((0, 1, 2**32 - 1)).hex()},
        "input": {"input": "496e", "digest": input_digest(b"In").hex()},
        "bid_seal": {
            "bidder": key.hex(),
            "bid": msgspec.msgpack.encode(bid).hex(),
            "digest": bid_seal(key, bid).hex(),
        },
        "chunk_leaf": {
            "executor": key.hex(),
            "award_id": model.hex(),
            "segment": 3,
            "chunk": 13,
            "salt": "11" * 32,
            "chunk_digest": "22" * 32,
            "digest": chunk_leaf(
                executor=key,
                job_id=model,
                segment=3,
                chunk=13,
                salt=b"\x11" * 32,
                digest=b"\x22" * 32,
            ).hex(),
        },
        "blind_digest": {
            "verifier": key.hex(),
            "root": model.hex(),
            "chunk": 13,
            "chunk_digest": "22" * 32,
            "nonce": "33" * 32,
            "digest": blind_digest(
                verifier=key, root=model, chunk=13, digest=b"\x22" * 32, nonce=b"\x33" * 32
            ).hex(),
        },
        "merkle": {
            "leaves": [leaf.hex() for leaf in leaves],
            "roots": [merkle.root(leaves[:count]).hex() for count in range(1, 6)],
            "proof_of_2_in_5": [sibling.hex() for sibling in merkle.prove(leaves, 2)],
            "proof_of_4_in_5": [sibling.hex() for sibling in merkle.prove(leaves, 4)],
        },
        "value": {
            "dtype": "float32",
            "shape": [2, 1],
            "data": "0000803f000000c0",
            "digest": value_digest("float32", (2, 1), bytes.fromhex("0000803f000000c0")).hex(),
        },
        "model": {
            "manifest": plain(manifest),
            "root": manifest.root.hex(),
            "digest": manifest.digest.hex(),
            "proof_of_b": plain(manifest.prove("b")),
        },
        "electorate": {
            "members": [[member.key.hex(), member.weight] for member in electorate.members],
            "root": electorate.root.hex(),
            "total_weight": electorate.total_weight,
            "proof_of_first": plain(electorate.prove(electorate.members[0].key)),
        },
        "sortition": {
            "network": NETWORK,
            "commitment_id": model.hex(),
            "alpha": alpha(NETWORK, model).hex(),
            "signer": key.hex(),
            "proof": draw.hex(),
            "beta": beta.hex(),
            "drawn": [
                [expected, is_drawn(beta, weight=1, total_weight=10, expected_milli=expected, widening=0)]
                for expected in (1, 1_000, 3_000, 5_000, 8_000, 10_000)
            ],
            "chunks_of_20": [list(drawn_chunks(beta, chunks=20, samples=s)) for s in (1, 4, 19, 20)],
        },
    }


def written() -> dict[str, str]:
    """The text of every vector file by its name."""
    vectors = {kind: message_vector(number, message) for kind, (number, message) in examples().items()}
    files = {f"{kind}.json": vector for kind, vector in vectors.items()}
    files["digests.json"] = digest_vectors()
    return {name: json.dumps(vector, indent=2) + "\n" for name, vector in files.items()}


if __name__ == "__main__":
    for name, text in written().items():
        (FOLDER / name).write_text(text)
