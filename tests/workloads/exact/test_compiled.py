"""The compiled parts of a training step give the bits of the torch operators, and refuse what they do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from workloads import exact
from workloads.errors import NumericsRefused
from workloads.exact.kernels import kernels, use_kernels
from workloads.exact.kernels.training import TrainingKernels
from workloads.exact.quantise import EXACT14, EXACT21, Precision

PRECISIONS = pytest.mark.parametrize("precision", [EXACT14, EXACT21], ids=lambda p: p.name)


@pytest.fixture(scope="module")
def compiled() -> TrainingKernels:
    loaded = kernels()
    if loaded is None:
        pytest.skip("no compiler")
    return TrainingKernels(loaded)


def sample(seed: int, *shape: int) -> Tensor:
    """Numbers over many magnitudes, a few of them zeros."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randint(-14, 8, shape, generator=generator).double()
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64) * torch.exp2(spread)
    return torch.where(torch.rand(shape, generator=generator) < 0.05, 0.0, numbers)


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert found.contiguous().numpy().tobytes() == expected.contiguous().numpy().tobytes()


@PRECISIONS
@pytest.mark.parametrize(
    ("rows", "inner", "columns"),
    [(1, 1, 1), (1, 300, 1), (7, 1, 9), (6, 256, 8), (5, 257, 17), (97, 513, 7), (130, 40, 50), (3, 4099, 2)],
)
def test_products(
    compiled: TrainingKernels, precision: Precision, rows: int, inner: int, columns: int
) -> None:
    left, right = sample(1, rows, inner), sample(2, inner, columns)
    with use_kernels(None):
        expected = exact.matmul(left, right.float(), precision=precision)
    turned = left.mT.contiguous().mT, right.float().mT.contiguous().mT
    apart = torch.cat((left, left), 1)[:, :inner], torch.cat((right, right), 1)[:, ::2].float()
    for a, b in ((left, right.float()), turned):
        assert_same_bits(compiled.products.contract(("a", a), ("b", b), precision), expected)
    with use_kernels(None):
        expected = exact.matmul(*apart, precision=precision)
    assert_same_bits(compiled.products.contract(("a", apart[0]), ("b", apart[1]), precision), expected)


def test_a_sum_of_zeros_has_one_sign(compiled: TrainingKernels) -> None:
    left, right = torch.full((3, 5), -0.0, dtype=torch.float64), torch.ones((5, 2), dtype=torch.float64)
    product = compiled.products.contract(("a", left), ("b", right), EXACT21)
    assert not torch.signbit(product).any()


@PRECISIONS
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("lead", "heads", "key_heads", "count", "length"),
    [((), 1, 1, 1, 1), ((2,), 4, 2, 9, 9), ((), 3, 1, 14, 29), ((2, 1), 2, 2, 1, 16), ((1,), 1, 1, 70, 301)],
)
def test_attention(
    compiled: TrainingKernels,
    precision: Precision,
    causal: bool,
    lead: tuple[int, ...],
    heads: int,
    key_heads: int,
    count: int,
    length: int,
) -> None:
    settings: Any = {"causal": causal, "scale": 0.3, "precision": precision}
    # As a model has them: heads inside positions.
    queries = sample(3, *lead, count, heads, 10).transpose(-2, -3)
    keys = sample(4, *lead, length, key_heads, 10).transpose(-2, -3)
    values = sample(5, *lead, key_heads, length, 19)
    grad = sample(6, *lead, count, heads, 19).transpose(-2, -3)
    with use_kernels(None):
        expected = exact.attention(queries, keys, values, **settings)
        slopes = exact.attention_backward(grad, queries, keys, values, **settings)
    assert_same_bits(compiled.attention(queries, keys, values, **settings), expected)
    found = compiled.attention_backward(grad, queries, keys, values, **settings)
    for ours, theirs in zip(found, slopes, strict=True):
        assert_same_bits(ours, theirs)


def test_attention_over_more_than_one_exact_block(compiled: TrainingKernels) -> None:
    settings: Any = {"causal": True, "scale": 0.3, "precision": EXACT21}
    operands = [sample(seed, 1, 2_060, 4) for seed in (7, 8, 9)]
    with use_kernels(None):
        expected = exact.attention(*operands, **settings)
    assert_same_bits(compiled.attention(*operands, **settings), expected)


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (1, 37), (3, 7, 64), (130, 19)])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_norms(compiled: TrainingKernels, shape: tuple[int, ...], is_weighted: bool) -> None:
    x, grad = sample(10, *shape), sample(11, *shape)
    weight = sample(12, shape[-1]).float() if is_weighted else None
    assert_same_bits(compiled.rms_norm(x, weight, epsilon=1e-5), exact.rms_norm(x, weight, epsilon=1e-5))
    found = compiled.rms_norm_backward(grad, x, weight, epsilon=1e-5)
    for ours, theirs in zip(found, exact.rms_norm_backward(grad, x, weight, epsilon=1e-5), strict=True):
        assert_same_bits(ours, theirs)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -(2.0**501)])
def test_refusals_name_the_operand(compiled: TrainingKernels, value: float) -> None:
    good = torch.ones((2, 3, 4), dtype=torch.float64)
    bad = good.clone()
    bad[1, 2, 3] = value
    settings: Any = {"causal": False, "scale": 1.0, "precision": EXACT21}
    names = ("grad", "queries", "keys", "values")
    for place, name in enumerate(names):
        operands = [bad if index == place else good for index in range(4)]
        with pytest.raises(NumericsRefused, match=f"^{name} holds"):
            compiled.attention_backward(*operands, **settings)
        if place:
            with pytest.raises(NumericsRefused, match=f"^{name} holds"):
                compiled.attention(*operands[1:], **settings)
    with pytest.raises(NumericsRefused, match=r"^x holds"):
        compiled.rms_norm(bad, epsilon=1e-5)
    with pytest.raises(NumericsRefused, match=r"^grad holds"):
        compiled.rms_norm_backward(bad, good, epsilon=1e-5)
    with pytest.raises(NumericsRefused, match=r"^x holds"):
        compiled.rms_norm_backward(good, bad, epsilon=1e-5)
    with pytest.raises(NumericsRefused, match=r"^b holds"):
        compiled.products.contract(("a", good[0]), ("b", bad[1].mT), EXACT21)
