"""The compiled kernels give the bits of the numpy path, and are used only where they can be trusted."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import trio

import p2p_node.kernels
from p2p_node.kernels import NO_KERNELS, find_kernels
from p2p_node.workers import WorkerSettings, open_worker
from tests.workloads.conftest import TINY, random_weights
from workloads.errors import NumericsRefused
from workloads.exact import kernels as kernels_package
from workloads.exact.kernels import Kernels, build, kernels, load_checked, use_kernels
from workloads.exact.kernels.build import NoKernels, check_library, find_or_build
from workloads.exact.linear import PackedMatrix, contract, kernel_product
from workloads.exact.quantise import EXACT14, EXACT21, Precision, quantise
from workloads.llama import selfcheck
from workloads.llama.config import parse_config
from workloads.llama.exact_model import ExactCache, ExactDecoder
from workloads.llama.fused_model import FusedCache
from workloads.llama.spans import Span

CONFIG = parse_config(TINY)
WEIGHTS = random_weights(TINY)
PRECISIONS = pytest.mark.parametrize("precision", [EXACT14, EXACT21], ids=lambda p: p.name)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built here, so that the tests neither need nor touch the user's cache."""
    try:
        return find_or_build(tmp_path_factory.mktemp("kernels"))
    except NoKernels as reason:
        pytest.skip(f"no kernels on this machine: {reason}")


@pytest.fixture(scope="module")
def loaded(library: Path) -> Kernels:
    return load_checked(library)


@pytest.fixture
def in_use(loaded: Kernels) -> Iterator[Kernels]:
    with use_kernels(loaded):
        yield loaded


def pure_product(left: np.ndarray, right: np.ndarray, precision: Precision) -> bytes:
    """Rows of ``left`` times rows of ``right``."""
    operands = [torch.from_numpy(quantise(matrix, precision.bits)) for matrix in (left, right)]
    return contract(operands[0], operands[1].t(), precision.inner_max).numpy().tobytes()


# --- The same bits ---------------------------------------------------------------------------------


@PRECISIONS
def test_products_of_random_shapes_and_scales(in_use: Kernels, precision: Precision) -> None:
    rng = np.random.default_rng(1)
    for trial in range(60):
        rows, outputs = int(rng.integers(1, 300 if trial % 6 == 0 else 14)), int(rng.integers(1, 70))
        inputs = int(rng.integers(1, 5000 if trial % 5 == 0 else 300))
        left = rng.standard_normal((rows, inputs)) * 2.0 ** rng.integers(-490, 480, (rows, 1))
        right = rng.standard_normal((outputs, inputs)) * 2.0 ** rng.integers(-60, 60, (outputs, 1))
        left[rng.random(rows) < 0.1] = 0.0
        expected = pure_product(left, right, precision)
        matrix = PackedMatrix(right, precision)
        assert matrix.panels is not None
        assert matrix.multiply(left).tobytes() == expected, (rows, inputs, outputs)
        # Columns that lie side by side in memory, and rows that don't.
        apart = np.concatenate((left, left), axis=1)[:, :inputs]
        product = kernel_product(apart, np.ascontiguousarray(right.T), precision)
        assert product is not None
        assert product.tobytes() == expected, (rows, inputs, outputs)


