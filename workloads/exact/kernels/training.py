"""The elementwise parts of a training step in compiled code, with the bits of the torch operators.

`training_kernels` gives them where the library is there and computes the same bits as the torch path, which
is tried on a sample.
"""

from __future__ import annotations

import ctypes
import logging
import math
from collections.abc import Callable, Sequence
from itertools import product as product_of
from typing import Any

import torch
from torch import Tensor

from workloads.exact import attend, contraction, elementwise, normalise, optimiser
from workloads.exact.elementary import STEP_HIGH, STEP_LOW, STEPS_PER_E
from workloads.exact.functions import LOG2_E
from workloads.exact.kernels import Kernels, kernels, use_kernels
from workloads.exact.kernels.products import Products, check_bits
from workloads.exact.quantise import EXACT21, Precision
from workloads.exact.reductions import sum_bits
from workloads.exact.rope import rotate
from workloads.exact.tensors import convert, intake, vector

__all__ = ["TrainingKernels", "training_kernels"]

# Longer sums are taken in blocks.
_SUM_MAX = 1 << 20
_INFINITY_BITS = 0x7FF0_0000_0000_0000
_LOG = logging.getLogger(__name__)


class _ExpConstants(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_double) for name in ("steps_per_e", "step_high", "step_low"))


_ADAMW_FIELDS = (
    *("beta1", "rest1", "beta2", "rest2", "correction1", "correction2"),
    *("epsilon", "kept", "rate"),
)


class _AdamW(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_double) for name in _ADAMW_FIELDS)


class _Heads(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch_step", "head_step", "step", "width")),
    )


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "heads", "key_heads", "count", "length")),
        *((name, ctypes.c_int64) for name in ("causal", "bits", "sum_bits")),
        *((name, ctypes.c_double) for name in ("scale", "factor")),
    )


# As the library numbers what it refuses, from 1.
_OPERANDS = ("queries", "keys", "values", "grad", "slopes", "weights")


def training_kernels() -> TrainingKernels | None:
    """The kernels of a training step; None where there are none, or where they'd give other bits."""
    loaded = kernels()
    return None if loaded is None else _checked(loaded)


