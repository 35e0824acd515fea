from __future__ import annotations

import pytest

from protocols.errors import BadSignature, Malformed, PeerFault, Rejected
from protocols.limits import COMMITMENTS_WATCHED_MAX
from protocols.messages import Equivocation
from tests.support.builders import (
    CRYPTO,
    EXECUTOR,
    NETWORK,
    REQUESTER,
    award,
    changed,
    committed,
    contract,
    key,
    signed,
)
from verification.equivocation import CommitmentWatch, Contradiction, open_equivocation

AGREED = contract()
ONE = committed(AGREED)[1]
OTHER = committed(AGREED, variant=b"cheap")[1]
FIRST, SECOND = sorted((ONE, OTHER), key=lambda commitment: commitment.id)


def opened(first: bytes, second: bytes) -> Contradiction:
    return open_equivocation(Equivocation(first, second), network=NETWORK, crypto=CRYPTO)


def test_two_commitments_for_one_segment_name_their_signer() -> None:
    assert opened(FIRST.raw, SECOND.raw) == Contradiction(key(EXECUTOR), AGREED.award.id, 0)


@pytest.mark.parametrize(
    ("first", "second", "fault", "reason"),
    [
        (ONE.raw, ONE.raw, Rejected, "must be below"),
        (SECOND.raw, FIRST.raw, Rejected, "must be below"),
        (ONE.raw, signed(REQUESTER, OTHER.body).raw, Rejected, "different signers"),
        (ONE.raw, signed(EXECUTOR, changed(OTHER.body, segment=1)).raw, Rejected, "different segments"),
        (ONE.raw, committed(contract(price_micros=101))[1].raw, Rejected, "different segments"),
        (ONE.raw, award().raw, Malformed, "expected 'commitment'"),
        (ONE.raw, OTHER.raw[:-1] + bytes([OTHER.raw[-1] ^ 1]), BadSignature, "signature"),
        (b"", OTHER.raw, Malformed, "truncated"),
    ],
)
def test_what_contradicts_nothing_is_refused(
    first: bytes, second: bytes, fault: type[PeerFault], reason: str
) -> None:
    with pytest.raises(fault, match=reason):
        opened(first, second)


def test_the_watch_proves_what_it_heard_in_either_order() -> None:
    for one, other in ((ONE, OTHER), (OTHER, ONE)):
        watch = CommitmentWatch()
        assert watch.hear(one) is None
        assert watch.hear(one) is None
        proof = watch.hear(other)
        assert proof == Equivocation(FIRST.raw, SECOND.raw)


def test_the_watch_is_bounded() -> None:
    watch = CommitmentWatch()
    for segment in range(COMMITMENTS_WATCHED_MAX + 8):
        watch.hear(signed(EXECUTOR, changed(ONE.body, segment=segment)))
    assert len(watch) == COMMITMENTS_WATCHED_MAX
