"""Does this machine compute the exact profiles? One line for each operator, with its digest.

    python -m workloads.exact.selftest [--quick | --matrix | --accuracy]

``--quick`` prints the digests of every operator, of a model run whole, in chunks and token by token, and of
20 training steps. These lines are the same on every machine; the exit status is 1, and the differing lines
are named, when one is not the published one. ``--matrix`` repeats that in every configuration that this
machine can pretend to be, and prints which lines agree. ``--accuracy`` prints the distance to float64 beside
that of native float32 and bfloat16. Without an option, all three.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from workloads import exact
from workloads.exact.cases import Form, digest, numbers, operator_digests, training_digest
from workloads.exact.published import FILE, published_digests

__all__ = ["CONFIGURATIONS", "Configuration", "lines", "main", "native_lines"]

_CHUNKS = (1, 7, 40, 72)
_CONFIGURATION_S = 300


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way to run the self-test.

    Args:
        name: in the table.
        arguments: of the program.
        environment: variables on top of ours.
    """

    name: str
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


# Threads that wait without spinning, in case the machine has something else to do.
_TWO_THREADS = ("--threads", "2")
_PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}

CONFIGURATIONS = (
    Configuration("1 thread"),
    Configuration("2 threads", _TWO_THREADS, _PATIENT),
    Configuration("batch entries one at a time", ("--split",)),
    Configuration("int8 slices", ("--arithmetic", "int8")),
    Configuration("float32 slices", ("--arithmetic", "float32")),
    Configuration("compiled kernels off", environment={"P2P_NODE_KERNELS": "0"}),
    Configuration("ATen without vectors", environment={"ATEN_CPU_CAPABILITY": "default"}),
    Configuration("ATen AVX2", environment={"ATEN_CPU_CAPABILITY": "avx2"}),
    Configuration("MKL SSE4.2", environment={"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}),
    Configuration("MKL AVX2", environment={"MKL_ENABLE_INSTRUCTIONS": "AVX2"}),
    Configuration("MKL compatible", environment={"MKL_CBWR": "COMPATIBLE"}),
    Configuration("MKL AVX2 strict, 2 threads", _TWO_THREADS, {**_PATIENT, "MKL_CBWR": "AVX2,STRICT"}),
    Configuration("int8 slices, oneDNN SSE4.1", ("--arithmetic", "int8"), {"ONEDNN_MAX_CPU_ISA": "SSE41"}),
    Configuration("int8 slices, oneDNN AVX2", ("--arithmetic", "int8"), {"ONEDNN_MAX_CPU_ISA": "AVX2"}),
    Configuration(
        "everything capped, 2 threads, split",
        ("--split", *_TWO_THREADS),
        {
            **_PATIENT,
            "ATEN_CPU_CAPABILITY": "default",
            "MKL_CBWR": "COMPATIBLE",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "P2P_NODE_KERNELS": "0",
        },
    ),
)
"""What one machine can pretend to be."""


def lines(form: Form) -> Iterator[tuple[str, str]]:
    """(name, digest) of every operator, the model's runs and the training runs."""
    yield from operator_digests(form).items()
    for precision in (exact.EXACT14, exact.EXACT21):
        yield from _model_lines(precision)
    for precision in (exact.EXACT14, exact.EXACT21):
        yield f"training-20-steps/{precision.name}", training_digest(precision, form)


def native_lines() -> Iterator[tuple[str, str]]:
    """The same for torch's own float32 kernels, whose digests depend on the machine."""
    a, b = (numbers(name, 256, 256).float() for name in "ab")
    q, k = (numbers(name, 1, 4, 64, 32).float() for name in "qk")
    functional = torch.nn.functional
    results = {
        "matmul": a @ b,
        "attention": functional.scaled_dot_product_attention(q, k, k, is_causal=True),
        "softmax": a.softmax(-1),
        "layer-norm": functional.layer_norm(a, (256,)),
        "exp": a.exp(),
        "sum": a.sum(),
    }
    for name, result in results.items():
        yield f"native-float32/{name}", digest(result.double())


def _model_lines(precision: exact.Precision) -> Iterator[tuple[str, str]]:
    """The same hidden states three times: at once in a batch, in uneven chunks, and token by token."""
    from workloads.llama.selfcheck import reference_decoder

    decoder, tokens = reference_decoder(precision)
    count = tokens.shape[1]

    def run(ends: Sequence[int], batch: int) -> str:
        cache = decoder.new_cache(batch, count)
        starts = [0, *ends[:-1]]
        parts = [
            decoder.forward(tokens[:batch, start:stop], cache)[:1]
            for start, stop in zip(starts, ends, strict=True)
        ]
        hidden = np.concatenate(parts, axis=1)
        return digest(torch.from_numpy(hidden), torch.from_numpy(decoder.logits(hidden[0])))

    yield f"model-prefill/{precision.name}", run([count], len(tokens))
    yield f"model-chunks/{precision.name}", run([end for end in _CHUNKS if end < count] + [count], 1)
    yield f"model-decode/{precision.name}", run(range(1, count + 1), 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for.

    Returns:
        0, or 1 if a digest differs from the published one.
    """
    parser = argparse.ArgumentParser(
        prog="python -m workloads.exact.selftest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--quick", action="store_true", help="digests only")
    what.add_argument("--matrix", action="store_true", help="agreement over configurations only")
    what.add_argument("--accuracy", action="store_true", help="distance to float64 only")
    what.add_argument("--publish", nargs="*", type=Path, metavar="COPY", help="write the published digests")
    parser.add_argument("--threads", type=int, default=1, help="compute threads (default 1)")
    parser.add_argument("--device", default="cpu", help="of the operators' tensors, such as cuda")
    parser.add_argument("--split", action="store_true", help="compute each batch entry alone")
    parser.add_argument("--arithmetic", choices=[each.value for each in exact.Arithmetic])
    parser.add_argument("--native", action="store_true", help="digests of torch's own kernels, for contrast")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    form = Form(torch.device(arguments.device), arguments.split)
    everything = not (arguments.quick or arguments.matrix or arguments.accuracy)

    forced = exact.computed_in(arguments.arithmetic) if arguments.arithmetic else nullcontext()
    if arguments.publish is not None:
        with forced:
            _publish(dict(lines(form)), arguments.publish)
        return 0
    status = 0
    if arguments.quick or everything:
        with forced:
            status |= _print_lines(lines(form))
        if arguments.native:
            for name, found in native_lines():
                print(f"{name:26} {found}")
    if arguments.matrix or everything:
        status |= _print_matrix()
    if arguments.accuracy or everything:
        from workloads.exact.accuracy import print_accuracy

        print_accuracy()
    return status


def _publish(digests: dict[str, str], copies: Sequence[Path]) -> None:
    text = json.dumps(digests, indent=2) + "\n"
    for path in (FILE, *copies):
        path.write_text(text)


def _print_lines(found: Iterator[tuple[str, str]]) -> int:
    published, differing = published_digests(), []
    for name, each in found:
        print(f"{name:26} {each}", flush=True)
        if each != published.get(name):
            differing.append(name)
    for name in differing:
        print(f"differs: {name}, must be {published.get(name, 'published')}", file=sys.stderr)
    return 1 if differing else 0


def _print_matrix() -> int:
    published = published_digests()
    print(
        "\nConfigurations: = the published digest (or, of native kernels, that of the first), x another one"
    )
    columns = []
    for number, configuration in enumerate(CONFIGURATIONS, 1):
        found = _run_apart(configuration)
        columns.append(found)
        agreeing = sum(found.get(name) == each for name, each in published.items())
        print(f"  {number:2} {configuration.name}: {agreeing} of {len(published)} agree", flush=True)
    print(f"\n  {'':26} " + " ".join(f"{number:2}" for number in range(1, len(columns) + 1)))
    for name, each in (columns[0] | published).items():
        marks = " ".join(" =" if found.get(name) == each else " x" for found in columns)
        print(f"  {name:26} {marks}")
    return 0 if all(found.items() >= published.items() for found in columns) else 1


def _run_apart(configuration: Configuration) -> dict[str, str]:
    """The lines of the self-test in a process of its own; none if it fails."""
    command = [
        sys.executable,
        "-m",
        "workloads.exact.selftest",
        "--quick",
        "--native",
        *configuration.arguments,
    ]
    done = subprocess.run(  # noqa: S603
        command,
        env={**os.environ, **configuration.environment},
        stdout=subprocess.PIPE,
        text=True,
        timeout=_CONFIGURATION_S,
        check=False,
    )
    pairs = (line.split() for line in done.stdout.splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


if __name__ == "__main__":
    sys.exit(main())