@PRECISIONS
@pytest.mark.parametrize("inputs", [29, 30, 31, 32, 33, 255, 256, 257, 513, 2047, 2048, 2049, 4097, 9001])
def test_the_largest_digits_overflow_no_sum(in_use: Kernels, precision: Precision, inputs: int) -> None:
    # Just under a power of two: every digit rounds up to it, and every sum is the largest there is.
    whole = np.full((9, inputs), 1.0 - 2.0**-40)
    whole[1] *= -1.0
    whole[2, ::2] *= -1.0
    # The digits 2**10 - 1 and -2**10 of exact21, on every place.
    whole[3], whole[4] = (2.0**21 - 1) / 2.0**21, (2.0**20 + 2.0**10) / 2.0**21
    whole[5] = -whole[4]
    assert PackedMatrix(whole, precision).multiply(whole).tobytes() == pure_product(whole, whole, precision)


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(48, 33, 256), (50, 255, 271), (101, 2049, 260), (267, 2563, 256), (131, 4099, 259)],
)
def test_many_rows_of_two_digits_are_multiplied_in_float64(
    in_use: Kernels, rows: int, inputs: int, outputs: int
) -> None:
    rng = np.random.default_rng(rows)
    left = rng.standard_normal((rows, inputs)) * 2.0 ** rng.integers(-490, 480, (rows, 1))
    right = rng.standard_normal((outputs, inputs)) * 2.0 ** rng.integers(-60, 60, (outputs, 1))
    # All digits the largest, of one sign, of both in turn, and those whose digits differ in sign.
    for side in (left, right):
        side[:5] = 1.0 - 2.0**-40
        side[1] *= -1.0
        side[2, ::2] *= -1.0
        side[3], side[4] = (2.0**21 - 1) / 2.0**21, -(2.0**20 + 2.0**10) / 2.0**21
    left[7], left[-1] = 0.0, -0.0
    expected = pure_product(left, right, EXACT21)
    assert PackedMatrix(right, EXACT21).multiply(left).tobytes() == expected


@PRECISIONS
def test_numbers_next_to_the_smallest_and_largest(in_use: Kernels, precision: Precision) -> None:
    rng = np.random.default_rng(2)
    tiny = rng.standard_normal((6, 40)) * 2.0 ** np.array([[-500], [-501], [-513], [-530], [-1060], [-499]])
    for left in (tiny, np.zeros((2, 40)), np.full((1, 40), -0.0)):
        expected = pure_product(left, tiny, precision)
        assert PackedMatrix(tiny, precision).multiply(left).tobytes() == expected
    for value in (np.nan, np.inf, -np.inf, np.nextafter(2.0**500, np.inf)):
        spoiled = np.ones((3, 40))
        spoiled[1, 7] = value
        assert kernel_product(spoiled, np.ones((40, 2)), precision) is None
        assert kernel_product(np.ones((2, 40)), spoiled.T, precision) is None
    spoiled[1, 7] = 2.0**500
    assert kernel_product(spoiled, np.ones((40, 2)), precision) is not None


def test_a_packed_matrix_multiplies_rows_that_are_quantised_already(in_use: Kernels) -> None:
    rng = np.random.default_rng(3)
    for precision in (EXACT14, EXACT21):
        left, right = rng.standard_normal((5, 77)), rng.standard_normal((33, 77))
        matrix = PackedMatrix(right, precision)
        assert matrix.apply(quantise(left, precision.bits)).tobytes() == pure_product(left, right, precision)


def test_other_profiles_and_empty_operands_are_left_to_numpy(in_use: Kernels) -> None:
    assert kernel_product(np.ones((2, 3)), np.ones((3, 2)), Precision("narrow", 24)) is None
    assert kernel_product(np.ones((2, 0)), np.ones((0, 2)), EXACT14) is None
    product = kernel_product(np.ones((0, 3)), np.ones((3, 2)), EXACT14)
    assert product is not None
    assert product.shape == (0, 2)
    with pytest.raises(ValueError, match="rows of 4 numbers must have 3"):
        in_use.multiply(np.ones((1, 4)), PackedMatrix(np.ones((2, 3)), EXACT14).panels)  # type: ignore[arg-type]


# --- The decoder -----------------------------------------------------------------------------------