class TrainingKernels:
    """Functions as in `workloads.exact`, for float64 on the CPU.

    Args:
        loaded: the library.

    Attributes:
        products: of matrices.
    """

    def __init__(self, loaded: Kernels) -> None:
        library, integer, real, pointer = loaded.library, ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
        for name, arguments in (
            ("silu", (pointer, pointer, integer, pointer)),
            ("silu_backward", (pointer, pointer, pointer, integer, pointer)),
            ("attention", (pointer,) * 3),
            ("attention_backward", (pointer,) * 3),
            ("adamw", (pointer, integer, *[pointer] * 7)),
            ("rms_norm", (pointer, pointer, integer, integer, real, integer, pointer)),
            ("rms_norm_backward", (*[pointer] * 3, *[integer] * 2, real, *[integer] * 2, *[pointer] * 4)),
            ("rotary", (*[pointer] * 5, integer, pointer)),
        ):
            function = getattr(library, f"p2p_{name}")
            function.restype, function.argtypes = None, arguments
        library.p2p_rms_norm.restype = ctypes.c_uint64
        library.p2p_attention.restype = library.p2p_attention_backward.restype = integer
        self.products = Products(loaded)
        self._library = library
        self._exp = _ExpConstants(STEPS_PER_E, STEP_HIGH, STEP_LOW)
        self._exp_pointer = ctypes.addressof(self._exp)

    def silu(self, x: Tensor) -> Tensor:
        """`workloads.exact.silu`."""
        taken = intake("x", x).contiguous()
        result = torch.empty_like(taken)
        self._library.p2p_silu(self._exp_pointer, taken.data_ptr(), taken.numel(), result.data_ptr())
        return result

    def silu_backward(self, grad: Tensor, x: Tensor) -> Tensor:
        """`workloads.exact.silu_backward`."""
        upstream, taken = intake("grad", grad).contiguous(), intake("x", x).contiguous()
        result = torch.empty_like(taken)
        self._library.p2p_silu_backward(
            self._exp_pointer, upstream.data_ptr(), taken.data_ptr(), taken.numel(), result.data_ptr()
        )
        return result

    def attention(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        causal: bool,
        scale: float,
        precision: Precision,
    ) -> Tensor:
        """`workloads.exact.attention`; positions of the result lie side by side, then heads."""
        settings = _attention_of(queries, keys, causal, scale, precision)
        if settings is None:
            return attend.attention(queries, keys, values, causal=causal, scale=scale, precision=precision)
        operands = [_four(name, x) for name, x in (("queries", queries), ("keys", keys), ("values", values))]
        out = _heads_like(operands[0], operands[2].shape[-1])
        self._attend(self._library.p2p_attention, settings, operands, [out], _OPERANDS)
        return out.view(*queries.shape[:-1], -1) if queries.dim() != out.dim() else out

    def attention_backward(
        self,
        grad: Tensor,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        causal: bool,
        scale: float,
        precision: Precision,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`workloads.exact.attention_backward`; results lie as that of `attention`."""
        settings = _attention_of(queries, keys, causal, scale, precision)
        if settings is None:
            return attend.attention_backward(
                grad, queries, keys, values, causal=causal, scale=scale, precision=precision
            )
        names = ("grad", "queries", "keys", "values")
        taken = zip(names, (grad, queries, keys, values), strict=True)
        operands = [_four(name, x) for name, x in taken]
        results = [_heads_like(x, x.shape[-1]) for x in operands[1:]]
        self._attend(self._library.p2p_attention_backward, settings, operands, results, _OPERANDS)
        by_q, by_k, by_v = (
            found.reshape(x.shape) for found, x in zip(results, (queries, keys, values), strict=True)
        )
        return by_q, by_k, by_v

    def rms_norm(self, x: Tensor, weight: Tensor | None = None, *, epsilon: float) -> Tensor:
        """`workloads.exact.rms_norm`."""
        width = x.shape[-1]
        if width > _SUM_MAX:
            return normalise.rms_norm(x, weight, epsilon=epsilon)
        taken, gains = convert("x", x).contiguous(), _gains(weight, width)
        out = torch.empty_like(taken)
        largest = self._library.p2p_rms_norm(
            *(taken.data_ptr(), gains.data_ptr(), taken.numel() // width, width),
            *(epsilon, sum_bits(width), out.data_ptr()),
        )
        check_bits("x", largest)
        return out

    def rms_norm_backward(
        self, grad: Tensor, x: Tensor, weight: Tensor | None = None, *, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        """`workloads.exact.rms_norm_backward`."""
        width = x.shape[-1]
        rows = x.numel() // width
        if max(rows, width) > _SUM_MAX:
            return normalise.rms_norm_backward(grad, x, weight, epsilon=epsilon)
        upstream, taken = convert("grad", grad).contiguous(), convert("x", x).contiguous()
        gains = _gains(weight, width)
        room, by_x = torch.empty_like(taken), torch.empty_like(taken)
        by_weight, largest = torch.empty(width, dtype=torch.float64), torch.empty(2, dtype=torch.int64)
        self._library.p2p_rms_norm_backward(
            *(part.data_ptr() for part in (upstream, taken, gains)),
            *(rows, width, epsilon, sum_bits(width), sum_bits(rows)),
            *(part.data_ptr() for part in (room, by_x, by_weight, largest)),
        )
        for name, bits in zip(("grad", "x"), largest.tolist(), strict=True):
            check_bits(name, bits)
        return by_x, by_weight

    def rotary(self, x: Tensor, cosines: Tensor, sines: Tensor, *, inverse: bool) -> Tensor:
        """`workloads.exact.rope.rotate`."""
        heads = _four("x", x)
        out = torch.empty(x.shape, dtype=torch.float64)
        integers = ctypes.c_int64 * 4
        self._library.p2p_rotary(
            heads.data_ptr(),
            integers(*heads.stride()),
            integers(*heads.shape[:3], heads.shape[3] // 2),
            *(cosines.data_ptr(), sines.data_ptr(), inverse, out.data_ptr()),
        )
        return out

    def _attend(
        self,
        function: Callable[..., int],
        settings: _Attention,
        operands: Sequence[Tensor],
        results: Sequence[Tensor],
        names: Sequence[str],
    ) -> None:
        taken, given = (
            (_Heads * len(heads))(*(_Heads(x.data_ptr(), *x.stride()[:3], x.shape[3]) for x in heads))
            for heads in (operands, results)
        )
        status = function(ctypes.byref(settings), taken, given)
        if status < 0:
            raise MemoryError("no memory for attention's scratch arrays")
        if status:
            check_bits(names[status - 1], _INFINITY_BITS)

    def adamw_float32(
        self,
        parameter: Tensor,
        gradient: Tensor,
        mean: Tensor,
        variance: Tensor,
        *,
        step: int,
        learning_rate: float,
        beta1: float,
        beta2: float,
        epsilon: float,
        weight_decay: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`workloads.exact.adamw_step` of a float32 state, each result rounded to float32."""
        power = optimiser._power
        settings = _AdamW(
            *(beta1, 1.0 - beta1, beta2, 1.0 - beta2, 1.0 - power(beta1, step), 1.0 - power(beta2, step)),
            *(epsilon, 1.0 - learning_rate * weight_decay, learning_rate),
        )
        taken = [part.contiguous() for part in (parameter, intake("gradient", gradient), mean, variance)]
        for name, part in zip(("parameter", "mean", "variance"), (parameter, mean, variance), strict=True):
            if part.dtype != torch.float32:
                raise TypeError(f"{name} must be float32, got {part.dtype}")
        results = torch.empty_like(taken[0]), torch.empty_like(taken[0]), torch.empty_like(taken[0])
        pointers = [part.data_ptr() for part in (*taken, *results)]
        self._library.p2p_adamw(ctypes.addressof(settings), parameter.numel(), *pointers)
        return results


def _attention_of(
    queries: Tensor, keys: Tensor, causal: bool, scale: float, precision: Precision
) -> _Attention | None:
    """Settings of a call; None where sums are too long to be exact, or there is nothing to do."""
    *lead, heads, count, _ = queries.shape
    key_heads, length = keys.shape[-3:-1]
    if max(length, heads // key_heads * count) > precision.inner_max:
        return None
    return _Attention(
        *(math.prod(lead), heads, key_heads, count, length, causal, precision.bits, sum_bits(length)),
        *(scale * LOG2_E, scale),
    )


def _four(name: str, x: Tensor) -> Tensor:
    """(batch, heads, positions, width) float64, rows contiguous; a view where that's possible."""
    taken = convert(name, x)
    while taken.dim() < 4:
        taken = taken.unsqueeze(0)
    taken = taken.flatten(0, -4)
    return taken if taken.stride(-1) == 1 or taken.shape[-1] == 1 else taken.contiguous()


def _heads_like(x: Tensor, width: int) -> Tensor:
    """Room for heads of ``x`` (batch, heads, positions, ...), of each position side by side."""
    batch, heads, count, _ = x.shape
    return torch.empty((batch, count, heads, width), dtype=torch.float64).transpose(1, 2)


def _gains(weight: Tensor | None, width: int) -> Tensor:
    if weight is None:
        return torch.ones(width, dtype=torch.float64)
    return vector("weight", weight, width).contiguous()


_CHECKED: dict[Kernels, TrainingKernels | None] = {}


def _checked(loaded: Kernels) -> TrainingKernels | None:
    if loaded not in _CHECKED:
        _CHECKED[loaded] = None
        try:
            found = TrainingKernels(loaded)
        except AttributeError as error:
            _LOG.warning("training kernels are not used: %s lacks one: %s", loaded.path, error)
            return None
        with use_kernels(None):
            differing = _differing(found)
        if differing is None:
            _CHECKED[loaded] = found
        else:
            _LOG.warning("training kernels are not used: %s gives other bits of %s", loaded.path, differing)
    return _CHECKED[loaded]


def _differing(found: TrainingKernels) -> str | None:
    """The name of a function that gives other bits than torch's path on a sample."""
    generator = torch.Generator().manual_seed(21)

    def sample(*shape: int) -> Tensor:
        # Over many magnitudes, and of odd sizes.
        spread = torch.randint(-12, 6, shape, generator=generator).double()
        return torch.randn(shape, generator=generator, dtype=torch.float64) * torch.exp2(spread)

    x, grad = sample(1_003) * 8.0, sample(1_003)
    heads: Any = {"scale": 0.7, "precision": EXACT21}
    state = [part.float() for part in (sample(517), sample(517), sample(517).square())]
    settings: Any = {"step": 5, "learning_rate": 1e-3, "epsilon": 1e-8, "weight_decay": 0.1}
    moved = optimiser.adamw_step(state[0], grad[:517], *state[1:], betas=(0.9, 0.95), **settings)
    pairs: dict[str, tuple[Sequence[Tensor], Sequence[Tensor]]] = {
        "silu": ([found.silu(x)], [elementwise.silu(x)]),
        "silu_backward": ([found.silu_backward(grad, x)], [elementwise.silu_backward(grad, x)]),
        "adamw": (
            found.adamw_float32(state[0], grad[:517], *state[1:], beta1=0.9, beta2=0.95, **settings),
            [part.float() for part in moved],
        ),
    }
    # The rounding of sums changes at powers of two.
    for causal, length in product_of((False, True), (13, 16)):
        queries, upstream = sample(2, 4, 7, 6), sample(2, 4, 7, 5)
        operands = queries, sample(2, 2, length, 6), sample(2, 2, length, 5)
        pairs[f"attention over {length}, causal={causal}"] = (
            [found.attention(*operands, causal=causal, **heads)],
            [attend.attention(*operands, causal=causal, **heads)],
        )
        pairs[f"attention_backward over {length}, causal={causal}"] = (
            found.attention_backward(upstream, *operands, causal=causal, **heads),
            attend.attention_backward(upstream, *operands, causal=causal, **heads),
        )
    for turn in (False, True):
        # float32 and float64, edges of tiles, and more than one block of each kind.
        left, right = sample(101, 270), sample(270, 37).float()
        sides = (left.mT.contiguous().mT, right.mT.contiguous().mT) if turn else (left, right)
        pairs[f"products, turned={turn}"] = (
            [found.products.contract(("left", sides[0]), ("right", sides[1]), EXACT21)],
            [contraction.contract(("left", left), ("right", right), EXACT21)],
        )
    heads_of, angles = sample(2, 3, 5, 14), (sample(5, 7), sample(5, 7))
    for inverse in (False, True):
        pairs[f"rotary, inverse={inverse}"] = (
            [found.rotary(heads_of.transpose(0, 1), *angles, inverse=inverse)],
            [rotate(heads_of.transpose(0, 1), *angles, inverse=inverse)],
        )
    rows, gains = sample(9, 19), sample(19)
    pairs["rms_norm"] = (
        [found.rms_norm(rows, gains, epsilon=1e-5)],
        [normalise.rms_norm(rows, gains, epsilon=1e-5)],
    )
    pairs["rms_norm_backward"] = (
        found.rms_norm_backward(rows.flip(0), rows, gains, epsilon=1e-5),
        normalise.rms_norm_backward(rows.flip(0), rows, gains, epsilon=1e-5),
    )
    for name, (compiled, plain) in pairs.items():
        if not all(_same_bits(*pair) for pair in zip(compiled, plain, strict=True)):
            return name
    return None


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
