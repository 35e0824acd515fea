"""What a peer says of itself."""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from protocols import limits
from protocols.codec import Wire
from protocols.messages.fields import Body, Digest, Name, NumericClass, Price, Small, Text, Uint

__all__ = ["Accelerator", "Advert", "Offering", "SharedModel"]


class Accelerator(Wire, frozen=True):
    """One device, by its torch name."""

    device: Name
    name: Text
    memory_bytes: Uint


class Offering(Wire, frozen=True):
    """One model a peer runs and verifies, with its standing ask and its measured rate."""

    workload: Name
    model: Digest
    profiles: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=8)]
    price_micros: Price
    rate_milli: Uint
    """Output units per 1,000 seconds, measured on this machine."""
    warm: bool
    numeric_class: NumericClass = ""
    """The class of machines inside which our native kernels give equal bits; empty if none is claimed."""


class SharedModel(Wire, frozen=True):
    """A model whose files a peer gives to whoever asks."""

    name: Name
    """What it calls it; nothing binds a name to a model."""
    model: Digest
    manifest: Digest
    """Of the blob that lists its files."""
    manifest_bytes: Annotated[int, Meta(ge=1, le=limits.MANIFEST_BYTES_MAX)]


class Advert(Body, frozen=True):
    """What a peer says of itself; renewed before it expires."""

    KIND: ClassVar[str] = "advert"

    sequence: Uint
    sent_ms: Uint
    expires_ms: Uint
    addresses: Annotated[tuple[Text, ...], Meta(max_length=limits.ADDRESSES_PER_PEER_MAX)]
    software: Text
    slots_total: Small
    slots_free: Small
    cores: Small
    ram_bytes: Uint
    gemm_fp32_mflops: Uint
    gemm_bf16_mflops: Uint
    memory_mib_per_s: Uint
    disk_mib_per_s: Uint
    accelerators: Annotated[tuple[Accelerator, ...], Meta(max_length=limits.ACCELERATORS_PER_PEER_MAX)]
    offerings: Annotated[tuple[Offering, ...], Meta(max_length=limits.OFFERINGS_PER_PEER_MAX)]
    models: Annotated[tuple[SharedModel, ...], Meta(max_length=limits.SHARED_MODELS_PER_PEER_MAX)] = ()