@PRECISIONS
def test_the_decoder_gives_the_bits_of_the_numpy_path(in_use: Kernels, precision: Precision) -> None:
    tokens = np.random.default_rng(5).integers(0, 256, (3, 210))
    with use_kernels(None):
        plain = ExactDecoder(CONFIG, WEIGHTS, precision)
        cache = plain.new_cache(3, 210)
        assert isinstance(cache, ExactCache)
        expected = plain.forward(tokens, cache)
        logits = plain.logits(expected[0])
    fused = ExactDecoder(CONFIG, WEIGHTS, precision)
    both = fused.new_cache(3, 210), fused.new_cache(1, 210)
    assert isinstance(both[0], FusedCache)
    # Rows of several sequences in one block, and positions in several.
    assert fused.forward(tokens, both[0]).tobytes() == expected.tobytes()
    pieces, start = [], 0
    for count in (1, 2, 97, 1, 100, 1, 1, 7):
        pieces.append(fused.forward(tokens[:1, start : start + count], both[1]))
        start += count
    assert start == 210
    assert np.concatenate(pieces, axis=1).tobytes() == expected[:1].tobytes()
    assert fused.logits(expected[0]).tobytes() == logits.tobytes()


@PRECISIONS
def test_pieces_of_several_sequences_in_one_pass_give_the_bits_of_each_alone(
    in_use: Kernels, precision: Precision
) -> None:
    tokens = np.random.default_rng(8).integers(0, 256, (3, 130))
    passes = [
        [(2, 97)], [(0, 1), (2, 3), (1, 101)], [(1, 1), (0, 40)], [(0, 1), (1, 1), (2, 1)], [(2, 29), (0, 88)]
    ]  # fmt: skip
    for chosen in (in_use, None):
        with use_kernels(chosen):
            decoder = ExactDecoder(CONFIG, WEIGHTS, precision)
            alone = [decoder.forward(row[None], decoder.new_cache(1, 130))[0] for row in tokens]
            cache, found = (
                decoder.new_cache(3, 130),
                [[np.empty((0, 48), dtype=np.float32)] for _ in range(3)],
            )
            for pieces in passes:
                starts = [cache.lengths[sequence] for sequence, _ in pieces]
                spans = [
                    Span(sequence, tokens[sequence, start : start + count])
                    for (sequence, count), start in zip(pieces, starts, strict=True)
                ]
                hidden, first = decoder.extend(spans, cache), 0
                for sequence, count in pieces:
                    found[sequence].append(hidden[first : first + count])
                    first += count
            for sequence, states in enumerate(found):
                rows = np.concatenate(states)
                assert len(rows) == cache.lengths[sequence] > 0
                assert rows.tobytes() == alone[sequence][: len(rows)].tobytes()
            with pytest.raises(ValueError, match="once, in a pass"):
                decoder.extend([Span(1, tokens[1, :1])] * 2, cache)


def test_a_cache_is_taken_back_and_written_over(in_use: Kernels) -> None:
    tokens = np.random.default_rng(6).integers(0, 256, (1, 40))
    decoder = ExactDecoder(CONFIG, WEIGHTS, EXACT14)
    expected = decoder.forward(tokens, decoder.new_cache(1, 40))
    cache = decoder.new_cache(1, 40)
    decoder.forward((tokens + 1) % 256, cache)
    # An odd position: its pair still holds the value that came after it.
    cache.length = 0
    pieces = [decoder.forward(tokens[:, i : i + 1], cache) for i in range(40)]
    assert np.concatenate(pieces, axis=1).tobytes() == expected.tobytes()


def test_long_sequences_cross_the_blocks_of_exact21(in_use: Kernels) -> None:
    fields = {**TINY, "num_hidden_layers": 1, "max_position_embeddings": 4096}
    config, weights = parse_config(fields), random_weights(fields)
    tokens = np.random.default_rng(7).integers(0, 256, (1, 2200))
    with use_kernels(None):
        plain = ExactDecoder(config, weights, EXACT21)
        expected = plain.forward(tokens, plain.new_cache(1, 2200))
    fused = ExactDecoder(config, weights, EXACT21)
    assert fused.forward(tokens, fused.new_cache(1, 2200)).tobytes() == expected.tobytes()


def test_a_cache_that_is_full_takes_no_more(in_use: Kernels) -> None:
    decoder = ExactDecoder(CONFIG, WEIGHTS, EXACT14)
    cache = decoder.new_cache(1, 16)
    decoder.forward(np.zeros((1, 16), dtype=np.int64), cache)
    with pytest.raises(ValueError, match="16 of them taken, can't take 1 positions"):
        decoder.forward(np.zeros((1, 1), dtype=np.int64), cache)
    with pytest.raises(ValueError, match="of 2 sequences"):
        decoder.forward(np.zeros((2, 1), dtype=np.int64), decoder.new_cache(1, 16))


