"""Exact arithmetic: the same bits however a job is run, and close to the real numbers."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.workloads.conftest import TINY, random_weights
from workloads.errors import NumericsRefused
from workloads.exact.functions import exp2_inplace, root_mean_square, silu_times, sum_exactly
from workloads.exact.linear import PackedMatrix
from workloads.exact.quantise import EXACT14, EXACT21, Precision, quantise, rounders
from workloads.exact.rope import RotaryTable
from workloads.llama.config import parse_config
from workloads.llama.exact_model import ExactDecoder

CONFIG = parse_config(TINY)
WEIGHTS = random_weights(TINY)
TOKENS = np.random.default_rng(5).integers(0, 256, (3, 150))
PRECISIONS = pytest.mark.parametrize("precision", [EXACT14, EXACT21], ids=lambda p: p.name)


@given(
    st.lists(st.floats(-1e30, 1e30, allow_subnormal=False), min_size=1, max_size=20),
    st.sampled_from([EXACT14.bits, EXACT21.bits]),
)
def test_a_quantised_row_holds_integers_of_its_grain(values: list[float], bits: int) -> None:
    row = np.array([values])
    quantised = quantise(row, bits)[0]
    largest = float(np.abs(row).max())
    if largest < 2.0**-499:
        return
    exponent = math.frexp(largest)[1]
    grain = Fraction(2) ** (exponent - bits)
    for value, rounded in zip(values, quantised, strict=True):
        steps = Fraction(float(rounded)) / grain
        assert steps.denominator == 1
        assert abs(steps) <= 2**bits
        assert steps == round(Fraction(value) / grain)  # Python rounds half to even too


def test_rows_of_zeros_and_of_tiny_numbers_vanish() -> None:
    rows = np.array([[0.0, 0.0], [5e-324, -5e-324], [2.0**-600, 2.0**-550]])
    assert not quantise(rows, 13).any()


def test_a_contraction_is_exact_in_any_order_and_block() -> None:
    rng = np.random.default_rng(1)
    left, weight = rng.standard_normal((5, 700)), rng.standard_normal((9, 700))
    for precision in (EXACT14, EXACT21):
        quantised = quantise(left, precision.bits)
        got = PackedMatrix(weight, precision).apply(quantised)
        exact = [
            [
                sum(Fraction(a) * Fraction(b) for a, b in zip(x, w, strict=True))
                for w in quantise(weight, precision.bits)
            ]
            for x in quantised
        ]
        assert [[Fraction(value) for value in row] for row in got] == exact


def test_int8_digits_give_the_integers_of_exact14() -> None:
    rng = np.random.default_rng(3)
    rows, weight = quantise(rng.standard_normal((32, 64)), 13), quantise(rng.standard_normal((24, 64)), 13)
    grains = [rounders(matrix, 13) / (1.5 * 2.0**52) for matrix in (rows, weight)]
    digits = []
    for matrix, grain in zip((rows, weight), grains, strict=True):
        whole = torch.from_numpy((matrix / grain).astype(np.int32))
        low = ((whole + 64) & 127) - 64
        high = (whole - low) >> 7
        assert int(high.abs().max()) <= 64
        digits.append((high.to(torch.int8), low.to(torch.int8)))
    total = torch.zeros(32, 24, dtype=torch.int64)
    for i, left in enumerate(digits[0]):
        for j, right in enumerate(digits[1]):
            total += torch._int_mm(left, right.t().contiguous()).long() << (7 * (2 - i - j))
    from_digits = total.numpy() * grains[0] * grains[1].T
    assert from_digits.tobytes() == PackedMatrix(weight, EXACT14).apply(rows).tobytes()


def test_blocks_of_a_long_contraction_add_left_to_right() -> None:
    assert EXACT21.inner_max == 2048
    narrow = Precision("narrow", 24)
    assert narrow.inner_max == 32
    rng = np.random.default_rng(2)
    row = quantise(rng.standard_normal((1, 100)), 24)
    weight = quantise(rng.standard_normal((1, 100)), 24)
    expected = 0.0
    for start in range(0, 100, 32):
        expected += math.fsum((row[0] * weight[0])[start : start + 32].tolist())
    assert sum_exactly(row * weight, 32)[0, 0] == PackedMatrix(weight, narrow).apply(row)[0, 0] == expected


def test_exp2_is_close_over_its_whole_range() -> None:
    values = np.concatenate([np.linspace(-1000, 1000, 4001), np.random.default_rng(0).uniform(-30, 1, 4000)])
    got = values.copy()
    exp2_inplace(got)
    for value, result in zip(values.tolist(), got.tolist(), strict=True):
        assert abs(result / mpmath.mpf(2) ** value - 1) < 4e-9
    whole = np.arange(-1000.0, 1001.0)
    exp2_inplace(whole)
    assert whole.tolist() == [2.0**n for n in range(-1000, 1001)]


def test_silu_and_norm_are_close() -> None:
    gate = np.array([-1e9, -800.0, -20.0, -1.0, 0.0, 1.0, 20.0, 1e9])
    expected = [g / (1 + math.exp(-g)) if g > -700 else 0.0 for g in gate]
    np.testing.assert_allclose(
        silu_times(gate, np.full(8, 3.0)), 3 * np.array(expected), rtol=1e-8, atol=1e-200
    )
    row = np.random.default_rng(4).standard_normal((2, 64))
    norm = root_mean_square(quantise(row, 21), 1e-6, 2048)[:, 0]
    np.testing.assert_allclose(norm, np.sqrt((row**2).mean(-1) + 1e-6), rtol=1e-6)


@pytest.mark.parametrize(("theta", "width"), [(10_000.0, 8), (500_000.0, 128)])
def test_rotary_tables_are_correctly_rounded(theta: float, width: int) -> None:
    table = RotaryTable(theta, width)
    table.rows(0, 1)
    with mpmath.workprec(200):
        for position in (0, 1, 2, 300, 2047):
            cosines, sines = table.rows(position, 1)
            for index in range(width // 2):
                angle = position * mpmath.mpf(theta) ** (mpmath.mpf(-2 * index) / width)
                assert cosines[0, index] == float(mpmath.cos(angle))
                assert sines[0, index] == float(mpmath.sin(angle))


def test_rotary_rows_do_not_depend_on_how_the_table_grew() -> None:
    at_once, bit_by_bit = RotaryTable(10_000.0, 8), RotaryTable(10_000.0, 8)
    for start in range(0, 600, 7):
        bit_by_bit.rows(start, 7)
    assert all(
        np.array_equal(a, b) for a, b in zip(at_once.rows(0, 600), bit_by_bit.rows(0, 600), strict=True)
    )


@PRECISIONS
@pytest.mark.parametrize(
    "splits",
    [[1] * 150, [150], [1, 63, 64, 22], [100] + [1] * 50, [65, 85]],
    ids=["decode", "prefill", "blocks", "prompt-then-decode", "uneven"],
)
def test_any_split_gives_the_bits_of_one_pass(precision: Precision, splits: list[int]) -> None:
    decoder = ExactDecoder(CONFIG, WEIGHTS, precision)
    whole = decoder.forward(TOKENS[:1], decoder.new_cache(1, 150))
    cache, start, pieces = decoder.new_cache(1, 200), 0, []
    for count in splits:
        pieces.append(decoder.forward(TOKENS[:1, start : start + count], cache))
        start += count
    assert np.concatenate(pieces, axis=1).tobytes() == whole.tobytes()


@PRECISIONS
def test_a_sequence_has_the_same_bits_in_any_batch(precision: Precision) -> None:
    decoder = ExactDecoder(CONFIG, WEIGHTS, precision)
    together = decoder.forward(TOKENS, decoder.new_cache(3, 150))
    for row in range(3):
        alone = decoder.forward(TOKENS[row : row + 1], decoder.new_cache(1, 150))
        assert alone.tobytes() == together[row : row + 1].tobytes()
    assert (
        decoder.logits(together[0]).tobytes()
        == np.concatenate([decoder.logits(together[0, i : i + 1]) for i in range(150)]).tobytes()
    )


@PRECISIONS
def test_later_tokens_do_not_reach_back(precision: Precision) -> None:
    decoder = ExactDecoder(CONFIG, WEIGHTS, precision)
    changed = TOKENS[:1].copy()
    changed[0, 100:] = (changed[0, 100:] + 1) % 256
    before = decoder.forward(TOKENS[:1], decoder.new_cache(1, 150))
    after = decoder.forward(changed, decoder.new_cache(1, 150))
    assert before[:, :100].tobytes() == after[:, :100].tobytes()
    assert before[:, 100:].tobytes() != after[:, 100:].tobytes()


@pytest.mark.parametrize(
    ("precision", "bound"), [(EXACT14, 4e-3), (EXACT21, 1e-5)], ids=["exact14", "exact21"]
)
def test_hidden_states_are_close_to_float64(precision: Precision, bound: float) -> None:
    decoder = ExactDecoder(CONFIG, WEIGHTS, precision)
    got = decoder.forward(TOKENS[:1], decoder.new_cache(1, 150))[0].astype(np.float64)
    expected = _float64_hidden(TOKENS[0])
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < bound


def _float64_hidden(tokens: np.ndarray) -> np.ndarray:
    """The same model written again, plainly, in float64."""
    w = {name: tensor.double() for name, tensor in WEIGHTS.items()}
    x = w["model.embed_tokens.weight"][torch.from_numpy(tokens)]
    position = torch.arange(len(tokens), dtype=torch.float64)[:, None]
    angle = position * 10_000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    cosine, sine = angle.cos(), angle.sin()

    def norm(h: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return h / (h.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * gain

    def turn(h: torch.Tensor) -> torch.Tensor:
        low, high = h[..., :4], h[..., 4:]
        return torch.cat((low * cosine - high * sine, high * cosine + low * sine), -1)

    for layer in range(3):
        p = f"model.layers.{layer}."
        h = norm(x, w[p + "input_layernorm.weight"])
        q, k, v = (
            (h @ w[f"{p}self_attn.{name}_proj.weight"].T).view(len(tokens), -1, 8).transpose(0, 1)
            for name in "qkv"
        )
        q, k = turn(q), turn(k).repeat_interleave(3, 0)
        scores = (q @ k.transpose(1, 2)) / 8**0.5
        scores += torch.full_like(scores, float("-inf")).triu(1)
        mixed = scores.softmax(-1) @ v.repeat_interleave(3, 0)
        x = x + mixed.transpose(0, 1).reshape(len(tokens), -1) @ w[p + "self_attn.o_proj.weight"].T
        h = norm(x, w[p + "post_attention_layernorm.weight"])
        gate, up = h @ w[p + "mlp.gate_proj.weight"].T, h @ w[p + "mlp.up_proj.weight"].T
        x = x + (gate * gate.sigmoid() * up) @ w[p + "mlp.down_proj.weight"].T
    return norm(x, w["model.norm.weight"]).numpy()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2.0**501])
def test_numbers_beyond_exact_arithmetic_are_refused_by_name(value: float, tiny_model: Path) -> None:
    decoder = ExactDecoder(CONFIG, WEIGHTS, EXACT14)
    decoder._embedding = decoder._embedding.copy()
    decoder._embedding[7, 3] = value
    decoder.forward(np.array([[1, 2]]), decoder.new_cache(1, 2))
    with pytest.raises(
        NumericsRefused, match="entering layer 0 attention holds NaN, Inf or a magnitude above"
    ):
        decoder.forward(np.array([[1, 7]]), decoder.new_cache(1, 2))


def test_weights_of_extreme_size_stay_exact() -> None:
    weights = {
        name: tensor * 1e30 if tensor.dim() == 2 else tensor * 1e-30 for name, tensor in WEIGHTS.items()
    }
    decoder = ExactDecoder(CONFIG, weights, EXACT14)
    whole = decoder.forward(TOKENS[:1, :40], decoder.new_cache(1, 40))
    cache = decoder.new_cache(1, 40)
    steps = [decoder.forward(TOKENS[:1, i : i + 1], cache) for i in range(40)]
    assert np.isfinite(whole).all()
    assert np.concatenate(steps, axis=1).tobytes() == whole.tobytes()
