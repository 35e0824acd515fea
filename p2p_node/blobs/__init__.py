"""Content too large for a message: kept, served to peers, and fetched from them. See `docs/data.md`."""

from p2p_node.blobs.errors import BlobError, BlobMissing, BlobStoreBroken, BlobUnavailable, StoreFull
from p2p_node.blobs.service import BlobService
from p2p_node.blobs.store import BlobStore, StoredBlob

__all__ = [
    "BlobError",
    "BlobMissing",
    "BlobService",
    "BlobStore",
    "BlobStoreBroken",
    "BlobUnavailable",
    "StoreFull",
    "StoredBlob",
]
