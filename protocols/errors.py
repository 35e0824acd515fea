"""What a peer can do wrong, by type.

`PeerFault` is theirs: it is answered and penalised, and never crashes us. Anything else that
escapes from this package is ours: a bug, and it is allowed to be loud.
"""

from __future__ import annotations

__all__ = ["BadSignature", "Malformed", "Oversized", "PeerFault", "Rejected", "UnknownKind", "WrongNetwork"]


class PeerFault(Exception):
    """A message broke a rule; `points` is what its sender pays in standing."""

    points = 10


class Malformed(PeerFault):
    """The bytes are not the canonical encoding of the message they claim to be."""

    points = 20


class Oversized(Malformed):
    """The message exceeds its size bound."""


class WrongNetwork(PeerFault):
    """The message was signed for another network."""


class BadSignature(PeerFault):
    """The signature isn't the signer's over these fields."""

    points = 40


class UnknownKind(PeerFault):
    """A message of a kind or version we don't know: a newer peer's, so nobody pays for it."""

    points = 0


class Rejected(PeerFault):
    """A well-formed message broke a rule of the protocol."""
