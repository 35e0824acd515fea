"""How a job is cut: by limits, by what peers were seen to deliver, and so that the last part is small."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_node.core.paces import Paces
from p2p_node.core.request import JobRequest
from p2p_node.errors import UserError
from p2p_node.partition.plan import SLOTS_PER_PEER_MAX, Pace, pace_of, parts_of, plan_counts, slots
from protocols.auction import Candidate
from protocols.envelope import Signed
from protocols.limits import INPUT_BYTES_MAX, PARTS_MAX, UNITS_MAX
from protocols.messages import Advert, Offering
from tests.support.builders import advert
from workloads.errors import InputRefused
from workloads.split import Part, Split

MODEL = bytes(32)
REQUEST = JobRequest(
    name="x", workload="w", model=MODEL, profile="exact14", input=b"", input_units=0, units_max=1
)


def words(units: int = 100, *, item_bytes: int = 1, refuses_over: int = 10**9) -> Split:
    """A whole is a number of items."""

    def part(whole: bytes, first: int, count: int) -> Part:
        if count > refuses_over:
            raise InputRefused(f"{count} items must be at most {refuses_over}")
        return Part(bytes(count * item_bytes), 0, count * units)

    return Split("word", int, part)


def counts(
    items: int, *, split: Split | None = None, parts: int | None = None, slots: int = 2, unit_us: int = 10_000
) -> tuple[int, ...]:
    pace = Pace(unit_us, is_observed=True)
    return plan_counts(split or words(), b"%d" % items, parts=parts, slots=slots, pace=pace)


def test_a_number_of_parts_is_that_many_as_equal_as_can_be() -> None:
    assert counts(10, parts=4) == (3, 3, 2, 2)
    assert counts(3, parts=3) == (1, 1, 1)
    with pytest.raises(UserError, match="parts: 4 must be at most the job's 3 words"):
        counts(3, parts=4)


def test_parts_shrink_down_to_what_is_worth_an_offer() -> None:
    # An item takes a quarter of a second, so four are worth a part.
    found = counts(100, unit_us=2_500)
    assert found == tuple(sorted(found, reverse=True))
    assert found[0] == 25
    assert found[-1] in range(3, 7)


def test_a_short_job_has_a_part_for_everybody_as_long_as_each_has_work() -> None:
    # Items of a tenth of a second: three are worth a peer of their own.
    assert counts(8, unit_us=1_000) == (4, 4)
    assert counts(8, unit_us=1_000, slots=50) == (3, 3, 2)
    assert counts(4, unit_us=1_000) == (4,)


def test_a_short_job_is_one_part() -> None:
    assert counts(6, unit_us=10) == (6,)
    assert counts(1) == (1,)


def test_a_pace_that_was_only_claimed_leaves_parts_for_everybody() -> None:
    boast = Pace(1, is_observed=False)
    found = plan_counts(words(), b"60", parts=None, slots=2, pace=boast)
    assert len(found) >= 4
    assert max(found) <= 15


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5_000), st.integers(0, 600), st.integers(0, 10**6))
def test_every_plan_has_all_items_and_no_more_parts_than_there_may_be(
    items: int, slots: int, unit_us: int
) -> None:
    split = words(units=1)
    found = counts(items, split=split, slots=slots, unit_us=unit_us)
    assert sum(found) == items
    assert min(found) >= 1
    assert len(found) <= PARTS_MAX
    assert sum(part.units_max for part in parts_of(split, b"%d" % items, found)) == items


@pytest.mark.parametrize(
    "split",
    [
        words(units=UNITS_MAX // 10),
        words(units=1, item_bytes=INPUT_BYTES_MAX // 10),
        words(units=1, refuses_over=10),
    ],
)
def test_no_part_exceeds_a_limit(split: Split) -> None:
    found = counts(100, split=split, unit_us=1)
    assert sum(found) == 100
    assert max(found) <= 10
    with pytest.raises(UserError, match=r"parts: words 0 to 49"):
        counts(100, split=split, parts=2)


def test_one_item_that_is_too_large_is_refused_with_the_reason() -> None:
    with pytest.raises(UserError, match=f"parts: word 0 have|more than {UNITS_MAX}"):
        counts(3, split=words(units=UNITS_MAX + 1))


def test_more_parts_than_there_may_be_are_refused() -> None:
    with pytest.raises(UserError, match=f"would be needed, more than {PARTS_MAX}"):
        counts(1_000, split=words(units=UNITS_MAX // 10))


# --- Pace and slots --------------------------------------------------------------------------------


def candidate(number: int, *, rate_milli: int = 0, slots_total: int = 1) -> Candidate:
    offering = Offering("w", MODEL, ("exact14",), 1, rate_milli, True)
    basis: Signed[Advert] = advert(number, offerings=(offering,), slots_total=slots_total)
    return Candidate(b"%d" % number, basis, 1, 0, 0)


def test_delivered_paces_count_and_claims_do_not() -> None:
    paces = Paces()
    boasters = [candidate(1, rate_milli=10**12)]
    assert pace_of(paces, REQUEST, boasters) == Pace(0, is_observed=False)
    for peer, ms in ((b"a", 100), (b"b", 300), (b"c", 900)):
        paces.observe(peer, ("w", MODEL, "exact14"), units=100, delivered_ms=ms)
    assert pace_of(paces, REQUEST, boasters) == Pace(3_000, is_observed=True)


def test_of_claims_the_middle_one_counts() -> None:
    claims = [candidate(number, rate_milli=rate) for number, rate in ((1, 10**12), (2, 10**6), (3, 10**5))]
    assert pace_of(Paces(), REQUEST, claims) == Pace(1_000, is_observed=False)
    assert pace_of(Paces(), REQUEST, []) == Pace(0, is_observed=False)


def test_slots_are_believed_up_to_a_point() -> None:
    assert slots([candidate(1), candidate(2, slots_total=4), candidate(3, slots_total=1_000)]) == (
        5 + SLOTS_PER_PEER_MAX
    )
