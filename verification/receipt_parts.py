"""The offline check of the receipt of a job that was split into parts.

Such a receipt is a plan and the receipts of the parts' jobs. Each of those is checked as any receipt is, and
what makes them one job is derived again rather than believed: the plan says how many items each part had, the
input of the whole says what they are, and so what a part's job must have been asked. The rule that makes a
part's input of the whole's is the workload's, and is given to this module, which doesn't know any.

A part that starts from others' output names it in its input, and that follows from the verified units of
those parts. So rounds that build on each other can't be left out, exchanged or begun from anything else.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise

from protocols.crypto import Crypto
from protocols.digest import tagged
from protocols.envelope import Signed, open_envelope
from protocols.limits import RECEIPT_BYTES_MAX
from protocols.messages import ReceiptBody, WholeReceiptBody
from protocols.units import input_digest
from verification.receipt import JOB_STATES, ReceiptError, check_receipt
from verification.receipt_report import Claim, ReceiptReport, reading, require

__all__ = ["PartReport", "Plan", "Splitter", "WholeReport", "check_whole_receipt", "whole_id"]

_VERIFIED = "verified"


@dataclass(frozen=True, slots=True)
class Plan:
    """What the parts of a whole must have been asked.

    Args:
        needs: for each part those, all before it, whose units its input follows from.
        input: a part's number and the units of those that it needs, in order, to its input. Raises
            `ReceiptError` if they aren't what such parts give.
    """

    needs: tuple[tuple[int, ...], ...]
    input: Callable[[int, Sequence[tuple[int, ...]]], bytes]


Splitter = Callable[[str, bytes, tuple[int, ...]], Plan]
"""From a workload, the whole's input and the items of each part, to the plan. Raises `ReceiptError` if the
workload has no such parts, or the items aren't all that the whole has."""


@dataclass(frozen=True, slots=True)
class PartReport:
    """One part and the jobs that were offered for it.

    Args:
        first: of its items.
        count: how many.
        jobs: in the order in which they ended; the first that was verified counts.
    """

    first: int
    count: int
    jobs: tuple[ReceiptReport, ...]

    @property
    def verified(self) -> ReceiptReport | None:
        """The job whose output counts."""
        return next((job for job in self.jobs if job.state == _VERIFIED), None)


@dataclass(frozen=True, slots=True)
class WholeReport:
    """Everything that a whole's receipt proves."""

    network: str
    receipt_id: bytes
    whole_id: bytes
    requester: bytes
    workload: str
    model: bytes
    profile: str
    input: bytes
    state: str
    finished_ms: int
    parts: tuple[PartReport, ...]

    @property
    def units(self) -> tuple[int, ...]:
        """The verified output: of all parts if the whole is verified, else of those that are."""
        done = (part.verified for part in self.parts)
        return tuple(chain.from_iterable(job.units for job in done if job is not None))

    @property
    def earnings(self) -> Mapping[bytes, int]:
        """Micro-units owed to each peer by signed vouchers, over all jobs."""
        earnings: Counter[bytes] = Counter()
        for job in self.jobs:
            earnings.update(job.earnings)
        return dict(earnings)

    @property
    def jobs(self) -> tuple[ReceiptReport, ...]:
        """Every job, part by part."""
        return tuple(job for part in self.parts for job in part.jobs)

    @property
    def executors(self) -> tuple[bytes, ...]:
        """The peers whose units are in the result, in order."""
        done = (part.verified for part in self.parts)
        return tuple(chain.from_iterable(job.executors for job in done if job is not None))

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What is left to arithmetic, of all jobs."""
        return tuple(
            replace(claim, step=f"{_step(number, index)}: {claim.step}")
            for number, part in enumerate(self.parts)
            for index, job in enumerate(part.jobs)
            for claim in job.claims
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What the receipts say but can't prove."""
        return tuple(
            f"{_step(number, index)}: {note}"
            for number, part in enumerate(self.parts)
            for index, job in enumerate(part.jobs)
            for note in job.notes
        )


def whole_id(
    requester: bytes,
    *,
    nonce: bytes,
    workload: str,
    model: bytes,
    profile: str,
    input: bytes,
    counts: tuple[int, ...],
) -> bytes:
    """What a whole is called: a digest of what it asks for and of how it was split."""
    return tagged(
        "p2p-node/whole/1",
        requester,
        nonce,
        workload.encode(),
        model,
        profile.encode(),
        input_digest(input),
        struct.pack(f"<{len(counts)}Q", *counts),
    )


