"""Elementary functions of float64 out of +, -, *, / and tables, unchecked.

libm, MKL and torch's vector code differ between machines in the last bits of these functions. Here each is a
fixed sequence of correctly rounded operations, with tables whose entries were rounded once from integer or
decimal arithmetic; `workloads.exact.tensors` states the rules. Tensors are (n,).
"""

from __future__ import annotations

import math
from decimal import Context, Decimal

import torch
from torch import Tensor

from workloads.exact.tensors import table

__all__ = [
    "ANGLE_MAX",
    "ROOT_TWO",
    "STEPS_PER_E",
    "STEP_HIGH",
    "STEP_LOW",
    "exp_plus_one",
    "raw_exp",
    "raw_exp2",
    "raw_exp2_short",
    "raw_log",
    "raw_normal",
    "raw_sigmoid",
    "raw_tanh",
    "raw_wave",
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
_STEP_DECIMAL = _CONTEXT.divide(_LN2_DECIMAL, Decimal(_TABLE_SIZE))
STEPS_PER_E = float(_CONTEXT.divide(Decimal(1), _STEP_DECIMAL))


def _truncated(exact: Decimal, bits: int) -> float:
    """The number cut off after so many binary places."""
    # The context is ours: the caller's own may have another precision.
    return int(_CONTEXT.multiply(exact, Decimal(1 << bits))) / (1 << bits)


# ln 2 / 4096 in two parts; the first has so few bits that its product with a step number is exact.
STEP_HIGH = _truncated(_STEP_DECIMAL, 42)
STEP_LOW = float(_CONTEXT.subtract(_STEP_DECIMAL, Decimal(STEP_HIGH)))

_LOG_STEPS = 128
_LN2_HIGH = _truncated(_LN2_DECIMAL, 32)
_LN2_LOW = float(_CONTEXT.subtract(_LN2_DECIMAL, Decimal(_LN2_HIGH)))
_ODD_SERIES = (1 / 7, 1 / 5, 1 / 3)

# The largest angle whose number of quarter turns times the first parts of pi / 2 is exact.
ANGLE_MAX = 2.0**27
_SINE = tuple((-1) ** n / math.factorial(2 * n + 1) for n in range(8, 0, -1))
_COSINE = tuple((-1) ** n / math.factorial(2 * n) for n in range(9, 1, -1))

_TANH_LIMIT = 22.0
ROOT_TWO = 1.4142135623730951

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


def raw_exp(x: Tensor) -> Tensor:
    """e**x, x clamped to ±693."""
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
    """Natural logarithm of positive normal numbers."""
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


def raw_exp2(x: Tensor) -> Tensor:
    """2**x, x clamped to ±1000."""
    power, rest = _split_exp2(x)
    return _scale(power, _exp_minus_one(rest))


def _split_exp(x: Tensor) -> tuple[Tensor, Tensor]:
    """2**(n / 4096) and r, with x = n ln 2 / 4096 + r and r under 2**-13; overwrites x, which is clamped."""
    shifted = x * STEPS_PER_E
    shifted += _ROUNDER
    step = shifted - _ROUNDER
    x -= step * STEP_HIGH
    step *= STEP_LOW
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


def exp_plus_one(x: Tensor) -> Tensor:
    """e**x + 1."""
    return raw_exp(x).add_(1.0)


def raw_sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e**-x)."""
    return torch.ones_like(x).div_(exp_plus_one(-x))


def raw_tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    twice = x.abs().clamp_(max=_TANH_LIMIT).mul_(2.0)
    step = torch.round(twice * STEPS_PER_E)
    twice -= step * STEP_HIGH
    twice -= step * STEP_LOW
    whole = step.to(torch.int64)
    scale = (((whole >> _TABLE_BITS) + _BIAS) << _MANTISSA_BITS).view(torch.float64)
    # e**y - 1 = scale * ((t - 1) + t * (e**rest - 1)) + (scale - 1), so that small y keeps its accuracy.
    below = table(_power_less_one_table, x.device).index_select(0, whole & (_TABLE_SIZE - 1))
    grown = below + (below + 1.0) * _exp_minus_one(twice)
    grown *= scale
    grown += scale - 1.0
    grown /= grown + 2.0
    return grown.copysign_(x)


def raw_wave(x: Tensor, quarter_turns: int) -> Tensor:
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


def raw_normal(x: Tensor) -> Tensor:
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
    for j in range(1, math.ceil(_LOG_STEPS * ROOT_TWO) + 1):
        exact = _CONTEXT.ln(_CONTEXT.divide(Decimal(j), Decimal(_LOG_STEPS)))
        high = _truncated(exact, 40)
        rows.append((high, float(_CONTEXT.subtract(exact, Decimal(high)))))
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
