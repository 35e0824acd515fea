"""linalg.matmul: what is asked, and that its digest takes both factors."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from protocols.units import FALSE_UNITS
from workloads.errors import InputRefused
from workloads.linalg.input import MatmulInput, Matrix, decode_input, encode_input
from workloads.linalg.kind import array_file
from workloads.linalg.workload import MatrixProduct


def run(job: MatmulInput) -> tuple[list[int], dict[int, bytes]]:
    units: list[int] = []
    digests: dict[int, bytes] = {}
    MatrixProduct("exact14").generate(
        encode_input(job), (), lambda _, new: units.extend(new), digests.__setitem__, lambda: False
    )
    return units, digests


SMALL = MatmulInput(2, 3, 4, 4, Matrix((1, 2, 3, -4, 5, -6)), Matrix(tuple(range(-6, 6))))


def test_inline_matrices_are_multiplied() -> None:
    units, digests = run(SMALL)
    left = np.array(SMALL.left.entries).reshape(2, 3)
    right = np.array(SMALL.right.entries).reshape(3, 4)
    artifact = array_file(encode_input(SMALL), units)
    assert np.array_equal(np.load(io.BytesIO(artifact.content)), left @ right)
    assert artifact.description == "NumPy file of 2 x 4 32-bit integers"
    assert list(digests) == [0]


def test_the_largest_sums_fit() -> None:
    top = 2**10 - 1
    job = MatmulInput(1, 2_048, 1, 10, Matrix((top,) * 2_048), Matrix((-top,) * 2_048))
    units, digests = run(job)
    assert units == [-top * top * 2_048 + 2**32]
    assert MatrixProduct("exact14").recompute(encode_input(job), units, [0]) == digests


@pytest.mark.parametrize("zero", ["left", "right"])
def test_equal_products_of_other_factors_have_other_digests(zero: str) -> None:
    """A digest of the entries alone could be had by whoever is given them."""
    nothing = Matrix((0,) * len(getattr(SMALL, zero).entries))
    other = "right" if zero == "left" else "left"
    changed = Matrix(tuple(entry + 1 for entry in getattr(SMALL, other).entries))
    jobs = replace(SMALL, **{zero: nothing}), replace(SMALL, **{zero: nothing, other: changed})
    (units, digests), (same_units, other_digests) = map(run, jobs)
    assert units == same_units == [0] * 8
    assert digests != other_digests


def test_every_kind_of_wrong_entry_is_false() -> None:
    units, digests = run(SMALL)
    verifier = MatrixProduct("exact14")
    for index in range(len(units)):
        for off in (1, 2**21, 2_097_143, 2_097_133, 2**31):
            claimed = list(units)
            claimed[index] = (claimed[index] + off) % 2**32
            assert verifier.recompute(encode_input(SMALL), claimed, [0]) == {0: FALSE_UNITS}
    assert verifier.recompute(encode_input(SMALL), units[:-1], [0]) == {0: FALSE_UNITS}
    assert verifier.recompute(encode_input(SMALL), units, [0]) == digests


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"rows": 0}, r"rows=0 must be in"),
        ({"inner": 2_049}, r"inner=2049 must be in"),
        ({"columns": 257}, r"columns=257 must be in"),
        ({"columns": 3}, r"columns=3 must divide 16384"),
        ({"bits": 11}, r"bits=11 must be in"),
        ({"rows": 300, "columns": 256}, r"must be at most 65536"),
        ({"rows": 60_000, "inner": 2_048, "columns": 1}, r"rows x inner"),
        ({"left": Matrix((1,) * 5)}, r"left has 5 entries, must have 6"),
        ({"right": Matrix((16,) * 12)}, r"right has an entry of magnitude 2\*\*4 or more"),
        ({"left": Matrix(seed=-1)}, r"left.seed=-1"),
    ],
)
def test_what_breaks_a_rule_is_refused(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputRefused, match=rule):
        encode_input(replace(SMALL, **changes))


def test_inputs_come_back() -> None:
    assert decode_input(encode_input(SMALL)) == SMALL
