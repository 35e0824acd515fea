"""exp, log, sqrt, sin, cos, tanh, sigmoid, SiLU and GELU out of +, -, *, / and tables.

libm, MKL and torch's vector code differ between machines in the last bits of these functions. Here each is a
fixed sequence of correctly rounded operations on float64, with tables whose entries were rounded once from
integer or decimal arithmetic; `workloads.exact.tensors` states the rules. Relative errors stay under 1e-15,
save where a docstring says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Context, Decimal

import torch
from torch import Tensor

from workloads.errors import NumericsRefused
from workloads.exact.tensors import elementwise, intake, square_root, table

__all__ = [
    "cos",
    "erf",
    "exp",
    "exp2",
    "gelu",
    "gelu_backward",
    "log",
    "raw_exp",
    "raw_exp2_short",
    "raw_log",
    "relu",
    "rsqrt",
    "sigmoid",
    "sigmoid_backward",
    "silu",
    "silu_backward",
    "sin",
    "sqrt",
    "tanh",
    "tanh_backward",
]

# Results stay within 2**±1000, away from subnormal numbers, which some machines flush to zero.
_EXP2_LIMIT = 1000.0
_EXP_LIMIT = 693.0
_TABLE_BITS = 12
_TABLE_SIZE = 1 << _TABLE_BITS
_LN2 = 0.6931471805599453
_MANTISSA_BITS = 52
_BIAS = 1023
# Adding this leaves a number, rounded to an integer, in the low bits of the float64.
_ROUNDER = 1.5 * 2.0**_MANTISSA_BITS
_ROOT_HALF_BITS = 0x3FE6_A09E_667F_3BCD

_CONTEXT = Context(prec=60)
_LN2_DECIMAL = _CONTEXT.ln(Decimal(2))
_STEPS_PER_E = float(_TABLE_SIZE / _LN2_DECIMAL)
# ln 2 / 4096 in two parts; the first has so few bits that its product with a step number is exact.
_STEP_HIGH = float(int(_LN2_DECIMAL / _TABLE_SIZE * 2**42)) / 2.0**42
_STEP_LOW = float(_LN2_DECIMAL / _TABLE_SIZE - Decimal(_STEP_HIGH))

_LOG_STEPS = 128
_LN2_HIGH = float(int(_LN2_DECIMAL * 2**32)) / 2.0**32
_LN2_LOW = float(_LN2_DECIMAL - Decimal(_LN2_HIGH))
_ODD_SERIES = (1 / 7, 1 / 5, 1 / 3)

# The largest angle whose number of quarter turns times the first parts of pi / 2 is exact.
_ANGLE_MAX = 2.0**27
_SINE = tuple((-1) ** n / math.factorial(2 * n + 1) for n in range(8, 0, -1))
_COSINE = tuple((-1) ** n / math.factorial(2 * n) for n in range(9, 1, -1))

_TANH_LIMIT = 22.0
_GELU_CUBIC = 0.044715
_GELU_SCALE = 1.5957691216057308  # 2 * sqrt(2 / pi)
_ROOT_TWO = 1.4142135623730951
_DENSITY_AT_ZERO = 0.3989422804014327  # 1 / sqrt(2 pi)
# The normal distribution is tabulated at multiples of 1 / 64 up to 12, where it is 2e-33.
_NORMAL_STEPS = 64
_NORMAL_LIMIT = 12
_NORMAL_DEGREE = 9
_STEP_SQUARED_SHIFT = 12
_FIXED_BITS = 200


def _pi(one: int) -> int:
    """pi in units of 1 / one, by Machin's formula."""

    def arctan_inverse(n: int) -> int:
        total, power, order = 0, one // n, 1
        while power:
            total += power // order if order & 2 == 0 else -(power // order)
            power //= n * n
            order += 2
        return total

    return 4 * (4 * arctan_inverse(5) - arctan_inverse(239))


