"""receipt.json of a job in parts: the receipt of the whole, as a file that anybody can check offline.

It is like a single job's (see `p2p_node.receipts`): the evidence, and what follows from it for people to
read. Checking derives what each part must have been asked from the whole's input, and from the units of parts
that it starts from, by the workload's own rule; that takes no torch.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from p2p_node import receipts
from p2p_node.receipts import ReceiptError
from protocols.crypto import Crypto
from protocols.identity import peer_id
from protocols.units import units_digest
from verification.receipt import ReceiptReport
from verification.receipt_parts import PartReport, Plan, WholeReport, check_whole_receipt
from workloads.errors import InputRefused
from workloads.registry import KINDS
from workloads.split import Order

__all__ = ["FORMAT", "check_any_file", "check_raw", "plan_of_parts", "render"]

FORMAT = "p2p-node/whole-receipt/1"


def plan_of_parts(workload: str, whole: bytes, counts: tuple[int, ...]) -> Plan:
    """What parts with these numbers of items are asked; see `verification.receipt_parts.Splitter`.

    Raises:
        ReceiptError: nobody here knows such parts, or they aren't all of the whole.
    """
    kind = KINDS.get(workload)
    if kind is None or kind.split is None:
        raise ReceiptError("plan", f"no workload {workload!r} is known here that falls into parts")
    try:
        items = kind.split.items(whole)
        if sum(counts) != items:
            raise ReceiptError(
                "plan", f"its parts have {sum(counts)} {kind.split.items_name}, the job {items}"
            )
        if kind.split.order is not None:
            return _plan_in_order(kind.split.order, whole, counts)
        firsts = [sum(counts[:number]) for number in range(len(counts))]
        inputs = [
            kind.split.part(whole, first, count).input for first, count in zip(firsts, counts, strict=True)
        ]
    except InputRefused as error:
        raise ReceiptError("plan", str(error)) from error
    return Plan(((),) * len(inputs), lambda part, _: inputs[part])


def _plan_in_order(order: Order, whole: bytes, counts: tuple[int, ...]) -> Plan:
    if any(count != 1 for count in counts):
        raise ReceiptError("plan", "its parts have several items each, though each item is a part")

    def input(part: int, units: Sequence[tuple[int, ...]]) -> bytes:
        try:
            return order.part(whole, part, units).input
        except InputRefused as error:
            raise ReceiptError(f"part {part}: input", str(error)) from error

    return Plan(tuple(order.needs(whole, item) for item in range(len(counts))), input)


def check_raw(raw: bytes, *, network: str, crypto: Crypto) -> WholeReport:
    """Check a whole's receipt.

    Raises:
        ReceiptError: the first thing that is wrong.
    """
    return check_whole_receipt(raw, network=network, crypto=crypto, split=plan_of_parts)


def render(raw: bytes, *, network: str, crypto: Crypto) -> bytes:
    """The file for a whole's receipt.

    Raises:
        ReceiptError: the evidence doesn't hold; a file is never written for such a receipt.
    """
    return _render(check_raw(raw, network=network, crypto=crypto), raw)


def check_any_file(data: bytes, crypto: Crypto) -> ReceiptReport | WholeReport:
    """Check a receipt's file, of a single job or of one in parts, byte for byte.

    Raises:
        ReceiptError: the first thing that is wrong, in the evidence or in what the file says of it.
    """
    document = receipts.parse(data, receipts.FORMAT, FORMAT)
    if document["format"] == receipts.FORMAT:
        return receipts.check_file(data, crypto)
    raw = receipts.decode_evidence(document["evidence"])
    report = check_raw(raw, network=document["network"], crypto=crypto)
    receipts.compare(data, document, _render(report, raw))
    return report


def _render(report: WholeReport, raw: bytes) -> bytes:
    units = report.units
    document = {
        "format": FORMAT,
        "network": report.network,
        "receipt_id": report.receipt_id.hex(),
        "job_id": report.whole_id.hex(),
        "requester": peer_id(report.requester),
        "executors": [peer_id(key) for key in report.executors],
        "workload": report.workload,
        "model": report.model.hex(),
        "profile": report.profile,
        "state": report.state,
        "finished_ms": report.finished_ms,
        "units": len(units),
        "units_digest": units_digest(units).hex(),
        "parts": [_part(part) for part in report.parts],
        "earnings_micros": {peer_id(key): micros for key, micros in report.earnings.items()},
        "notes": list(report.notes),
        "evidence": base64.b64encode(raw).decode(),
    }
    return (json.dumps(document, sort_keys=True, indent=2) + "\n").encode()


def _part(part: PartReport) -> dict[str, Any]:
    counts = part.verified
    return {
        "first": part.first,
        "count": part.count,
        "verified_by": None if counts is None else counts.job_id.hex(),
        "jobs": [
            {
                "job_id": job.job_id.hex(),
                "receipt_id": job.receipt_id.hex(),
                "state": job.state,
                "mode": job.mode,
                "finished_ms": job.finished_ms,
                "units": len(job.units),
                "attempts": [receipts.described_attempt(attempt) for attempt in job.attempts],
            }
            for job in part.jobs
        ],
    }
