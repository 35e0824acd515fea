"""The elementwise parts of a training step in compiled code, with the bits of the torch operators.

`training_kernels` gives them where the library is there and computes the same bits as the torch path, which
is tried on a sample.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from itertools import product as product_of
from typing import Any

import torch
from torch import Tensor

from workloads.exact import attend, elementwise, optimiser
from workloads.exact.contraction import product, round_along
from workloads.exact.elementary import STEP_HIGH, STEP_LOW, STEPS_PER_E
from workloads.exact.functions import LOG2_E
from workloads.exact.kernels import Kernels, kernels
from workloads.exact.quantise import EXACT21, Precision
from workloads.exact.reductions import sum_bits
from workloads.exact.tensors import Rounded, check_magnitudes, convert, intake

__all__ = ["TrainingKernels", "training_kernels"]

_BYTES = 8
_LOG = logging.getLogger(__name__)


class _ExpConstants(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_double) for name in ("steps_per_e", "step_high", "step_low"))


_ADAMW_FIELDS = (
    *("beta1", "rest1", "beta2", "rest2", "correction1", "correction2"),
    *("epsilon", "kept", "rate"),
)


class _AdamW(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_double) for name in _ADAMW_FIELDS)


def training_kernels() -> TrainingKernels | None:
    """The kernels of a training step; None where there are none, or where they'd give other bits."""
    loaded = kernels()
    return None if loaded is None else _checked(loaded)


class TrainingKernels:
    """Functions as in `workloads.exact`, for float64 on the CPU.

    Args:
        loaded: the library.
    """

    def __init__(self, loaded: Kernels) -> None:
        library, integer, real, pointer = loaded.library, ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
        for name, arguments in (
            ("silu", (pointer, pointer, integer, pointer)),
            ("silu_backward", (pointer, pointer, pointer, integer, pointer)),
            ("attention_weights", (pointer, *[integer] * 4, pointer, integer, pointer)),
            ("attention_slopes", (pointer, pointer, *[integer] * 4, real, integer)),
            ("adamw", (pointer, integer, *[pointer] * 7)),
            ("round", (pointer, *[integer] * 5, pointer, *[integer] * 2, pointer)),
        ):
            function = getattr(library, f"p2p_{name}")
            function.restype, function.argtypes = None, arguments
        library.p2p_round.restype = ctypes.c_uint64
        self._library = library
        self._exp = _ExpConstants(STEPS_PER_E, STEP_HIGH, STEP_LOW)
        self._exp_pointer = ctypes.addressof(self._exp)

    def round_rows(self, name: str, x: Tensor, dim: int, bits: int, scratch: Tensor | None = None) -> Tensor:
        """The values of `workloads.exact.contraction.round_along`, for one of the last two dimensions.

        Args:
            name: what to call ``x`` in a refusal.
            x: (..., rows, columns), not empty.
            dim: -1 or -2.
            bits: magnitude bits.
            scratch: float64 (elements or more,) to write the result into.

        Raises:
            NumericsRefused: as `workloads.exact.contraction.round_along`.
        """
        taken = convert(name, x)
        if 1 not in taken.stride()[-2:]:
            taken = taken.contiguous()
        matrices = taken.reshape(-1, *taken.shape[-2:]) if taken.dim() != 3 else taken
        # The layout of the matrices is kept: what follows is a product, which takes either.
        room = (
            torch.empty(taken.numel(), dtype=torch.float64) if scratch is None else scratch[: taken.numel()]
        )
        is_plain = matrices.stride(-1) == 1
        result = room.view(matrices.shape) if is_plain else room.view(matrices.mT.shape).mT
        constants = torch.empty(taken.shape[-3 - dim], dtype=torch.float64)
        along, across = dim, -3 - dim
        largest = 0
        start, step = matrices.data_ptr(), matrices.stride(0) * _BYTES
        to, to_step = result.data_ptr(), result.stride(0) * _BYTES
        for number in range(len(matrices)):
            found = self._library.p2p_round(
                start + number * step,
                *(matrices.shape[across], matrices.shape[along]),
                *(matrices.stride(across), matrices.stride(along)),
                bits,
                to + number * to_step,
                *(result.stride(across), result.stride(along)),
                constants.data_ptr(),
            )
            largest = max(largest, found)
        check_magnitudes(name, torch.tensor([largest]).view(torch.float64))
        return result.view(taken.shape) if taken.dim() != 3 else result

    def contract(self, left: tuple[str, Tensor], right: tuple[str, Tensor], precision: Precision) -> Tensor:
        """`workloads.exact.contraction.contract`."""
        rows = self.round_rows(*left, -1, precision.bits)
        return float64_product(rows, self.round_rows(*right, -2, precision.bits), precision)

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
        """`workloads.exact.attention`."""
        group = queries.shape[-3] // keys.shape[-3]
        folded = _fold(queries.to(torch.float64) * (scale * LOG2_E), group)
        scores = self.contract(("queries", folded), ("keys", keys.transpose(-1, -2)), precision)
        rounded = round_along("values", values, -1, precision.bits)
        # A row's scale is the decoder's: the power of two at the exponent of its rounder.
        value_scale = rounded.grain * 2.0**52
        unit = rounded.values * (1.0 / value_scale)
        scales = value_scale.contiguous()
        *lead, rows, length = scores.shape
        totals = scores.new_empty((*lead, rows, 1))
        flat, flat_scales, flat_totals = (
            part.view(-1, *part.shape[-2:]) for part in (scores, scales, totals)
        )
        for matrix, matrix_scales, matrix_totals in zip(flat, flat_scales, flat_totals, strict=True):
            self._library.p2p_attention_weights(
                matrix.data_ptr(),
                rows,
                length,
                queries.shape[-2],
                causal,
                matrix_scales.data_ptr(),
                precision.bits,
                matrix_totals.data_ptr(),
            )
        mixed = float64_product(scores, unit, precision)
        mixed /= totals
        return _unfold(mixed, group)

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
        """`workloads.exact.attention_backward`."""
        group = queries.shape[-3] // keys.shape[-3]
        folded, upstream = _fold(queries.to(torch.float64), group), _fold(grad, group)
        weights = self.contract(
            ("queries", folded * (scale * LOG2_E)), ("keys", keys.transpose(-1, -2)), precision
        )
        slopes = self.contract(("grad", upstream), ("values", values.transpose(-1, -2)), precision)
        length = keys.shape[-2]
        if length == 1:
            # Sums of one number aren't rounded.
            operands = grad, queries, keys, values
            return attend.attention_backward(*operands, causal=causal, scale=scale, precision=precision)
        self._library.p2p_attention_slopes(
            weights.data_ptr(),
            slopes.data_ptr(),
            weights.numel() // length,
            length,
            queries.shape[-2],
            causal,
            scale,
            sum_bits(length),
        )
        return (
            _unfold(self.contract(("slopes", slopes), ("keys", keys), precision), group),
            self.contract(("slopes", slopes.transpose(-1, -2)), ("queries", folded), precision),
            self.contract(("weights", weights.transpose(-1, -2)), ("grad", upstream), precision),
        )

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


