"""What a job of the workload ``embed.text`` asks for; readable without torch.

Texts are tokens here, not characters: what a tokenizer makes of a text may change with its release, and an
honest peer with another one must not be convicted for that.
"""

from __future__ import annotations

from protocols.blobs import Blob, check_blob
from protocols.codec import Wire, decode, encode
from protocols.errors import PeerFault
from protocols.limits import INPUT_BYTES_MAX, UNITS_MAX, WHOLE_UNITS_MAX
from workloads.blobs import BLOB_WORDS
from workloads.embedding.tokens import BYTES_MAX
from workloads.errors import InputRefused

__all__ = ["CHUNK_TEXTS", "POOLINGS", "EmbedInput", "decode_input", "encode_input"]

POOLINGS = ("mean", "cls")
CHUNK_TEXTS = 16
"""Texts of a chunk, whose vectors are one blob."""
TEXTS_JOB_MAX = UNITS_MAX // BLOB_WORDS * CHUNK_TEXTS
TEXTS_WHOLE_MAX = WHOLE_UNITS_MAX // BLOB_WORDS * CHUNK_TEXTS


class EmbedInput(Wire, frozen=True, array_like=True, forbid_unknown_fields=True):
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
        """Hold every field against its rule.

        Args:
            is_whole: it is yet to be split, so it may be larger than a job.

        Raises:
            InputRefused: the first that breaks it.
        """
        if self.pooling not in POOLINGS:
            raise InputRefused(f"pooling={self.pooling!r} must be one of {', '.join(POOLINGS)}")
        count_max = TEXTS_WHOLE_MAX if is_whole else TEXTS_JOB_MAX
        if not 1 <= self.count <= count_max:
            raise InputRefused(f"{self.count} texts must be 1 to {count_max}")
        if not 0 <= self.first < TEXTS_WHOLE_MAX:
            raise InputRefused(f"first={self.first} must be in [0, {TEXTS_WHOLE_MAX})")
        if bool(self.packed) == (self.blob is not None):
            raise InputRefused("texts must be given either with the input or as a blob")
        if self.blob is not None:
            try:
                check_blob(self.blob)
            except PeerFault as error:
                raise InputRefused(str(error)) from error
            if self.blob.size_bytes > BYTES_MAX:
                raise InputRefused(f"blob of {self.blob.size_bytes} bytes must have at most {BYTES_MAX}")


def encode_input(value: EmbedInput, *, is_whole: bool = False) -> bytes:
    """The canonical bytes of an input, as a job carries it.

    Raises:
        InputRefused: the input breaks a rule.
    """
    value.check(is_whole=is_whole)
    data = encode(value)
    if len(data) > INPUT_BYTES_MAX:
        raise InputRefused(f"input of {len(data)} bytes must have at most {INPUT_BYTES_MAX}")
    return data


def decode_input(data: bytes, *, is_whole: bool = False) -> EmbedInput:
    """Read the bytes of `encode_input`.

    Raises:
        InputRefused: the bytes are not a canonical input that keeps the rules.
    """
    try:
        value = decode(data, EmbedInput, bytes_max=INPUT_BYTES_MAX)
    except PeerFault as error:
        raise InputRefused(str(error)) from error
    value.check(is_whole=is_whole)
    return value
