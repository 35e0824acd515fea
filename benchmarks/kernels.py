"""What the compiled kernels bring: linear layers, prefill and decode against native float32.

    python -m benchmarks.kernels [--quick]

Ratios of CPU time on one thread to native float32 torch in the same run: medians of rounds in which all take
turns, because what else the machine does would spoil the numbers themselves. Quantising and rounding are in
them; weights are packed before.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from benchmarks.table import machine_line, print_table
from workloads.exact.kernels import kernels, use_kernels
from workloads.exact.linear import PackedMatrix
from workloads.exact.quantise import EXACT14, EXACT21
from workloads.llama.config import LlamaConfig, load_config
from workloads.llama.weights import expected_shapes
from workloads.lm.engine import Decoder, build_decoder, prefill
from workloads.lm.manifest import builtin_models

ROWS = (1, 8, 32, 128, 256)
PRECISIONS = (EXACT14, EXACT21)
PREFILL_TOKENS = 256
DECODE_TOKENS = 16
# A quick call is repeated until it has taken this long, or its time is the clock's.
TICK_S = 0.02

Block = Callable[[], AbstractContextManager[None]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds and no large model")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    loaded = kernels()
    print(machine_line(), flush=True)
    print(f"kernels: {loaded.instructions if loaded else 'none'}", flush=True)
    rounds = 5 if quick else 11
    for outputs, inputs in ((1024, 1024),) if quick else ((1024, 1024), (1536, 512), (2048, 2048)):
        _linear(outputs, inputs, rounds)
    models = {"kjv-2m": load_config(builtin_models()["kjv-2m"]), "8 x 512": _config(8, 512, 1408)}
    if not quick:
        models["4 x 1024"] = _config(4, 1024, 2816)
    for name, config in models.items():
        _model(name, config, max(3, rounds // 2))


def _linear(outputs: int, inputs: int, rounds: int) -> None:
    weight = torch.randn(outputs, inputs)
    packed = {}
    for precision in PRECISIONS:
        for way, block in _ways().items():
            with block():
                packed[precision.name, way] = PackedMatrix(weight.double().numpy(), precision), block
    rows = []
    for count in ROWS:
        x = torch.randn(count, inputs)
        numbers = x.double().numpy()

        def native(x: torch.Tensor = x) -> None:
            torch.nn.functional.linear(x, weight)

        calls: dict[str, Callable[[], None]] = {"native": native}
        for (name, way), (matrix, block) in packed.items():

            def exact(
                numbers: np.ndarray = numbers, matrix: PackedMatrix = matrix, block: Block = block
            ) -> None:
                with block():
                    matrix.multiply(numbers)

            calls[f"{name}, {way}"] = exact
        rows.append([str(count), *_row(calls, rounds)])
    print_table(f"linear, {inputs} inputs and {outputs} outputs", ["rows", *calls], rows)


def _model(name: str, config: LlamaConfig, rounds: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for tensor, shape in expected_shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        weights[tensor] = 1 + noise / 10 if len(shape) == 1 else noise / shape[1] ** 0.5
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, PREFILL_TOKENS + DECODE_TOKENS)
    decoders: dict[str, Decoder] = {"native": build_decoder(config, weights, "native")}
    for precision in PRECISIONS:
        for way, block in _ways().items():
            with block():
                decoders[f"{precision.name}, {way}"] = build_decoder(config, weights, precision.name)
    prefilling, decoding = {}, {}
    for label, decoder in decoders.items():
        block = _ways().get(label.partition(", ")[2], nullcontext)
        prefilling[label] = _prefilling(decoder, tokens[:PREFILL_TOKENS], block)
        decoding[label] = _decoding(decoder, tokens, block)
    rows = [
        [f"prefill, {PREFILL_TOKENS} tokens", *_row(prefilling, rounds)],
        ["decode, a token", *_row(decoding, rounds, DECODE_TOKENS)],
    ]
    print_table(f"model {name}, {config.vocab_size} tokens of vocabulary", ["", *decoders], rows)


def _prefilling(decoder: Decoder, tokens: np.ndarray, block: Block) -> Callable[[], None]:
    def run() -> None:
        with block():
            hidden = prefill(decoder, tokens, decoder.new_cache(1, len(tokens)))
            decoder.logits(hidden[-1:])

    return run


def _decoding(decoder: Decoder, tokens: np.ndarray, block: Block) -> Callable[[], None]:
    cache = decoder.new_cache(1, len(tokens))
    prefill(decoder, tokens[:PREFILL_TOKENS], cache)

    def run() -> None:
        cache.length = PREFILL_TOKENS
        with block():
            for token in tokens[PREFILL_TOKENS:]:
                decoder.logits(decoder.forward(np.array([[token]]), cache)[0])

    return run


def _ways() -> dict[str, Block]:
    """Blocks in which the kernels are used, where there are any, and aren't."""
    without = {"numpy": lambda: use_kernels(None)}
    return {"kernels": nullcontext, **without} if kernels() is not None else without


def _row(calls: Mapping[str, Callable[[], None]], rounds: int, parts: int = 1) -> list[str]:
    """Milliseconds of the native call (a part of it), then the ratios of the others to it."""
    times: dict[str, list[float]] = defaultdict(list)
    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = max(1, round(TICK_S / max(_seconds(call, 1), 1e-6)))
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_seconds(call, repeats[name]) / repeats[name])
    middle = {name: statistics.median(taken) for name, taken in times.items()}
    native = middle.pop("native")
    return [f"{native / parts * 1e3:.3f} ms", *(f"{other / native:.2f}x" for other in middle.values())]


def _seconds(call: Callable[[], None], repeats: int) -> float:
    started = time.process_time()
    for _ in range(repeats):
        call()
    return time.process_time() - started


def _config(layers: int, width: int, inner: int) -> LlamaConfig:
    heads = width // 64
    return LlamaConfig(4096, width, inner, layers, heads, heads // 2, 64, 4096, 1e-6, 10_000.0, True)


if __name__ == "__main__":
    main()
