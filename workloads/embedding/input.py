"""What a job of the workload ``embed.text`` asks for; readable without torch.

Texts are tokens here, not characters: what a tokenizer makes of a text may change with its release, and an
honest peer with another one must not be convicted for that.
"""

from __future__ import annotations

from protocols.blobs import Blob
from protocols.codec import Wire
from protocols.limits import UNITS_MAX, WHOLE_UNITS_MAX
from workloads.blobs import BLOB_WORDS
from workloads.embedding.tokens import BYTES_MAX
from workloads.errors import InputRefused
from workloads.inputs import InputCodec, content_rule, within

__all__ = ["CHUNK_TEXTS", "CODEC", "POOLINGS", "EmbedInput", "decode_input", "encode_input"]

POOLINGS = ("mean", "cls")
CHUNK_TEXTS = 16
"""Texts of a chunk, whose vectors are one blob."""
TEXTS_JOB_MAX = UNITS_MAX // BLOB_WORDS * CHUNK_TEXTS
TEXTS_WHOLE_MAX = WHOLE_UNITS_MAX // BLOB_WORDS * CHUNK_TEXTS


class EmbedInput(Wire, frozen=True):
    """Texts to turn into vectors.

    Args:
        pooling: ``mean`` of a text's states, or the state of its first token, ``cls``.
        is_normalised: whether vectors are scaled to length 1.
        first: number of the first text among those that are given.
        count: texts wanted, from the first on.
        packed: the texts, as `workloads.embedding.tokens.pack` makes it; empty if they are a blob.
        blob: the same where it is too large to be carried along.
    """

    pooling: str
    is_normalised: bool
    first: int
    count: int
    packed: bytes = b""
    blob: Blob | None = None

    @property
    def chunks(self) -> int:
        """Chunks of the output."""
        return -(-self.count // CHUNK_TEXTS)

    @property
    def units_total(self) -> int:
        """Output units: the name of a blob for each chunk."""
        return self.chunks * BLOB_WORDS

    def check(self, *, is_whole: bool = False) -> None:
        """See `workloads.inputs.JobInput`."""
        if self.pooling not in POOLINGS:
            raise InputRefused(f"pooling={self.pooling!r} must be one of {', '.join(POOLINGS)}")
        count_max = TEXTS_WHOLE_MAX if is_whole else TEXTS_JOB_MAX
        if not 1 <= self.count <= count_max:
            raise InputRefused(f"{self.count} texts must be 1 to {count_max}")
        within("first", self.first, 0, TEXTS_WHOLE_MAX - 1)
        content_rule("texts", self.packed, self.blob, BYTES_MAX)


CODEC = InputCodec(EmbedInput)
encode_input, decode_input = CODEC.encode, CODEC.decode
