"""Jobs as a client sees them: from a job file to the protocol's request, and what has happened since.

The core speaks in units and digests; here they become text and events that a terminal can show.
Summaries survive a restart; a job that was open then has ended, and says so.
"""

from __future__ import annotations

import json
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog
import trio

from p2p_node import explain
from p2p_node.blobrights import job_owner
from p2p_node.blobs import BlobStore
from p2p_node.core.recovery import STOPPED
from p2p_node.core.request import JobRequest, JobState
from p2p_node.errors import UserError
from p2p_node.executor import ModelPlace
from p2p_node.jobrecord import CREATED_BYTES, JobRecord, read_record, recent_key
from p2p_node.jobrequest import build_request
from p2p_node.jobspec import JobSpec
from p2p_node.lmtask import TextOutput, text_output
from p2p_node.partition.book import Wholes
from p2p_node.quote import quote
from p2p_node.records import open_receipt
from p2p_node.runtime import Runtime
from p2p_node.store import Store
from p2p_node.tasks import artifact, tokenizers_of
from protocols.blobs import Blob, blob_name
from protocols.digest import DIGEST_BYTES
from protocols.effects import Notify, Persist
from protocols.identity import peer_id
from workloads.blobs import NO_BLOBS, Blobs
from workloads.registry import KINDS
from workloads.workload import Artifact

__all__ = ["JobBook"]

log = structlog.get_logger(__name__)

RECORDS_MAX = 1_000
OLD_PREFIX_BYTES_MIN = 4
"""Of the id of a job that is no longer listed."""

EVENTS_PER_JOB_MAX = 20_000
SUBSCRIBER_EVENTS_MAX = 20_000
STORY_EVENTS_MAX = 4_096
"""Of jobs that are over, all together: of older ones only the ending is kept, and output is in the store."""
UNITS_PER_EVENT = 16
"""So many output units count as one event: they take as much room."""

_PEER_FIELDS = frozenset({"peer", "requester", "executor", "accused", "accuser", "loser"})


