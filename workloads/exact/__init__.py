"""Operators that give the same bits on every machine: ``import workloads.exact as exact``.

They take torch tensors on any device with IEEE arithmetic, floating ones as float64 (float32 and float16
exactly), and return float64. What contracts takes ``precision``, `EXACT14` or `EXACT21`. Thread count, BLAS,
instruction set, device, and how a batch or a sequence is split make no difference to a result (gradients of
weights sum over a batch, so they are of that batch). Every operator refuses NaN, Inf and magnitudes above
2**500 with `NumericsRefused`, which names the tensor; a shape that doesn't fit is a `ValueError`. ADR 0012
says how it works and how accurate it is; ``python -m workloads.exact.selftest`` checks a machine.
"""

# Loaded before the functions that take over these two submodules' names.
import workloads.exact.attention
import workloads.exact.linear  # noqa: F401
from workloads.errors import NumericsRefused
from workloads.exact.attend import attention, attention_backward
from workloads.exact.contraction import linear, linear_backward, matmul, matmul_backward, quantise_along
from workloads.exact.convolution import (
    conv1d,
    conv2d,
    conv2d_backward,
    conv_transpose1d,
    conv_transpose2d,
)
from workloads.exact.elementwise import (
    cos,
    erf,
    exp,
    exp2,
    gelu,
    gelu_backward,
    log,
    relu,
    rsqrt,
    sigmoid,
    sigmoid_backward,
    silu,
    silu_backward,
    sin,
    sqrt,
    tanh,
    tanh_backward,
)
from workloads.exact.lookup import embedding, embedding_backward
from workloads.exact.normalise import (
    group_norm,
    group_norm_backward,
    layer_norm,
    layer_norm_backward,
    log_softmax,
    log_softmax_backward,
    rms_norm,
    rms_norm_backward,
    softmax,
    softmax_backward,
)
from workloads.exact.optimiser import AdamWState, adamw_step
from workloads.exact.pooling import (
    adaptive_avg_pool2d,
    avg_pool2d,
    interpolate_bilinear,
    interpolate_nearest,
    max_pool2d,
)
from workloads.exact.quantise import EXACT14, EXACT21, Precision
from workloads.exact.reductions import (
    argmax,
    cross_entropy,
    cross_entropy_backward,
    logsumexp,
    max,
    mean,
    sum,
    var,
)
from workloads.exact.slices import Arithmetic, computed_in

__all__ = [
    "EXACT14",
    "EXACT21",
    "AdamWState",
    "Arithmetic",
    "NumericsRefused",
    "Precision",
    "adamw_step",
    "adaptive_avg_pool2d",
    "argmax",
    "attention",
    "attention_backward",
    "avg_pool2d",
    "computed_in",
    "conv1d",
    "conv2d",
    "conv2d_backward",
    "conv_transpose1d",
    "conv_transpose2d",
    "cos",
    "cross_entropy",
    "cross_entropy_backward",
    "embedding",
    "embedding_backward",
    "erf",
    "exp",
    "exp2",
    "gelu",
    "gelu_backward",
    "group_norm",
    "group_norm_backward",
    "interpolate_bilinear",
    "interpolate_nearest",
    "layer_norm",
    "layer_norm_backward",
    "linear",
    "linear_backward",
    "log",
    "log_softmax",
    "log_softmax_backward",
    "logsumexp",
    "matmul",
    "matmul_backward",
    "max",
    "max_pool2d",
    "mean",
    "quantise_along",
    "relu",
    "rms_norm",
    "rms_norm_backward",
    "rsqrt",
    "sigmoid",
    "sigmoid_backward",
    "silu",
    "silu_backward",
    "sin",
    "softmax",
    "softmax_backward",
    "sqrt",
    "sum",
    "tanh",
    "tanh_backward",
    "var",
]
