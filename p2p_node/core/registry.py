"""What this peer knows of the others: their newest adverts, bounded and expiring.

An advert counts from the moment it is heard until it expires; a higher sequence replaces a lower
one, so a replayed old advert changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from protocols.effects import Effect, Persist
from protocols.envelope import Signed
from protocols.errors import Rejected
from protocols.limits import (
    ADVERT_BYTES_MAX,
    ADVERT_LIFETIME_MS_MAX,
    CLOCK_SKEW_MS,
    INTEGER_MAX,
    REGISTRY_PEERS_MAX,
)
from protocols.messages import Advert, Offering

__all__ = ["Registry", "check_advert"]


def check_advert(message: Signed[Advert], now_ms: int) -> bool:
    """Whether an advert is current.

    Returns:
        False for one that has expired: late, not wrong.

    Raises:
        Rejected: its times contradict each other or the clock, or it is too large.
    """
    advert = message.body
    if len(message.raw) > ADVERT_BYTES_MAX:
        raise Rejected(f"advert of {len(message.raw)} bytes exceeds {ADVERT_BYTES_MAX}")
    lifetime = advert.expires_ms - advert.sent_ms
    if not 0 < lifetime <= ADVERT_LIFETIME_MS_MAX:
        raise Rejected(f"advert lifetime of {lifetime} ms must be in (0, {ADVERT_LIFETIME_MS_MAX}]")
    if advert.sent_ms > now_ms + CLOCK_SKEW_MS:
        raise Rejected(f"advert sent_ms={advert.sent_ms} is in the future")
    return advert.expires_ms > now_ms


class Registry:
    """Adverts by peer key."""

    def __init__(self) -> None:
        self._adverts: dict[bytes, Signed[Advert]] = {}
        self._first_heard_ms: dict[bytes, int] = {}
        self._by_ability: dict[tuple[str, bytes], dict[bytes, None]] = {}
        self._expires_ms = INTEGER_MAX
        """No advert expires before."""

    def __len__(self) -> int:
        return len(self._adverts)

    def is_news(self, message: Signed[Advert]) -> bool:
        """Whether an advert is newer than what is known of its signer."""
        known = self._adverts.get(message.signer)
        return known is None or message.body.sequence > known.body.sequence

    def hear(self, message: Signed[Advert], now_ms: int) -> list[Effect]:
        """Keep an advert that `check_advert` accepts and that is news."""
        if not self.is_news(message):
            return []
        effects: list[Effect] = []
        if message.signer not in self._adverts and len(self._adverts) >= REGISTRY_PEERS_MAX:
            effects += self.expire(now_ms)
            if len(self._adverts) >= REGISTRY_PEERS_MAX:
                return effects  # Whoever came first stays: a flood of new keys can't push peers out.
        self._put(message)
        self._first_heard_ms.setdefault(message.signer, now_ms)
        return [*effects, Persist("registry", message.signer, message.raw)]

    def restore(self, message: Signed[Advert]) -> None:
        """Take back an advert from the store; its peer has been known since it was sent, if not longer."""
        if self.is_news(message):
            self._put(message)
            self._first_heard_ms[message.signer] = message.body.sent_ms

    def _put(self, message: Signed[Advert]) -> None:
        self._expires_ms = min(self._expires_ms, message.body.expires_ms)
        known = self._adverts.get(message.signer)
        if known is not None and known.body.offerings == message.body.offerings:
            self._adverts[message.signer] = message
            return
        self._drop(message.signer)
        self._adverts[message.signer] = message
        for offering in message.body.offerings:
            able = self._by_ability.setdefault((offering.workload, offering.model), {})
            able[message.signer] = None

    def _drop(self, key: bytes) -> None:
        known = self._adverts.pop(key, None)
        for offering in known.body.offerings if known else ():
            ability = (offering.workload, offering.model)
            able = self._by_ability.get(ability, {})
            able.pop(key, None)
            if not able:
                self._by_ability.pop(ability, None)

    def expire(self, now_ms: int) -> list[Effect]:
        """Forget expired adverts."""
        if now_ms < self._expires_ms:
            return []
        gone = [key for key, message in self._adverts.items() if message.body.expires_ms <= now_ms]
        for key in gone:
            self._drop(key)
            del self._first_heard_ms[key]
        lives_ms = (message.body.expires_ms for message in self._adverts.values())
        self._expires_ms = min(lives_ms, default=INTEGER_MAX)
        return [Persist("registry", key, None) for key in gone]

    def get(self, key: bytes) -> Signed[Advert] | None:
        """The newest advert of a peer."""
        return self._adverts.get(key)

    def known_for_ms(self, key: bytes, now_ms: int) -> int:
        """How long a peer has been known without a gap; 0 for a stranger."""
        return max(0, now_ms - self._first_heard_ms.get(key, now_ms))

    def current(self, now_ms: int) -> Iterator[Signed[Advert]]:
        """Adverts that haven't expired, in the order of their keys."""
        for key in sorted(self._adverts):
            message = self._adverts[key]
            if message.body.expires_ms > now_ms:
                yield message

    def able(self, workload: str, model: bytes, profile: str, now_ms: int) -> dict[bytes, Offering]:
        """Peers that advertise this model and profile, with their offering; none that is paused."""
        return {
            key: offering
            for key in sorted(self._by_ability.get((workload, model), ()))
            for offering in self._adverts[key].body.offerings
            if self._adverts[key].body.expires_ms > now_ms
            and self._adverts[key].body.slots_total
            and (offering.workload, offering.model) == (workload, model)
            and profile in offering.profiles
        }

    def able_count(self, workload: str, model: bytes) -> int:
        """How many peers are known to advertise this model, in whatever profile; quickly found."""
        return len(self._by_ability.get((workload, model), ()))
