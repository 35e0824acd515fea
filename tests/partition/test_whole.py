"""`Whole`: events in, effects out, with a clock made of numbers."""

from __future__ import annotations

import pytest

from p2p_node.partition.whole import (
    CancelJob,
    Effect,
    Finish,
    JobAdvanced,
    JobAwarded,
    JobCommitted,
    JobEnded,
    OfferPart,
    PartJob,
    PartPlan,
    Tick,
    Whole,
)

START_MS = 1_000_000
UNITS = 100


class Driver:
    """A whole, and the jobs that it has offered."""

    def __init__(
        self,
        parts: int = 3,
        *,
        slots: int = 2,
        cost_micros_max: int = 0,
        needs: dict[int, tuple[int, ...]] | None = None,
    ) -> None:
        plans = [
            PartPlan(
                label=f"item {n}",
                units_max=UNITS,
                cost_micros_max=1_000,
                fees_micros=50,
                needs=(needs or {}).get(n, ()),
            )
            for n in range(parts)
        ]
        self.whole = Whole(
            plans, now_ms=START_MS, total_ms=600_000, queue_ms=30_000, cost_micros_max=cost_micros_max
        )
        self.slots = slots
        self.now_ms = START_MS
        self.offers: list[tuple[int, tuple[bytes, ...]]] = []
        self.cancelled: list[bytes] = []
        self.finished: list[Finish] = []

    def job(self, number: int) -> bytes:
        """The id of the newest job of a part."""
        return self.whole.parts[number].jobs[-1].job_id

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case OfferPart(number, exclude, _):
                    self.offers.append((number, exclude))
                    self.whole.offered(number, b"job %d" % len(self.offers), self.now_ms)
                case CancelJob(job_id):
                    self.cancelled.append(job_id)
                case Finish():
                    self.finished.append(effect)

    def tick(self, after_ms: int = 0) -> None:
        self.now_ms += after_ms
        self.perform(self.whole.handle(Tick(self.slots), self.now_ms))

    def award(self, number: int, peer: bytes, *, eta_ms: int = 4_000, price: int = 5) -> bytes:
        job_id = self.job(number)
        self.perform(self.whole.handle(JobAwarded(job_id, peer, price, eta_ms), self.now_ms))
        return job_id

    def advance(self, job_id: bytes, units: int) -> None:
        self.perform(self.whole.handle(JobAdvanced(job_id, units), self.now_ms))

    def end(self, job_id: bytes, state: str = "verified", reason: str = "", paid: int = 500) -> None:
        self.perform(self.whole.handle(JobEnded(job_id, state, reason, paid), self.now_ms))

    @property
    def numbers(self) -> list[int]:
        return [number for number, _ in self.offers]


def test_as_many_parts_are_out_as_peers_could_do_at_once() -> None:
    driver = Driver(parts=5, slots=2)
    driver.tick()
    assert driver.numbers == [0, 1]
    driver.tick()
    assert driver.numbers == [0, 1]
    driver.award(0, b"a")
    driver.end(driver.job(0))
    driver.tick()
    assert driver.numbers == [0, 1, 2]


def test_a_peer_that_has_committed_takes_the_next_part_while_the_last_is_verified() -> None:
    driver = Driver(parts=5, slots=1)
    driver.tick()
    for number in (0, 1):
        assert driver.numbers[-1] == number
        driver.perform(driver.whole.handle(JobCommitted(driver.award(number, b"a")), driver.now_ms))
        driver.tick()
    # Twice as many are out as there are slots, and no more: somebody has to verify them.
    assert driver.numbers == [0, 1]
    driver.end(driver.job(0))
    driver.tick()
    assert driver.numbers == [0, 1, 2]


