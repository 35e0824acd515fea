"""Direct messages, delivered at least once.

A message is sent again, at growing intervals, until its receiver acknowledges it or it is too late
to matter. Receivers forget repeats by message id, so handlers see each message once. Obligations
survive a restart.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from protocols.digest import DIGEST_BYTES
from protocols.effects import Effect, Persist, Send, SetTimer
from protocols.errors import Malformed
from protocols.limits import OUTBOX_MESSAGES_MAX, OUTBOX_MESSAGES_PER_PEER_MAX

__all__ = ["Outbox", "Transmit", "ack_frame", "message_frame", "split_frame"]

FIRST_RETRY_MS = 500
RETRY_MS_MAX = 5_000
RETRY_DURABLE_MS_MAX = 120_000
"""Of what is sent for a day: a peer that comes back is sent it at once."""

_MESSAGE, _ACK = 0, 1
DURABLE_KINDS = frozenset({"voucher", "voucher-receipt"})
"""Kinds that are written down before they are sent: losing one would lose money or its proof."""


@dataclass(frozen=True, slots=True)
class Transmit:
    """Put one frame on the link to a peer; dial it first if need be. May be lost."""

    peer: bytes
    frame: bytes


def message_frame(raw: bytes) -> bytes:
    """A frame that carries one signed message."""
    return bytes([_MESSAGE]) + raw


def ack_frame(identifier: bytes) -> bytes:
    """A frame that says a message arrived."""
    return bytes([_ACK]) + identifier


def split_frame(frame: bytes) -> tuple[bool, bytes]:
    """(whether it is an acknowledgement, the rest).

    Raises:
        Malformed: neither a message nor an acknowledgement.
    """
    if frame[:1] == bytes([_MESSAGE]):
        return False, frame[1:]
    if frame[:1] == bytes([_ACK]) and len(frame) == 1 + DIGEST_BYTES:
        return True, frame[1:]
    raise Malformed(f"frame of {len(frame)} bytes is neither a message nor an acknowledgement")


@dataclass(slots=True)
class _Pending:
    peer: bytes
    raw: bytes
    until_ms: int
    retry_ms: int
    is_durable: bool


class Outbox:
    """Messages that haven't been acknowledged."""

    def __init__(self) -> None:
        self._pending: dict[tuple[bytes, bytes], _Pending] = {}
        self._waiting_for: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._pending)

    def send(self, effect: Send, now_ms: int) -> list[Effect | Transmit]:
        """Start delivering a message."""
        message, key = effect.message, (effect.peer, effect.message.id)
        if key in self._pending:
            return []
        effects: list[Effect | Transmit] = []
        is_durable = message.body.KIND in DURABLE_KINDS
        has_room = len(self._pending) < OUTBOX_MESSAGES_MAX or is_durable
        # A peer that never acknowledges takes its own room, not everybody's; past it we say things once.
        if has_room and self._waiting_for[effect.peer] < OUTBOX_MESSAGES_PER_PEER_MAX:
            if is_durable:
                effects.append(Persist("outbox", effect.peer + message.id, _pack(effect)))
            self._hold(key, message.raw, effect.until_ms, is_durable)
            effects.append(SetTimer(("outbox", *key), now_ms + FIRST_RETRY_MS))
        effects.append(Transmit(effect.peer, message_frame(message.raw)))
        return effects

    def _hold(self, key: tuple[bytes, bytes], raw: bytes, until_ms: int, is_durable: bool) -> None:
        if key not in self._pending:
            self._waiting_for[key[0]] += 1
        self._pending[key] = _Pending(key[0], raw, until_ms, FIRST_RETRY_MS, is_durable)

    def restore(self, key: bytes, value: bytes, now_ms: int) -> list[Effect | Transmit]:
        """Go on delivering a message from the store after a restart."""
        peer, identifier = key[:DIGEST_BYTES], key[DIGEST_BYTES:]
        until_ms, raw = int.from_bytes(value[:8], "big"), value[8:]
        if until_ms < now_ms:
            return [Persist("outbox", key, None)]
        self._hold((peer, identifier), raw, until_ms, True)
        return [SetTimer(("outbox", peer, identifier), now_ms + FIRST_RETRY_MS)]

    def acknowledged(self, peer: bytes, identifier: bytes) -> list[Effect | Transmit]:
        """The receiver has the message."""
        pending = self._pending.pop((peer, identifier), None)
        if pending is None:
            return []
        self._waiting_for[peer] -= 1
        if not self._waiting_for[peer]:
            del self._waiting_for[peer]
        if not pending.is_durable:
            return []
        return [Persist("outbox", peer + identifier, None)]

    def retry(self, peer: bytes, identifier: bytes, now_ms: int) -> list[Effect | Transmit]:
        """A retry timer fired."""
        pending = self._pending.get((peer, identifier))
        if pending is None:
            return []
        if now_ms >= pending.until_ms:
            return self.acknowledged(peer, identifier)
        most_ms = RETRY_DURABLE_MS_MAX if pending.is_durable else RETRY_MS_MAX
        pending.retry_ms = min(2 * pending.retry_ms, most_ms)
        return [
            Transmit(peer, message_frame(pending.raw)),
            SetTimer(("outbox", peer, identifier), now_ms + pending.retry_ms),
        ]

    def flush(self, peer: bytes) -> list[Effect | Transmit]:
        """A peer is back: send what waits for it."""
        return [
            Transmit(peer, message_frame(pending.raw))
            for (receiver, _), pending in self._pending.items()
            if receiver == peer
        ]


def _pack(effect: Send) -> bytes:
    raw: Any = effect.message.raw
    return effect.until_ms.to_bytes(8, "big") + bytes(raw)
