"""One lane: the payee never believes less than it was promised, nor more than it delivered."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from protocols.envelope import Signed, seal
from protocols.errors import Rejected
from protocols.lane import MATURITY_MS, PayeeLane, PayerLane
from protocols.limits import CLOCK_SKEW_MS
from protocols.messages import Body, Voucher
from tests.support.keys import keyring

LANE = b"\x07" * 32
PAYER, PAYEE = keyring(0).public, keyring(1).public
EVIDENCE = b"\x08" * 32


def sign(body: Body, number: int = 0) -> Signed[Any]:
    return seal(body, network="testnet", key=keyring(number))


def pair(delivered: int = 0) -> tuple[PayerLane, PayeeLane]:
    payee = PayeeLane(LANE, payer=PAYER, payee=PAYEE)
    payee.deliver(delivered)
    return PayerLane(LANE, PAYEE), payee


def pay(payer: PayerLane, amount: int, now_ms: int = 0) -> Signed[Voucher]:
    return payer.pay(amount, evidence=EVIDENCE, now_ms=now_ms, sign=sign)


def changed(message: Signed[Voucher], signer: int = 0, **changes: Any) -> Signed[Voucher]:
    return sign(msgspec.structs.replace(message.body, **changes), signer)


def test_vouchers_are_cumulative() -> None:
    payer, payee = pair(delivered=300)
    first, second = pay(payer, 100), pay(payer, 200)
    assert (first.body.settled_micros, second.body.settled_micros) == (100, 300)
    assert (first.body.sequence, second.body.sequence) == (1, 2)
    # The first one was lost: the second is worth the same without it.
    assert payee.accept(second, 0)
    assert payee.settled_micros == 300
    assert not payee.accept(first, 0)
    assert payee.best == second


def test_a_repeat_is_no_news() -> None:
    payer, payee = pair(delivered=100)
    voucher = pay(payer, 100)
    assert payee.accept(voucher, 0)
    assert not payee.accept(voucher, 0)
    assert payee.settled_micros == 100


@pytest.mark.parametrize(
    "forgery",
    [{"signer": 2}, {"signer": 1}, {"lane": bytes(32)}, {"payee": keyring(2).public}],
)
def test_only_this_lanes_vouchers_count(forgery: dict[str, Any]) -> None:
    payer, payee = pair(delivered=100)
    voucher = pay(payer, 100)
    with pytest.raises(Rejected, match="voucher is for another lane"):
        payee.accept(changed(voucher, **forgery), 0)
    assert payee.best is None


def test_a_later_voucher_never_pays_less() -> None:
    payer, payee = pair(delivered=100)
    payee.accept(pay(payer, 100), 0)
    less = changed(pay(payer, 0), settled_micros=99)
    with pytest.raises(Rejected, match="settled_micros=99 is below 100 paid before"):
        payee.accept(less, 0)


def test_nobody_is_paid_for_what_it_did_not_deliver() -> None:
    payer, payee = pair(delivered=100)
    with pytest.raises(Rejected, match="settled_micros=101 exceeds 100 delivered"):
        payee.accept(pay(payer, 101), 0)
    pending = changed(pay(PayerLane(LANE, PAYEE), 100), pending_micros=1)
    with pytest.raises(Rejected, match="exceeds 100 delivered"):
        payee.accept(pending, 0)


def test_a_voucher_must_mature_in_time() -> None:
    payer, payee = pair(delivered=100)
    voucher = pay(payer, 100, now_ms=CLOCK_SKEW_MS)
    assert voucher.body.matures_ms == CLOCK_SKEW_MS + MATURITY_MS
    with pytest.raises(Rejected, match="too far ahead"):
        payee.accept(changed(voucher, matures_ms=voucher.body.matures_ms + 1), 0)
    assert payee.accept(voucher, 0)


def test_a_debt_is_never_negative() -> None:
    payer, _ = pair()
    with pytest.raises(ValueError, match="amount_micros=-1 must be >= 0"):
        pay(payer, -1)


class Books(RuleBasedStateMachine):
    """A payer, a payee and a network that loses, repeats and reorders what it carries."""

    vouchers = Bundle("vouchers")

    def __init__(self) -> None:
        super().__init__()
        self.payer, self.payee = pair()
        self.delivered = 0
        self.seen = 0

    @rule(amount=st.integers(0, 1_000))
    def deliver(self, amount: int) -> None:
        self.payee.deliver(amount)
        self.delivered += amount

    @rule(target=vouchers, amount=st.integers(0, 1_000))
    def promise(self, amount: int) -> Signed[Voucher]:
        """The payer may promise more than was delivered; then nobody believes it."""
        return pay(self.payer, amount)

    @rule(target=vouchers, voucher=vouchers, settled=st.integers(0, 5_000), sequence=st.integers(0, 50))
    def forge(self, voucher: Signed[Voucher], settled: int, sequence: int) -> Signed[Voucher]:
        """A payer that contradicts itself."""
        return changed(voucher, settled_micros=settled, sequence=sequence)

    @rule(voucher=vouchers)
    def arrive(self, voucher: Signed[Voucher]) -> None:
        before = (self.payee.settled_micros, self.payee.sequence, self.payee.best)
        try:
            is_news = self.payee.accept(voucher, 0)
        except Rejected:
            assert voucher.body.settled_micros > self.delivered or voucher.body.settled_micros < before[0]
            is_news = False
        after = (self.payee.settled_micros, self.payee.sequence, self.payee.best)
        if is_news:
            assert voucher.body.sequence > before[1]
            assert after == (voucher.body.settled_micros, voucher.body.sequence, voucher)
        else:
            assert after == before

    @invariant()
    def books_are_sound(self) -> None:
        assert self.payee.settled_micros >= self.seen
        assert self.payee.settled_micros <= self.delivered
        self.seen = self.payee.settled_micros
        if self.payee.best is not None:
            assert self.payee.best.body.settled_micros == self.payee.settled_micros


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=40, stateful_step_count=30)
