"""Running ``classify.image``: a chunk is some images, and its units their likeliest classes.

A chunk's digest covers the strength of every class too, in float64, which the units don't tell. Images don't
depend on each other, so any chunk is checked by doing it again, alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workloads.blobs import Blobs
from workloads.chunkwise import Chunk
from workloads.fingerprint import PPB
from workloads.profiled import Profiled
from workloads.vision.config import expected_shapes, load_config
from workloads.vision.input import CHUNK_IMAGES, TOP, ClassifyInput, decode_input
from workloads.vision.kind import COPIED_IMAGE, QUANTIZED_CLASSIFIER, VISION, classes, model_digest
from workloads.vision.network import Classifier, Exact, Native
from workloads.weightsfile import load_tensors

__all__ = ["ImageClassifier", "likeliest"]

_LEVELS = 7


class ImageClassifier(Profiled[ClassifyInput]):
    """One loaded classifier in one numerics profile.

    Args:
        model_dir: the model's directory.
        profile: of the kind's.
        variant: how to cheat while generating, or None.
        expected_digest: what the files must hash to, if known.
        blobs: where images are read.

    Raises:
        InputRefused: the profile or the variant is unknown.
        ModelRefused: the directory is not such a model, or hashes to something else.
    """

    def __init__(
        self,
        model_dir: Path,
        profile: str,
        variant: str | None = None,
        *,
        expected_digest: bytes | None = None,
        blobs: Blobs,
    ) -> None:
        model = model_digest(model_dir)
        super().__init__(
            VISION, model, profile, variant, expected_digest=expected_digest, model_dir=model_dir
        )
        self._blobs = blobs
        config = load_config(model_dir)
        weights = load_tensors(model_dir, expected_shapes(config), lambda _: False)
        precision = self._numerics.precision
        operators = Native() if precision is None else Exact(precision)
        self._classifier = self._generating = Classifier(config, weights, operators)
        if variant == QUANTIZED_CLASSIFIER:
            fewer_bits = {name: _four_bits(weight) for name, weight in weights.items()}
            self._generating = Classifier(config, fewer_bits, operators)

    def decode(self, input: bytes) -> ClassifyInput:
        """See `Chunkwise`."""
        return decode_input(input)

    def units_total(self, job: ClassifyInput) -> int:
        """See `Chunkwise`."""
        return job.units_total

    def derive(self, job: ClassifyInput, before: Sequence[int], chunk: int) -> Chunk:
        """See `Chunkwise`."""
        return self._chunk(self._classifier, self._images(job, chunk))

    def produce(self, job: ClassifyInput, before: Sequence[int], chunk: int) -> Chunk:
        """See `Chunkwise`."""
        images = self._images(job, chunk)
        if self._variant == COPIED_IMAGE:
            images = images[torch.arange(len(images)) // 2 * 2]
        return self._chunk(self._generating, images)

    def miss_ppb(self, job: ClassifyInput, claimed: Sequence[int], own: Chunk) -> int:
        """See `Profiled`: by how much a class is less likely than the one that belongs in its place."""
        rows = [self._classifier.chances(state).double().numpy() for state in own.states]
        return max(_miss_ppb(row, told) for row, told in zip(rows, classes(claimed), strict=True))

    def _images(self, job: ClassifyInput, chunk: int) -> Tensor:
        """The images (count, height, width, 3) of a chunk, uint8."""
        first = chunk * CHUNK_IMAGES
        count = min(CHUNK_IMAGES, job.count - first)
        start, size = (job.first + first) * job.image_bytes, count * job.image_bytes
        given, blob = job.samples[start : start + size], job.blob
        data = given if blob is None else self._blobs.read_range(blob, start, start + size)
        samples = np.frombuffer(data, dtype=np.uint8).reshape(count, job.side, job.side, 3)
        return torch.from_numpy(samples.copy())

    @staticmethod
    def _chunk(classifier: Classifier, images: Tensor) -> Chunk:
        logits = classifier.logits(images)
        numbers, chances = likeliest(classifier.chances(logits))
        words = np.stack([numbers, chances.view(np.uint32)], axis=-1)
        inner = logits.numpy()
        return Chunk(words.reshape(-1).tolist(), inner.astype("<f8", copy=False).tobytes(), tuple(logits))


def likeliest(chances: Tensor) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """The `TOP` likeliest classes of each image, and how likely they are; of equals the first.

    Args:
        chances: (images, classes).

    Returns:
        Numbers and chances, each (images, `TOP`).
    """
    rows = chances.numpy()
    order = np.argsort(-rows, axis=1, kind="stable")[:, :TOP]
    return order.astype(np.uint32), np.take_along_axis(rows, order, axis=1).astype(np.float32)


def _miss_ppb(chances: NDArray[np.float64], told: Sequence[tuple[int, float]]) -> int:
    """How far an image's claimed classes and their chances lie from these chances."""
    numbers, claimed = [number for number, _ in told], np.array([chance for _, chance in told])
    if len(set(numbers)) < len(numbers) or max(numbers) >= len(chances) or not np.isfinite(claimed).all():
        return PPB
    ranked = -np.sort(-chances)[: len(told)]
    misses = np.maximum(ranked - chances[numbers], np.abs(claimed - chances[numbers]))
    return min(PPB, int(np.ceil(PPB * float(misses.max()))))


def _four_bits(weight: Tensor) -> Tensor:
    if weight.dim() == 1:
        return weight
    step = weight.abs().flatten(1).amax(dim=1).clamp(min=1e-30) / _LEVELS
    step = step.view(-1, *[1] * (weight.dim() - 1))
    return torch.round(weight / step) * step