def test_a_part_waits_for_those_whose_output_it_starts_from_and_idle_peers_take_late_ones() -> None:
    driver = Driver(parts=5, slots=3, needs={2: (0, 1), 3: (0, 1), 4: (2, 3)})
    driver.tick()
    assert driver.numbers == [0, 1]
    driver.award(0, b"a")
    driver.award(1, b"b")
    driver.end(driver.job(0), paid=0)
    driver.tick(after_ms=4_000)
    assert driver.numbers == [0, 1]
    # Nothing else can be done meanwhile, so whoever keeps the round waiting is overtaken.
    driver.tick(after_ms=8_000)
    assert driver.offers[2:] == [(1, (b"b",))]
    driver.end(driver.award(1, b"c"))
    driver.tick()
    assert driver.numbers[3:] == [2, 3]
    # A part that failed is done again alone: what it starts from stays.
    driver.award(2, b"a")
    driver.end(driver.job(3))
    driver.end(driver.job(2), "task_failed", "lost")
    assert driver.whole.outcome == ("task_failed", "part 2 (item 2): lost")
    driver.end(b"job 2", "cancelled")
    driver.whole.resume(now_ms=driver.now_ms, total_ms=600_000, queue_ms=30_000)
    driver.tick()
    assert driver.numbers[5:] == [2]
    driver.award(2, b"c")
    driver.end(driver.job(2))
    driver.tick()
    assert driver.numbers[6:] == [4]


def test_parts_verified_in_any_order_make_the_whole() -> None:
    driver = Driver()
    driver.tick()
    for number in (1, 0):
        driver.award(number, b"a")
        driver.end(driver.job(number))
    driver.tick()
    driver.award(2, b"b")
    assert driver.finished == []
    driver.end(driver.job(2))
    assert driver.finished == [Finish("verified", "")]
    assert (driver.whole.parts_verified, driver.whole.paid_micros) == (3, 1_500)


def test_without_peers_it_waits_as_long_as_a_job_would_queue() -> None:
    driver = Driver(slots=0)
    driver.tick()
    driver.tick(29_999)
    assert driver.numbers == []
    driver.tick(1)
    # One is offered then, so that somebody says why nobody takes it.
    assert driver.numbers == [0]
    driver.end(driver.job(0), "no_bids", "no peer took the job at these terms")
    assert driver.finished == [Finish("no_bids", "part 0 (item 0): no peer took the job at these terms")]


# --- Stragglers ----------------------------------------------------------------------------------


def with_a_straggler(units: int = 10) -> tuple[Driver, bytes]:
    """Two parts, of which one took 4 s and the other has been out for 8 s."""
    driver = Driver(parts=2)
    driver.tick()
    slow = driver.award(0, b"slow")
    driver.award(1, b"quick")
    driver.tick(4_000)
    driver.end(driver.job(1))
    driver.advance(slow, units)
    driver.tick(4_000)
    assert driver.numbers == [0, 1]
    return driver, slow


def test_a_late_part_goes_to_somebody_else_too() -> None:
    driver, _ = with_a_straggler()
    driver.tick(1)
    assert driver.offers[2:] == [(0, (b"slow",))]
    # Once; a third would only be waste.
    driver.tick(60_000)
    assert len(driver.offers) == 3


def test_the_first_that_is_verified_counts_and_the_other_is_cancelled() -> None:
    for late_wins in (False, True):
        driver, slow = with_a_straggler()
        driver.tick(1)
        other = driver.award(0, b"other")
        first, second = (slow, other) if late_wins else (other, slow)
        driver.end(first)
        assert driver.cancelled == [second]
        # What the loser had verified until then is paid, and counts.
        assert driver.finished == []
        driver.end(second, "cancelled", paid=70)
        assert driver.finished == [Finish("verified", "")]
        assert driver.whole.paid_micros == 1_070
        verified = driver.whole.parts[0].verified
        assert verified is not None
        assert verified.job_id == first


def test_a_part_that_will_be_done_before_anybody_could_overtake_it_is_left_alone() -> None:
    driver, _ = with_a_straggler(units=90)
    driver.tick(1)
    assert len(driver.offers) == 2


def test_nobody_is_late_within_the_luck_of_an_auction() -> None:
    driver = Driver(parts=2)
    driver.tick()
    driver.award(0, b"slow")
    driver.award(1, b"quick")
    driver.tick(100)
    driver.end(driver.job(1))
    driver.tick(4_900)
    assert len(driver.offers) == 2
    driver.tick(1)
    assert len(driver.offers) == 3


def test_parts_that_wait_come_before_parts_that_are_late() -> None:
    driver = Driver(parts=4)
    driver.tick()
    driver.award(0, b"slow")
    driver.award(1, b"quick")
    driver.tick(4_000)
    driver.end(driver.job(1))
    driver.tick(60_000)
    assert driver.numbers == [0, 1, 2]


