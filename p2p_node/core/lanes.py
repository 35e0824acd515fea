"""What this peer may be paid under contracts that have no machine of their own (any more).

That is each contract that it verified under, and each that it executed under and wasn't paid for in time: a
requester may come back after a crash, and bring its vouchers. The book is kept over restarts.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from p2p_node.core.credit import CreditBook
from p2p_node.core.kept import KeptLane
from p2p_node.core.surroundings import Surroundings
from protocols.codec import encode
from protocols.effects import Effect, Notify, Persist, Send
from protocols.envelope import Signed
from protocols.lane import PayeeLane
from protocols.limits import LANES_MAX
from protocols.messages import Voucher, VoucherReceipt

__all__ = ["Lanes"]

CONFIRM_MS = 60_000
"""How long a voucher's confirmation is sent again."""


@dataclass(slots=True)
class _Entry:
    lane: PayeeLane
    is_fee: bool
    since_ms: int


class Lanes:
    """One payee's lanes, by award, bounded: the least recently used go first."""

    def __init__(self, node: Surroundings, *, own: bytes) -> None:
        self.fees = CreditBook()
        """What requesters owe us for verifying. What they owe us for other work is another account: whoever
        executes for a requester would otherwise never verify for it until it is paid."""
        self._node = node
        self._own = own
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def expect_fee(self, award_id: bytes, payer: bytes, micros: int, now_ms: int) -> list[Effect]:
        """We gave a verdict, and may be paid for it."""
        entry = self._entries.get(award_id)
        if entry is None:
            lane = PayeeLane(award_id, payer=payer, payee=self._own)
            entry = self._entries[award_id] = _Entry(lane, True, now_ms)
        entry.lane.deliver(micros)
        self.fees.deliver(payer, micros)
        return self._keep(award_id, entry)

    def adopt(self, lane: PayeeLane, now_ms: int) -> list[Effect]:
        """A contract that we executed is over; keep what of it is unpaid, and may yet be."""
        if lane.settled_micros >= lane.delivered_micros:
            return []
        entry = self._entries[lane.lane] = _Entry(lane, False, now_ms)
        return self._keep(lane.lane, entry)

    def restore(self, award_id: bytes, kept: KeptLane, voucher: Signed[Voucher] | None, now_ms: int) -> None:
        """Take back a lane after a restart.

        Args:
            award_id: of the contract.
            kept: what the store had.
            voucher: the newest one that came.
            now_ms: the time.
        """
        lane = PayeeLane(award_id, payer=kept.payer, payee=self._own)
        lane.deliver(kept.delivered_micros)
        if voucher is not None:
            lane.accept(voucher, now_ms)
        entry = self._entries[award_id] = _Entry(lane, kept.is_fee, kept.since_ms)
        account = self._account(entry)
        account.deliver(kept.payer, lane.delivered_micros)
        account.settle(kept.payer, lane.settled_micros)

    def hear_voucher(self, message: Signed[Voucher], now_ms: int) -> list[Effect]:
        """A requester pays.

        Raises:
            Rejected: it pays more than our work is worth, or less than before.
        """
        body = message.body
        entry = self._entries.get(body.lane)
        if entry is None:
            return []  # Of a contract that we did nothing under, or that is paid and long over.
        lane, before = entry.lane, entry.lane.settled_micros
        is_news = lane.accept(message, now_ms)
        self._account(entry).settle(message.signer, lane.settled_micros - before)
        receipt = self._node.sign(VoucherReceipt(message.id, body.settled_micros))
        effects: list[Effect] = [Send(message.signer, receipt, now_ms + CONFIRM_MS)]
        if is_news:
            details = {
                "settled_micros": lane.settled_micros,
                "requester": message.signer,
                "award": body.lane,
            }
            effects = [
                Persist("vouchers", body.lane + self._own, message.raw),
                Notify(b"", "earned", details),
                *effects,
            ]
        return effects

    def _account(self, entry: _Entry) -> CreditBook:
        return self.fees if entry.is_fee else self._node.credit

    def _keep(self, award_id: bytes, entry: _Entry) -> list[Effect]:
        self._entries.move_to_end(award_id)
        lane = entry.lane
        kept = KeptLane(lane.payer, lane.delivered_micros, entry.is_fee, entry.since_ms)
        effects: list[Effect] = [Persist("lanes", award_id, encode(kept))]
        while len(self._entries) > LANES_MAX:
            gone, _ = self._entries.popitem(last=False)
            effects.append(Persist("lanes", gone, None))
        return effects