def _quarter_turn() -> tuple[float, float, float]:
    """pi / 2 to 25, 25 and 53 bits."""
    half, parts = _pi(1 << 200) >> 1, []
    for bits in (24, 49):
        parts.append((half >> (200 - bits)) / (1 << bits))
        half &= (1 << (200 - bits)) - 1
    return parts[0], parts[1], half / (1 << 200)


_QUARTER_HIGH, _QUARTER_MIDDLE, _QUARTER_LOW = _quarter_turn()
_TWO_OVER_PI = (2 << 200) / _pi(1 << 200)


def exp(x: Tensor) -> Tensor:
    """e**x; arguments are clamped to ±693.

    Raises:
        NumericsRefused: ``x`` holds NaN, Inf or a magnitude above 2**500. So do all functions here.
    """
    return elementwise(raw_exp, intake("x", x))


def exp2(x: Tensor) -> Tensor:
    """2**x; arguments are clamped to ±1000."""
    return elementwise(_exp2, intake("x", x))


def log(x: Tensor) -> Tensor:
    """Natural logarithm.

    Raises:
        NumericsRefused: an element is not positive, or under 2**-1022.
    """
    checked = intake("x", x)
    if checked.numel() and not float(checked.amin()) >= 2.0**-1022:
        raise NumericsRefused(f"x holds {float(checked.amin())}, log needs at least 2**-1022")
    return elementwise(raw_log, checked)


def sqrt(x: Tensor) -> Tensor:
    """Square root, correctly rounded.

    Raises:
        NumericsRefused: an element is negative.
    """
    return square_root(_at_least("sqrt", x, 0.0))


def rsqrt(x: Tensor) -> Tensor:
    """1 / sqrt(x), both correctly rounded.

    Raises:
        NumericsRefused: an element is under 2**-1000.
    """
    root = square_root(_at_least("rsqrt", x, 2.0**-1000))
    return torch.ones_like(root) / root


def sin(x: Tensor) -> Tensor:
    """Sine of radians; the absolute error is under 3e-16.

    Raises:
        NumericsRefused: a magnitude above 2**27.
    """
    return elementwise(lambda block: _wave(block, 0), _angles("sin", x))


def cos(x: Tensor) -> Tensor:
    """Cosine of radians; the absolute error is under 3e-16.

    Raises:
        NumericsRefused: a magnitude above 2**27.
    """
    return elementwise(lambda block: _wave(block, 1), _angles("cos", x))


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent; the relative error is under 3e-14."""
    return elementwise(_tanh, intake("x", x))


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return elementwise(_sigmoid, intake("x", x))


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return elementwise(lambda block: block / _exp_plus_one(-block), intake("x", x))


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """x times the normal distribution at x; below -12 that is taken to be 1.8e-33.

    Args:
        x: any shape.
        approximate: "none", or "tanh" for ``x * sigmoid(1.59577 * (x + 0.044715 * x**3))``.
    """
    return elementwise(_gelu_of(approximate), intake("x", x))


def relu(x: Tensor) -> Tensor:
    """max(x, 0), never -0.0."""
    return intake("x", x).clamp(min=0.0).add_(0.0)


def erf(x: Tensor) -> Tensor:
    """Error function; the absolute error is under 3e-16."""
    return elementwise(lambda block: 2.0 * _normal(block * _ROOT_TWO) - 1.0, intake("x", x))


def tanh_backward(grad: Tensor, result: Tensor) -> Tensor:
    """Gradient of ``tanh`` from its ``result``."""
    y = intake("result", result)
    return intake("grad", grad) * (1.0 - y * y)


def sigmoid_backward(grad: Tensor, result: Tensor) -> Tensor:
    """Gradient of ``sigmoid`` from its ``result``."""
    y = intake("result", result)
    return intake("grad", grad) * (y * (1.0 - y))


def silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient of ``silu`` at its argument ``x``."""

    def slope(block: Tensor) -> Tensor:
        gate = _sigmoid(block)
        return gate * (1.0 + block * (1.0 - gate))

    return intake("grad", grad) * elementwise(slope, intake("x", x))


