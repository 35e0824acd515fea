"""`Whole` under any order of what parts' jobs may do: bounds hold, and it always ends."""

from __future__ import annotations

import random

import pytest

from p2p_node.core.request import FINAL_STATES, JobState
from p2p_node.partition.whole import JobAdvanced, JobAwarded, JobCommitted, JobEnded, PartJob
from tests.partition.test_whole import UNITS, Driver

ENDINGS = ("verified",) * 24 + ("no_bids", "no_bids", "task_failed", "verification_failed")
FINAL = {state.value for state in FINAL_STATES}
PRICE_MAX = 9
"""With fees of 50 a part costs 950 at most; its plan says 1,000."""


class Play(Driver):
    """A whole, and peers that do as chance has it."""

    def __init__(self, seed: int, luck: random.Random | None = None) -> None:
        self.luck = luck or random.Random(seed)
        self.ceiling = self.luck.choice((0, 2_100, 3_100, 20_000))
        super().__init__(
            parts=self.luck.randint(1, 6), slots=self.luck.randint(0, 4), cost_micros_max=self.ceiling
        )

    def open(self) -> list[PartJob]:
        return [job for part in self.whole.parts for job in part.open]

    def step(self) -> None:
        self.tick(self.luck.choice((1, 250, 3_000, 30_000)))
        if self.luck.random() < 0.1:
            self.slots = self.luck.randint(0, 4)
        if self.luck.random() < 0.004:
            self.perform(self.whole.cancel(self.now_ms))
        if not self.open():
            return
        job = self.luck.choice(self.open())
        match self.luck.randint(0, 4):
            case 0:
                event = JobAwarded(job.job_id, b"peer", self.luck.randint(PRICE_MAX - 1, PRICE_MAX), 4_000)
            case 1:
                event = JobAdvanced(job.job_id, self.luck.randint(job.units, UNITS))
            case 2:
                event = JobCommitted(job.job_id)
            case _:
                self.finish(job)
                return
        self.perform(self.whole.handle(event, self.now_ms))

    def finish(self, job: PartJob) -> None:
        # Who is cancelled may have been verified that very moment.
        state = self.luck.choice(ENDINGS if not job.is_dropped else ("cancelled", "cancelled", "verified"))
        paid = (job.price_micros * UNITS + 50) * (state == "verified")
        self.perform(self.whole.handle(JobEnded(job.job_id, state, "why", paid), self.now_ms))

    def check(self) -> None:
        whole = self.whole
        assert len(self.open()) <= 2 * max(1, 4)
        assert all(len(part.open) <= 2 for part in whole.parts)
        assert not self.ceiling or whole.paid_micros <= self.ceiling
        assert len(self.finished) == whole.is_over
        assert len(set(self.cancelled)) == len(self.cancelled)


@pytest.mark.parametrize("seed", range(150))
def test_it_ends_once_in_a_state_that_its_parts_imply(seed: int) -> None:
    play = Play(seed)
    for _ in range(5_000):
        play.step()
        play.check()
        if play.whole.is_over:
            break
    whole = play.whole
    assert whole.is_over
    assert whole.state in FINAL
    assert (whole.state == JobState.VERIFIED.value) == (whole.parts_verified == len(whole.parts))
    assert bool(whole.reason) == (whole.state != JobState.VERIFIED.value)
    assert play.open() == []
    # Nothing more happens to one that is over.
    assert [effect for _ in range(3) for effect in whole.cancel(play.now_ms)] == []
