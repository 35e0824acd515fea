"""What a client asks for, in the protocol's own units, and the states a job can be in."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from protocols.auction import Ranking
from protocols.blobs import Blob
from protocols.limits import CHUNKS_PER_SEGMENT, LM_CHUNK_UNITS, SEGMENT_CHUNKS_MAX
from protocols.messages import EQUAL_BITS, Tolerance

__all__ = ["FINAL_STATES", "CheckPolicy", "JobRequest", "JobState"]


class JobState(enum.Enum):
    """Where a job stands. The last six are final, and every job reaches one of them."""

    BIDDING = "bidding"
    AWARDING = "awarding"
    RUNNING = "running"
    SETTLING = "settling"
    VERIFIED = "verified"
    NO_BIDS = "no_bids"
    TASK_FAILED = "task_failed"
    VERIFICATION_FAILED = "verification_failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"


FINAL_STATES = frozenset(
    {
        JobState.VERIFIED,
        JobState.NO_BIDS,
        JobState.TASK_FAILED,
        JobState.VERIFICATION_FAILED,
        JobState.TIMED_OUT,
        JobState.CANCELLED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckPolicy:
    """What of the checking a client left to the node, and what it assumes of the network."""

    escape_ppb: int = 0
    """The chance of escape it accepts, in parts per billion; 0 takes the request's own numbers."""
    is_adaptive: bool = False
    """Whether an executor that has proved itself may be checked less than its `samples`."""
    forged_ppm: int = 100_000
    """The least share of chunks whose forging must not go unnoticed."""
    colluding_ppm: int = 200_000
    lazy_ppm: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """One job, ready to be offered. Prices are micro-units per output unit."""

    name: str
    workload: str
    model: bytes
    model_name: str = ""
    """What the client calls it; for people."""
    profile: str
    input: bytes
    input_blobs: tuple[Blob, ...] = ()
    """What the input names; whoever bids must be able to hold it."""
    is_private: bool = False
    """Whether what it names and leaves is for its parties only, and nothing of it is published."""
    has_output_blobs: bool = False
    """Whether output units name blobs, which must be here before they are paid for."""
    input_units: int
    units_max: int
    stop_unit: int = -1
    chunk_units: int = LM_CHUNK_UNITS
    segment_chunks: int = CHUNKS_PER_SEGMENT
    mode: str = "auction"
    window_ms: int = 2_000
    price_micros_max: int = 500
    verifier_fee_micros: int = 10
    expected_verifiers_milli: int = 2_000
    samples: int = SEGMENT_CHUNKS_MAX
    policy: CheckPolicy = CheckPolicy()
    tolerance: Tolerance = EQUAL_BITS
    """The model's calibrated bounds, in the native profile."""
    draw_window_ms: int = 600
    answer_ms: int = 30_000
    stall_ms: int = 20_000
    queue_ms: int = 30_000
    execution_ms: int = 300_000
    total_ms: int = 600_000
    attempts_max: int = 4
    rebids: int = 8
    ram_bytes_min: int = 0
    rate_milli_min: int = 0
    exclude: tuple[bytes, ...] = ()
    ranking: Ranking = field(default_factory=Ranking)
