"""Records of the directory as one peer signs and reads them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from protocols.crypto import Crypto
from protocols.envelope import Signed, open_envelope
from protocols.limits import OWN_RECORDS_MAX, PROVIDER_RECORD_BYTES_MAX, PROVIDER_RECORD_LIFETIME_MS_MAX
from protocols.messages import Body, ProviderRecord
from protocols.places import check_current, check_record, place_of

__all__ = ["OwnRecords", "RecordReader", "Sign"]

Sign: TypeAlias = Callable[[Body], Signed[Any]]

REPUBLISH_MS = 20 * 60_000
"""How often a record is brought to the peers that are closest to its key by then."""

RENEW_MS = PROVIDER_RECORD_LIFETIME_MS_MAX // 4
"""Age at which a record is signed anew."""

OPENED_MAX = 4_096


class OwnRecords:
    """What we can be found under."""

    def __init__(self, own: bytes, sign: Sign) -> None:
        """Nothing yet, for the peer with this public key.

        Args:
            own: the key.
            sign: seals a body with it.
        """
        self.addresses: tuple[str, ...] = ()
        """Where we can be reached; without any there are no records."""
        self._place, self._sign = place_of(own), sign
        self._due_ms: dict[bytes, int] = {}
        self._signed: dict[bytes, Signed[ProviderRecord]] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._due_ms

    def provide(self, keys: Iterable[bytes], now_ms: int) -> None:
        """Be found under these keys from now on, and under no others."""
        wanted = list(dict.fromkeys(keys))[:OWN_RECORDS_MAX]
        self._due_ms = {key: self._due_ms.get(key, now_ms) for key in wanted}
        self._signed = {key: self._signed[key] for key in (*wanted, self._place) if key in self._signed}

    def take_due(self, now_ms: int, spread_ms: Callable[[int], int]) -> list[bytes]:
        """Keys whose records are to be published now; `spread_ms` draws up to its argument."""
        due = [key for key, due_ms in self._due_ms.items() if due_ms <= now_ms] if self.addresses else []
        for key in due:
            self._due_ms[key] = now_ms + REPUBLISH_MS + spread_ms(REPUBLISH_MS // 4)
        return due

    def record(self, key: bytes, now_ms: int) -> Signed[ProviderRecord]:
        """Our record of a key, signed anew when it gets old or we have moved."""
        known = self._signed.get(key)
        if (
            known is not None
            and known.body.addresses == self.addresses
            and now_ms - known.body.sent_ms < RENEW_MS
        ):
            return known
        body = ProviderRecord(key, now_ms, now_ms + PROVIDER_RECORD_LIFETIME_MS_MAX, self.addresses)
        signed: Signed[ProviderRecord] = self._sign(body)
        self._signed[key] = signed
        return signed

    def place(self, now_ms: int) -> bytes:
        """The envelope of our place's record; empty if nobody can reach us."""
        return self.record(self._place, now_ms).raw if self.addresses else b""


class RecordReader:
    """Checks strangers' records: each signature once, while it is remembered."""

    def __init__(self, *, network: str, crypto: Crypto) -> None:
        self._network, self._crypto = network, crypto
        self._opened: OrderedDict[bytes, Signed[ProviderRecord]] = OrderedDict()

    def open(self, raw: bytes, now_ms: int) -> Signed[ProviderRecord]:
        """The record in an envelope.

        Raises:
            PeerFault: forged, malformed, expired, or of another peer's address.
        """
        record = self._opened.get(raw)
        if record is None:
            record = open_envelope(
                raw,
                network=self._network,
                crypto=self._crypto,
                expect=ProviderRecord,
                bytes_max=PROVIDER_RECORD_BYTES_MAX,
            )
            check_record(record)
            self._opened[raw] = record
            if len(self._opened) > OPENED_MAX:
                self._opened.popitem(last=False)
        check_current(record.body, now_ms)
        return record
