"""Each exact operator's time over native float32 torch's, one thread, taken in turns in one process.

python -m benchmarks.exact_ops [--quick]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.table import machine_line, print_table
from workloads import exact
from workloads.exact.cases import numbers

__all__ = ["main", "operators"]

Thunk = Callable[[], Any]


def operators(rows: int) -> dict[str, tuple[Thunk, Callable[[exact.Precision], Any]]]:
    """For each operator, native float32 and exact, on about ``rows`` rows of width 512."""
    width, heads = 512, 8
    x, w, grad = (
        numbers("x", rows, width).float(),
        numbers("w", width, width).float(),
        numbers("g", rows, width),
    )
    flat, gain = x.contiguous(), numbers("gain", width).float()
    positive = flat.abs() + 1
    q, k, v = (numbers(n, 1, heads, rows, 64).float() * 0.25 for n in "qkv")
    image, kernel = numbers("image", 1, 32, 32, 32).float(), numbers("kernel", 32, 32, 3, 3).float()
    targets, tokens = torch.arange(rows) * 7 % width, torch.arange(rows) * 11 % 100
    upstream = grad.float()

    def native_backward(function: Callable[..., Tensor], grad: Tensor, *inputs: Tensor) -> Thunk:
        leaves = [each.clone().requires_grad_() for each in inputs]
        result = function(*leaves)
        return lambda: torch.autograd.grad(result, leaves, grad, retain_graph=True)

    def both(native: Thunk, ours: Thunk) -> tuple[Thunk, Callable[[exact.Precision], Any]]:
        return native, lambda _: ours()

    attend = partial(F.scaled_dot_product_attention, is_causal=True)
    conv = partial(F.conv2d, padding=1)
    image_grad = numbers("ig", 1, 32, 32, 32).float()
    return {
        "matmul": (lambda: x @ w, lambda p: exact.matmul(x, w, precision=p)),
        "linear": (lambda: F.linear(x, w), lambda p: exact.linear(x, w, precision=p)),
        "linear backward": (
            native_backward(F.linear, upstream, x, w),
            lambda p: exact.linear_backward(upstream, x, w, precision=p),
        ),
        "attention": (lambda: attend(q, k, v), lambda p: exact.attention(q, k, v, causal=True, precision=p)),
        "attention backward": (
            native_backward(attend, q, q, k, v),
            lambda p: exact.attention_backward(q, q, k, v, causal=True, precision=p),
        ),
        "conv2d": (
            lambda: conv(image, kernel),
            lambda p: exact.conv2d(image, kernel, padding=1, precision=p),
        ),
        "conv2d backward": (
            native_backward(conv, image_grad, image, kernel),
            lambda p: exact.conv2d_backward(image_grad, image, kernel, padding=1, precision=p),
        ),
        "conv-transpose2d": (
            lambda: F.conv_transpose2d(image, kernel, stride=2),
            lambda p: exact.conv_transpose2d(image, kernel, stride=2, precision=p),
        ),
        "exp": both(flat.exp, lambda: exact.exp(flat)),
        "log": both(positive.log, lambda: exact.log(positive)),
        "sqrt": both(positive.sqrt, lambda: exact.sqrt(positive)),
        "sin": both(flat.sin, lambda: exact.sin(flat)),
        "tanh": both(flat.tanh, lambda: exact.tanh(flat)),
        "sigmoid": both(flat.sigmoid, lambda: exact.sigmoid(flat)),
        "silu": both(lambda: F.silu(flat), lambda: exact.silu(flat)),
        "gelu": both(lambda: F.gelu(flat), lambda: exact.gelu(flat)),
        "gelu tanh": both(
            lambda: F.gelu(flat, approximate="tanh"), lambda: exact.gelu(flat, approximate="tanh")
        ),
        "sum": both(lambda: flat.sum(-1), lambda: exact.sum(flat, -1)),
        "logsumexp": both(lambda: flat.logsumexp(-1), lambda: exact.logsumexp(flat)),
        "softmax": both(lambda: flat.softmax(-1), lambda: exact.softmax(flat)),
        "rms norm": both(lambda: F.rms_norm(flat, (width,), gain), lambda: exact.rms_norm(flat, gain)),
        "layer norm": both(
            lambda: F.layer_norm(flat, (width,), gain, gain), lambda: exact.layer_norm(flat, gain, gain)
        ),
        "group norm": both(lambda: F.group_norm(image, 8), lambda: exact.group_norm(image, 8)),
        "cross entropy": both(
            lambda: F.cross_entropy(flat, targets), lambda: exact.cross_entropy(flat, targets)
        ),
        "embedding": both(lambda: F.embedding(tokens, w), lambda: exact.embedding(w, tokens)),
        "embedding backward": both(
            lambda: torch.zeros(100, width).index_add_(0, tokens, upstream),
            lambda: exact.embedding_backward(upstream, tokens, 100),
        ),
        "max pool": both(lambda: F.max_pool2d(image, 2), lambda: exact.max_pool2d(image, 2)),
        "average pool": both(lambda: F.avg_pool2d(image, 2), lambda: exact.avg_pool2d(image, 2)),
        "bilinear": both(
            lambda: F.interpolate(image, 64, mode="bilinear"), lambda: exact.interpolate_bilinear(image, 64)
        ),
        "AdamW": both(
            lambda: torch._fused_adamw_(
                [flat.clone()],
                [upstream],
                [torch.zeros_like(flat)],
                [torch.zeros_like(flat)],
                [],
                [torch.tensor(1.0)],
                lr=1e-3,
                beta1=0.9,
                beta2=0.999,
                weight_decay=0.01,
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            ),
            lambda: exact.adamw_step(
                flat, upstream, torch.zeros_like(flat), torch.zeros_like(flat), step=1, learning_rate=1e-3
            ),
        ),
    }


def best_s(thunks: list[Thunk], rounds: int) -> list[float]:
    """The shortest processor time of each, in turns, so that a busy moment hits all alike."""
    shortest = [float("inf")] * len(thunks)
    for _ in range(rounds):
        for index, thunk in enumerate(thunks):
            started = time.process_time()
            thunk()
            shortest[index] = min(shortest[index], time.process_time() - started)
    return shortest


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exact_ops", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, on fewer rows")
    parser.add_argument("--arithmetic", choices=[each.value for each in exact.Arithmetic])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, rounds = (128, 4) if arguments.quick else (512, 9)
    print(machine_line())
    table = []
    with exact.computed_in(arguments.arithmetic) if arguments.arithmetic else nullcontext():
        for name, (native, ours) in operators(rows).items():
            native_s, s14, s21 = best_s(
                [native, partial(ours, exact.EXACT14), partial(ours, exact.EXACT21)], rounds
            )
            both = [f"{s14 / native_s:.2f}x", f"{s21 / native_s:.2f}x"]
            table.append([name, f"{native_s * 1e3:.3f} ms", *both])
    arithmetic = arguments.arithmetic or "what is fastest"
    print_table(
        f"{rows} rows of width 512 (images 32 x 32 x 32), contractions in {arithmetic}",
        ["operator", "native float32", "exact14", "exact21"],
        table,
    )


if __name__ == "__main__":
    main()
