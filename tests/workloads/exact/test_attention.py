"""Attention: torch's in float64 up to the profile, the decoder's to the bit, however queries are split."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from workloads import exact
from workloads.exact.attention import LayerCache, attend, causal_mask
from workloads.exact.cases import numbers

PRECISIONS = pytest.mark.parametrize("precision", [exact.EXACT14, exact.EXACT21], ids=lambda p: p.name)
Q = numbers("q", 2, 6, 70, 16) * 0.25
K = numbers("k", 2, 2, 90, 16) * 0.25
V = numbers("v", 2, 2, 90, 8)


def native(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    mask = torch.ones(q.shape[-2], k.shape[-2]).bool().tril(k.shape[-2] - q.shape[-2]) if causal else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


@PRECISIONS
@pytest.mark.parametrize("causal", [False, True])
def test_close_to_float64(precision: exact.Precision, causal: bool) -> None:
    bound = {"exact14": 3e-3, "exact21": 2e-5}[precision.name]
    wanted = native(Q, K, V, causal)
    found = exact.attention(Q, K, V, causal=causal, precision=precision)
    assert float((found - wanted).norm() / wanted.norm()) < bound
    grad = numbers("grad", *wanted.shape)
    leaves = [each.clone().requires_grad_() for each in (Q, K, V)]
    slopes = torch.autograd.grad(native(*leaves, causal), leaves, grad)
    back = exact.attention_backward(grad, Q, K, V, causal=causal, precision=precision)
    for ours, theirs in zip(back, slopes, strict=True):
        assert ours.shape == theirs.shape
        assert float((ours - theirs).norm() / theirs.norm()) < 20 * bound


@PRECISIONS
def test_queries_batches_and_arithmetic_make_no_difference(
    precision: exact.Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = exact.attention(Q, K, V, causal=True, precision=precision)
    for start, stop in ((0, 1), (0, 33), (33, 70), (69, 70)):
        seen = 20 + stop
        part = exact.attention(
            Q[:, :, start:stop], K[:, :, :seen], V[:, :, :seen], causal=True, precision=precision
        )
        assert torch.equal(part, whole[:, :, start:stop])
    assert torch.equal(exact.attention(Q[1], K[1], V[1], causal=True, precision=precision), whole[1])
    assert torch.equal(
        exact.attention(Q[:, 3:], K[:, 1:], V[:, 1:], causal=True, precision=precision), whole[:, 3:]
    )
    monkeypatch.setattr("workloads.exact.attend._SCORES_MAX", 5000)
    assert torch.equal(exact.attention(Q, K, V, causal=True, precision=precision), whole)
    for arithmetic in ("int8", "float32"):
        with exact.computed_in(arithmetic):
            assert torch.equal(exact.attention(Q, K, V, causal=True, precision=precision), whole)


@PRECISIONS
def test_the_decoder_s_cache_gives_the_same_bits(precision: exact.Precision) -> None:
    q, k, v = Q[:, :, :, :8], K[:, :, :70, :8], V[:, :, :70]
    mixed = torch.cat([q, k, v], 1).transpose(1, 2).contiguous().numpy()
    cache = LayerCache(2, 2, 70, 8)
    prefilled = attend(mixed[:, :50].copy(), cache, 0, 6, precision, causal_mask())
    decoded = [
        attend(mixed[:, i : i + 1].copy(), cache, i, 6, precision, causal_mask()) for i in range(50, 70)
    ]
    parts = [prefilled.reshape(2, 50, 6, 8), *(each.reshape(2, 1, 6, 8) for each in decoded)]
    wanted = torch.cat([torch.from_numpy(part) for part in parts], 1).transpose(1, 2)
    found = exact.attention(q, k, v, causal=True, base_two=True, precision=precision)
    assert torch.equal(found, wanted)


def test_shapes_that_do_not_fit() -> None:
    for q, k, v, causal in (
        (Q, K[:1], V, False),
        (Q, K, V[:, :, :5], False),
        (Q[:, :5], K, V, False),
        (Q, K[..., :8], V, False),
        (Q, K[:, :, :60], V[:, :, :60], True),
        (Q[0, 0], K[0, 0], V[0, 0], False),
    ):
        with pytest.raises(ValueError, match="attention can't combine"):
            exact.attention(q, k, v, causal=causal)
    with pytest.raises(ValueError, match="scale must be None"):
        exact.attention(Q, K, V, scale=1.0, base_two=True)
