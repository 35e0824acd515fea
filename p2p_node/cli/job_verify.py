"""`p2p-node job verify`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2p_node.cli.options import datadir_option, models_option, output_option
from p2p_node.errors import ExitCode, UserError

if TYPE_CHECKING:
    from p2p_node.executor import ModelPlace
    from verification.receipt import ReceiptReport
    from verification.receipt_parts import WholeReport

__all__ = ["verify"]


@dataclass(frozen=True, slots=True)
class _Here:
    """What this machine has to recompute with."""

    datadir: Path | None
    models: tuple[Path, ...]

    def places(self) -> dict[str, ModelPlace]:
        from p2p_node.models import models_here, places_of

        return places_of(models_here(self.datadir, self.models))

    def blob_folder(self) -> Path | None:
        from p2p_node.datadir import DataDir

        place = DataDir.existing(self.datadir)
        return place.blob_files if place is not None and place.blob_files.is_dir() else None


class _ReceiptRefused(UserError):
    """A receipt or a fraud proof doesn't hold."""

    exit_code = ExitCode.VERIFICATION_FAILED


@click.command(short_help="Check a receipt or a fraud proof, offline.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--recompute", is_flag=True, help="Run the model to settle what signatures can't.")
@datadir_option
@models_option
@output_option
def verify(
    *, file: Path, recompute: bool, datadir: Path | None, models: tuple[Path, ...], output: str
) -> None:
    """Check the receipt or the fraud proof in FILE.

    Of a receipt: every signature, commitment, draw, opening, verdict and payment; of a job in parts, those
    of each part, and that the parts make up the job. Of a fraud proof: every
    signature and every part, and then the one operator that convicts, which is run again and takes no
    model.

    Needs no network and no running node: models and files are those of the data directory and --models.
    Exits with 5 at the first thing that is wrong, and names it.
    """
    from p2p_node.cli.output import print_record
    from p2p_node.core.keyring import RealCrypto
    from p2p_node.partition.receipts import check_any_file
    from p2p_node.receipts import ReceiptError
    from verification.receipt_parts import WholeReport

    data = _read(file)
    # A receipt is JSON, a fraud proof is a MessagePack array.
    if not data.lstrip().startswith(b"{"):
        print_record(_judged(data, file, _Here(datadir, models)), output)
        return
    try:
        report = check_any_file(data, RealCrypto())
    except ReceiptError as error:
        raise _ReceiptRefused(f"{file} doesn't hold: {error}") from error
    record = _described_whole(report) if isinstance(report, WholeReport) else _described(report)
    if recompute:
        record["recomputed"] = _recompute(report, file, _Here(datadir, models))
    elif report.claims and output == "table":
        click.echo(
            f"signed results not recomputed: {len(report.claims)} (--recompute settles them)", err=True
        )
    print_record(record, output)


def _judged(data: bytes, file: Path, here: _Here) -> dict[str, Any]:
    """Judge the fraud proof in a file, and describe it."""
    from p2p_node.core.keyring import RealCrypto
    from p2p_node.frauds import FraudRefused, judge_file, read_file
    from protocols.events import Finding
    from protocols.identity import peer_id

    try:
        fraud = read_file(data, RealCrypto())
    except FraudRefused as error:
        raise _ReceiptRefused(f"{file} doesn't hold: no receipt, and as a fraud proof: {error}") from error
    accusation = fraud.accusation
    accused = f"the {accusation.role} {peer_id(accusation.accused)}"
    judgement = judge_file(fraud, here.places(), here.blob_folder())
    if judgement.finding is Finding.ACQUITTED:
        raise _ReceiptRefused(f"{file} doesn't hold: {accused} stated what is true of {judgement.detail}")
    if judgement.finding is Finding.INCONCLUSIVE:
        raise _ReceiptRefused(f"{file} proves nothing: {judgement.detail}")
    terms = accusation.contract.terms
    return {
        "holds": True,
        "guilty": peer_id(accusation.accused),
        "role": accusation.role,
        "accuser": peer_id(fraud.proof.signer),
        "network": fraud.network,
        "kind": fraud.proof.body.KIND,
        "workload": terms.workload,
        "model": terms.model.hex(),
        "profile": terms.profile,
        "award": accusation.contract.award.id.hex(),
        "chunk": accusation.chunk,
        "false": judgement.detail,
        "bytes": len(data),
    }


def _read(file: Path) -> bytes:
    from p2p_node.receipts import FILE_BYTES_MAX

    try:
        with file.open("rb") as opened:
            # One byte more than allowed shows that it is too large.
            return opened.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UserError(f"can't read {file}: {error.strerror}") from error


def _recompute(report: ReceiptReport | WholeReport, file: Path, here: _Here) -> str:
    # Imported late: it brings trio, and its worker brings torch.
    from p2p_node.recompute import recompute_receipt
    from protocols.identity import peer_id

    results = recompute_receipt(report, here.places(), here.blob_folder())
    for result in results:
        if result.holds:
            continue
        said = "right" if result.claim.is_right else "wrong"
        found = (
            f"chunks {', '.join(map(str, result.wrong_chunks))} differ"
            if result.wrong_chunks
            else "all agree"
        )
        raise _ReceiptRefused(
            f"{file} doesn't hold: {result.claim.step}: the receipt says that the {result.claim.role} "
            f"{peer_id(result.claim.peer)} was {said}, and recomputed, {found}"
        )
    return f"{len(results)} signed results, each as the receipt says"


def _checked(report: ReceiptReport) -> dict[str, int]:
    segments = [segment for attempt in report.attempts for segment in attempt.segments]
    verifiers = [verifier for segment in segments for verifier in segment.verifiers]
    return {
        "contracts": len(report.attempts),
        "commitments": len(segments),
        "draws": len(verifiers),
        "verdicts": sum(verifier.finding != "silent" for verifier in verifiers),
        "signed_results": len(report.claims),
    }


def _described_whole(report: WholeReport) -> dict[str, Any]:
    from protocols.identity import peer_id

    checked = [_checked(job) for job in report.jobs]
    return {
        "holds": True,
        "state": report.state,
        "job_id": report.whole_id.hex(),
        "network": report.network,
        "requester": peer_id(report.requester),
        "executors": list(dict.fromkeys(peer_id(key) for key in report.executors)),
        "workload": report.workload,
        "model": report.model.hex(),
        "profile": report.profile,
        "units": len(report.units),
        "parts": len(report.parts),
        "parts_verified": sum(part.verified is not None for part in report.parts),
        "jobs": len(report.jobs),
        "checked": {name: sum(each[name] for each in checked) for name in (checked[0] if checked else ())},
        "earnings_micros": {peer_id(key): micros for key, micros in report.earnings.items()},
        "notes": list(report.notes),
    }


def _described(report: ReceiptReport) -> dict[str, Any]:
    from protocols.identity import peer_id

    return {
        "holds": True,
        "state": report.state,
        "job_id": report.job_id.hex(),
        "network": report.network,
        "requester": peer_id(report.requester),
        "executors": [peer_id(key) for key in report.executors],
        "workload": report.workload,
        "model": report.model.hex(),
        "profile": report.profile,
        "units": len(report.units),
        "checked": _checked(report),
        "outcomes": [attempt.outcome for attempt in report.attempts],
        "earnings_micros": {peer_id(key): micros for key, micros in report.earnings.items()},
        "notes": list(report.notes),
    }
