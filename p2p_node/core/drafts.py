"""The draft of a job's receipt, kept while the job goes on, so that a crash leaves its story whole.

A draft is written anew when an attempt begins or ends; in between each segment has a row of its own, so that
a long job writes what is new and not all of it again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from p2p_node.core.attempt import Attempt
from p2p_node.core.kept import KeptDraft, segment_key
from protocols.codec import encode
from protocols.effects import Effect, Persist

__all__ = ["Draft"]


class Draft:
    """What of one job is written down. It does not know what a receipt is made of."""

    def __init__(self, job_id: bytes) -> None:
        self._job_id = job_id
        self._written: tuple[object, ...] = ()
        self._segments: set[int] = set()

    def changes(
        self, attempts: Sequence[Attempt], *, reason: str, receipt: Callable[[], bytes]
    ) -> list[Effect]:
        """What to write after an event.

        Args:
            attempts: of the job.
            reason: why it ends, if it does.
            receipt: makes the receipt as it would be if the job ended now.
        """
        touched = {attempt.award.id: attempt.take_touched() for attempt in attempts}
        if not any(attempt.contract for attempt in attempts):
            return []  # Nothing was agreed, so nothing is owed.
        newest = attempts[-1]
        now = (len(attempts), newest.contract is not None, newest.outcome, reason)
        is_old = any(touched[attempt.award.id] for attempt in attempts[:-1])
        if now != self._written or is_old or (newest.outcome is not None and touched[newest.award.id]):
            self._written = now
            kept = KeptDraft(receipt(), reason, newest.outcome is None)
            gone = self._forget_segments()
            again = self._rows(newest, newest.segment_numbers()) if newest.outcome is None else []
            return [Persist("drafts", self._job_id, encode(kept)), *gone, *again]
        return self._rows(newest, touched[newest.award.id])

    def clear(self) -> list[Effect]:
        """The receipt itself is written."""
        if not self._written:
            return []
        return [Persist("drafts", self._job_id, None), *self._forget_segments()]

    def _forget_segments(self) -> list[Effect]:
        gone, self._segments = self._segments, set()
        return [Persist("drafts", segment_key(self._job_id, number), None) for number in sorted(gone)]

    def _rows(self, attempt: Attempt, segments: Sequence[int]) -> list[Effect]:
        self._segments.update(segments)
        return [
            Persist("drafts", segment_key(self._job_id, number), encode(attempt.kept_segment(number)))
            for number in segments
        ]
