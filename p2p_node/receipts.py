"""receipt.json: a job's receipt as a file that people can read and anybody can check offline.

The evidence is the requester's signed receipt, in base64. Everything else in the file is there to be
read, and follows from the evidence; so checking a file means checking the evidence, writing the file
again, and comparing. There is one right file for each receipt, and a single changed byte shows.

The output's text isn't in the file, because it takes the model's tokenizer to derive it from the
units: ``p2p-node job get`` prints it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from protocols.crypto import Crypto
from protocols.effects import Recompute
from protocols.identity import peer_id
from protocols.limits import RECEIPT_BYTES_MAX
from protocols.units import units_digest
from verification.receipt import ReceiptError, ReceiptReport, check_receipt
from verification.receipt_parts import WholeReport
from verification.receipt_report import AttemptReport, Claim, SegmentReport, VerifierReport

__all__ = [
    "FILE_BYTES_MAX",
    "FORMAT",
    "ClaimResult",
    "ReceiptError",
    "check_file",
    "compare",
    "decode_evidence",
    "described_attempt",
    "parse",
    "recompute_claims",
    "render",
    "write",
]

FORMAT = "p2p-node/receipt/1"
FILE_BYTES_MAX = 2 * RECEIPT_BYTES_MAX
"""Base64 takes four thirds of the evidence; the rest leaves room for the readable part."""


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """What a recomputation says of one claim."""

    claim: Claim
    wrong_chunks: tuple[int, ...]
    """Chunks whose signed digest isn't the recomputed one."""

    @property
    def holds(self) -> bool:
        """Whether the receipt told the truth about the claim."""
        return self.claim.is_right == (not self.wrong_chunks)


def render(raw: bytes, *, network: str, crypto: Crypto) -> bytes:
    """The file for a receipt.

    Args:
        raw: the receipt's envelope.
        network: the network it is for.
        crypto: judges what is inside.

    Raises:
        ReceiptError: the evidence doesn't hold; a file is never written for such a receipt.
    """
    return _render(check_receipt(raw, network=network, crypto=crypto), raw)


def write(path: Path, raw: bytes, *, network: str, crypto: Crypto) -> ReceiptReport:
    """Check a receipt and write its file, whole or not at all.

    Raises:
        ReceiptError: the evidence doesn't hold.
        OSError: the file can't be written.
    """
    report = check_receipt(raw, network=network, crypto=crypto)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_bytes(_render(report, raw))
    unfinished.replace(path)
    return report


def check_file(data: bytes, crypto: Crypto) -> ReceiptReport:
    """Check a receipt's file, byte for byte.

    Args:
        data: the whole file.
        crypto: judges signatures and VRF proofs.

    Raises:
        ReceiptError: the first thing that is wrong, in the evidence or in what the file says of it.
    """
    document = parse(data, FORMAT)
    network, raw = document["network"], decode_evidence(document["evidence"])
    report = check_receipt(raw, network=network, crypto=crypto)
    compare(data, document, _render(report, raw))
    return report


def recompute_claims(
    report: ReceiptReport | WholeReport, recompute: Callable[[Recompute], Mapping[int, bytes]]
) -> list[ClaimResult]:
    """Settle by arithmetic what a receipt's signatures can't.

    Args:
        report: of a receipt that holds.
        recompute: runs the model honestly; returns the digest of each chunk of the task.

    Returns:
        One result for each claim, in the receipt's order.

    Raises:
        KeyError: ``recompute`` left out a chunk.
    """
    truths: dict[Recompute, Mapping[int, bytes]] = {}
    for task, chunks in _chunks_by_input(report.claims).items():
        # One run settles all that was said about the same output, whoever said it.
        truths[task] = recompute(replace(task, chunks=tuple(sorted(chunks))))
    results = []
    for claim in report.claims:
        truth = truths[replace(claim.task, chunks=())]
        results.append(ClaimResult(claim, claim.is_refuted(truth)))
    return results


def _chunks_by_input(claims: tuple[Claim, ...]) -> dict[Recompute, set[int]]:
    chunks: dict[Recompute, set[int]] = {}
    for claim in claims:
        chunks.setdefault(replace(claim.task, chunks=()), set()).update(claim.task.chunks)
    return chunks


# --- Reading -----------------------------------------------------------------------------------