def check_whole_receipt(raw: bytes, *, network: str, crypto: Crypto, split: Splitter) -> WholeReport:
    """Check everything in a whole's receipt but the arithmetic of the workload.

    Args:
        raw: the receipt's envelope, at most RECEIPT_BYTES_MAX bytes.
        network: the network that every statement must be for.
        crypto: judges signatures and VRF proofs.
        split: derives the parts' inputs.

    Returns:
        What it proves.

    Raises:
        ReceiptError: the first thing that is wrong.
    """
    with reading("receipt"):
        receipt = open_envelope(
            raw, network=network, crypto=crypto, expect=WholeReceiptBody, bytes_max=RECEIPT_BYTES_MAX
        )
    body = receipt.body
    plan = split(body.workload, body.input, body.counts)
    jobs = _read_jobs(receipt, plan, network=network, crypto=crypto)
    firsts = [sum(body.counts[:number]) for number in range(len(body.counts))]
    parts = tuple(
        PartReport(first, count, tuple(jobs[number]))
        for number, (first, count) in enumerate(zip(firsts, body.counts, strict=True))
    )
    _check_state(body, parts)
    return WholeReport(
        network=network,
        receipt_id=receipt.id,
        whole_id=whole_id(
            receipt.signer,
            nonce=body.nonce,
            workload=body.workload,
            model=body.model,
            profile=body.profile,
            input=body.input,
            counts=body.counts,
        ),
        requester=receipt.signer,
        workload=body.workload,
        model=body.model,
        profile=body.profile,
        input=body.input,
        state=body.state,
        finished_ms=body.finished_ms,
        parts=parts,
    )


def _read_jobs(
    receipt: Signed[WholeReceiptBody], plan: Plan, *, network: str, crypto: Crypto
) -> list[list[ReceiptReport]]:
    body = receipt.body
    numbers = [record.part for record in body.jobs]
    require(all(a <= b for a, b in pairwise(numbers)), "jobs", "they aren't in the order of their parts")
    count = len(plan.needs)
    jobs: list[list[ReceiptReport]] = [[] for _ in range(count)]
    inputs: dict[int, bytes] = {}
    seen: set[bytes] = set()
    for record in body.jobs:
        require(record.part < count, "jobs", f"part={record.part}, but the plan has {count} parts")
        step = _step(record.part, len(jobs[record.part]))
        if record.part not in inputs:
            inputs[record.part] = _input(plan, record.part, jobs, step)
        with reading(step):
            # Opened once more by the check below; here only for what the plan gives the part.
            inner = open_envelope(
                record.receipt,
                network=network,
                crypto=crypto,
                expect=ReceiptBody,
                bytes_max=RECEIPT_BYTES_MAX,
            )
        require(inner.signer == receipt.signer, step, "its receipt isn't the requester's")
        require(
            inner.body.input == inputs[record.part],
            f"{step}: input",
            "it isn't what the plan gives this part",
        )
        try:
            report = check_receipt(record.receipt, network=network, crypto=crypto)
        except ReceiptError as error:
            raise ReceiptError(f"{step}: {error.step}", error.detail) from error
        for name in ("workload", "model", "profile"):
            require(
                getattr(report, name) == getattr(body, name), f"{step}: {name}", "it isn't that of the whole"
            )
        require(report.job_id not in seen, step, "its job is here already")
        seen.add(report.job_id)
        jobs[record.part].append(report)
    return jobs


def _input(plan: Plan, part: int, jobs: list[list[ReceiptReport]], step: str) -> bytes:
    """What a part must have been asked, by the parts before it."""
    units = []
    for number in plan.needs[part]:
        done = PartReport(0, 0, tuple(jobs[number])).verified
        require(done is not None, step, f"it starts from part {number}, which isn't verified")
        units.append(() if done is None else done.units)
    return plan.input(part, units)


def _check_state(body: WholeReceiptBody, parts: tuple[PartReport, ...]) -> None:
    require(body.state in JOB_STATES, "state", f"{body.state!r} is no final state")
    missing = next((number for number, part in enumerate(parts) if part.verified is None), None)
    if body.state == _VERIFIED:
        require(missing is None, "state", f"'verified', but part {missing} isn't")
    else:
        require(missing is not None, "state", f"{body.state!r}, but all parts are verified")
    last = max((job.finished_ms for part in parts for job in part.jobs), default=0)
    require(
        body.finished_ms >= last, "finished_ms", f"{body.finished_ms} is before the end of a part, {last}"
    )


def _step(part: int, index: int) -> str:
    return f"part {part}, job {index}"
