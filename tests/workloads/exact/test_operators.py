"""Norms, convolutions, pooling, reductions and the optimiser against torch in float64, and every backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from workloads import exact
from workloads.errors import NumericsRefused
from workloads.exact.cases import numbers

CONTRACTED = 1e-5
EVERYTHING_ELSE = 1e-12

X, W, B = numbers("x", 4, 6, 32), numbers("w", 24, 32), numbers("b", 24)
GAIN, SHIFT = numbers("gain", 32), numbers("shift", 32)
IMAGE, SCALE = numbers("image", 2, 4, 11, 13), numbers("scale", 4)
LOGITS, TARGETS = numbers("logits", 10, 7), torch.tensor([0, 6, 3, -100, 3, 3, 1, 2, -100, 5])
TOKENS = torch.arange(30).view(5, 6) * 11 % 7
CONVOLUTIONS: list[dict[str, Any]] = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (2, 3), "padding": (2, 1), "dilation": (1, 2), "groups": 2},
]


def close(found: Tensor | Sequence[Tensor], wanted: Tensor | Sequence[Tensor], bound: float) -> None:
    pairs = zip(
        (found,) if isinstance(found, Tensor) else found,
        (wanted,) if isinstance(wanted, Tensor) else wanted,
        strict=True,
    )
    for ours, theirs in pairs:
        assert ours.dtype == torch.float64
        assert ours.shape == theirs.shape
        assert float((ours - theirs).norm()) <= bound * float(theirs.norm())


def gradients(function: Callable[..., Tensor], grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [each.clone().requires_grad_() for each in inputs]
    return torch.autograd.grad(function(*leaves), leaves, grad)


def like(tensor: Tensor) -> Tensor:
    """A gradient of the right shape."""
    return numbers("grad", *tensor.shape) if tensor.dim() else torch.tensor(0.75, dtype=torch.float64)


@pytest.mark.parametrize(
    ("backward", "forward", "inputs", "bound"),
    [
        (exact.matmul_backward, torch.matmul, (X, X.transpose(1, 2)), CONTRACTED),
        (exact.rms_norm_backward, lambda x, w: F.rms_norm(x, (32,), w, 1e-6), (X, GAIN), EVERYTHING_ELSE),
        (
            lambda g, x: exact.softmax_backward(g, exact.softmax(x, 1), 1),
            lambda x: x.softmax(1),
            (X,),
            EVERYTHING_ELSE,
        ),
        (
            lambda g, x: exact.log_softmax_backward(g, x, 1),
            lambda x: x.log_softmax(1),
            (X,),
            EVERYTHING_ELSE,
        ),
        (lambda g, x: exact.tanh_backward(g, exact.tanh(x)), torch.tanh, (X,), EVERYTHING_ELSE),
        (lambda g, x: exact.sigmoid_backward(g, exact.sigmoid(x)), torch.sigmoid, (X,), EVERYTHING_ELSE),
        (exact.silu_backward, F.silu, (X,), EVERYTHING_ELSE),
        (exact.gelu_backward, F.gelu, (X,), EVERYTHING_ELSE),
        (
            partial(exact.gelu_backward, approximate="tanh"),
            partial(F.gelu, approximate="tanh"),
            (X,),
            EVERYTHING_ELSE,
        ),
        (
            lambda g, table: exact.embedding_backward(g, TOKENS, len(table)),
            lambda table: F.embedding(TOKENS, table),
            (numbers("table", 7, 8),),
            EVERYTHING_ELSE,
        ),
        (
            lambda g, logits: exact.cross_entropy_backward(g, logits, TARGETS),
            lambda logits: F.cross_entropy(logits, TARGETS),
            (LOGITS,),
            EVERYTHING_ELSE,
        ),
    ],
)
def test_backward_is_autograd_s(
    backward: Callable[..., Any], forward: Callable[..., Tensor], inputs: tuple[Tensor, ...], bound: float
) -> None:
    grad = like(forward(*inputs))
    found = backward(grad, *inputs)
    close((found,) if isinstance(found, Tensor) else found, gradients(forward, grad, *inputs), bound)


def test_backwards_with_a_bias() -> None:
    grad = like(F.linear(X, W))
    close(exact.linear_backward(grad, X, W), gradients(F.linear, grad, X, W, B), CONTRACTED)
    grad = like(X)
    wanted = gradients(lambda x, w, b: F.layer_norm(x, (32,), w, b), grad, X, GAIN, SHIFT)
    close(exact.layer_norm_backward(grad, X, GAIN), wanted, EVERYTHING_ELSE)
    grad = like(IMAGE)
    wanted = gradients(lambda x, w, b: F.group_norm(x, 2, w, b), grad, IMAGE, SCALE, SCALE)
    close(exact.group_norm_backward(grad, IMAGE, 2, SCALE), wanted, EVERYTHING_ELSE)


@pytest.mark.parametrize("shape", CONVOLUTIONS)
def test_convolutions(shape: dict[str, Any]) -> None:
    groups = shape.get("groups", 1)
    weight, bias = numbers("kernel", 6, 4 // groups, 3, 3), numbers("bias", 6)
    close(exact.conv2d(IMAGE, weight, bias, **shape), F.conv2d(IMAGE, weight, bias, **shape), CONTRACTED)
    grad = like(F.conv2d(IMAGE, weight, bias, **shape))
    wanted = gradients(partial(F.conv2d, **shape), grad, IMAGE, weight, bias)
    close(exact.conv2d_backward(grad, IMAGE, weight, **shape), wanted, CONTRACTED)
    upwards = {**shape, "output_padding": 1 if shape else 0}
    weight = numbers("kernel", 4, 6 // groups, 3, 3)
    close(
        exact.conv_transpose2d(IMAGE, weight, bias, **upwards),
        F.conv_transpose2d(IMAGE, weight, bias, **upwards),
        CONTRACTED,
    )


def test_convolutions_along_one_axis() -> None:
    x, weight, bias = numbers("signal", 2, 4, 21), numbers("kernel", 6, 2, 5), numbers("bias", 6)
    shape: dict[str, Any] = {"stride": 2, "padding": 3, "dilation": 2, "groups": 2}
    close(exact.conv1d(x, weight, bias, **shape), F.conv1d(x, weight, bias, **shape), CONTRACTED)
    weight = numbers("kernel", 4, 3, 5)
    close(
        exact.conv_transpose1d(x, weight, bias, **shape),
        F.conv_transpose1d(x, weight, bias, **shape),
        CONTRACTED,
    )


def test_norms() -> None:
    close(exact.rms_norm(X, GAIN), F.rms_norm(X, (32,), GAIN, 1e-6), EVERYTHING_ELSE)
    close(exact.layer_norm(X, GAIN, SHIFT), F.layer_norm(X, (32,), GAIN, SHIFT), EVERYTHING_ELSE)
    close(exact.group_norm(IMAGE, 2, SCALE, SCALE), F.group_norm(IMAGE, 2, SCALE, SCALE), EVERYTHING_ELSE)
    close(exact.softmax(X, 0), X.softmax(0), EVERYTHING_ELSE)
    close(exact.log_softmax(X), X.log_softmax(-1), EVERYTHING_ELSE)


def test_pooling_and_interpolation() -> None:
    pooled = {"stride": 2, "padding": 1}
    close(exact.max_pool2d(-IMAGE.abs(), 3, **pooled), F.max_pool2d(-IMAGE.abs(), 3, **pooled), 0.0)
    close(exact.avg_pool2d(IMAGE, 3, **pooled), F.avg_pool2d(IMAGE, 3, **pooled), EVERYTHING_ELSE)
    close(exact.adaptive_avg_pool2d(IMAGE, (4, 5)), F.adaptive_avg_pool2d(IMAGE, (4, 5)), EVERYTHING_ELSE)
    close(exact.interpolate_nearest(IMAGE, (20, 7)), F.interpolate(IMAGE, (20, 7)), 0.0)
    for align in (False, True):
        wanted = F.interpolate(IMAGE, (20, 7), mode="bilinear", align_corners=align)
        close(exact.interpolate_bilinear(IMAGE, (20, 7), align_corners=align), wanted, EVERYTHING_ELSE)


@pytest.mark.parametrize("dim", [None, 1, -1, (0, 2)])
@pytest.mark.parametrize("keepdim", [False, True])
def test_reductions(dim: Any, keepdim: bool) -> None:
    for ours, theirs in ((exact.sum, torch.sum), (exact.mean, torch.mean), (exact.max, torch.amax)):
        wanted = theirs(X, dim if dim is not None else (0, 1, 2), keepdim=keepdim)
        close(ours(X, dim, keepdim=keepdim), wanted, EVERYTHING_ELSE)
    close(exact.var(X, dim, keepdim=keepdim), X.var(dim, keepdim=keepdim), EVERYTHING_ELSE)
    if isinstance(dim, int):
        close(exact.logsumexp(X, dim, keepdim=keepdim), X.logsumexp(dim, keepdim=keepdim), EVERYTHING_ELSE)
        assert torch.equal(exact.argmax(X, dim, keepdim=keepdim), X.argmax(dim, keepdim=keepdim))


def test_sums_do_not_depend_on_order() -> None:
    x = numbers("terms", 3, 5000) * 1e5 + numbers("small", 3, 5000) * 1e-5
    order = torch.arange(4999, -1, -1)
    for function in (exact.sum, exact.mean, exact.var, exact.logsumexp):
        assert torch.equal(function(x[:, order], 1), function(x, 1))
    tokens = torch.arange(5000) * 7 % 11
    grad = x.t().contiguous()
    wanted = exact.embedding_backward(grad, tokens, 11)
    assert torch.equal(exact.embedding_backward(grad[order], tokens[order], 11), wanted)


def test_the_first_of_equals_is_the_argmax() -> None:
    assert exact.argmax(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])).tolist() == [1, 0]


def test_the_largest_zero_has_no_sign() -> None:
    zeros = torch.tensor([[-0.0, -0.0], [-0.0, 0.0]], dtype=torch.float64)
    for result in (exact.max(zeros, 1), exact.relu(zeros), exact.max_pool2d(zeros[None, None], 2)):
        assert not result.signbit().any()


def test_cross_entropy() -> None:
    close(exact.cross_entropy(LOGITS, TARGETS), F.cross_entropy(LOGITS, TARGETS), EVERYTHING_ELSE)
    with pytest.raises(NumericsRefused, match="targets holds index 7, must be in \\[0, 7\\)"):
        exact.cross_entropy(LOGITS, torch.full((10,), 7))
    with pytest.raises(NumericsRefused, match="all ignored"):
        exact.cross_entropy(LOGITS, torch.full((10,), -100))


def test_embedding() -> None:
    table = numbers("table", 7, 8)
    assert torch.equal(exact.embedding(table.float(), TOKENS), table[TOKENS])
    with pytest.raises(NumericsRefused, match="tokens holds index -1"):
        exact.embedding(table, TOKENS - 1)
    # A broken row that nobody asks for harms nobody.
    table[6] = float("nan")
    assert exact.embedding(table, torch.tensor([0])).shape == (1, 8)


def test_adamw_follows_its_definition() -> None:
    ours = exact.AdamWState(W, torch.zeros_like(W), torch.zeros_like(W))
    parameter, mean, variance = (each.numpy() for each in ours)
    for step in range(1, 6):
        gradient = numbers(f"g{step}", *W.shape)
        ours = exact.adamw_step(ours.parameter, gradient, *ours[1:], step=step, learning_rate=1e-2)
        slope = gradient.numpy()
        mean = 0.9 * mean + 0.1 * slope
        variance = 0.999 * variance + 0.001 * slope**2
        update = mean / (1 - 0.9**step) / (np.sqrt(variance / (1 - 0.999**step)) + 1e-8)
        parameter = parameter - 1e-2 * (update + 0.01 * parameter)
    close(ours, [torch.from_numpy(each) for each in (parameter, mean, variance)], EVERYTHING_ELSE)
    with pytest.raises(ValueError, match="step must be >= 1"):
        exact.adamw_step(W, W, W, W, step=0, learning_rate=1.0)


def test_shapes_that_do_not_fit() -> None:
    weight = numbers("kernel", 6, 4, 3, 3)
    for call, rule in (
        (lambda: exact.conv2d(IMAGE[0], weight), "conv2d can't apply"),
        (lambda: exact.conv2d(IMAGE, weight, groups=2), "doesn't fit 4 channels"),
        (lambda: exact.conv2d(IMAGE, weight, stride=0), "must be >= 1"),
        (lambda: exact.conv2d(IMAGE[:, :, :2], weight), "no window"),
        (lambda: exact.conv_transpose2d(IMAGE, weight), "can't apply"),
        (lambda: exact.group_norm(IMAGE, 3), "must divide the channels"),
        (lambda: exact.max_pool2d(IMAGE, 2, padding=2), "at most half the kernel"),
        (lambda: exact.interpolate_bilinear(IMAGE, 0), "can't resize"),
        (lambda: exact.adaptive_avg_pool2d(IMAGE, 0), "can't pool"),
        (lambda: exact.sum(IMAGE[:, :0], 1), "empty dimensions"),
        (lambda: exact.rms_norm(X, W), "weight must have shape"),
    ):
        with pytest.raises(ValueError, match=rule):
            call()
