"""Embeddings and image classes: exact over native arithmetic, and checking over doing, one thread.

    python -m benchmarks.items [--quick] [--models DIR]

The networks are MiniLM-L6 and EfficientNet-lite0, with random weights unless DIR holds the real ones, as
`scripts/fetch_models.py` makes them: weights change no time. Texts have 8 to 56 tokens. Times are CPU
seconds, the best of some rounds in which the sides take turns; ratios are to native float32 and to the
executor of the same profile in the same run. How near the results are to float64 says more with real weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.table import machine_line, print_table
from workloads import exact
from workloads.blobs import MemoryBlobs
from workloads.embedding import config as bert
from workloads.embedding import encoder
from workloads.embedding.input import CHUNK_TEXTS, EmbedInput
from workloads.embedding.input import encode_input as encode_texts
from workloads.embedding.tokens import pack
from workloads.embedding.workload import load_weights
from workloads.registry import open_workload
from workloads.vision import config as vision
from workloads.vision import network
from workloads.vision.input import CHUNK_IMAGES, ClassifyInput
from workloads.vision.input import encode_input as encode_images
from workloads.weightsfile import load_tensors
from workloads.workload import EXACT_PROFILES, Workload

PRECISIONS = {"exact14": exact.EXACT14, "exact21": exact.EXACT21}
MINILM = {
    "model_type": "bert",
    "vocab_size": 30_522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1_536,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}
STAGES = ((16, 3, 1, 1, 1), (24, 3, 2, 6, 2), (40, 5, 2, 6, 2), (80, 3, 2, 6, 3), (112, 5, 1, 6, 3))
LITE0 = {
    "model_type": "efficientnet-lite",
    "image_size": 224,
    "crop_permille": 875,
    "sample_mean": 127,
    "sample_scale": 128,
    "stem_channels": 32,
    "head_channels": 1_280,
    "blocks": [
        [channels, kernel, stride if number == 0 else 1, expansion]
        for channels, kernel, stride, expansion, count in (*STAGES, (192, 5, 2, 6, 4), (320, 3, 1, 6, 1))
        for number in range(count)
    ],
    "labels": [str(number) for number in range(1_000)],
}


class Best:
    """The best CPU time of each of some things, which take turns."""

    def __init__(self, work: dict[str, Callable[[], object]], rounds: int) -> None:
        self.seconds = dict.fromkeys(work, float("inf"))
        for _ in range(rounds):
            for name, do in work.items():
                started = time.process_time()
                do()
                self.seconds[name] = min(self.seconds[name], time.process_time() - started)


def random_model(folder: Path, fields: dict[str, object], shapes: dict[str, tuple[int, ...]]) -> Path:
    made = torch.Generator().manual_seed(1)
    tensors = {}
    for name, shape in shapes.items():
        inputs = torch.Size(shape[1:]).numel() if len(shape) > 1 else 16
        tensors[name] = torch.randn(shape, generator=made) / inputs**0.5
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "tokenizer.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors")
    return folder


def texts(count: int) -> list[list[int]]:
    made = torch.Generator().manual_seed(2)
    lengths = torch.randint(8, 57, (count,), generator=made).tolist()
    return [torch.randint(1_000, 30_000, (length,), generator=made).tolist() for length in lengths]


def images(count: int) -> Tensor:
    made = torch.Generator().manual_seed(3)
    coarse = torch.rand((count, 3, 14, 14), generator=made) * 255
    large = torch.nn.functional.interpolate(coarse, (224, 224), mode="bilinear")
    return large.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class InFloat64(network.Native):
    dtype = torch.float64


class TextsInFloat64(encoder.Native):
    dtype = torch.float64


def networks(minilm: Path, lite0: Path) -> dict[str, dict[str, Callable[[], Tensor]]]:
    """What each network computes of one chunk, by arithmetic."""
    bert_config, lite_config = bert.load_config(minilm), vision.load_config(lite0)
    bert_weights = load_weights(minilm, bert_config)
    lite_weights = load_tensors(lite0, vision.expected_shapes(lite_config), lambda _: False)
    tokens, samples = texts(CHUNK_TEXTS), images(CHUNK_IMAGES)

    def vectors(operators: encoder.Operators) -> Callable[[], Tensor]:
        loaded = encoder.Encoder(bert_config, bert_weights, operators)
        return lambda: torch.stack(
            [loaded.normalise(loaded.pool(states, "mean")) for states in loaded.states(tokens)]
        )

    def logits(operators: network.Operators) -> Callable[[], Tensor]:
        loaded = network.Classifier(lite_config, lite_weights, operators)
        return lambda: loaded.logits(samples)

    return {
        "MiniLM-L6, 16 texts": {
            "float64": vectors(TextsInFloat64()),
            "native": vectors(encoder.Native()),
            **{name: vectors(encoder.Exact(precision)) for name, precision in PRECISIONS.items()},
        },
        "EfficientNet-lite0, 4 images": {
            "float64": logits(InFloat64()),
            "native": logits(network.Native()),
            **{name: logits(network.Exact(precision)) for name, precision in PRECISIONS.items()},
        },
    }


def arithmetic_rows(minilm: Path, lite0: Path, rounds: int) -> list[list[str]]:
    rows = []
    for name, sides in networks(minilm, lite0).items():
        truth = sides.pop("float64")()
        near = {
            side: torch.nn.functional.cosine_similarity(compute().double(), truth).min().item()
            for side, compute in sides.items()
        }
        best = Best(dict(sides), rounds).seconds
        rows += [
            [
                name,
                side,
                f"{best[side] * 1e3:.0f} ms",
                f"{best[side] / best['native']:.2f}",
                f"{1 - near[side]:.1e}",
            ]
            for side in sides
        ]
    return rows


class Done:
    """A job, to be done and checked."""

    def __init__(self, name: str, workload: Workload, job: bytes) -> None:
        self.name, self.workload, self.job = name, workload, job
        self.units: list[int] = []
        self.digests: dict[int, bytes] = {}

    def execute(self) -> None:
        self.units.clear()
        self.workload.generate(
            self.job, (), lambda _, new: self.units.extend(new), self.digests.__setitem__, lambda: False
        )

    def verify_one(self) -> None:
        middle = len(self.digests) // 2
        if self.workload.recompute(self.job, self.units, [middle]) != {middle: self.digests[middle]}:
            raise SystemExit(f"{self.name}: the verifier differs from the executor")


def check_rows(minilm: Path, lite0: Path, chunks: int, rounds: int) -> list[list[str]]:
    tokens, samples = texts(chunks * CHUNK_TEXTS), images(chunks * CHUNK_IMAGES).numpy().tobytes()
    blobs = MemoryBlobs(samples, pack(tokens))
    jobs = {
        "embed.text": (
            minilm,
            encode_texts(EmbedInput("mean", True, 0, len(tokens), blob=blobs.write(pack(tokens)))),
        ),
        "classify.image": (
            lite0,
            encode_images(ClassifyInput(224, 0, chunks * CHUNK_IMAGES, blob=blobs.write(samples))),
        ),
    }
    rows = []
    for name, (model, job) in jobs.items():
        for profile in EXACT_PROFILES:
            done = Done(name, open_workload(name, model, profile, blobs=blobs), job)
            best = Best({"execute": done.execute, "one": done.verify_one}, rounds).seconds
            execute, one = best["execute"], best["one"]
            shown = f"{execute * 1e3:.0f} ms", f"{one * 1e3:.0f} ms", f"{one / execute:.3f}"
            rows.append([name, profile, str(chunks), *shown])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one round, fewer chunks")
    parser.add_argument("--models", type=Path, help="where all-minilm-l6-v2 and efficientnet-lite0 are")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine_line(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.models is None:
            shapes = bert.expected_shapes(bert.parse_config(dict(MINILM)))
            minilm = random_model(Path(folder) / "minilm", dict(MINILM), shapes)
            shapes = vision.expected_shapes(vision.parse_config(dict(LITE0)))
            lite0 = random_model(Path(folder) / "lite0", dict(LITE0), shapes)
        else:
            minilm, lite0 = (arguments.models / name for name in ("all-minilm-l6-v2", "efficientnet-lite0"))
        rounds = 1 if arguments.quick else 5
        print_table(
            "One chunk, by arithmetic",
            ["network", "arithmetic", "CPU", "to native", "1 - cosine to float64, worst"],
            arithmetic_rows(minilm, lite0, rounds),
        )
        print_table(
            "A job, and the check of one chunk of it",
            ["workload", "profile", "chunks", "execute", "verify one", "to execute"],
            check_rows(minilm, lite0, 3 if arguments.quick else 8, 1 if arguments.quick else 2),
        )


if __name__ == "__main__":
    main()
