"""The class of machines inside which native kernels give equal bits.

Its name tells what decides them as far as we know it (architecture, vector extensions, torch release),
and ends in the digest of a probe computation, for what we don't know. Threads are always one, and MKL
is told to give the same bits for any alignment and batch.
"""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from pathlib import Path

from protocols.digest import tagged

__all__ = ["numeric_class", "pin"]

_CPU_FACTS = Path("/proc/cpuinfo")
_NAME_CHARACTERS_MAX = 48


def pin() -> None:
    """Have MKL choose its kernels by the machine alone. Call before torch computes anything.

    Source: Intel oneMKL developer guide, "Conditional numerical reproducibility". Without ``STRICT``
    the bits depend on the alignment of the operands.
    """
    os.environ.setdefault("MKL_CBWR", f"{'AVX512' if _has_avx512() else 'AVX2'},STRICT")


def _has_avx512() -> bool:
    try:
        return "avx512f" in _CPU_FACTS.read_text()
    except OSError:
        return False


@cache
def numeric_class() -> str:
    """This process's class, such as ``x86_64-avx2-torch2.13.0-1f0c9a2e``; of at most 48 characters.

    The process must compute on one thread, as workers do.
    """
    import torch

    extensions = torch.backends.cpu.get_cpu_capability().lower()
    release = str(torch.__version__).partition("+")[0]
    name = f"{platform.machine()}-{extensions}-torch{release}"
    name = re.sub(r"[^a-zA-Z0-9._-]", "", name)[: _NAME_CHARACTERS_MAX - 9]
    return f"{name}-{_probe().hex()[:8]}"


def _probe() -> bytes:
    """A digest of what the kernels of our networks give, at the sizes and shapes that choose among them."""
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(1)
    parts: list[bytes] = []
    with torch.inference_mode():
        for rows, inner, columns in ((1, 96, 160), (32, 128, 384), (33, 257, 65), (256, 512, 128)):
            left = torch.randn(rows, inner, generator=generator)
            right = torch.randn(columns, inner, generator=generator)
            product = F.linear(left, right)
            gated = F.silu(product) * product
            normed = F.rms_norm(product, (columns,), None, 1e-5)
            query = left[:, :64].reshape(1, 4, rows, 16)
            heads = F.scaled_dot_product_attention(query, query, query, is_causal=rows > 1)
            tensors = (product, gated, normed, heads, product.softmax(-1), left.exp(), left.cos())
            parts += [tensor.numpy().tobytes() for tensor in tensors]
        for channels, side, width, groups in (
            (3, 33, 24, 1),
            (24, 16, 24, 24),
            (32, 8, 64, 1),
            (64, 64, 32, 1),
        ):
            image = torch.randn(2, channels, side, side, generator=generator)
            kernel = torch.randn(width, channels // groups, 3, 3, generator=generator)
            seen = F.conv2d(image, kernel, padding=1, groups=groups)
            calm = F.group_norm(seen, 8)
            images = (seen, calm, F.gelu(calm), F.layer_norm(calm, (side,)), image.mean((2, 3)), calm.tanh())
            parts += [tensor.numpy().tobytes() for tensor in images]
    return tagged("p2p-node/numeric-probe/1", *parts)
