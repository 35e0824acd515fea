"""Short ways of convolution: the bits of the long one, whatever the layout in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from workloads import exact
from workloads.exact.contraction import contract
from workloads.exact.convolution import windows

CASES = {
    "plain": ((2, 5, 9, 11), (3, 3), 1, (1, 1), 1),
    "oblong": ((1, 3, 12, 9), (5, 3), (2, 1), (0, 2), (1, 2)),
    "strided": ((2, 96, 30, 30), (3, 3), (2, 2), (1, 1), 1),
    "blocks": ((1, 40, 40, 50), (5, 5), (1, 1), (2, 2), 1),
}


def numbers(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * 4.0 ** torch.randn(shape, generator=generator)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int64)


def by_windows(x: Tensor, weight: Tensor, bias: Tensor, geometry: dict[str, Any], precision: Any) -> Tensor:
    """Each channel's windows as the rows of a contraction."""
    pair = {name: (value, value) if isinstance(value, int) else value for name, value in geometry.items()}
    seen = windows(x.double(), tuple(weight.shape[2:]), **pair)  # type: ignore[arg-type]
    rows = seen.permute(1, 0, 2, 3, 4, 5).flatten(4).flatten(1, 3)
    mixed = contract(("x", rows), ("weight", weight.flatten(1)[:, :, None]), precision)
    return mixed.view(x.shape[1], len(x), *seen.shape[2:4]).transpose(0, 1) + bias.double()[:, None, None]


@pytest.mark.parametrize("precision", [exact.EXACT14, exact.EXACT21], ids=lambda p: p.name)
@pytest.mark.parametrize("case", CASES)
def test_a_kernel_for_each_channel_gives_the_bits_of_its_windows(case: str, precision: Any) -> None:
    shape, kernel, stride, padding, dilation = CASES[case]
    x, weight = numbers(*shape, seed=1), numbers(shape[1], 1, *kernel, seed=2)
    x[0, 0] = 0.0
    bias = numbers(shape[1], seed=3)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    expected = bits(by_windows(x, weight, bias, geometry, precision))
    for layout in (torch.contiguous_format, torch.channels_last):
        found = exact.conv2d(
            x.contiguous(memory_format=layout),
            weight,
            bias,
            groups=shape[1],
            precision=precision,
            **geometry,  # type: ignore[arg-type]
        )
        assert torch.equal(bits(found), expected)


def test_one_place_at_a_time_gives_the_same_bits_in_either_layout() -> None:
    x, weight, bias = numbers(2, 6, 5, 7, seed=1), numbers(4, 6, 1, 1, seed=2), numbers(4, seed=3)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(bits(exact.conv2d(last, weight, bias)), bits(exact.conv2d(x, weight, bias)))


def test_what_exact_arithmetic_does_not_cover_is_refused() -> None:
    x, weight = torch.zeros(1, 2, 4, 4), torch.ones(2, 1, 3, 3)
    for name, value in (("x", torch.full_like(x, torch.nan)), ("weight", torch.full_like(weight, torch.inf))):
        operands = {"x": x, "weight": weight} | {name: value}
        with pytest.raises(exact.NumericsRefused, match=f"{name} holds NaN"):
            exact.conv2d(**operands, groups=2)
    with pytest.raises(ValueError, match="no window"):
        exact.conv2d(pad(x, (0, 0, 0, -2)), weight, groups=2)
