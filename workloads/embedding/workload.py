"""Running ``embed.text``: a chunk is some texts, and its units name the blob of their vectors.

A chunk's digest covers the pooled states too, in float64, of which the vectors keep only a rounded part.
Texts don't depend on each other, so any chunk is checked by doing it again, alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from protocols.blobs import Blob, blob_of
from workloads.blobs import Blobs, blob_from_words, blob_words
from workloads.chunkwise import Chunk
from workloads.embedding.config import BertConfig, expected_shapes, load_config
from workloads.embedding.encoder import Encoder, Exact, Native
from workloads.embedding.input import CHUNK_TEXTS, EmbedInput, decode_input
from workloads.embedding.kind import COPIED_ITEM, EMBEDDING, QUANTIZED_ENCODER
from workloads.embedding.tokens import TokenLists
from workloads.errors import InputRefused
from workloads.fingerprint import PPB, float_miss_ppb
from workloads.lm.manifest import load_manifest
from workloads.profiled import Profiled
from workloads.weightsfile import load_tensors

__all__ = ["TextEmbedder", "load_weights"]

_LEVELS = 7


class TextEmbedder(Profiled[EmbedInput]):
    """One loaded encoder in one numerics profile.

    Args:
        model_dir: the model's directory.
        profile: of the kind's.
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
        model = load_manifest(model_dir).digest
        super().__init__(
            EMBEDDING, model, profile, variant, expected_digest=expected_digest, model_dir=model_dir
        )
        self._blobs = blobs
        config, precision = load_config(model_dir), self._numerics.precision
        weights = load_weights(model_dir, config)
        operators = Native() if precision is None else Exact(precision)
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
        vectors, pooled, last = self._vectors(job, chunk, self._encoder)
        return _chunk(blob_of(_bytes(vectors)), pooled, last)

    def produce(self, job: EmbedInput, before: Sequence[int], chunk: int) -> Chunk:
        """See `Chunkwise`; the executor also hands over the vectors that its units name."""
        made = self._vectors(job, chunk, self._generating)
        if self._variant == COPIED_ITEM:
            half = (len(made[0]) + 1) // 2
            made = tuple(torch.cat([x[:half], x[: len(x) - half]]) for x in made)
        vectors, pooled, last = made
        return _chunk(self._blobs.write(_bytes(vectors)), pooled, last)

    def miss_ppb(self, job: EmbedInput, claimed: Sequence[int], own: Chunk) -> int:
        """See `Profiled`: the vectors are compared, text by text."""
        pooled = own.states[: len(own.states) // 2]
        vectors = self._scaled(job, pooled, self._encoder)
        blob = blob_from_words(claimed)
        if blob.size_bytes != vectors.numel() * vectors.element_size():
            return PPB
        given = np.frombuffer(self._blobs.read(blob), dtype="<f4").reshape(vectors.shape)
        return max(float_miss_ppb(*rows) for rows in zip(given, vectors.numpy(), strict=True))

    def _vectors(self, job: EmbedInput, chunk: int, encoder: Encoder) -> tuple[Tensor, ...]:
        """Of a chunk: vectors float32, pooled states, and each text's last state; each (texts, hidden)."""
        lists = self._texts(job)
        start = chunk * CHUNK_TEXTS
        texts = [lists[job.first + number] for number in range(start, min(start + CHUNK_TEXTS, job.count))]
        states = encoder.states(texts)
        pooled = [encoder.pool(state, job.pooling) for state in states]
        last = torch.stack([state[-1] for state in states])
        return self._scaled(job, pooled, encoder), torch.stack(pooled), last

    @staticmethod
    def _scaled(job: EmbedInput, pooled: Sequence[Tensor], encoder: Encoder) -> Tensor:
        vectors = [encoder.normalise(vector) for vector in pooled] if job.is_normalised else list(pooled)
        return torch.stack(vectors).to(torch.float32)

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


def _chunk(blob: Blob, pooled: Tensor, last: Tensor) -> Chunk:
    # A mean gives no single token's state away, and the vectors may be the means.
    return Chunk(blob_words(blob), _bytes(pooled), (*pooled, *last))


def _bytes(x: Tensor) -> bytes:
    array = x.contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _four_bits(weight: Tensor) -> Tensor:
    if weight.dim() == 1:
        return weight
    step = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / _LEVELS
    return torch.round(weight / step) * step
