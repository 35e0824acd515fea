"""Contractions: exact sums, so the same bits in any order, split, batch, thread count and arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workloads import exact
from workloads.errors import NumericsRefused
from workloads.exact.cases import numbers
from workloads.exact.kernels import kernels, use_kernels
from workloads.exact.linear import PackedMatrix
from workloads.exact.quantise import quantise

PRECISIONS = pytest.mark.parametrize("precision", [exact.EXACT14, exact.EXACT21], ids=lambda p: p.name)
SLICES = pytest.mark.parametrize("arithmetic", ["int8", "float32"])


def bits(tensor: Tensor) -> bytes:
    """Bytes, so that the sign of a zero counts."""
    return tensor.contiguous().numpy().tobytes()


@PRECISIONS
def test_a_product_is_that_of_the_rounded_rows(precision: exact.Precision) -> None:
    a, b = numbers("a", 3, 40), numbers("b", 40, 2)
    left, right = quantise(a.numpy(), precision.bits), quantise(b.t().contiguous().numpy(), precision.bits)
    wanted = [
        [sum(Fraction(x) * Fraction(y) for x, y in zip(row, column, strict=True)) for column in right]
        for row in left
    ]
    found = exact.matmul(a, b, precision=precision)
    assert [[Fraction(value) for value in row] for row in found.tolist()] == wanted


@PRECISIONS
@given(order=st.permutations(range(12)), rows=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_order_and_batch_make_no_difference(precision: exact.Precision, order: list[int], rows: int) -> None:
    x, weight = numbers("x", 6, 96), numbers("w", 10, 96)
    whole = exact.linear(x, weight, precision=precision)
    shuffled = torch.tensor(order).repeat_interleave(8) * 8 + torch.arange(8).repeat(12)
    assert bits(exact.linear(x[:, shuffled], weight[:, shuffled], precision=precision)) == bits(whole)
    assert bits(exact.linear(x[:rows], weight, precision=precision)) == bits(whole[:rows])


@PRECISIONS
@SLICES
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((1, 5), (5, 1)),
        ((3, 1, 40, 130), (2, 130, 24)),
        ((9, 5000), (5000, 7)),
        ((4, 0), (0, 3)),
    ],
)
def test_integer_slices_give_the_bits_of_float64(
    precision: exact.Precision, arithmetic: str, left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    a, b = (numbers(str(shape), *shape) if 0 not in shape else torch.zeros(shape) for shape in (left, right))
    wanted = exact.matmul(a, b, precision=precision)
    with exact.computed_in(arithmetic):
        assert bits(exact.matmul(a, b, precision=precision)) == bits(wanted)


@SLICES
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_slices_hold_the_largest_integers(arithmetic: str, sign: float) -> None:
    # All at the top of their grain's range: the largest sums that int32 and float32 must hold.
    a = torch.full((4, 2048), 2.0 - 2.0**-40, dtype=torch.float64)
    b = sign * a.t()[:, :3]
    for precision in (exact.EXACT14, exact.EXACT21):
        with exact.computed_in(arithmetic):
            assert exact.matmul(a, b, precision=precision).unique().tolist() == [sign * 8192.0]


@PRECISIONS
def test_the_hot_path_and_the_library_agree(precision: exact.Precision) -> None:
    x, weight = numbers("x", 20, 300), numbers("w", 30, 300)
    packed = PackedMatrix(weight.numpy(), precision).apply(quantise(x.numpy(), precision.bits))
    assert bits(exact.linear(x, weight, precision=precision)) == packed.tobytes()
    assert bits(exact.quantise_along(x, precision=precision)) == quantise(x.numpy(), precision.bits).tobytes()


@pytest.mark.skipif(kernels() is None, reason="no compiler")
@pytest.mark.parametrize("shape", [(40, 96, 10), (17, 33, 1), (300, 700, 65)])
def test_compiled_kernels_give_the_same_bits(shape: tuple[int, int, int]) -> None:
    rows, inner, columns = shape
    x, weight = numbers("x", inner, rows).t(), numbers("w", columns, inner)
    x[0] = 0.0
    # Rounding carries this row to the next power of two: rounded again, its grain would be another.
    x[1] = 1.0 - 2.0**-20
    x[1, ::2] = 2.0**-13 + 2.0**-14
    with use_kernels(None):
        wanted = exact.linear(x, weight, precision=exact.EXACT14)
    assert bits(exact.linear(x, weight, precision=exact.EXACT14)) == bits(wanted)
    assert bits(exact.matmul(x[None], weight.t(), precision=exact.EXACT14)) == bits(wanted[None])
    x[-1, -1] = 2.0**501
    with pytest.raises(NumericsRefused, match="x holds NaN"):
        exact.linear(x, weight, precision=exact.EXACT14)


@PRECISIONS
def test_zeros_have_no_sign(precision: exact.Precision) -> None:
    a, b = torch.tensor([[0.0, -0.0, -1.0]]), torch.tensor([[-1.0], [-2.0], [0.0]])
    for arithmetic in exact.Arithmetic:
        with exact.computed_in(arithmetic):
            assert bits(exact.matmul(a, b, precision=precision)) == bits(torch.zeros(1, 1).double())


def test_layout_type_and_gradient_make_no_difference() -> None:
    a, b = numbers("a", 8, 64), numbers("b", 64, 6)
    wanted = exact.matmul(a, b)
    assert bits(exact.matmul(a.t().contiguous().t(), b.float().requires_grad_())) == bits(wanted)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2.0**501, -(2.0**501)])
def test_what_no_profile_covers_is_refused_by_name(bad: float) -> None:
    good, poisoned = numbers("good", 4, 4), numbers("bad", 4, 4)
    poisoned[2, 1] = bad
    calls = {
        "x": lambda: exact.linear(poisoned, good),
        "weight": lambda: exact.linear(good, poisoned),
        "bias": lambda: exact.linear(good, good, poisoned[2]),
        "a": lambda: exact.matmul(poisoned, good),
        "b": lambda: exact.matmul(good, poisoned),
        "grad": lambda: exact.linear_backward(poisoned, good, good),
        "queries": lambda: exact.attention(poisoned[None], good[None], good[None]),
        "keys": lambda: exact.attention(good[None], poisoned[None], good[None]),
        "values": lambda: exact.attention(good[None], good[None], poisoned[None]),
        "gradient": lambda: exact.adamw_step(good, poisoned, good, good, step=1, learning_rate=0.1),
        "logits": lambda: exact.cross_entropy(poisoned, torch.zeros(4, dtype=torch.int64)),
    }
    for name, call in calls.items():
        with pytest.raises(NumericsRefused, match=rf"^{name} holds NaN, Inf or a magnitude above 2\*\*500"):
            call()


def test_the_largest_magnitude_is_taken() -> None:
    edge = torch.full((2, 2), 2.0**500, dtype=torch.float64)
    assert exact.matmul(edge, edge).tolist() == [[2.0**1001] * 2] * 2


def test_shapes_and_types_that_do_not_fit_are_refused() -> None:
    a = numbers("a", 3, 4)
    for call in (
        lambda: exact.matmul(a, a),
        lambda: exact.matmul(a[0], a),
        lambda: exact.linear(a, a[:, :3]),
        lambda: exact.linear(a, a, a[0]),
        lambda: exact.matmul_backward(a, a[None], a),
    ):
        with pytest.raises(ValueError, match=r"contract|must have shape|needs equal"):
            call()
    with pytest.raises(TypeError, match=r"a must be a floating tensor, got torch\.int64"):
        exact.matmul(a.long(), a.t())


@PRECISIONS
def test_accuracy(precision: exact.Precision) -> None:
    a, b = numbers("a", 40, 512), numbers("b", 512, 30)
    reference = a @ b
    error = float((exact.matmul(a, b, precision=precision) - reference).norm() / reference.norm())
    native = a.bfloat16() @ b.bfloat16() if precision is exact.EXACT14 else a.float() @ b.float()
    native_error = float((native.double() - reference).norm() / reference.norm())
    assert error < (native_error / 4 if precision is exact.EXACT14 else 4 * native_error)
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.standard_normal((5, 2 ** precision.bits.bit_length())))
    scale = rows.abs() @ rows.abs().t()
    found = exact.matmul(rows, rows.t(), precision=precision)
    assert float(((found - rows @ rows.t()).abs() / scale).max()) < 4 * 2.0**-precision.bits
