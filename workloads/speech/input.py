"""What a job of the workload ``speech.transcribe`` asks for; readable without torch."""

from __future__ import annotations

from protocols.blobs import Blob, check_blob
from protocols.codec import Wire, decode, encode
from protocols.errors import PeerFault
from protocols.limits import INPUT_BYTES_MAX
from workloads.errors import InputRefused

__all__ = [
    "PADDING",
    "SAMPLE_BYTES",
    "SAMPLE_RATE_HZ",
    "WHOLE_WINDOWS_MAX",
    "WINDOWS_MAX",
    "WINDOW_SAMPLES_MAX",
    "WINDOW_TOKENS",
    "TranscribeInput",
    "decode_input",
    "encode_input",
]

SAMPLE_RATE_HZ = 16_000
SAMPLE_BYTES = 2
WINDOW_SAMPLES_MAX = 30 * SAMPLE_RATE_HZ
"""What the model hears at once."""
WINDOW_TOKENS = 224
"""Output units of a window, which is a chunk: its tokens, then padding."""
WINDOWS_MAX = 256
"""Of one job: two hours."""
WHOLE_WINDOWS_MAX = 16_384
"""Of a recording that is split into jobs."""
PADDING = 2**32 - 1
"""The unit after the last token of a window."""


class TranscribeInput(Wire, frozen=True):
    """A recording and where to cut it.

    Args:
        samples: the recording, mono, 16 kHz, signed 16-bit little-endian; empty if it is a blob.
        blob: the same as a blob, or None.
        start: sample at which the first window begins.
        ends: of each window; a window begins where the one before ends.
    """

    samples: bytes
    blob: Blob | None
    start: int
    ends: tuple[int, ...]

    @property
    def samples_total(self) -> int:
        """Of the recording."""
        size = len(self.samples) if self.blob is None else self.blob.size_bytes
        return size // SAMPLE_BYTES

    @property
    def units_total(self) -> int:
        """Output units."""
        return len(self.ends) * WINDOW_TOKENS

    def window(self, number: int) -> range:
        """The samples of a window."""
        return range(self.ends[number - 1] if number else self.start, self.ends[number])

    def check(self, *, is_whole: bool = False) -> None:
        """Hold every field against its rule.

        Args:
            is_whole: it is yet to be split, so it may have more windows than a job.

        Raises:
            InputRefused: the first that breaks it.
        """
        if (self.blob is None) == (not self.samples):
            raise InputRefused("exactly one of samples and blob must be given")
        if self.blob is not None:
            try:
                check_blob(self.blob)
            except PeerFault as error:
                raise InputRefused(str(error)) from error
        size = len(self.samples) if self.blob is None else self.blob.size_bytes
        if size % SAMPLE_BYTES:
            raise InputRefused(f"recording of {size} bytes must be whole samples of {SAMPLE_BYTES}")
        windows_max = WHOLE_WINDOWS_MAX if is_whole else WINDOWS_MAX
        if not 1 <= len(self.ends) <= windows_max:
            raise InputRefused(f"{len(self.ends)} windows must be 1 to {windows_max}")
        start = self.start
        for number, end in enumerate(self.ends):
            if not 0 < end - start <= WINDOW_SAMPLES_MAX:
                raise InputRefused(
                    f"window {number} of {end - start} samples must have 1 to {WINDOW_SAMPLES_MAX}"
                )
            start = end
        if self.start < 0 or start > self.samples_total:
            raise InputRefused(f"windows from {self.start} to {start} must lie in [0, {self.samples_total}]")


def encode_input(value: TranscribeInput, *, is_whole: bool = False) -> bytes:
    """The canonical bytes of an input, as a job carries it.

    Args:
        value: the input.
        is_whole: it is yet to be split, so it may have more windows than a job.

    Raises:
        InputRefused: the input breaks a rule.
    """
    value.check(is_whole=is_whole)
    data = encode(value)
    if len(data) > INPUT_BYTES_MAX:
        raise InputRefused(f"input of {len(data)} bytes exceeds {INPUT_BYTES_MAX}")
    return data


def decode_input(data: bytes, *, is_whole: bool = False) -> TranscribeInput:
    """Read the bytes of `encode_input`.

    Args:
        data: those bytes.
        is_whole: see there.

    Raises:
        InputRefused: the bytes are not a canonical input that keeps the rules.
    """
    try:
        value = decode(data, TranscribeInput, bytes_max=INPUT_BYTES_MAX)
    except PeerFault as error:
        raise InputRefused(str(error)) from error
    value.check(is_whole=is_whole)
    return value
