"""What the inputs of all kinds share: their bytes, their rules, their blob and their parts; without torch.

A kind states its fields and the rules that they must keep, as a struct with `check`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from protocols.blobs import Blob, check_blob
from protocols.codec import decode, encode
from protocols.errors import PeerFault
from protocols.limits import INPUT_BYTES_MAX
from workloads.errors import InputRefused
from workloads.split import Part, Split

__all__ = ["InputCodec", "JobInput", "SizedInput", "blob_rule", "content_rule", "items_split", "within"]


class JobInput(Protocol):
    """A job's input, read."""

    def check(self, *, is_whole: bool = False) -> None:
        """Hold every field against its rule.

        Args:
            is_whole: it is yet to be split, so it may be larger than a job.

        Raises:
            InputRefused: the first that breaks it.
        """


class SizedInput(JobInput, Protocol):
    """One that says how much it asks for."""

    @property
    def units_total(self) -> int:
        """Output units of the job."""


InputT = TypeVar("InputT", bound=JobInput)
SizedT = TypeVar("SizedT", bound=SizedInput)


class InputCodec(Generic[InputT]):
    """The canonical bytes of one kind's inputs, as jobs carry them.

    Args:
        struct: the input's type.
        whole_bytes_max: of an input that is yet to be split.
    """

    def __init__(self, struct: type[InputT], *, whole_bytes_max: int = INPUT_BYTES_MAX) -> None:
        self._struct = struct
        self._whole_bytes_max = whole_bytes_max

    def encode(self, value: InputT, *, is_whole: bool = False) -> bytes:
        """Write an input.

        Args:
            value: the input.
            is_whole: it is yet to be split, so it may be larger than a job.

        Raises:
            InputRefused: the input breaks a rule.
        """
        value.check(is_whole=is_whole)
        data = encode(value)
        if len(data) > (bytes_max := self._bytes_max(is_whole)):
            raise InputRefused(f"input of {len(data)} bytes exceeds {bytes_max}")
        return data

    def decode(self, data: bytes, *, is_whole: bool = False) -> InputT:
        """Read the bytes of `encode`.

        Raises:
            InputRefused: the bytes are not a canonical input that keeps the rules.
        """
        try:
            value = decode(data, self._struct, bytes_max=self._bytes_max(is_whole))
        except PeerFault as error:
            raise InputRefused(str(error)) from error
        value.check(is_whole=is_whole)
        return value

    def blobs(self, data: bytes) -> tuple[Blob, ...]:
        """What an input with a field ``blob`` names."""
        blob: Blob | None = getattr(self.decode(data, is_whole=True), "blob")  # noqa: B009
        return () if blob is None else (blob,)

    def _bytes_max(self, is_whole: bool) -> int:
        return self._whole_bytes_max if is_whole else INPUT_BYTES_MAX


def items_split(
    codec: InputCodec[SizedT],
    item: str,
    count: Callable[[SizedT], int],
    narrowed: Callable[[SizedT, int, int], SizedT],
) -> Split:
    """How a kind's jobs fall into parts.

    Args:
        codec: of its inputs.
        item: what one item is called.
        count: items of an input.
        narrowed: the input that asks for some of the items: of the whole, the first and how many.
    """

    def part(data: bytes, first: int, wanted: int) -> Part:
        whole = codec.decode(data, is_whole=True)
        if not 0 <= first < first + wanted <= count(whole):
            raise InputRefused(
                f"{split.items_name} {first} to {first + wanted} must lie in [0, {count(whole)}]"
            )
        job = narrowed(whole, first, wanted)
        return Part(codec.encode(job), 0, job.units_total)

    split = Split(item, lambda data: count(codec.decode(data, is_whole=True)), part)
    return split


def within(name: str, value: int, low: int, high: int) -> None:
    """Hold a number against its bounds.

    Raises:
        InputRefused: it is outside.
    """
    if not low <= value <= high:
        raise InputRefused(f"{name}={value} must be in [{low}, {high}]")


def blob_rule(blob: Blob | None, bytes_max: int | None = None) -> None:
    """Hold a blob that an input may name against the rules.

    Raises:
        InputRefused: it breaks one.
    """
    if blob is None:
        return
    try:
        check_blob(blob)
    except PeerFault as error:
        raise InputRefused(str(error)) from error
    if bytes_max is not None and blob.size_bytes > bytes_max:
        raise InputRefused(f"blob of {blob.size_bytes} bytes must have at most {bytes_max}")


def content_rule(name: str, given: bytes, blob: Blob | None, bytes_max: int | None = None) -> None:
    """Hold what comes either with the input or as a blob against the rules.

    Raises:
        InputRefused: both are given or neither, or the blob breaks a rule.
    """
    if bool(given) == (blob is not None):
        raise InputRefused(f"{name} must be given either with the input or as a blob")
    blob_rule(blob, bytes_max)
