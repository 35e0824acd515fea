"""One fixed case for each operator, to be digested on any machine.

Inputs are bytes of BLAKE3's output stream read as integers, so they need no random number generator and no
library function. A case takes a `Form`, which says how the same result is to be computed: on which device,
and whole or one batch entry at a time. Its digest must not depend on that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from blake3 import blake3
from torch import Tensor

from workloads import exact
from workloads.exact.quantise import Precision

__all__ = ["CASES", "Form", "digest", "numbers", "operator_digests", "training_digest"]

Case = Callable[["Form"], Tensor | tuple[Tensor, ...]]

_ELEMENTS = 40_000
_TRAINING_STEPS = 20


@dataclass(frozen=True, slots=True)
class Form:
    """How a case is computed.

    Args:
        device: where.
        split: each batch entry alone, the last first.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    split: bool = False

    def numbers(self, name: str, *shape: int) -> Tensor:
        """`numbers`, on the device."""
        return numbers(name, *shape).to(self.device)

    def over(self, function: Callable[..., Tensor], *batched: Tensor) -> Tensor:
        """``function`` of tensors with one leading dimension, which it keeps."""
        if not self.split:
            return function(*batched)
        last_first = range(len(batched[0]) - 1, -1, -1)
        parts = [function(*(each[i : i + 1] for each in batched)) for i in last_first]
        return torch.cat(parts[::-1])


