"""From a job file to the request that the protocol's machines understand."""

from __future__ import annotations

from collections.abc import Mapping

from p2p_node.blobtasks import blobs_of_input, leaves_blobs
from p2p_node.core.request import CheckPolicy, JobRequest
from p2p_node.errors import UserError
from p2p_node.executor import ModelPlace
from p2p_node.jobspec import JobSpec
from p2p_node.tasks import prepare
from protocols.blobs import Blob
from protocols.limits import SEGMENT_CHUNKS_MAX
from protocols.messages import EQUAL_BITS, Tolerance
from verification.findings import NATIVE
from workloads.blobs import NO_BLOBS, Blobs
from workloads.errors import InputRefused
from workloads.lm.tokenizer import TextTokenizer
from workloads.registry import KINDS
from workloads.workload import Kind

__all__ = ["build_request"]


def build_request(
    spec: JobSpec,
    models: Mapping[str, ModelPlace],
    tokenizers: Mapping[str, TextTokenizer],
    blobs: Blobs = NO_BLOBS,
) -> JobRequest:
    """The protocol's request for a job file.

    Args:
        spec: a valid job file.
        models: local models by name.
        tokenizers: of those that write text, by name.
        blobs: where what the job names is, and where an input is left that is too large to be carried along.

    Raises:
        UserError: a model nobody here knows, or an input that the workload refuses.
    """
    task = prepare(spec.task, models, tokenizers, is_whole=spec.parts is not None, blobs=blobs)
    kind = KINDS[spec.task.workload]
    if spec.parts is not None and kind.split is None:
        raise UserError(f"parts: {kind.name} doesn't fall into parts")
    return JobRequest(
        name=spec.name,
        workload=kind.name,
        model=task.model,
        model_name=getattr(spec.task, "model", kind.name),
        profile=spec.verify.profile,
        input=task.input,
        is_private=spec.encrypt,
        input_blobs=_blobs_of(kind, task.input),
        has_output_blobs=leaves_blobs(kind, task.input),
        input_units=task.input_units,
        units_max=task.units_max,
        stop_unit=task.stop_unit,
        chunk_units=kind.chunk_units,
        segment_chunks=kind.segment_chunks if kind.segments is None else kind.segments(task.input),
        mode=spec.auction.mode,
        window_ms=spec.auction.window_ms,
        price_micros_max=spec.auction.price_micros_max,
        expected_verifiers_milli=spec.verify.verifiers * 1_000,
        samples=spec.verify.chunks if isinstance(spec.verify.chunks, int) else SEGMENT_CHUNKS_MAX,
        policy=CheckPolicy(
            escape_ppb=spec.verify.escape_ppb,
            is_adaptive=spec.verify.chunks == "auto",
            forged_ppm=spec.verify.forged_ppm,
            colluding_ppm=spec.verify.colluding_ppm,
            lazy_ppm=spec.verify.lazy_ppm,
        ),
        tolerance=_tolerance(spec, task.model, models),
        answer_ms=spec.verify.reveal_ms,
        queue_ms=spec.timeouts.queue_ms,
        stall_ms=spec.timeouts.stall_ms,
        execution_ms=spec.timeouts.execution_ms,
        total_ms=spec.timeouts.total_ms,
        attempts_max=spec.retry.retries + 1,
        rebids=spec.auction.rebids,
        ram_bytes_min=spec.resources.ram_bytes_min,
        rate_milli_min=spec.resources.rate_milli_min,
        exclude=spec.placement.exclude,
    )


def _blobs_of(kind: Kind, input: bytes) -> tuple[Blob, ...]:
    try:
        return blobs_of_input(kind, input)
    except InputRefused as error:
        raise UserError(f"task: {error}") from error


def _tolerance(spec: JobSpec, model: bytes, models: Mapping[str, ModelPlace]) -> Tolerance:
    """The bounds of a native job's model.

    Raises:
        UserError: the workload or the model can't be run in the job's profile.
    """
    profile, kind = spec.verify.profile, KINDS[spec.task.workload]
    if profile not in kind.profiles:
        raise UserError(f"verify.profile: {kind.name} runs in {', '.join(kind.profiles)}, got {profile!r}")
    if profile != NATIVE:
        return EQUAL_BITS
    place = next(place for place in models.values() if place.digest == model)
    tolerance = kind.tolerance(place.path)
    if tolerance == EQUAL_BITS:
        raise UserError(
            f"verify.profile: {place.name} isn't calibrated for native runs; see: p2p-node model calibrate"
        )
    return tolerance