def parse(data: bytes, *formats: str) -> dict[str, Any]:
    """A file of one of these formats, with its network and evidence as text and the rest unread.

    Raises:
        ReceiptError: it isn't one.
    """
    if len(data) > FILE_BYTES_MAX:
        raise ReceiptError("file", f"{len(data)} bytes exceed {FILE_BYTES_MAX}")
    try:
        document = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ReceiptError("file", f"it isn't JSON: {error}") from error
    if not isinstance(document, dict):
        raise ReceiptError("file", "it isn't a JSON object")
    if document.get("format") not in formats:
        raise ReceiptError(
            "file field 'format'",
            f"{str(document.get('format'))[:80]!r} isn't {' or '.join(map(repr, formats))}",
        )
    for name in ("network", "evidence"):
        if not isinstance(document.get(name), str):
            raise ReceiptError(f"file field {name!r}", "it is missing or isn't text")
    return document


def decode_evidence(text: str) -> bytes:
    """The receipt's envelope from a file's field.

    Raises:
        ReceiptError: it isn't base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ReceiptError("file field 'evidence'", f"it isn't base64: {error}") from error


def compare(data: bytes, document: dict[str, Any], expected: bytes) -> None:
    """Hold a file against what its evidence says.

    Raises:
        ReceiptError: they differ; it names where.
    """
    if data != expected:
        raise _first_difference(data, document, expected)


def _first_difference(data: bytes, document: dict[str, Any], expected: bytes) -> ReceiptError:
    """Name the field that isn't what the evidence says, or the byte if the fields are right."""
    derived = json.loads(expected)
    for name in sorted(derived.keys() | document.keys()):
        if name not in derived:
            return ReceiptError(f"file field {name[:80]!r}", "a receipt has no such field")
        if name not in document:
            return ReceiptError(f"file field {name!r}", "it is missing")
        if document[name] != derived[name] or type(document[name]) is not type(derived[name]):
            return ReceiptError(
                f"file field {name!r}",
                f"the file says {_shorten(document[name])}, the evidence {_shorten(derived[name])}",
            )
    at = next((i for i, (a, b) in enumerate(zip(data, expected, strict=False)) if a != b), None)
    at = min(len(data), len(expected)) if at is None else at
    return ReceiptError("file", f"it isn't written in the canonical form, from byte {at} on")


def _shorten(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 120 else text[:117] + "..."


# --- Writing -----------------------------------------------------------------------------------


def _render(report: ReceiptReport, raw: bytes) -> bytes:
    document = {
        "format": FORMAT,
        "network": report.network,
        "receipt_id": report.receipt_id.hex(),
        "job_id": report.job_id.hex(),
        "requester": peer_id(report.requester),
        "executors": [peer_id(key) for key in report.executors],
        "workload": report.workload,
        "model": report.model.hex(),
        "profile": report.profile,
        "mode": report.mode,
        "state": report.state,
        "finished_ms": report.finished_ms,
        "units": len(report.units),
        "units_digest": units_digest(report.units).hex(),
        "attempts": [described_attempt(attempt) for attempt in report.attempts],
        "earnings_micros": {peer_id(key): micros for key, micros in report.earnings.items()},
        "notes": list(report.notes),
        "evidence": base64.b64encode(raw).decode(),
    }
    return (json.dumps(document, sort_keys=True, indent=2) + "\n").encode()


def described_attempt(attempt: AttemptReport) -> dict[str, Any]:
    """An attempt as the readable part of a file has it."""
    return {
        "executor": peer_id(attempt.executor),
        "device": attempt.device,
        "price_micros": attempt.price_micros,
        "outcome": attempt.outcome,
        "units_before": attempt.units_before,
        "units_after": attempt.units_after,
        "segments": [_segment(segment) for segment in attempt.segments],
    }


def _segment(segment: SegmentReport) -> dict[str, Any]:
    return {
        "segment": segment.segment,
        "first_chunk": segment.first_chunk,
        "chunks": segment.chunks,
        "units_total": segment.units_total,
        "verdict": segment.verdict,
        "executor_paid": segment.is_paid,
        "verifiers": [_verifier(verifier) for verifier in segment.verifiers],
    }


def _verifier(verifier: VerifierReport) -> dict[str, Any]:
    return {
        "peer": peer_id(verifier.peer),
        "chunks": list(verifier.chunks),
        "widening": verifier.widening,
        "finding": verifier.finding,
        "paid": verifier.is_paid,
    }
