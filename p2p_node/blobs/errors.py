"""What can be wrong with a blob, or with where it is kept."""

from __future__ import annotations

from typing import ClassVar

from p2p_node.errors import ExitCode, UserError
from protocols.blobs import Blob

__all__ = ["BlobError", "BlobMissing", "BlobSealed", "BlobStoreBroken", "BlobUnavailable", "StoreFull"]


class BlobError(UserError):
    """Base of this package's faults that a person can be told."""


class BlobMissing(BlobError):
    """The blob isn't here, or no longer what its name says and therefore dropped."""


class StoreFull(BlobError):
    """There is no room, in the store's bounds or on the disk, and nothing left that may go."""


class BlobStoreBroken(BlobError):
    """The folder can't be used."""


class BlobSealed(BlobError):
    """A source has the blob only in a form that we can open, which is another blob."""

    def __init__(self, blob: Blob, sealed: Blob, source: bytes) -> None:
        super().__init__(f"blob {blob.digest.hex()} comes as {sealed.digest.hex()}, sealed")
        self.sealed, self.source = sealed, source


class BlobUnavailable(BlobError):
    """Nobody who was asked could give the blob."""

    exit_code: ClassVar[ExitCode] = ExitCode.TASK_FAILED
