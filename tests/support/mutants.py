"""Messages that went wrong: by accident, by a stranger's hand, or by the hand of who signed them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

from p2p_node.sim.crypto import SimCrypto, SimKeys
from protocols.codec import encode
from protocols.envelope import _SIGNED_PREFIX, Signed, _message_id, open_envelope, seal
from protocols.errors import PeerFault
from protocols.limits import ENVELOPE_BYTES_MAX

__all__ = ["Mutator", "altered", "opened", "resigned"]

_NETWORK = "sim"
_CRYPTO = SimCrypto()
_EXTREMES = (0, 1, 31, 33, 2**16, 2**31 - 1, 2**32, 2**48, 2**63 - 1)


def opened(raw: bytes) -> Signed[Any] | None:
    """The message in ``raw``, or None if it isn't one."""
    try:
        return open_envelope(raw, network=_NETWORK, crypto=_CRYPTO)
    except PeerFault:
        return None


def altered(luck: random.Random, value: Any, resign: Callable[[bytes], bytes] = bytes) -> Any:
    """A value of the same type that differs somewhere; ``resign`` alters a nested message."""
    match value:
        case bool():
            return not value
        case int():
            return luck.choice([*_EXTREMES, value + 1, max(0, value - 1)])
        case str():
            return luck.choice(["", value + "x", value[::-1], "\N{SNOWMAN}" * 80])
        case bytes():
            if opened(value) is not None and luck.random() < 0.7:
                return resign(value)
            return luck.choice([b"", luck.randbytes(len(value)), value[:-1], value + b"\0"])
        case tuple():
            if not value or luck.random() < 0.3:
                return luck.choice([(), value * 2, value[::-1], value[1:]])
            index = luck.randrange(len(value))
            return (*value[:index], altered(luck, value[index], resign), *value[index + 1 :])
        case msgspec.Struct():
            field = luck.choice(value.__struct_fields__)
            return msgspec.structs.replace(value, **{field: altered(luck, getattr(value, field), resign)})
    raise TypeError(f"nothing to alter in {value!r}")


def resigned(luck: random.Random, raw: bytes, keys: dict[bytes, SimKeys]) -> bytes:
    """The message with something altered, signed by its own signer, nested ones likewise."""
    message = opened(raw)
    if message is None or message.signer not in keys:
        return raw
    body = altered(luck, message.body, lambda nested: resigned(luck, nested, keys))
    return seal(body, network=_NETWORK, key=keys[message.signer]).raw


class Mutator:
    """Makes what a stranger may send after listening: `mutate` names the way, too."""

    def __init__(self, seed: int, attacker: SimKeys) -> None:
        self._luck = random.Random(seed)
        self._attacker = attacker
        self._heard: list[bytes] = [b"nothing"]
        self._ways: tuple[Callable[[bytes], bytes], ...] = (
            self._flipped,
            self._flipped,
            self._truncated,
            self._spliced,
            self._padded,
            self._replayed,
            self._wrong_network,
            self._unknown_kind,
            self._garbage_body,
            self._stolen,
            self._altered_and_stolen,
            self._altered_and_stolen,
            self._noise,
        )

    def mutate(self, raw: bytes) -> tuple[str, bytes]:
        """(way, data) of one mutant of ``raw``."""
        if len(self._heard) < 2_000:
            self._heard.append(raw)
        way = self._luck.choice(self._ways)
        return way.__name__.strip("_"), way(raw)

    def oversized(self) -> bytes:
        """More than a message may have."""
        return self._sealed("output", self._luck.randbytes(ENVELOPE_BYTES_MAX))

    def _flipped(self, raw: bytes) -> bytes:
        data = bytearray(raw)
        data[self._luck.randrange(len(data))] ^= 1 << self._luck.randrange(8)
        return bytes(data)

    def _truncated(self, raw: bytes) -> bytes:
        return raw[: self._luck.randrange(len(raw))]

    def _spliced(self, raw: bytes) -> bytes:
        other = self._luck.choice(self._heard)
        return raw[: self._luck.randrange(1, len(raw))] + other[self._luck.randrange(len(other)) :]

    def _padded(self, raw: bytes) -> bytes:
        return raw + self._luck.randbytes(self._luck.randint(1, 40))

    def _replayed(self, raw: bytes) -> bytes:
        return self._luck.choice(self._heard)

    def _noise(self, raw: bytes) -> bytes:
        return self._luck.randbytes(self._luck.randrange(400))

    def _wrong_network(self, raw: bytes) -> bytes:
        message = opened(raw)
        return raw if message is None else seal(message.body, network="other", key=self._attacker).raw

    def _unknown_kind(self, raw: bytes) -> bytes:
        return self._sealed("gift", self._luck.randbytes(20))

    def _garbage_body(self, raw: bytes) -> bytes:
        message = opened(raw)
        return self._sealed(message.body.KIND if message else "offer", self._luck.randbytes(60))

    def _stolen(self, raw: bytes) -> bytes:
        """Somebody else's statement under the attacker's own name."""
        message = opened(raw)
        return raw if message is None else seal(message.body, network=_NETWORK, key=self._attacker).raw

    def _altered_and_stolen(self, raw: bytes) -> bytes:
        message = opened(raw)
        if message is None:
            return raw
        body = altered(self._luck, message.body, self._altered_and_stolen)
        return seal(body, network=_NETWORK, key=self._attacker).raw

    def _sealed(self, kind: str, body: bytes) -> bytes:
        """A properly signed envelope around anything."""
        identifier = _message_id(_NETWORK, kind, 1, self._attacker.public, body)
        signature = self._attacker.sign(_SIGNED_PREFIX + identifier)
        return encode([_NETWORK, kind, 1, self._attacker.public, body, signature])