class JobBook:
    """All jobs that this node was asked for."""

    def __init__(
        self,
        runtime: Runtime,
        store: Store,
        models: Mapping[str, ModelPlace],
        *,
        clock: Callable[[], int],
        blobs: Blobs = NO_BLOBS,
        blob_store: BlobStore | None = None,
    ) -> None:
        self._runtime = runtime
        self._store = store
        self._models = models
        self._clock = clock
        self._blobs = blobs
        self._blob_store = blob_store
        self._tokenizers = tokenizers_of(models)
        self._records: OrderedDict[bytes, JobRecord] = OrderedDict()
        self._streams: dict[bytes, TextOutput] = {}
        """Text of open jobs, decoded as it comes."""
        self._subscribers: dict[bytes, list[trio.MemorySendChannel[dict[str, Any]]]] = {}
        self._told: deque[tuple[JobRecord, int]] = deque()
        """Jobs that are over, and how many events each has, in the order of their ends."""
        self._told_events = 0
        self.wholes = Wholes(self, runtime, store)
        self._restore()
        self.wholes.restore(clock())
        for record in sorted(self._records.values(), key=lambda record: record.created_ms):
            self._records.move_to_end(record.id)

    # --- Commands --------------------------------------------------------------------------------

    def prepare(self, spec: JobSpec) -> JobRequest:
        """What a job asks of peers. Safe in any thread: a hundred thousand texts take a while to tokenize.

        Raises:
            UserError: the job can't be asked for from here.
        """
        return build_request(spec, self._models, self._tokenizers, self._blobs)

    def submit(
        self, spec: JobSpec, described: dict[str, Any], request: JobRequest | None = None
    ) -> JobRecord:
        """Offer a job.

        Args:
            spec: a valid job file.
            described: the same, as plain data for display.
            request: as `prepare` made it; None to make it here.

        Raises:
            UserError: the job can't be asked for from here.
        """
        request = request or self.prepare(spec)
        self._check_blobs(request.input_blobs)
        now_ms, ceiling = self._clock(), spec.auction.total_micros_max
        if spec.parts is not None:
            whole = self.wholes.submit(
                request,
                name=spec.name,
                parts=_number(spec.parts),
                total_micros_max=ceiling,
                described=described,
                now_ms=now_ms,
            )
            self.hold(whole.id, request.input_blobs, is_private=request.is_private)
            return whole
        if ceiling:
            _check_ceiling(quote(self._runtime.core, request, now_ms), ceiling)

        def book(job_id: bytes) -> None:
            self.hold(job_id, request.input_blobs, is_private=request.is_private)
            # Before anything is said: what a peer does for us from here on must be found again.
            self.enter(job_id, spec.name, now_ms, described, is_kept=True)

        try:
            job_id = self._runtime.submit(request, nonce=secrets.token_bytes(16), announce=book)
        except ValueError as error:
            raise UserError(str(error)) from error
        return self._records[job_id]

    def _check_blobs(self, blobs: tuple[Blob, ...]) -> None:
        for blob in blobs:
            if self._blob_store is None or not self._blob_store.has(blob):
                raise UserError(f"task: blob {blob_name(blob)} isn't on this node")

    def hold(self, job_id: bytes, blobs: Sequence[Blob], *, is_private: bool = False) -> None:
        """Keep what a job needs until it is over: whoever executes or checks it comes for it."""
        for blob in blobs:
            if self._blob_store is not None:
                if is_private:
                    self._blob_store.set_private(blob, is_lent=False)
                self._blob_store.pin(blob, job_owner(job_id))

    def let_go(self, job_id: bytes) -> None:
        """What a job needed may be forgotten."""
        if self._blob_store is not None:
            self._blob_store.unpin(job_owner(job_id))

    def jobs_of(self, job_id: bytes) -> tuple[bytes, ...]:
        """The protocol's jobs that a job consists of, by its id; itself, unless it was split."""
        record = self._records.get(job_id)
        return record.job_ids if record is not None else (job_id,)

    def enter(
        self, job_id: bytes, name: str, now_ms: int, described: dict[str, Any], *, is_kept: bool = False
    ) -> JobRecord:
        """Begin a record, and write it down if it is to be."""
        record = self._records[job_id] = JobRecord(job_id, name, now_ms, described)
        if is_kept:
            self._keep(record)
        self._forget_oldest()
        return record

    def quote(self, spec: JobSpec, request: JobRequest | None = None) -> dict[str, Any]:
        """What a job would be checked by and cost; see `p2p_node.quote`. Nothing is offered.

        Raises:
            UserError: the job can't be asked for from here.
        """
        request = request or self.prepare(spec)
        if spec.parts is not None:
            return self.wholes.planner.quote(request, parts=_number(spec.parts), now_ms=self._clock())
        return quote(self._runtime.core, request, self._clock())

    def _forget_oldest(self) -> None:
        while len(self._records) > RECORDS_MAX:
            oldest = next((record for record in self._records.values() if record.is_final), None)
            if oldest is None:
                return
            del self._records[oldest.id]
            if oldest.whole is None:
                self._store.apply([Persist("recent", recent_key(oldest), None)])

    def cancel(self, record: JobRecord) -> None:
        """Cancel an open job; a job that is over stays as it is."""
        if record.whole is not None:
            self.wholes.cancel(record, self._clock())
        elif record.id in self._runtime.core.jobs:
            self._runtime.cancel(record.id)

    def resume(self, record: JobRecord) -> None:
        """Go on with a job in parts that ended before all were verified.

        Raises:
            UserError: nothing is missing, or it isn't in parts.
        """
        if record.whole is None:
            raise UserError("a job that wasn't split can't be resumed: run it again")
        self._check_blobs(record.whole.request.input_blobs)
        self.wholes.resume(record, self._clock())

    def models_changed(self) -> None:
        """The models that this node has are others now."""
        fresh = {name: place for name, place in self._models.items() if name not in self._tokenizers}
        self._tokenizers |= tokenizers_of(fresh)
        for name in self._tokenizers.keys() - self._models.keys():
            del self._tokenizers[name]

    def uses(self, model: str) -> str:
        """The id of a job that isn't over and names a model; empty if there is none."""
        for record in self._records.values():
            task = record.spec["task"]
            if not record.is_final and model in (task.get("model"), task.get("base")):
                return record.id.hex()
        return ""

    # --- Views -----------------------------------------------------------------------------------

    def find(self, prefix: str) -> JobRecord:
        """The job whose hexadecimal id begins with ``prefix``.

        Raises:
            UserError: none, or several.
        """
        found = [record for record in self._records.values() if record.id.hex().startswith(prefix.lower())]
        if prefix and not found:
            found = self._find_old(prefix.lower())
        if not prefix or len(found) != 1:
            raise UserError(f"{len(found)} jobs have an id that begins with {prefix!r}")
        return found[0]

    def _find_old(self, prefix: str) -> list[JobRecord]:
        """Jobs that are no longer listed, but still in the store."""
        try:
            begins = bytes.fromhex(prefix[: len(prefix) // 2 * 2])
        except ValueError:
            return []
        if len(begins) < OLD_PREFIX_BYTES_MIN:
            return []
        keys = [key for key in self._store.keys_under("jobs", begins) if key.hex().startswith(prefix)]
        return [record for key in keys if (record := self._load(key)) is not None]

    def records(self) -> Iterator[JobRecord]:
        """All jobs, oldest first."""
        return iter(self._records.values())

    def frauds(self, record: JobRecord) -> list[bytes]:
        """The names of the fraud proofs that came of a job, in order."""
        return [name for job_id in record.job_ids for name in self._store.keys_under("frauds", job_id)]

    def fraud(self, name: bytes) -> bytes:
        """A fraud proof by its name, as its file has it."""
        return self._store.get("frauds", name) or b""

    def receipt(self, record: JobRecord) -> bytes | None:
        """The signed receipt of a job that is over."""
        if record.whole is not None:
            return self.wholes.keeping.receipt(record.whole)
        return self._store.get("receipts", record.id)

    def has_receipt(self, record: JobRecord) -> bool:
        """Whether a job that is over has one."""
        # A whole's is made of its parts' when it is asked for.
        return record.whole is not None or self._store.get("receipts", record.id) is not None

    def result(self, record: JobRecord) -> Artifact | None:
        """The file that a verified job's output is; None where it is text, or isn't verified."""
        if record.state != JobState.VERIFIED.value:
            return None
        units = self.units_of(record)
        found = self.wholes.of_job(record.id)
        input = found[0].parts[found[1].number].input if found is not None else None
        return artifact(record.spec["task"], units, self._models, self._blobs, input=input)

    def units_of(self, record: JobRecord) -> list[int]:
        """A job's output units, from the store where they aren't at hand."""
        if record.whole is not None:
            return list(self.wholes.keeping.units_of_whole(record.whole))
        if len(record.units) == record.units_total or not record.is_final:
            return record.units
        stored = self._load(record.id)
        return stored.units if stored is not None else []

    def text_of(self, record: JobRecord, units: Sequence[int], input: bytes | None = None) -> str:
        """Output units as text, of the whole or of the part that takes ``input``; empty where they aren't."""
        output = self._text_output(record, input)
        return output.text(units) if output is not None else ""

    def outputs(self, record: JobRecord) -> list[dict[str, Any]] | None:
        """Each prompt's result, of a job whose output is text."""
        output = self._text_output(record)
        if output is None:
            return None
        units = self.units_of(record)
        return output.results(units, self._blobs.read)

    def explain(self, record: JobRecord) -> list[dict[str, Any]]:
        """Why peers didn't take a job; see `p2p_node.explain`. Forgotten with the job's messages."""
        core = self._runtime.core
        jobs = [core.jobs[job_id] for job_id in record.job_ids if job_id in core.jobs]
        adverts = [advert for advert in core.registry.current(self._clock()) if advert.signer != core.key]
        # Of a job in parts, the newest offer's: peers decline each part for the same reasons.
        return explain.add_up(explain.reasons(jobs[-1], adverts)) if jobs else []

    def subscribe(self, record: JobRecord) -> trio.MemoryReceiveChannel[dict[str, Any]]:
        """Every event of a job, from its first; the channel ends after the last one."""
        sender, receiver = trio.open_memory_channel[dict[str, Any]](SUBSCRIBER_EVENTS_MAX)
        for event in record.events:
            sender.send_nowait(event)
        if record.is_final:
            sender.close()
        else:
            self._subscribers.setdefault(record.id, []).append(sender)
        return receiver

    # --- What happens ----------------------------------------------------------------------------

    def on_notify(self, note: Notify, now_ms: int) -> None:
        """Book an event of a job; others aren't ours."""
        record = self._records.get(note.subject)
        if record is None:
            return
        details = dict(note.details)
        match note.event:
            case "awarded":
                # What an earlier attempt streamed beyond the last verified unit doesn't count.
                del record.units[details["resumes_at"] :]
            case "output":
                record.units.extend(details.pop("units"))
                if (stream := self._streams.get(record.id)) is not None:
                    details["text"] = stream.feed(record.units[details["first_unit"] :])
                    record.text += details["text"]
                details["units_total"] = len(record.units)
                details["remark"] = self._remark(record, details["first_unit"])
            case "finished":
                self._finish(record, now_ms)
        job = self._runtime.core.jobs.get(record.id)
        if job is not None and not record.is_final:
            record.state = job.state.value
        if note.event == "awarded" and (output := self._text_output(record)) is not None:
            self._streams[record.id] = output
            record.text = details["text"] = output.feed(record.units)
        self.tell(record, note.event, details, now_ms)
        self.wholes.hear(note, now_ms, remark=str(details.get("remark", "")))

    def _remark(self, record: JobRecord, first_unit: int) -> str:
        """What is worth saying of new output; empty if it is nothing new."""
        kind, job = KINDS[record.spec["task"]["workload"]], self._runtime.core.jobs.get(record.id)
        if job is None:
            return ""
        units = record.units
        told, known = (kind.remark(job.request.input, part) for part in (units, units[:first_unit]))
        return told if told != known else ""

    def tell(self, record: JobRecord, name: str, details: dict[str, Any], now_ms: int) -> None:
        """Add an event to a job's story, and pass it on to whoever follows it."""
        event = {"at_ms": now_ms, "event": name, **_plain(details)}
        if len(record.events) < EVENTS_PER_JOB_MAX:
            record.events.append(event)
        for sender in self._subscribers.get(record.id, []):
            try:
                sender.send_nowait(event)
            except (trio.WouldBlock, trio.BrokenResourceError):
                continue  # A reader that is gone or stuck; the history stays.
        if name == "finished":
            for sender in self._subscribers.pop(record.id, []):
                sender.close()
            self._book_story(record)

    def _book_story(self, record: JobRecord) -> None:
        """A job is over; what is remembered of older ones makes room."""
        record.units_total = len(record.units)
        size = len(record.events) + record.units_total // UNITS_PER_EVENT
        self._told.append((record, size))
        self._told_events += size
        while self._told_events > STORY_EVENTS_MAX and len(self._told) > 1:
            record, count = self._told.popleft()
            self._told_events -= count
            # One that goes on was resumed, and is booked again when it is over.
            if record.is_final:
                del record.events[:-1]
                record.units = []

    def _finish(self, record: JobRecord, now_ms: int) -> None:
        job = self._runtime.core.jobs[record.id]
        record.state, record.reason, record.finished_ms = job.state.value, job.reason, now_ms
        record.units = list(job.units)
        record.text = self.text_of(record, record.units)
        self._streams.pop(record.id, None)
        self._keep(record)

    def _text_output(self, record: JobRecord, input: bytes | None = None) -> TextOutput | None:
        """What makes text of a job's units, if they are text."""
        if input is None and (found := self.wholes.of_job(record.id)) is not None:
            planned, job = found
            input = planned.parts[job.number].input
        return text_output(record.spec["task"], input, self._models, self._tokenizers)

    # --- Keeping ---------------------------------------------------------------------------------

    def _keep(self, record: JobRecord) -> None:
        value = json.dumps({**record.summary(), "units": record.units}).encode()
        changes = [Persist("jobs", record.id, value), Persist("recent", recent_key(record), b"")]
        self._store.apply(changes)
        if record.is_final:
            self.let_go(record.id)

    def _restore(self) -> None:
        reasons = self._close_drafts()
        keys = self._store.keys("recent")
        for key in keys or self._index():
            record = self._load(key[CREATED_BYTES:])
            if record is None:
                continue
            self._records[record.id] = record
            if not record.is_final:
                self._end_as_receipt_says(record, reasons.get(record.id, STOPPED))
            self._book_story(record)

    def _load(self, job_id: bytes) -> JobRecord | None:
        """A record from the store; None if there is none, or it can't be read."""
        value = self._store.get("jobs", job_id)
        try:
            return None if value is None else read_record(job_id, value)
        except (ValueError, KeyError, TypeError) as error:
            # Of another release, or of a file that was damaged. Its receipt is still there.
            log.warning("a job's record can't be read", job=job_id.hex()[:16], why=repr(error))
            return None

    def _index(self) -> list[bytes]:
        """Of a store that has no list of its newest jobs: make it."""
        found = (self._load(key) for key in self._store.keys("jobs"))
        keys = sorted(recent_key(record) for record in found if record is not None)[-RECORDS_MAX:]
        self._store.apply([Persist("recent", key, b"") for key in keys])
        return keys

    def _close_drafts(self) -> dict[bytes, str]:
        """Write the receipts of jobs that the node stopped under; why each ended, by its id."""
        reasons: dict[bytes, str] = {}
        for job_id in [key for key in self._store.keys("drafts") if len(key) == DIGEST_BYTES]:
            drafted, frauds = self._store.under("drafts", job_id), self._store.under("frauds", job_id)
            closed, acts = self._runtime.core.close_job(job_id, drafted, frauds, self._clock())
            self._runtime.perform(acts)
            if closed is not None:
                reasons[job_id] = closed.reason
        return reasons

    def _end_as_receipt_says(self, record: JobRecord, reason: str) -> None:
        """End a job whose record was open: as its receipt has it, or as interrupted before there was any."""
        record.state, record.finished_ms = JobState.TASK_FAILED.value, self._clock()
        if (body := open_receipt(self._runtime.core, self._store.get("receipts", record.id))) is not None:
            record.state, record.finished_ms = body.state, body.finished_ms
            record.units = list(body.units)
            with suppress(UserError):
                record.text = self.text_of(record, record.units)
        record.reason = "" if record.state == JobState.VERIFIED.value else reason
        self._keep(record)


def _number(parts: int | str) -> int | None:
    """How many parts are wanted; None leaves it to the node."""
    return parts if isinstance(parts, int) else None


def _check_ceiling(quoted: Mapping[str, Any], ceiling: int) -> None:
    """Hold what a job may cost at most against what its client wants to pay.

    Raises:
        UserError: it may cost more.
    """
    cost = quoted.get("execution_micros_max", 0) + quoted.get("verification_micros", 0)
    if cost > ceiling:
        raise UserError(f"auction.max_total: the job may cost {cost} micro-units, more than {ceiling}")


def _plain(value: Any, name: str = "") -> Any:
    match value:
        case bytes():
            return peer_id(value) if name in _PEER_FIELDS and value else value.hex()
        case dict():
            return {key: _plain(item, key) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    return value
