"""Finished jobs of every kind, each run once in a swarm of real keys."""

from __future__ import annotations

from functools import cache
from typing import Any

from p2p_node.core.requester import Job
from protocols.digest import tagged
from protocols.envelope import Signed
from protocols.messages import (
    Acceptance,
    Bid,
    BidSeal,
    BlindVerdict,
    Commitment,
    DrawClaim,
    Opening,
    Reveal,
    VoucherReceipt,
)
from tests.support.keys import keyring
from tests.support.swarm import Runner, Swarm, request

__all__ = ["KINDS", "finished"]


class LyingExecutor(Runner):
    """Gives one false digest when it executes; honest as a verifier."""

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk

    def digest(self, data: bytes, units: tuple[int, ...], chunk: int, *, is_execution: bool) -> bytes:
        honest = super().digest(data, units, chunk, is_execution=is_execution)
        return tagged("lie", honest) if is_execution and chunk == self.chunk else honest


class LyingVerifier(Runner):
    """Gives false digests whenever it verifies."""

    def digest(self, data: bytes, units: tuple[int, ...], chunk: int, *, is_execution: bool) -> bytes:
        honest = super().digest(data, units, chunk, is_execution=is_execution)
        return honest if is_execution else tagged("lie", honest)


def _loses(kind: type[Any], *numbers: int) -> dict[str, Any]:
    """A network that loses what these peers send of one kind; of all peers if none is named."""
    senders = {keyring(number).public for number in numbers}
    return {
        "lost": lambda sender, message: isinstance(message.body, kind) and (not senders or sender in senders)
    }


def _only_one_bidder_at_first() -> dict[str, Any]:
    """Peer 1 alone bids on the first offer, and then never answers the award."""
    first_offer: list[bytes] = []

    def lost(sender: bytes, message: Signed[Any]) -> bool:
        if isinstance(message.body, BidSeal):
            first_offer[:] = first_offer or [message.body.job_id]
            return message.body.job_id == first_offer[0] and sender != keyring(1).public
        return isinstance(message.body, Acceptance) and sender == keyring(1).public

    return {"lost": lost}


def _no_verifiers_after_segment(last: int) -> dict[str, Any]:
    """Draw claims for later segments never arrive."""
    later: set[bytes] = set()

    def lost(sender: bytes, message: Signed[Any]) -> bool:
        if isinstance(message.body, Commitment) and message.body.segment > last:
            later.add(message.id)
        return isinstance(message.body, DrawClaim) and message.body.commitment_id in later

    return {"lost": lost}


def _run(swarm: dict[str, Any], **job: Any) -> Job:
    return Swarm(5, **swarm).run_job(request(**job))


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "auction": ({}, {}),
    "posted": ({}, {"mode": "posted"}),
    "all chunks": ({}, {"samples": 2}),
    "lying executor": ({"runners": {1: LyingExecutor(5)}}, {"samples": 2}),
    "lying executor, large input": (
        {"runners": {1: LyingExecutor(5)}},
        {"samples": 2, "input": b"x" * 30_000},
    ),
    "lying executor, native": ({"runners": {1: LyingExecutor(5)}}, {"samples": 2, "profile": "native"}),
    "lying verifier": ({"runners": {3: LyingVerifier()}}, {"samples": 2}),
    "only lying verifiers": (
        {"runners": {n: LyingVerifier() for n in (2, 3, 4)}},
        {"samples": 2, "attempts_max": 1},
    ),
    "withheld opening": (_loses(Opening, 1), {}),
    "no draw claims": (_loses(DrawClaim), {"attempts_max": 1}),
    "no blind verdicts": (_loses(BlindVerdict), {"attempts_max": 1}),
    "silent verifier": (_loses(Reveal, 3), {}),
    "no reveals": (_loses(Reveal), {"attempts_max": 1}),
    "late blind verdict": (_loses(BlindVerdict, 2), {}),
    "silent executor": (_loses(Acceptance, 1), {}),
    "offered again": (_only_one_bidder_at_first(), {}),
    "unopened bid": (_loses(Bid, 1), {}),
    "no bids": (_loses(BidSeal), {"rebids": 1}),
    "unconfirmed vouchers": (_loses(VoucherReceipt), {}),
    "too little time": ({}, {"execution_ms": 8}),
    "widened draw": ({}, {"expected_verifiers_milli": 400}),
    "lying executor and verifier": (
        {"runners": {1: LyingExecutor(5), 3: LyingVerifier()}},
        {"samples": 2},
    ),
    "out of time": (_no_verifiers_after_segment(1), {"total_ms": 1_000}),
}
"""(arguments of the swarm, changes to the request) by name."""


@cache
def finished(kind: str) -> Job:
    """The finished job of this kind; the same in every run."""
    swarm, job = KINDS[kind]
    return _run(swarm, **job)
