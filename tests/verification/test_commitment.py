"""Commitments bind every field, and name the field that is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from verification import commitment

LEAF: dict[str, Any] = {
    "executor": b"\x01" * 32,
    "job_id": b"\x02" * 32,
    "segment": 3,
    "chunk": 4,
    "salt": b"\x05" * 32,
    "digest": b"\x06" * 32,
}
BLIND: dict[str, Any] = {
    "verifier": b"\x01" * 32,
    "root": b"\x02" * 32,
    "chunk": 4,
    "digest": b"\x06" * 32,
    "nonce": b"\x05" * 32,
}
SALT: dict[str, Any] = {"secret": b"\x07" * 32, "job_id": b"\x02" * 32, "segment": 3, "chunk": 4}
MAKERS = [(commitment.chunk_leaf, LEAF), (commitment.blind_digest, BLIND), (commitment.chunk_salt, SALT)]
NAMES = ["leaf", "blind", "salt"]


def changed(value: bytes | int) -> bytes | int:
    return value + 1 if isinstance(value, int) else bytes([value[0] ^ 1]) + value[1:]


@pytest.mark.parametrize(("make", "fields"), MAKERS, ids=NAMES)
def test_every_field_counts(make: Any, fields: dict[str, Any]) -> None:
    made = make(**fields)
    assert len(made) == 32
    assert make(**fields) == made
    others = {make(**{**fields, name: changed(value)}) for name, value in fields.items()}
    assert len(others) == len(fields)
    assert made not in others


def test_segment_and_chunk_are_not_interchangeable() -> None:
    swapped = {**LEAF, "segment": LEAF["chunk"], "chunk": LEAF["segment"]}
    assert commitment.chunk_leaf(**swapped) != commitment.chunk_leaf(**LEAF)


def test_bytes_are_pinned() -> None:
    assert (
        commitment.chunk_leaf(**LEAF).hex()
        == "0c025e27186c4be1ef1caf5c2a7ef19dd451d11b5e005e9bc10124feb6effd3c"
    )
    assert (
        commitment.chunk_salt(**SALT).hex()
        == "9b1556335facb51c5a91fbd86f6ef0341cc7ab30ee104228385dac59d52f0c2c"
    )
    assert (
        commitment.blind_digest(**BLIND).hex()
        == "ca095911ecbdf5d90f8289d806799032b2ef23996661d5b540c6aa0898206f48"
    )


@pytest.mark.parametrize("length", [0, 31, 33])
@pytest.mark.parametrize(("make", "fields"), MAKERS, ids=NAMES)
def test_fields_of_another_length_are_refused_by_name(make: Any, fields: dict[str, Any], length: int) -> None:
    for name, value in fields.items():
        # The job names itself: its length is the messages' affair.
        if isinstance(value, bytes) and name != "job_id":
            with pytest.raises(ValueError, match=f"{name} must be 32 bytes, got {length}"):
                make(**{**fields, name: bytes(length)})


@pytest.mark.parametrize("number", [-1, 2**63])
@pytest.mark.parametrize(("make", "fields"), MAKERS, ids=NAMES)
def test_numbers_out_of_bounds_are_refused_by_name(make: Any, fields: dict[str, Any], number: int) -> None:
    for name, value in fields.items():
        if isinstance(value, int):
            with pytest.raises(ValueError, match=rf"{name} must be in 0\.\.\d+, got {number}"):
                make(**{**fields, name: number})
