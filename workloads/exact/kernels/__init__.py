"""Optional compiled kernels that give the bits of the numpy path, several times faster.

`kernels` is what the rest of the exact library asks: the kernels, or None, and then it takes the numpy path.
The environment variable ``P2P_NODE_KERNELS`` decides: ``0`` switches them off, a path names a library that
was built before (workers get that: they never compile), and without it the library is built on first use.
One that fails its check against the numpy path isn't used.
"""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path

import numpy as np
import torch

from workloads.exact.kernels.build import NoKernels, check_library, find_or_build
from workloads.exact.kernels.library import KERNEL_BITS, Kernels
from workloads.exact.kernels.products import Products
from workloads.exact.quantise import EXACT21, quantise

__all__ = ["VARIABLE", "Kernels", "kernels", "load_checked", "products", "switch_off", "use_kernels"]

VARIABLE = "P2P_NODE_KERNELS"
_LOG = logging.getLogger(__name__)
_overridden: list[Kernels | None] = []


def kernels() -> Kernels | None:
    """The kernels, or None where there are none or they are switched off."""
    return _overridden[-1] if _overridden else _load()


def products() -> Products | None:
    """Float64 products by the kernels, where there are any and one thread is all that torch may use."""
    loaded = kernels()
    # A BLAS with several threads is faster.
    return None if loaded is None or torch.get_num_threads() > 1 else _products(loaded)


class use_kernels:
    """Within the block, `kernels` gives this; for tests and benchmarks."""

    def __init__(self, chosen: Kernels | None) -> None:
        self._chosen = chosen

    def __enter__(self) -> None:
        _overridden.append(self._chosen)

    def __exit__(self, *_: object) -> None:
        _overridden.pop()


def switch_off(reason: str) -> None:
    """Use no kernels in this process from now on, and say why."""
    _LOG.warning("exact kernels are switched off: %s", reason)
    _overridden.append(None)


_products = functools.cache(Products)


@functools.cache
def _load() -> Kernels | None:
    setting = os.environ.get(VARIABLE, "")
    if setting == "0":
        return None
    try:
        if setting:
            path = Path(setting)
            check_library(path)
        else:
            path = find_or_build()
        return load_checked(path)
    except NoKernels as reason:
        _LOG.warning("exact kernels are not used: %s", reason)
        return None


def load_checked(path: Path) -> Kernels:
    """Load a library and hold it against the numpy path.

    Raises:
        NoKernels: it doesn't load, or gives other bits.
    """
    try:
        loaded = Kernels(path)
        products = Products(loaded)
    except (OSError, AttributeError) as error:
        raise NoKernels(f"{path} does not load: {error}") from error
    random = np.random.Generator(np.random.Philox(key=[14, 0]))
    # The longest sums, the largest digits, odd sizes, and more than one block of each kind.
    for rows, inputs, outputs in ((1, 75, 40), (7, 2113, 33), (100, 61, 3), (51, 2055, 257)):
        left = random.integers(-(2**30), 2**30, (rows, inputs)) * 2.0 ** random.integers(-60, 60, (rows, 1))
        right = random.integers(-(2**30), 2**30, (outputs, inputs)) / 2.0**30
        left[0], right[0] = 1.0 - 2.0**-40, -1.0 + 2.0**-40
        for bits in KERNEL_BITS:
            _check_product(loaded, left, right, bits)
        with use_kernels(None):
            _check_float64(loaded, products, torch.from_numpy(left), torch.from_numpy(right))
    return loaded


def _check_float64(loaded: Kernels, products: Products, left: torch.Tensor, right: torch.Tensor) -> None:
    from workloads.exact.contraction import contract

    sides = ("left", left), ("right", right.t())
    if not torch.equal(products.contract(*sides, EXACT21), contract(*sides, EXACT21)):
        raise NoKernels(f"{loaded.path} gives other products of {left.shape[1]} numbers in float64")


def _check_product(loaded: Kernels, left: np.ndarray, right: np.ndarray, bits: int) -> None:
    from workloads.exact.linear import contract

    operands = (torch.from_numpy(quantise(matrix, bits)) for matrix in (left, right))
    first, second = operands
    expected = contract(first, second.t(), 1 << (53 - 2 * bits)).numpy()
    panels = loaded.pack(right, bits)
    found = None if panels is None else loaded.multiply(left, panels)
    if found is None or found.tobytes() != expected.tobytes():
        raise NoKernels(f"{loaded.path} gives other products of {left.shape[1]} numbers of {bits} bits")