def test_rows_out_of_range_are_refused_in_the_same_words(in_use: Kernels) -> None:
    for place, value in (("layer 1 feed-forward", 2.0**501), ("final norm", np.nan)):
        weights = {name: tensor.clone() for name, tensor in WEIGHTS.items()}
        decoder = ExactDecoder(CONFIG, weights, EXACT14)
        # The projection before the place is made to overflow.
        layer = 1 if "feed" in place else 2
        struct = decoder._fused._layers[layer]  # type: ignore[union-attr]
        matrix = struct.output if "feed" in place else struct.down
        grains = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_double * 48).from_address(matrix.grains))
        grains[3] = value
        with pytest.raises(NumericsRefused, match=f"entering {place} holds NaN, Inf or a magnitude above"):
            decoder.forward(np.array([[1, 2]]), decoder.new_cache(1, 2))


def test_both_paths_give_the_pinned_digests(in_use: Kernels) -> None:
    assert selfcheck.reference_digests() == selfcheck.EXPECTED
    with use_kernels(None):
        assert selfcheck.reference_digests() == selfcheck.EXPECTED


def test_without_vector_extensions_they_agree_too(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_TUNINGS", (("-march=x86-64",), ("-march=armv8-a",)))
    plain = load_checked(find_or_build(tmp_path))
    assert plain.instructions == "plain"
    with use_kernels(plain):
        assert selfcheck.reference_digests() == selfcheck.EXPECTED


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX-512 is x86's")
@pytest.mark.parametrize("processor", ["skylake-avx512", "icelake-server"])
def test_avx512_compiles_where_it_cannot_run(library: Path, processor: str) -> None:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("a compiler of another name")
    source = Path(build.__file__).with_name("kernels.cpp")
    command = [compiler, "-std=c++17", "-fsyntax-only", "-w", f"-march={processor}", str(source)]
    subprocess.run(command, check=True, timeout=120)


# --- When they are used ----------------------------------------------------------------------------


@pytest.fixture
def fresh() -> Iterator[None]:
    """`kernels` decides anew, and again after the test."""
    kernels_package._load.cache_clear()
    yield
    kernels_package._load.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_zero_switches_them_off(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2P_NODE_KERNELS", str(library))
    found = kernels()
    assert found is not None
    assert found.path == library
    kernels_package._load.cache_clear()
    monkeypatch.setenv("P2P_NODE_KERNELS", "0")
    assert kernels() is None
    decoder = ExactDecoder(CONFIG, WEIGHTS, EXACT14)
    assert isinstance(decoder.new_cache(1, 1), ExactCache)


@pytest.mark.usefixtures("fresh")
def test_without_a_compiler_numpy_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("P2P_NODE_KERNELS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoKernels, match="no C\\+\\+ compiler"):
        find_or_build(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert kernels() is None
    assert "exact kernels are not used: no C++ compiler" in caplog.text
    assert selfcheck.reference_digests() == selfcheck.EXPECTED


def copied(library: Path, folder: Path) -> Path:
    folder.chmod(0o700)
    for path in (library, library.with_suffix(".sha256")):
        (folder / path.name).write_bytes(path.read_bytes())
        (folder / path.name).chmod(0o600)
    return folder / library.name


def test_a_library_others_could_have_written_is_refused(library: Path, tmp_path: Path) -> None:
    copy = copied(library, tmp_path)
    check_library(copy)
    copy.chmod(0o620)
    with pytest.raises(NoKernels, match="must not be writable by others"):
        check_library(copy)
    copy.chmod(0o600)
    tmp_path.chmod(0o777)
    with pytest.raises(NoKernels, match="mode 777, must not be writable by others"):
        check_library(copy)
    with pytest.raises(NoKernels, match="must not be writable by others"):
        find_or_build(tmp_path)
    tmp_path.chmod(0o700)
    copy.unlink()
    copy.symlink_to(library)
    with pytest.raises(NoKernels, match="must be a plain file"):
        check_library(copy)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_library_of_another_user_is_refused(library: Path, tmp_path: Path) -> None:
    copy = copied(library, tmp_path)
    os.chown(copy, 12345, -1)
    with pytest.raises(NoKernels, match="belongs to user 12345"):
        check_library(copy)


def test_a_library_cut_short_is_built_again(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copied(library, tmp_path)
    whole = copy.read_bytes()
    copy.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NoKernels, match=r"has digest \w+, must be \w+"):
        check_library(copy)
    monkeypatch.setattr(build, "_build", lambda _, path: path.write_bytes(whole))
    assert find_or_build(tmp_path) == copy
    # It was whole already.
    monkeypatch.delattr(build, "_build")
    assert find_or_build(tmp_path) == copy


@pytest.mark.usefixtures("fresh")
def test_a_library_that_computes_something_else_is_not_used(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(Kernels):
        def multiply(self, rows: np.ndarray, panels: object) -> np.ndarray | None:
            product = super().multiply(rows, panels)  # type: ignore[arg-type]
            return None if product is None else np.nextafter(product, np.inf)

    monkeypatch.setattr(kernels_package, "Kernels", Wrong)
    monkeypatch.setenv("P2P_NODE_KERNELS", str(library))
    with caplog.at_level(logging.WARNING):
        assert kernels() is None
    assert "gives other products" in caplog.text
    kernels_package._load.cache_clear()
    nothing = tmp_path / "kernels.so"
    nothing.write_bytes(b"not a library")
    nothing.chmod(0o600)
    nothing.with_suffix(".sha256").write_text(hashlib.sha256(b"not a library").hexdigest())
    nothing.with_suffix(".sha256").chmod(0o600)
    monkeypatch.undo()
    monkeypatch.setenv("P2P_NODE_KERNELS", str(nothing))
    tmp_path.chmod(0o700)
    with caplog.at_level(logging.WARNING):
        assert kernels() is None
    assert "does not load" in caplog.text


def test_kernels_that_spoil_the_reference_run_are_switched_off(
    in_use: Kernels, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    multiply = Kernels.multiply
    monkeypatch.setattr(Kernels, "multiply", lambda self, rows, panels: 2 * multiply(self, rows, panels))
    with use_kernels(in_use), caplog.at_level(logging.WARNING):
        selfcheck.check_arithmetic()
        assert kernels() is None
        # What `switch_off` left for the life of the process.
        kernels_package._overridden.pop()
    assert "exact kernels are switched off: this machine does not reproduce" in caplog.text


# --- Nodes and workers -----------------------------------------------------------------------------


async def test_a_node_finds_what_was_built_and_waits_for_no_compiler(
    library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("P2P_NODE_KERNELS", "/as/the/operator/says")
    assert await find_kernels() == "/as/the/operator/says"
    monkeypatch.delenv("P2P_NODE_KERNELS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "p2p-node" / "kernels"
    folder.mkdir(parents=True)
    copy = copied(library, folder)
    assert await find_kernels(patience_s=60) == str(copy)
    monkeypatch.setattr(p2p_node.kernels, "_BUILD", Path(__file__).with_name("no_such_program.py"))
    assert await find_kernels(patience_s=60) == NO_KERNELS
    slow = tmp_path / "slow.py"
    slow.write_text("import time\ntime.sleep(1)\n")
    monkeypatch.setattr(p2p_node.kernels, "_BUILD", slow)
    started = trio.current_time()
    assert await find_kernels(patience_s=0.05) == NO_KERNELS
    assert trio.current_time() - started < 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process has loaded")
async def test_a_worker_uses_what_it_is_given(library: Path) -> None:
    async with open_worker(WorkerSettings(kernels=str(library))) as worker:
        mapped = await trio.Path(f"/proc/{worker.pid}/maps").read_text()
    assert str(library) in mapped