def gelu_backward(grad: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    """Gradient of ``gelu`` at its argument ``x``."""

    def slope(block: Tensor) -> Tensor:
        density = raw_exp(block * block * -0.5) * _DENSITY_AT_ZERO
        return _normal(block) + block * density

    def slope_of_tanh_form(block: Tensor) -> Tensor:
        # Beyond this the gate is 0 or 1 to 1e-200, and cubes stay small.
        near = block.clamp(-20.0, 20.0)
        square = near * near
        gate = _sigmoid(near * (1.0 + _GELU_CUBIC * square) * _GELU_SCALE)
        inner = _GELU_SCALE * (1.0 + 3.0 * _GELU_CUBIC * square)
        return gate + near * gate * (1.0 - gate) * inner

    _gelu_of(approximate)
    chosen = slope if approximate == "none" else slope_of_tanh_form
    return intake("grad", grad) * elementwise(chosen, intake("x", x))


def raw_exp(x: Tensor) -> Tensor:
    """`exp` of float64, unchecked."""
    power, rest = _split_exp(x.clamp(-_EXP_LIMIT, _EXP_LIMIT))
    return _scale(power, _exp_minus_one(rest))


def raw_exp2_short(x: Tensor) -> Tensor:
    """2**x with the exact profiles' short series, relative error 4e-9; unchecked, clamped to ±1000.

    The same bits as `workloads.exact.functions.exp2_inplace`.
    """
    power, slope = _split_exp2(x)
    slope += 1.0
    slope *= power
    return slope


def raw_log(x: Tensor) -> Tensor:
    """`log` of positive normal float64, unchecked."""
    bits = x.view(torch.int64)
    # Mantissas from sqrt(1/2) to sqrt(2), so that near 1 nothing cancels.
    exponent = (bits - _ROOT_HALF_BITS) >> _MANTISSA_BITS
    mantissa = (bits - (exponent << _MANTISSA_BITS)).view(torch.float64)
    power = exponent.to(torch.float64)
    nearest = torch.round(mantissa * _LOG_STEPS)
    centre = nearest * (1.0 / _LOG_STEPS)
    # log(m / c) = 2 artanh((m - c) / (m + c)); the difference is exact.
    ratio = mantissa - centre
    ratio /= mantissa + centre
    square = ratio * ratio
    series = _horner(square, _ODD_SERIES)
    series *= square
    ratio *= 2.0
    series *= ratio
    series += ratio
    row = nearest.to(torch.int64)
    logs = table(_log_table, x.device)
    high, low = logs[0].index_select(0, row), logs[1].index_select(0, row)
    low += power * _LN2_LOW
    low += series
    high += power * _LN2_HIGH
    high += low
    return high


def _exp2(x: Tensor) -> Tensor:
    power, rest = _split_exp2(x)
    return _scale(power, _exp_minus_one(rest))


def _split_exp(x: Tensor) -> tuple[Tensor, Tensor]:
    """2**(n / 4096) and r, with x = n ln 2 / 4096 + r and r under 2**-13; overwrites x, which is clamped."""
    shifted = x * _STEPS_PER_E
    shifted += _ROUNDER
    step = shifted - _ROUNDER
    x -= step * _STEP_HIGH
    step *= _STEP_LOW
    x -= step
    return _table_power(shifted), x


def _split_exp2(x: Tensor) -> tuple[Tensor, Tensor]:
    """2**(n / 4096) and r, with x = n / 4096 + r / ln 2."""
    clamped = x.clamp(-_EXP2_LIMIT, _EXP2_LIMIT)
    shifted = clamped * _TABLE_SIZE
    shifted += _ROUNDER
    step = shifted - _ROUNDER
    step *= 1.0 / _TABLE_SIZE
    clamped -= step
    clamped *= _LN2
    return _table_power(shifted), clamped


def _scale(power: Tensor, less_one: Tensor) -> Tensor:
    """power * (1 + less_one); overwrites both."""
    less_one *= power
    power += less_one
    return power


def _exp_minus_one(rest: Tensor) -> Tensor:
    # The next term, rest**4 / 24, is under 1e-17.
    series = rest * (1 / 6)
    series += 0.5
    series *= rest * rest
    series += rest
    return series


def _table_power(shifted: Tensor) -> Tensor:
    """2**(n / 4096) for the whole number n in the low bits of ``shifted``, which is overwritten."""
    bits = shifted.view(torch.int64)
    power = table(_power_table, shifted.device).index_select(0, bits & (_TABLE_SIZE - 1))
    # An entry j lacks j << 40, so adding n << 40 leaves (n >> 12) << 52: it moves the exponent only.
    bits <<= _MANTISSA_BITS - _TABLE_BITS
    power += bits
    return power.view(torch.float64)


def _exp_plus_one(x: Tensor) -> Tensor:
    return raw_exp(x).add_(1.0)


def _sigmoid(x: Tensor) -> Tensor:
    return torch.ones_like(x).div_(_exp_plus_one(-x))


def _tanh(x: Tensor) -> Tensor:
    twice = x.abs().clamp_(max=_TANH_LIMIT).mul_(2.0)
    step = torch.round(twice * _STEPS_PER_E)
    twice -= step * _STEP_HIGH
    twice -= step * _STEP_LOW
    whole = step.to(torch.int64)
    scale = (((whole >> _TABLE_BITS) + _BIAS) << _MANTISSA_BITS).view(torch.float64)
    # e**y - 1 = scale * ((t - 1) + t * (e**rest - 1)) + (scale - 1), so that small y keeps its accuracy.
    below = table(_power_less_one_table, x.device).index_select(0, whole & (_TABLE_SIZE - 1))
    grown = below + (below + 1.0) * _exp_minus_one(twice)
    grown *= scale
    grown += scale - 1.0
    grown /= grown + 2.0
    return grown.copysign_(x)


def _angles(name: str, x: Tensor) -> Tensor:
    checked = intake("x", x)
    if checked.numel() and not float(checked.abs().max()) <= _ANGLE_MAX:
        raise NumericsRefused(f"x holds {float(checked.abs().max())}, {name} takes at most 2**27")
    return checked


def _wave(x: Tensor, quarter_turns: int) -> Tensor:
    """The sine of x plus some quarter turns."""
    turns = torch.round(x * _TWO_OVER_PI)
    rest = x - turns * _QUARTER_HIGH
    rest -= turns * _QUARTER_MIDDLE
    rest -= turns * _QUARTER_LOW
    square = rest * rest
    sine = _horner(square, _SINE)
    sine *= square
    sine *= rest
    sine += rest
    cosine = _horner(square, _COSINE)
    cosine *= square
    cosine *= square
    cosine += 1.0 - 0.5 * square
    # Odd turns take the cosine, and the second half of four is negative; products with 0, 1 and -1 are exact.
    turns += quarter_turns
    half = torch.floor(turns * 0.5)
    odd = turns - half * 2.0
    sign = 1.0 - (half - torch.floor(half * 0.5) * 2.0) * 2.0
    sine *= 1.0 - odd
    cosine *= odd
    sine += cosine
    sine *= sign
    return sine


def _horner(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """The polynomial with these coefficients, the highest power's first."""
    value = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value *= x
        value += coefficient
    return value


def _gelu_of(approximate: str) -> Callable[[Tensor], Tensor]:
    if approximate == "none":
        return lambda x: x * _normal(x)
    if approximate == "tanh":
        return _gelu_tanh
    raise ValueError(f'approximate must be "none" or "tanh", got {approximate!r}')


def _gelu_tanh(x: Tensor) -> Tensor:
    near = x.clamp(-20.0, 20.0)
    return x / _exp_plus_one(near * (1.0 + _GELU_CUBIC * (near * near)) * -_GELU_SCALE)


def _normal(x: Tensor) -> Tensor:
    """The normal distribution at x: a Taylor series around the nearest tabulated point of -abs(x)."""
    distance = x.abs().clamp_(max=float(_NORMAL_LIMIT))
    nearest = torch.round(distance * _NORMAL_STEPS)
    distance -= nearest * (1.0 / _NORMAL_STEPS)
    coefficients = table(_normal_table, x.device)
    row = nearest.to(torch.int64)
    tail = coefficients[0].index_select(0, row)
    for column in coefficients[1:]:
        tail *= distance
        tail += column.index_select(0, row)
    # 1 - tail on the right, |0 - tail| on the left.
    return ((x > 0.0).to(torch.float64) - tail).abs_()


def _at_least(name: str, x: Tensor, low: float) -> Tensor:
    checked = intake("x", x)
    if checked.numel() and not float(checked.amin()) >= low:
        raise NumericsRefused(f"x holds {float(checked.amin())}, {name} needs at least {low}")
    return checked


def _powers() -> list[int]:
    """2**(j / 4096) in units of 2**-256."""
    root = 2 << 256
    for _ in range(_TABLE_BITS):
        root = math.isqrt(root << 256)
    powers = [1 << 256]
    for _ in range(_TABLE_SIZE - 1):
        powers.append((powers[-1] * root) >> 256)
    return powers


def _power_table() -> Tensor:
    """Bits of 2**(j / 4096), rounded once, less ``j << 40``."""
    # Division of integers is correctly rounded by the language.
    powers = torch.tensor([power / (1 << 256) for power in _powers()], dtype=torch.float64)
    return powers.view(torch.int64) - (torch.arange(_TABLE_SIZE) << (_MANTISSA_BITS - _TABLE_BITS))


def _power_less_one_table() -> Tensor:
    return torch.tensor([(power - (1 << 256)) / (1 << 256) for power in _powers()], dtype=torch.float64)


def _log_table() -> Tensor:
    """log(j / 128) for j up to 182: a row of parts of few bits, and one of what they lack."""
    rows = [(0.0, 0.0)]
    for j in range(1, math.ceil(_LOG_STEPS * _ROOT_TWO) + 1):
        exact = _CONTEXT.ln(Decimal(j) / _LOG_STEPS)
        high = float(int(exact * 2**40)) / 2.0**40
        rows.append((high, float(exact - Decimal(high))))
    return torch.tensor(rows, dtype=torch.float64).t().contiguous()


def _normal_table() -> Tensor:
    """Taylor coefficients in the distance of the normal distribution at -j / 64, highest power first.

    In fixed point: the density's derivatives follow from its differential equation, and each point from the
    series around the one before.
    """
    one = 1 << _FIXED_BITS
    density = math.isqrt(one**3 // (2 * _pi(one)))
    tail = one >> 1
    rows = []
    for j in range(_NORMAL_LIMIT * _NORMAL_STEPS + 1):
        # d' = -t d, so for terms c[n] h**n: (n + 1) c[n + 1] = -(t h c[n] + h**2 c[n - 1]), with h = 1 / 64.
        terms = [density, -((j * density) >> _STEP_SQUARED_SHIFT)]
        while abs(terms[-1]) > 1 or abs(terms[-2]) > 1:
            terms.append(-((j * terms[-1] + terms[-2]) >> _STEP_SQUARED_SHIFT) // len(terms))
        slopes = [-terms[n - 1] * _NORMAL_STEPS ** (n - 1) / (n * one) for n in range(1, _NORMAL_DEGREE + 1)]
        rows.append([tail / one, *slopes])
        tail -= sum(term // n for n, term in enumerate(terms, 1)) // _NORMAL_STEPS
        density = sum(terms)
    return torch.tensor(rows, dtype=torch.float64).t().flip(0).contiguous()
