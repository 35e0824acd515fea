"""Peer keys and libp2p peer ids: two spellings of one Ed25519 public key."""

from __future__ import annotations

from libp2p.peer.id import ID

from p2p_node.network.port import PeerKey

__all__ = ["key_of", "peer_id_of"]

_PREFIX = bytes.fromhex("002408011220")
_KEY_BYTES = 32


def key_of(peer: ID) -> PeerKey | None:
    """The 32-byte key inside a peer id, or None if the peer's identity isn't Ed25519."""
    raw = peer.to_bytes()
    if len(raw) != len(_PREFIX) + _KEY_BYTES or not raw.startswith(_PREFIX):
        return None
    return bytes(raw[len(_PREFIX) :])


def peer_id_of(key: PeerKey) -> ID:
    """libp2p's id of a peer.

    Raises:
        ValueError: the key isn't 32 bytes.
    """
    if len(key) != _KEY_BYTES:
        raise ValueError(f"an Ed25519 public key has {_KEY_BYTES} bytes, got {len(key)}")
    return ID(_PREFIX + key)
