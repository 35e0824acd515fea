"""What an offline reader of a receipt finds: a report, or the first thing that is wrong.

`ReceiptReport` holds only what follows from signed evidence. `Claim`s are what is left to
arithmetic: digests that parties signed, each with what the receipt says of it and the recomputation
that settles it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from protocols.crypto import Crypto
from protocols.effects import Recompute
from protocols.envelope import Signed, open_envelope
from protocols.errors import PeerFault
from protocols.messages import Award, Body
from verification.findings import is_false

__all__ = [
    "AttemptReport",
    "Claim",
    "Reader",
    "ReceiptError",
    "ReceiptReport",
    "SegmentReport",
    "VerifierReport",
    "reading",
    "require",
]

B = TypeVar("B", bound=Body)


class ReceiptError(Exception):
    """The first thing in a receipt that is wrong: where it is, and the rule that it breaks."""

    def __init__(self, step: str, detail: str) -> None:
        super().__init__(f"{step}: {detail}")
        self.step = step
        self.detail = detail


def require(condition: bool, step: str, detail: str) -> None:
    """Go on if ``condition`` holds.

    Raises:
        ReceiptError: it doesn't.
    """
    if not condition:
        raise ReceiptError(step, detail)


@contextmanager
def reading(step: str) -> Iterator[None]:
    """Name the step at which a rule of the protocol is found broken.

    Raises:
        ReceiptError: a `PeerFault` was raised inside.
    """
    try:
        yield
    except PeerFault as fault:
        raise ReceiptError(step, str(fault)) from fault


@dataclass(frozen=True, slots=True)
class Reader:
    """Opens the envelopes nested in one receipt."""

    network: str
    crypto: Crypto
    requester: bytes

    def open(self, raw: bytes, kind: type[B], step: str) -> Signed[B]:
        """One properly signed envelope of this kind.

        Raises:
            ReceiptError: missing, malformed, another kind or network, or not signed.
        """
        require(raw != b"", step, f"the {kind.KIND!r} is missing")
        with reading(step):
            return open_envelope(raw, network=self.network, crypto=self.crypto, expect=kind)

    def open_own(self, raw: bytes, kind: type[B], step: str) -> Signed[B]:
        """The same, signed by the receipt's requester.

        Raises:
            ReceiptError: as `open`, or signed by somebody else.
        """
        message = self.open(raw, kind, step)
        require(message.signer == self.requester, step, f"the {kind.KIND!r} isn't the requester's")
        return message


@dataclass(frozen=True, slots=True)
class Claim:
    """Findings of chunks that ``peer`` signed; see `verification.findings`.

    ``is_right`` is what the receipt says: all of them are what an honest recomputation gives, or
    at least one isn't. ``task`` covers exactly the chunks of ``digests``.
    """

    step: str
    peer: bytes
    role: str
    digests: tuple[tuple[int, bytes], ...]
    is_right: bool
    task: Recompute
    terms: Award

    def is_refuted(self, truth: Mapping[int, bytes]) -> tuple[int, ...]:
        """The chunks that a recomputation, by chunk, shows to be false."""
        return tuple(chunk for chunk, found in self.digests if is_false(self.terms, found, truth[chunk]))


@dataclass(frozen=True, slots=True)
class VerifierReport:
    """One drawn verifier of one segment."""

    peer: bytes
    chunks: tuple[int, ...]
    """Absolute numbers of the chunks that its VRF drew."""
    widening: int
    finding: str
    """``"agrees"``, ``"differs"``, or ``"silent"`` if it never revealed."""
    is_paid: bool


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """One commitment and what its verification found; an empty verdict means it never ended."""

    segment: int
    first_chunk: int
    chunks: int
    units_total: int
    verdict: str
    verifiers: tuple[VerifierReport, ...]
    is_paid: bool


@dataclass(frozen=True, slots=True)
class AttemptReport:
    """One award and what came of it."""

    index: int
    executor: bytes
    device: str
    """As the executor's acceptance names it; empty if it never accepted."""
    price_micros: int
    outcome: str
    units_before: int
    units_after: int
    segments: tuple[SegmentReport, ...]


@dataclass(frozen=True, slots=True)
class ReceiptReport:
    """Everything that a receipt proves."""

    network: str
    receipt_id: bytes
    job_id: bytes
    requester: bytes
    workload: str
    model: bytes
    profile: str
    mode: str
    state: str
    finished_ms: int
    units: tuple[int, ...]
    attempts: tuple[AttemptReport, ...]
    earnings: Mapping[bytes, int]
    """Micro-units owed to each peer by signed vouchers, over all lanes."""
    claims: tuple[Claim, ...]
    notes: tuple[str, ...]
    """What the receipt says but can't prove."""

    @property
    def executors(self) -> tuple[bytes, ...]:
        """The peers whose units are in the result, in order."""
        return tuple(a.executor for a in self.attempts if a.units_after > a.units_before)
