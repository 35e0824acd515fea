"""What a job of the workload ``classify.image`` asks for; readable without torch.

Images are samples here, decoded, cropped and resized by the client: decoders differ in the last bit, and an
honest peer with another one must not be convicted for that.
"""

from __future__ import annotations

from protocols.blobs import Blob
from protocols.codec import Wire
from protocols.limits import BLOB_BYTES_MAX, UNITS_MAX, WHOLE_UNITS_MAX
from workloads.errors import InputRefused
from workloads.inputs import InputCodec, content_rule, within

__all__ = [
    "CHUNK_IMAGES",
    "CHUNK_UNITS",
    "CODEC",
    "IMAGE_UNITS",
    "SIDE_MAX",
    "TOP",
    "ClassifyInput",
    "decode_input",
    "encode_input",
]

TOP = 5
"""Classes that are told of each image, the likeliest first."""
IMAGE_UNITS = 2 * TOP
"""Of each class its number, and how likely it is as a 32-bit float."""
CHUNK_IMAGES = 4
CHUNK_UNITS = CHUNK_IMAGES * IMAGE_UNITS
SIDE_MAX = 1_024
IMAGES_JOB_MAX = UNITS_MAX // IMAGE_UNITS
IMAGES_WHOLE_MAX = WHOLE_UNITS_MAX // IMAGE_UNITS
_CHANNELS = 3


class ClassifyInput(Wire, frozen=True):
    """Images to tell the classes of.

    Args:
        side: pixels of an image's width and height.
        first: number of the first image among those that are given.
        count: images wanted, from the first on.
        samples: red, green and blue, a byte each, pixel by pixel, row by row, image by image; empty if they
            are a blob.
        blob: the same where it is too large to be carried along.
    """

    side: int
    first: int
    count: int
    samples: bytes = b""
    blob: Blob | None = None

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return self.side * self.side * _CHANNELS

    @property
    def chunks(self) -> int:
        """Chunks of the output."""
        return -(-self.count // CHUNK_IMAGES)

    @property
    def units_total(self) -> int:
        """Output units."""
        return self.count * IMAGE_UNITS

    def check(self, *, is_whole: bool = False) -> None:
        """See `workloads.inputs.JobInput`."""
        within("side", self.side, 1, SIDE_MAX)
        count_max = IMAGES_WHOLE_MAX if is_whole else IMAGES_JOB_MAX
        if not 1 <= self.count <= count_max:
            raise InputRefused(f"{self.count} images must be 1 to {count_max}")
        within("first", self.first, 0, IMAGES_WHOLE_MAX - 1)
        content_rule("images", self.samples, self.blob)
        size = len(self.samples) if self.blob is None else self.blob.size_bytes
        least = (self.first + self.count) * self.image_bytes
        if size % self.image_bytes or not least <= size <= BLOB_BYTES_MAX:
            raise InputRefused(
                f"{size} bytes must be whole images of {self.image_bytes}, at least {self.first + self.count}"
            )


CODEC = InputCodec(ClassifyInput)
encode_input, decode_input = CODEC.encode, CODEC.decode
