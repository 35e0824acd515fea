"""How tokens are drawn: cuts and penalties as everybody knows them, in integers; log-probabilities; ends."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from workloads.errors import InputRefused, ModelRefused
from workloads.exact.kernels import kernels, use_kernels
from workloads.lm.input import END_UNIT, LmInput
from workloads.lm.layout import Ending
from workloads.lm.logprobs import VALUE_MAX, Logprobs, logprobs_blob, logprobs_of, read_logprobs
from workloads.lm.manifest import builtin_models
from workloads.lm.misses import misses_ppb
from workloads.lm.pieces import TokenBytes
from workloads.lm.sampling import draw_weights, noise, noise_position, penalised, sample
from workloads.lm.tokenizer import TextTokenizer

LOGITS = np.random.default_rng(3).normal(size=24) * 2


def job(**changes: Any) -> LmInput:
    fields: dict[str, Any] = {"max_tokens": 4, "seed": 5, "temperature_milli": 1_000}
    return LmInput(((1,),), **fields | changes)


def reference(logits: NDArray[np.float64], temperature: float, k: int, p: float) -> NDArray[np.float64]:
    """Probabilities in float64: temperature, then top-k, then top-p of what is left."""
    scaled = np.exp((logits - logits.max()) / temperature)
    order = np.argsort(-scaled, kind="stable")[: k or None]
    kept = scaled[order] / scaled[order].sum()
    order = order[np.cumsum(kept) - kept < p]
    found = np.zeros(len(logits))
    found[order] = scaled[order] / scaled[order].sum()
    return found


# --- Distribution ------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(100, 3_000), st.integers(0, 30), st.integers(1, 1_000))
def test_weights_are_the_references_probabilities(seed: int, heat: int, k: int, p: int) -> None:
    logits = np.random.default_rng(seed).normal(size=24) * 2
    expected = reference(logits, heat / 1_000, k, p / 1_000)
    (weights,) = draw_weights(logits[None], job(temperature_milli=heat, top_k=k, top_p_milli=p))
    found = weights / weights.sum()
    # At the edge of top-p a rounding may decide.
    is_edge = np.count_nonzero((found > 1e-7) != (expected > 1e-7)) == 1
    assert is_edge or np.abs(found - expected).max() < 1e-7


@pytest.mark.parametrize(
    ("heat", "k", "p"), [(1_000, 0, 1_000), (600, 0, 900), (1_500, 7, 1_000), (1_000, 10, 800), (300, 3, 500)]
)
def test_draws_follow_the_reference_within_statistical_error(heat: int, k: int, p: int) -> None:
    count = 8_000
    drawn = Counter(
        sample(np.tile(LOGITS, (count, 1)), range(count), job(temperature_milli=heat, top_k=k, top_p_milli=p))
    )
    for token, chance in enumerate(reference(LOGITS, heat / 1_000, k, p / 1_000)):
        error = 4 * np.sqrt(chance * (1 - chance) / count)
        assert abs(drawn[token] / count - chance) <= error + 1e-9


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 37, 1_024])
def test_kernels_weigh_as_numpy_does(columns: int) -> None:
    loaded = kernels()
    if loaded is None:
        pytest.skip("no kernels here")
    rows = np.random.default_rng(columns).normal(size=(9, columns)) * np.logspace(-3, 5, 9)[:, None]
    rows[:, columns // 2] = -np.inf
    rows[:, 0] = 1.0
    for heat in (1, 700, 1_000, 100_000):
        fast = draw_weights(rows, job(temperature_milli=heat))
        with use_kernels(None):
            np.testing.assert_array_equal(fast, draw_weights(rows, job(temperature_milli=heat)))


def test_prompts_and_positions_have_noise_of_their_own() -> None:
    several = job()
    places = {noise_position(several, prompt, position) for prompt in range(30) for position in range(30)}
    assert len({noise(5, place) for place in places}) == 900
    assert [noise_position(several, 0, position) for position in range(3)] == [0, 1, 2]
    assert noise_position(job(first_prompt=7), 2, 5) == noise_position(several, 9, 5)


def test_top_p_keeps_the_fewest_that_have_the_share() -> None:
    logits = np.log(np.array([[0.1, 0.5, 0.25, 0.15]]))
    for share, kept in ((1, {1}), (499, {1}), (501, {1, 2}), (760, {1, 2, 3}), (901, {0, 1, 2, 3})):
        (weights,) = draw_weights(logits, job(top_p_milli=share))
        assert set(np.flatnonzero(weights)) == kept
    # Of the share that top-k leaves, and ties by token.
    (weights,) = draw_weights(logits, job(top_p_milli=660, top_k=2))
    assert set(np.flatnonzero(weights)) == {1}
    (weights,) = draw_weights(np.zeros((1, 4)), job(top_p_milli=500))
    assert set(np.flatnonzero(weights)) == {0, 1}


def test_rows_do_not_depend_on_each_other_with_cuts() -> None:
    rows = np.random.default_rng(1).normal(size=(30, 40))
    wanted = job(top_p_milli=700, top_k=9)
    assert sample(rows, range(30), wanted) == [sample(rows[i : i + 1], [i], wanted)[0] for i in range(30)]


def test_a_hair_at_the_edge_of_top_p_is_no_lie() -> None:
    logits = np.log(np.array([[0.5, 0.2 - 1e-9, 0.2 + 1e-9, 0.1]]))
    for seed in range(30):
        wanted = job(seed=seed, top_p_milli=700)
        other = sample(logits + np.array([[1e-6, 0, -1e-6, 0]]), [0], wanted)
        assert misses_ppb(logits, other, [0], wanted)[0] < 1_000_000
    assert misses_ppb(logits, [3], [0], job(top_p_milli=500)) == [10**9]


# --- Repetition --------------------------------------------------------------------------------


def test_tokens_that_came_before_are_less_likely() -> None:
    logits = np.array([[2.0, -2.0, 1.0, -1.0]] * 3)
    found = penalised(logits, [0, 0, 1, 3], job(repetition_milli=2_000))
    # The first row sees the prompt, each later one also the token drawn before it.
    np.testing.assert_array_equal(found[0], [1.0, -2.0, 1.0, -1.0])
    np.testing.assert_array_equal(found[1], [1.0, -4.0, 1.0, -1.0])
    np.testing.assert_array_equal(found[2], [1.0, -4.0, 1.0, -2.0])
    assert logits[0, 0] == 2.0
    assert penalised(logits, [0, 1, 3], job()) is logits
    np.testing.assert_array_equal(penalised(logits[:1], [2], job(repetition_milli=500))[0], [2, -2, 2, -1])


# --- Log-probabilities -------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 60))
def test_log_probabilities_are_the_references(seed: int, scale: float) -> None:
    logits = np.random.default_rng(seed).normal(size=(3, 300)) * scale
    best = logits.max(axis=1, keepdims=True)
    truth = (best + np.log(np.exp(logits - best).sum(axis=1, keepdims=True)) - logits) * 1e6
    found = logprobs_of(logits, [0, 5, 299], 4)
    for row, token, value in zip(truth, (0, 5, 299), found, strict=True):
        assert abs(value.own - row[token]) <= 0.6
        assert [pair[0] for pair in value.likeliest] == np.argsort(row, kind="stable")[:4].tolist()
        assert all(abs(micro - row[other]) <= 0.6 for other, micro in value.likeliest)


def test_log_probabilities_do_not_depend_on_the_rows_beside_them() -> None:
    logits = np.random.default_rng(2).normal(size=(40, 1_000)) * 5
    together = logprobs_of(logits, list(range(40)), 2)
    assert together == [logprobs_of(logits[i : i + 1], [i], 2)[0] for i in range(40)]
    (far,) = logprobs_of(np.array([[0.0, -1e9]]), [1], 1)
    assert far == Logprobs(VALUE_MAX, ((0, 0),))


def test_a_blob_of_log_probabilities_survives_and_never_looks_like_an_end() -> None:
    from workloads.blobs import blob_words

    values = [Logprobs(5, ((1, 2), (3, VALUE_MAX))), Logprobs(0, ((9, 9), (8, 8)))]
    blob, data = logprobs_blob(values)
    assert END_UNIT not in blob_words(blob)
    assert read_logprobs(data, 2) == values
    for bad, count in ((data[:-1], 2), (data, 3), (b"", 0), (data + bytes(4), 2)):
        with pytest.raises(InputRefused, match="don't hold"):
            read_logprobs(bad, count)


# --- Ends --------------------------------------------------------------------------------------


def table(vocabulary: dict[str, int], decoder: dict[str, Any], **more: Any) -> TokenBytes:
    content = {"model": {"type": "BPE", "vocab": vocabulary}, "decoder": decoder, **more}
    return TokenBytes(json.dumps(content).encode())


def ends(wanted: LmInput, pieces: TokenBytes | None, tokens: list[int]) -> list[str | None]:
    ending = Ending(wanted, pieces)
    return [ending.feed(token) for token in tokens]


def test_stop_texts_are_found_across_tokens() -> None:
    letters = {letter: index for index, letter in enumerate("abcdef")}
    pieces = table(letters | {"abc": 6, "Ċ": 7, "cab": 8}, {"type": "ByteLevel"})
    wanted = job(stop=(b"bcd", b"\n\n", b"f"), max_tokens=9)
    assert ends(wanted, pieces, [0, 1, 2, 3]) == [None, None, None, "stop"]
    assert ends(wanted, pieces, [6, 3]) == [None, "stop"]
    assert ends(wanted, pieces, [8, 2, 0, 7, 7]) == [None, None, None, None, "stop"]
    assert ends(wanted, pieces, [5]) == ["stop"]
    assert ends(wanted, pieces, [1, 2, 99, 3]) == [None, None, None, "stop"]
    assert ends(job(eos=(3,)), None, [1, 2, 3]) == [None, None, "eos"]
    assert ends(job(max_tokens=2), None, [1, 2]) == [None, "length"]
    with pytest.raises(InputRefused, match="need the model's tokenizer"):
        Ending(wanted, None)


def test_sentence_piece_vocabularies_are_known() -> None:
    decoder = {"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}]}
    pieces = table({"▁the": 0, "<0x0A>": 1, "é": 2}, decoder, added_tokens=[{"id": 3, "content": "</s>"}])
    assert [pieces.of(token) for token in range(5)] == [b" the", b"\n", "é".encode(), b"</s>", b""]
    unigram = {"model": {"vocab": [["a", -1.0], ["▁b", -2.0]]}, "decoder": {"type": "Metaspace"}}
    assert TokenBytes(json.dumps(unigram).encode()).of(1) == b" b"


def test_a_tokenizer_of_no_known_family_has_no_stop_texts() -> None:
    for content, rule in (
        (b'{"model": {"vocab": {}}, "decoder": {"type": "WordPiece"}}', "byte-level or SentencePiece"),
        (b'{"model": {"vocab": {}}}', "byte-level or SentencePiece"),
        (b"{", "malformed"),
        (b"[]", "malformed"),
        (b'{"decoder": {"type": "ByteLevel"}, "model": {"vocab": {"a": []}}}', "malformed"),
    ):
        with pytest.raises(ModelRefused, match=rule):
            TokenBytes(content)


@pytest.mark.parametrize("folder", builtin_models().values(), ids=builtin_models())
def test_token_bytes_are_what_the_tokenizer_decodes(folder: Path) -> None:
    pieces, tokenizer = TokenBytes((folder / "tokenizer.json").read_bytes()), TextTokenizer(folder)
    text = "And he said,\n\t«Ünïcode» 光 — isn't \N{GRINNING FACE}?"
    tokens = tokenizer.encode(text)
    assert b"".join(map(pieces.of, tokens)).decode() == text
    everything = range(tokenizer.vocabulary)
    assert b"".join(map(pieces.of, everything)).decode("utf-8", "replace") == tokenizer.decode(everything)
