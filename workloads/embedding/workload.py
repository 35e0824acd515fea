"""Running ``embed.text``: a chunk is some texts, and its units name the blob of their vectors.

A chunk's digest covers the pooled states too, in float64, of which the vectors keep only a rounded part.
Texts don't depend on each other, so any chunk is checked by doing it again, alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from protocols.blobs import blob_of
from workloads import exact
from workloads.blobs import BLOB_WORDS, Blobs, blob_words
from workloads.chunkwise import Chunk, Chunkwise
from workloads.embedding.config import BertConfig, expected_shapes, load_config
from workloads.embedding.encoder import Encoder, Exact
from workloads.embedding.input import CHUNK_TEXTS, EmbedInput, decode_input
from workloads.embedding.kind import COPIED_ITEM, NAME, QUANTIZED_ENCODER
from workloads.embedding.tokens import TokenLists
from workloads.errors import InputRefused, ModelRefused
from workloads.lm.manifest import load_manifest
from workloads.weightsfile import load_tensors

__all__ = ["TextEmbedder", "load_weights"]

_PRECISIONS = {"exact14": exact.EXACT14, "exact21": exact.EXACT21}
_LEVELS = 7


class TextEmbedder(Chunkwise[EmbedInput]):
    """One loaded encoder in one numerics profile.

    Args:
        model_dir: the model's directory.
        profile: ``exact14`` or ``exact21``.
        variant: how to cheat while generating, or None.
        expected_digest: what the files must hash to, if known.
        blobs: where texts are read and vectors left.

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
        super().__init__(NAME, load_manifest(model_dir).digest, profile, BLOB_WORDS)
        if expected_digest is not None and self.model != expected_digest:
            raise ModelRefused(f"model digest {self.model.hex()} must be {expected_digest.hex()}")
        if profile not in _PRECISIONS:
            raise InputRefused(f"profile {profile!r} must be one of {tuple(_PRECISIONS)}")
        if variant not in (None, COPIED_ITEM, QUANTIZED_ENCODER):
            raise InputRefused(f"variant {variant!r} must be {COPIED_ITEM!r} or {QUANTIZED_ENCODER!r}")
        self._blobs = blobs
        self._variant = variant
        config = load_config(model_dir)
        weights, operators = load_weights(model_dir, config), Exact(_PRECISIONS[profile])
        self._encoder = self._generating = Encoder(config, weights, operators)
        if variant == QUANTIZED_ENCODER:
            fewer_bits = {name: _four_bits(weight) for name, weight in weights.items()}
            self._generating = Encoder(config, fewer_bits, operators)
        self._read: tuple[EmbedInput, TokenLists] | None = None

    def decode(self, input: bytes) -> EmbedInput:
        """See `Chunkwise`."""
        job = decode_input(input)
        texts = self._texts(job)
        if job.first + job.count > len(texts):
            raise InputRefused(f"texts {job.first} to {job.first + job.count} must be in [0, {len(texts)}]")
        return job

    def units_total(self, job: EmbedInput) -> int:
        """See `Chunkwise`."""
        return job.units_total

    def derive(self, job: EmbedInput, before: Sequence[int], chunk: int) -> Chunk:
        """See `Chunkwise`."""
        pooled, vectors = self._vectors(job, chunk, self._encoder)
        return Chunk(blob_words(blob_of(_bytes(vectors))), _bytes(pooled))

    def produce(self, job: EmbedInput, before: Sequence[int], chunk: int) -> Chunk:
        """See `Chunkwise`; the executor also hands over the vectors that its units name."""
        pooled, vectors = self._vectors(job, chunk, self._generating)
        if self._variant == COPIED_ITEM:
            half = (len(vectors) + 1) // 2
            pooled, vectors = (torch.cat([x[:half], x[: len(x) - half]]) for x in (pooled, vectors))
        return Chunk(blob_words(self._blobs.write(_bytes(vectors))), _bytes(pooled))

    def _vectors(self, job: EmbedInput, chunk: int, encoder: Encoder) -> tuple[Tensor, Tensor]:
        """Pooled states (texts, hidden) float64 and vectors (texts, hidden) float32 of a chunk."""
        lists = self._texts(job)
        start = chunk * CHUNK_TEXTS
        texts = [lists[job.first + number] for number in range(start, min(start + CHUNK_TEXTS, job.count))]
        pooled = [encoder.pool(states, job.pooling) for states in encoder.states(texts)]
        vectors = [encoder.normalise(vector) for vector in pooled] if job.is_normalised else pooled
        return torch.stack(pooled), torch.stack(vectors).to(torch.float32)

    def _texts(self, job: EmbedInput) -> TokenLists:
        # Every chunk reads them, and a blob may be large.
        if self._read is None or self._read[0] != job:
            data = job.packed if job.blob is None else self._blobs.read(job.blob)
            self._read = job, TokenLists(data)
        return self._read[1]


def load_weights(model_dir: Path, config: BertConfig) -> dict[str, Tensor]:
    """The encoder's weights as float32.

    Raises:
        ModelRefused: the file is broken, or lacks one of them.
    """

    def is_unused(name: str) -> bool:
        return name.startswith("pooler.") or name == "embeddings.position_ids"

    return load_tensors(model_dir, expected_shapes(config), is_unused)


def _bytes(x: Tensor) -> bytes:
    array = x.contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _four_bits(weight: Tensor) -> Tensor:
    if weight.dim() == 1:
        return weight
    step = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / _LEVELS
    return torch.round(weight / step) * step