def numbers(name: str, *shape: int) -> Tensor:
    """Float64 numbers of 24 bits between -8 and 8, by name; rows differ in scale by powers of two."""
    count = 1
    for size in shape:
        count *= size
    stream = torch.frombuffer(bytearray(blake3(name.encode()).digest(4 * count)), dtype=torch.int32)
    spread = (stream >> 8).to(torch.float64).view(shape) * 2.0**-20
    rows = torch.arange(count // shape[-1]).view(*shape[:-1], 1)
    # Looked up: a machine's pow needn't be exact.
    scales = torch.tensor([0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    return spread * scales[rows * 5 % 7]


def digest(*tensors: Tensor) -> str:
    """BLAKE3 over shapes and little-endian float64 (or int64) bytes, in hexadecimal."""
    hasher = blake3()
    for tensor in tensors:
        little = "<i8" if tensor.dtype == torch.int64 else "<f8"
        hasher.update(repr(tuple(tensor.shape)).encode())
        hasher.update(tensor.cpu().contiguous().numpy().astype(little, copy=False).tobytes())
    return hasher.hexdigest()


def operator_digests(form: Form) -> dict[str, str]:
    """The digest of each case, by name, in the order of `CASES`."""
    digests = {}
    for name, case in CASES.items():
        result = case(form)
        digests[name] = digest(*(result if isinstance(result, tuple) else (result,)))
    return digests


def _matmul(form: Form, precision: Precision) -> Tensor:
    # Longer than one exact block of exact21.
    a, b = form.numbers("a", 3, 18, 2200), form.numbers("b", 3, 2200, 10)
    return form.over(partial(exact.matmul, precision=precision), a, b)


def _linear(form: Form, precision: Precision) -> tuple[Tensor, ...]:
    x, weight, bias = form.numbers("x", 5, 7, 96), form.numbers("w", 40, 96), form.numbers("bias", 40)
    y = form.over(lambda rows: exact.linear(rows, weight, bias, precision=precision), x)
    grad = form.numbers("grad", 5, 7, 40)
    return y, *exact.linear_backward(grad, x, weight, precision=precision)


def _attention(form: Form, precision: Precision, *, causal: bool) -> tuple[Tensor, ...]:
    q, k = form.numbers("q", 3, 6, 37, 16), form.numbers("k", 3, 2, 45, 16)
    v, grad = form.numbers("v", 3, 2, 45, 8), form.numbers("grad", 3, 6, 37, 8)
    attend = partial(exact.attention, causal=causal, precision=precision)
    # A query's row doesn't depend on the queries beside it.
    first = form.over(lambda q, k, v: attend(q[:, :, :20], k[:, :, :28], v[:, :, :28]), q, k, v)
    back = exact.attention_backward(grad, q, k, v, causal=causal, precision=precision)
    return form.over(attend, q, k, v), first, *back


def _conv1d(form: Form, precision: Precision) -> Tensor:
    x, weight = form.numbers("signal", 3, 6, 31), form.numbers("kernel", 8, 3, 5)
    convolve = partial(exact.conv1d, stride=2, padding=2, groups=2, precision=precision)
    return form.over(lambda x: convolve(x, weight), x)


def _conv2d(form: Form, precision: Precision) -> tuple[Tensor, ...]:
    x, weight, bias = (
        form.numbers("image", 3, 6, 13, 11),
        form.numbers("kernel", 8, 3, 3, 3),
        form.numbers("bias", 8),
    )
    shape = {"stride": 2, "padding": 1, "groups": 2}
    y = form.over(lambda x: exact.conv2d(x, weight, bias, precision=precision, **shape), x)
    back = exact.conv2d_backward(form.numbers("grad", *y.shape), x, weight, precision=precision, **shape)
    return y, *back


def _conv_transpose2d(form: Form, precision: Precision) -> Tensor:
    x, weight = form.numbers("image", 3, 6, 7, 5), form.numbers("kernel", 6, 4, 3, 3)
    convolve = partial(
        exact.conv_transpose2d, stride=2, padding=1, output_padding=1, dilation=2, precision=precision
    )
    return form.over(lambda x: convolve(x, weight), x)


def _conv_transpose1d(form: Form, precision: Precision) -> Tensor:
    x, weight = form.numbers("signal", 3, 6, 17), form.numbers("kernel", 6, 2, 4)
    return form.over(lambda x: exact.conv_transpose1d(x, weight, stride=3, precision=precision), x)


def _elementwise(form: Form, function: Callable[[Tensor], Tensor]) -> Tensor:
    return form.over(function, form.numbers("elements", 4, _ELEMENTS // 4) * 4.0)


def _positive(form: Form, function: Callable[[Tensor], Tensor]) -> Tensor:
    return form.over(function, form.numbers("elements", 4, _ELEMENTS // 4).abs() + 2.0**-20)


def _slopes(form: Form) -> tuple[Tensor, ...]:
    x, grad = form.numbers("elements", 4, 999), form.numbers("grad", 4, 999)
    return (
        exact.silu_backward(grad, x),
        exact.gelu_backward(grad, x),
        exact.gelu_backward(grad, x, approximate="tanh"),
        exact.tanh_backward(grad, exact.tanh(x)),
        exact.sigmoid_backward(grad, exact.sigmoid(x)),
    )


def _reduced(form: Form, function: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, ...]:
    x = form.numbers("reduced", 4, 700, 3)
    return form.over(lambda x: function(x, -1), x), form.over(lambda x: function(x, 1), x), function(x, 0)


def _whole_sums(form: Form) -> tuple[Tensor, ...]:
    # Longer than one block of a sum.
    x = form.numbers("long", 1_100_000)
    return exact.sum(x), exact.mean(x), exact.var(x[:5000]), exact.max(x, keepdim=True)


def _rms_norm(form: Form) -> tuple[Tensor, ...]:
    x, weight, grad = (form.numbers(n, *s) for n, s in (("x", (5, 7, 96)), ("w", (96,)), ("g", (5, 7, 96))))
    y = form.over(lambda x: exact.rms_norm(x, weight), x)
    return y, *exact.rms_norm_backward(grad, x, weight)


def _layer_norm(form: Form) -> tuple[Tensor, ...]:
    x, weight, grad = (form.numbers(n, *s) for n, s in (("x", (5, 7, 96)), ("w", (96,)), ("g", (5, 7, 96))))
    y = form.over(lambda x: exact.layer_norm(x, weight, weight), x)
    return y, *exact.layer_norm_backward(grad, x, weight)


def _group_norm(form: Form) -> tuple[Tensor, ...]:
    x, weight = form.numbers("image", 3, 8, 9, 7), form.numbers("w", 8)
    y = form.over(lambda x: exact.group_norm(x, 4, weight, weight), x)
    return y, *exact.group_norm_backward(form.numbers("g", 3, 8, 9, 7), x, 4, weight)


def _softmax(form: Form) -> tuple[Tensor, ...]:
    x, grad = form.numbers("x", 5, 7, 96), form.numbers("g", 5, 7, 96)
    y = form.over(exact.softmax, x)
    return y, exact.softmax_backward(grad, y), form.over(exact.log_softmax, x)


def _cross_entropy(form: Form) -> tuple[Tensor, ...]:
    logits, targets = form.numbers("logits", 40, 50), torch.arange(40, device=form.device) * 7 % 50
    loss = exact.cross_entropy(logits, targets)
    return loss, exact.cross_entropy_backward(torch.ones_like(loss), logits, targets)


def _embedding(form: Form) -> tuple[Tensor, ...]:
    tokens = torch.arange(600, device=form.device) * 11 % 23 * 2
    grad = form.numbers("grad", 600, 24)
    back = exact.embedding_backward(grad, tokens, 50)
    if form.split:
        back = exact.embedding_backward(grad.flip(0), tokens.flip(0), 50)
    return exact.embedding(form.numbers("table", 50, 24), tokens), back


def _pooling(form: Form) -> tuple[Tensor, ...]:
    x = form.numbers("image", 3, 4, 13, 11)
    return (
        form.over(lambda x: exact.max_pool2d(x, 3, stride=2, padding=1), x),
        form.over(lambda x: exact.avg_pool2d(x, 3, stride=2, padding=1), x),
        form.over(lambda x: exact.adaptive_avg_pool2d(x, (5, 4)), x),
    )


def _interpolation(form: Form) -> tuple[Tensor, ...]:
    x = form.numbers("image", 3, 4, 13, 11)
    return (
        form.over(lambda x: exact.interpolate_nearest(x, (20, 9)), x),
        form.over(lambda x: exact.interpolate_bilinear(x, (20, 9)), x),
        form.over(lambda x: exact.interpolate_bilinear(x, (20, 9), align_corners=True), x),
    )


def _adamw(form: Form) -> tuple[Tensor, ...]:
    state = exact.AdamWState(
        form.numbers("p", 30, 40), form.numbers("m", 30, 40), form.numbers("v", 30, 40).abs()
    )
    for step in range(1, 4):
        state = exact.adamw_step(
            state.parameter, form.numbers(f"g{step}", 30, 40), *state[1:], step=step, learning_rate=1e-3
        )
    return state


def training_digest(precision: Precision, form: Form) -> str:
    """The parameters after 20 steps of a small causal transformer on fixed tokens."""
    width, vocabulary, heads, length, hidden = 32, 40, 4, 24, 64
    shapes = {
        "embedding": (vocabulary, width),
        "gain": (width,),
        "mixed": (3 * width, width),
        "out": (width, width),
        "gate": (hidden, width),
        "down": (width, hidden),
        "head": (vocabulary, width),
    }
    state = {
        name: exact.AdamWState(p := form.numbers(name, *shape) * 2.0**-6, p * 0.0, p * 0.0)
        for name, shape in shapes.items()
    }
    tokens = torch.arange(4 * (length + 1), device=form.device).view(4, -1) ** 2 % 37
    inputs, targets = tokens[:, :-1], tokens[:, 1:].reshape(-1)

    def heads_of(x: Tensor) -> Tensor:
        return x.view(4, length, heads, -1).transpose(1, 2)

    linear, back = (
        partial(exact.linear, precision=precision),
        partial(exact.linear_backward, precision=precision),
    )
    for step in range(1, _TRAINING_STEPS + 1):
        w = {name: each.parameter for name, each in state.items()}
        x0 = exact.embedding(w["embedding"], inputs)
        normal = exact.rms_norm(x0, w["gain"])
        q, k, v = (heads_of(part) for part in linear(normal, w["mixed"]).chunk(3, -1))
        seen = exact.attention(q, k, v, causal=True, precision=precision).transpose(1, 2).reshape(x0.shape)
        x1 = x0 + linear(seen, w["out"])
        gate = linear(x1, w["gate"])
        active = exact.silu(gate)
        x2 = x1 + linear(active, w["down"])
        logits = linear(x2, w["head"]).view(-1, vocabulary)

        g: dict[str, Tensor] = {}
        one = torch.ones((), dtype=torch.float64, device=form.device)
        slope = exact.cross_entropy_backward(one, logits, targets).view(4, length, -1)
        by_x2, g["head"], _ = back(slope, x2, w["head"])
        by_active, g["down"], _ = back(by_x2, active, w["down"])
        by_gate, g["gate"], _ = back(exact.silu_backward(by_active, gate), x1, w["gate"])
        by_x1 = by_x2 + by_gate
        by_seen, g["out"], _ = back(by_x1, seen, w["out"])
        slopes = exact.attention_backward(heads_of(by_seen), q, k, v, causal=True, precision=precision)
        by_mixed = torch.cat([each.transpose(1, 2).reshape(x0.shape) for each in slopes], -1)
        by_normal, g["mixed"], _ = back(by_mixed, normal, w["mixed"])
        by_x0, g["gain"] = exact.rms_norm_backward(by_normal, x0, w["gain"])
        g["embedding"] = exact.embedding_backward(by_x0 + by_x1, inputs, vocabulary)
        state = {
            name: exact.adamw_step(*_interleaved(each, g[name]), step=step, learning_rate=1e-2)
            for name, each in state.items()
        }
    return digest(*(tensor for each in state.values() for tensor in each))


def _interleaved(state: exact.AdamWState, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return state.parameter, grad, state.mean, state.variance


_BY_PRECISION: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "matmul": _matmul,
    "linear": _linear,
    "attention": partial(_attention, causal=False),
    "causal-attention": partial(_attention, causal=True),
    "conv1d": _conv1d,
    "conv2d": _conv2d,
    "conv-transpose1d": _conv_transpose1d,
    "conv-transpose2d": _conv_transpose2d,
}

_SIGNED: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": exact.exp,
    "exp2": exact.exp2,
    "sin": exact.sin,
    "cos": exact.cos,
    "tanh": exact.tanh,
    "sigmoid": exact.sigmoid,
    "silu": exact.silu,
    "gelu": exact.gelu,
    "gelu-tanh": partial(exact.gelu, approximate="tanh"),
    "erf": exact.erf,
    "relu": exact.relu,
}

CASES: dict[str, Case] = {
    **{
        f"{name}/{precision.name}": partial(case, precision=precision)
        for name, case in _BY_PRECISION.items()
        for precision in (exact.EXACT14, exact.EXACT21)
    },
    **{name: partial(_elementwise, function=function) for name, function in _SIGNED.items()},
    "log": partial(_positive, function=exact.log),
    "sqrt": partial(_positive, function=exact.sqrt),
    "rsqrt": partial(_positive, function=exact.rsqrt),
    "elementwise-backward": _slopes,
    "sum": partial(_reduced, function=exact.sum),
    "mean": partial(_reduced, function=exact.mean),
    "var": partial(_reduced, function=exact.var),
    "max": partial(_reduced, function=exact.max),
    "argmax": partial(_reduced, function=exact.argmax),
    "logsumexp": partial(_reduced, function=exact.logsumexp),
    "long-sums": _whole_sums,
    "rms-norm": _rms_norm,
    "layer-norm": _layer_norm,
    "group-norm": _group_norm,
    "softmax": _softmax,
    "cross-entropy": _cross_entropy,
    "embedding": _embedding,
    "pooling": _pooling,
    "interpolation": _interpolation,
    "adamw": _adamw,
}
"""A case for each operator, backwards included."""
