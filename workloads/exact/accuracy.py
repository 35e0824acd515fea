"""How far each exact operator is from the real numbers, beside native float32 and bfloat16.

The reference is float64, or the processor's long double for elementwise functions. Inputs are exact in
float32; bfloat16 is given them rounded. The error is the norm of the difference over the norm of the
reference, and for elementwise functions the largest relative one (the largest absolute one for what crosses
zero elsewhere than at zero).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from workloads import exact
from workloads.exact.cases import numbers
from workloads.exact.quantise import Precision

__all__ = ["errors", "print_accuracy"]

Errors = dict[str, tuple[float, float, float, float]]

_NATIVE = (torch.float32, torch.bfloat16)
_ELEMENTS = 40_000


def errors() -> Errors:
    """For each operator, the error of exact14, exact21, native float32 and native bfloat16."""
    return {**_contractions(), **_reductions(), **_elementwise()}


def print_accuracy() -> None:
    """Print `errors` as a table."""
    print("\nRelative error against float64")
    print(f"  {'':28} {'exact14':>9} {'exact21':>9} {'float32':>9} {'bfloat16':>9}")
    for name, row in errors().items():
        print(f"  {name:28} " + " ".join(f"{error:9.1e}" for error in row))


def _contractions() -> Errors:
    x, w = numbers("x", 64, 512), numbers("w", 96, 512)
    g = numbers("g", 64, 96)
    q, k = numbers("q", 2, 8, 64, 32) * 0.25, numbers("k", 2, 2, 64, 32) * 0.25
    v, gv = numbers("v", 2, 2, 64, 32), numbers("gv", 2, 8, 64, 32)
    image, kernel = numbers("image", 2, 16, 20, 20), numbers("kernel", 24, 16, 3, 3)
    gi = numbers("gi", 2, 24, 20, 20)
    mixed = numbers("mixed", 24, 16, 3, 3).transpose(0, 1)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    attention = partial(exact.attention, causal=True)
    attention_backward = partial(exact.attention_backward, causal=True)
    convolve = partial(F.conv2d, padding=1)
    table: list[tuple[str, Callable[..., Any], Callable[..., Any], tuple[Tensor, ...]]] = [
        ("matmul", exact.matmul, torch.matmul, (x, w.t())),
        ("linear", exact.linear, F.linear, (x, w)),
        ("attention", attention, attend, (q, k, v)),
        ("conv2d", partial(exact.conv2d, padding=1), convolve, (image, kernel)),
        (
            "conv-transpose2d",
            partial(exact.conv_transpose2d, stride=2),
            partial(F.conv_transpose2d, stride=2),
            (image, mixed),
        ),
        ("linear-backward", exact.linear_backward, _gradients(F.linear), (g, x, w)),
        ("attention-backward", attention_backward, _gradients(attend), (gv, q, k, v)),
        (
            "conv2d-backward",
            partial(exact.conv2d_backward, padding=1),
            _gradients(convolve),
            (gi, image, kernel),
        ),
    ]
    return {
        name: _row(partial(_in_precision, ours, inputs), native, inputs)
        for name, ours, native, inputs in table
    }


def _reductions() -> Errors:
    x, w, g = numbers("x", 64, 512), numbers("w", 512), numbers("g", 64, 512)
    logits, targets = numbers("logits", 64, 500), torch.arange(64) * 7 % 500
    tokens = torch.arange(2000) * 11 % 23
    grads = numbers("grads", 2000, 32)
    image = numbers("image", 2, 16, 20, 20)

    def native_embedding(grad: Tensor) -> Tensor:
        return torch.zeros(23, 32, dtype=grad.dtype).index_add_(0, tokens, grad)

    table: list[tuple[str, Callable[..., Any], Callable[..., Any], tuple[Tensor, ...]]] = [
        ("sum", lambda x: exact.sum(x, -1), lambda x: x.sum(-1), (x,)),
        ("var", lambda x: exact.var(x, -1), lambda x: x.var(-1), (x,)),
        ("logsumexp", exact.logsumexp, lambda x: x.logsumexp(-1), (x,)),
        ("softmax", exact.softmax, lambda x: x.softmax(-1), (x,)),
        ("rms-norm", exact.rms_norm, lambda x, w: F.rms_norm(x, (512,), w, 1e-6), (x, w)),
        ("layer-norm", exact.layer_norm, lambda x, w: F.layer_norm(x, (512,), w), (x, w)),
        ("group-norm", lambda x: exact.group_norm(x, 4), lambda x: F.group_norm(x, 4), (image,)),
        (
            "layer-norm-backward",
            lambda g, x, w: exact.layer_norm_backward(g, x, w)[:2],
            _gradients(lambda x, w: F.layer_norm(x, (512,), w)),
            (g, x, w),
        ),
        (
            "cross-entropy",
            lambda x: exact.cross_entropy(x, targets),
            lambda x: F.cross_entropy(x, targets),
            (logits,),
        ),
        ("embedding-backward", lambda g: exact.embedding_backward(g, tokens, 23), native_embedding, (grads,)),
        (
            "bilinear",
            lambda x: exact.interpolate_bilinear(x, 33),
            lambda x: F.interpolate(x, 33, mode="bilinear"),
            (image,),
        ),
    ]
    return {
        name: _row(partial(_in_either, ours, inputs), native, inputs) for name, ours, native, inputs in table
    }


def _elementwise() -> Errors:
    x = numbers("elements", _ELEMENTS // 5, 5)
    positive = x.abs() + 2.0**-20
    long = np.longdouble
    root = long(2) / np.sqrt(long(2) * long(np.pi))

    def logistic(x: NDArray[Any]) -> Any:
        return 1 / (1 + np.exp(-np.clip(x, -11000, 11000)))

    def gelu_tanh(x: NDArray[Any]) -> Any:
        return x * logistic(2 * root * (x + long(0.044715) * x**3))

    def gelu_float64(x: NDArray[Any]) -> Any:
        double = torch.from_numpy(x.astype(np.float64))
        return (double * 0.5 * torch.erfc(double * -(0.5**0.5))).numpy()

    table: list[tuple[str, Callable[..., Tensor], Callable[..., Tensor], Callable[..., Any], Tensor]] = [
        ("exp", exact.exp, torch.exp, np.exp, x),
        ("exp2", exact.exp2, torch.exp2, np.exp2, x),
        ("log", exact.log, torch.log, np.log, positive),
        ("sqrt", exact.sqrt, torch.sqrt, np.sqrt, positive),
        ("rsqrt", exact.rsqrt, torch.rsqrt, lambda x: 1 / np.sqrt(x), positive),
        ("sin (absolute)", exact.sin, torch.sin, np.sin, x),
        ("cos (absolute)", exact.cos, torch.cos, np.cos, x),
        ("tanh", exact.tanh, torch.tanh, np.tanh, x),
        ("sigmoid", exact.sigmoid, torch.sigmoid, logistic, x),
        ("silu", exact.silu, F.silu, lambda x: x * logistic(x), x),
        ("gelu (absolute)", exact.gelu, F.gelu, gelu_float64, x),
        (
            "gelu-tanh (absolute)",
            partial(exact.gelu, approximate="tanh"),
            partial(F.gelu, approximate="tanh"),
            gelu_tanh,
            x,
        ),
    ]
    rows: Errors = {}
    for name, ours, native, reference, inputs in table:
        wanted = reference(inputs.numpy().astype(long))
        absolute = name.endswith("(absolute)")
        error = _largest_error(ours(inputs), wanted, absolute)
        float32, bfloat16 = (
            _largest_error(native(inputs.to(dtype)).double(), wanted, absolute) for dtype in _NATIVE
        )
        rows[name] = error, error, float32, bfloat16
    return rows


def _in_precision(function: Callable[..., Any], inputs: tuple[Tensor, ...], precision: Precision) -> Any:
    return function(*inputs, precision=precision)


def _in_either(function: Callable[..., Any], inputs: tuple[Tensor, ...], _: Precision) -> Any:
    return function(*inputs)


def _row(
    ours: Callable[[Precision], Any], native: Callable[..., Any], inputs: tuple[Tensor, ...]
) -> tuple[float, float, float, float]:
    reference = native(*inputs)
    exact14, exact21 = (_distance(ours(each), reference) for each in (exact.EXACT14, exact.EXACT21))
    float32, bfloat16 = (
        _distance(native(*(each.to(dtype) for each in inputs)), reference) for dtype in _NATIVE
    )
    return exact14, exact21, float32, bfloat16


def _distance(found: Any, reference: Any) -> float:
    """The largest, over several results, of the norm of the difference over that of the reference."""
    if isinstance(reference, Tensor):
        found, reference = (found,), (reference,)
    # A linear layer gives a bias its gradient too, which the native side isn't asked for.
    return max(
        float((each.double() - wanted).norm() / wanted.norm())
        for each, wanted in zip(found, reference, strict=False)
    )


def _largest_error(found: Tensor, reference: NDArray[Any], absolute: bool) -> float:
    difference = np.abs(found.numpy().astype(np.longdouble) - reference)
    if absolute:
        return float(difference.max())
    # Results that float32 would flush to zero say nothing about its accuracy.
    normal = np.abs(reference) > np.longdouble(2) ** -126
    return float((difference[normal] / np.abs(reference[normal])).max())


def _gradients(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """A function of (grad, *inputs) that gives the gradients of the inputs by autograd."""

    def backward(grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        leaves = [each.detach().requires_grad_() for each in inputs]
        return torch.autograd.grad(function(*leaves), leaves, grad)

    return backward