def float64_product(rows: Tensor, columns: Tensor, precision: Precision) -> Tensor:
    """`workloads.exact.contraction.product` of rounded values."""
    # Grains matter to digits only.
    one = rows.new_ones((1, 1))
    return product(Rounded(rows, one), Rounded(columns, one), precision)


_CHECKED: dict[Kernels, TrainingKernels | None] = {}


def _checked(loaded: Kernels) -> TrainingKernels | None:
    if loaded not in _CHECKED:
        _CHECKED[loaded] = None
        try:
            found = TrainingKernels(loaded)
        except AttributeError as error:
            _LOG.warning("training kernels are not used: %s lacks one: %s", loaded.path, error)
            return None
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
        for dim in (-1, -2):
            matrix = sample(3, 13, 9).mT if turn else sample(3, 13, 9)
            ours = found.round_rows("sample", matrix, dim, EXACT21.bits)
            theirs = round_along("sample", matrix, dim, EXACT21.bits).values
            pairs[f"round_rows, dim={dim}, turned={turn}"] = [ours], [theirs]
    for name, (compiled, plain) in pairs.items():
        if not all(_same_bits(*pair) for pair in zip(compiled, plain, strict=True)):
            return name
    return None


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()


def _fold(x: Tensor, group: int) -> Tensor:
    """(..., heads, count, width) as (..., key heads, group * count, width)."""
    *lead, heads, count, width = x.shape
    return x.reshape(*lead, heads // group, group * count, width)


def _unfold(x: Tensor, group: int) -> Tensor:
    *lead, heads, rows, width = x.shape
    return x.reshape(*lead, heads * group, rows // group, width)
