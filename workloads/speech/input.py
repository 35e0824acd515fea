"""What a job of the workload ``speech.transcribe`` asks for; readable without torch."""

from __future__ import annotations

from protocols.blobs import Blob
from protocols.codec import Wire
from workloads.errors import InputRefused
from workloads.inputs import InputCodec, content_rule

__all__ = [
    "CODEC",
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
        """See `workloads.inputs.JobInput`."""
        content_rule("recording", self.samples, self.blob)
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


CODEC = InputCodec(TranscribeInput)
encode_input, decode_input = CODEC.encode, CODEC.decode