def test_with_no_peer_to_spare_a_late_part_stays() -> None:
    driver, _ = with_a_straggler()
    driver.slots = 1
    driver.tick(60_000)
    assert len(driver.offers) == 2


def test_a_late_peers_failure_leaves_the_part_to_the_other() -> None:
    driver, slow = with_a_straggler()
    driver.tick(1)
    other = driver.award(0, b"other")
    driver.end(slow, "task_failed", "unresponsive")
    assert driver.finished == []
    driver.end(other)
    assert driver.finished == [Finish("verified", "")]


# --- Failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["task_failed", "verification_failed", "timed_out", "cancelled"])
def test_a_part_that_fails_for_good_ends_the_whole_and_names_itself(state: str) -> None:
    driver = Driver()
    driver.tick()
    driver.award(0, b"a")
    driver.award(1, b"b")
    driver.end(driver.job(1))
    driver.tick()
    driver.end(driver.job(0), state, "bad input: it breaks a rule", paid=30)
    # Part 2 was out: its end comes first, and what it was paid is counted.
    assert driver.cancelled == [driver.job(2)]
    assert driver.finished == []
    driver.end(driver.job(2), "cancelled", paid=7)
    assert driver.finished == [Finish(state, "part 0 (item 0): bad input: it breaks a rule")]
    assert (driver.whole.parts_verified, driver.whole.paid_micros) == (1, 537)


def test_a_part_that_nobody_takes_waits_while_others_are_worked_on() -> None:
    driver = Driver()
    driver.tick()
    driver.award(0, b"a")
    driver.end(driver.job(1), "no_bids", "all are busy")
    driver.tick(4_999)
    assert driver.numbers == [0, 1, 2]
    driver.end(driver.job(2), "no_bids", "all are busy")
    driver.tick(1)
    assert driver.numbers == [0, 1, 2, 1]


def test_time_is_up() -> None:
    driver = Driver()
    driver.tick()
    driver.tick(600_000)
    assert len(driver.cancelled) == 2
    for number in (0, 1):
        driver.end(driver.job(number), "cancelled")
    assert driver.finished == [Finish("timed_out", "not all parts were verified in time")]


def test_a_client_cancels_and_goes_on_later_with_what_is_missing() -> None:
    driver = Driver()
    driver.tick()
    driver.award(0, b"a")
    driver.end(driver.job(0))
    driver.perform(driver.whole.cancel(driver.now_ms))
    driver.end(driver.job(1), "cancelled")
    assert driver.finished == [Finish("cancelled", "cancelled by the client")]
    driver.tick(700_000)
    assert driver.numbers == [0, 1]
    driver.whole.resume(now_ms=driver.now_ms, total_ms=600_000, queue_ms=30_000)
    driver.tick()
    assert driver.numbers == [0, 1, 1, 2]
    driver.end(driver.job(1))
    driver.end(driver.job(2))
    assert driver.finished[1:] == [Finish("verified", "")]


def test_a_node_that_stopped_after_the_last_part_says_so_when_it_is_back() -> None:
    driver = Driver(parts=1)
    driver.whole.restore([PartJob(b"job", 0, START_MS, state="verified")], state="running", reason="")
    driver.tick()
    assert (driver.numbers, driver.finished) == ([], [Finish("verified", "")])


# --- Money -----------------------------------------------------------------------------------------


def test_no_part_is_offered_that_could_break_the_ceiling() -> None:
    driver = Driver(cost_micros_max=2_400)
    driver.tick()
    # Each may cost 1,000: two fit, a third wouldn't.
    assert driver.numbers == [0, 1]
    driver.award(0, b"a", price=5)
    driver.end(driver.job(0), paid=600)
    driver.tick()
    # 600 are paid and part 1 may cost 1,000 yet: 800 are left.
    assert driver.numbers == [0, 1]
    driver.award(1, b"b", price=6)
    driver.tick()
    # At its price part 1 costs 650 at most.
    assert driver.numbers == [0, 1, 2]


def test_a_ceiling_that_is_reached_ends_the_whole_and_says_so() -> None:
    driver = Driver(slots=1, cost_micros_max=1_500)
    driver.tick()
    driver.end(driver.job(0), paid=600)
    driver.tick()
    assert driver.finished == [
        Finish(
            "task_failed",
            "auction.max_total: part 1 (item 1) may cost 1000 micro-units, and 900 of 1500 are left",
        )
    ]
