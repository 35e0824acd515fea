"""A whole's receipt, and the lies that its requester could tell in it.

The requester signs the receipt and makes the plan; what it can't do is to have others sign for another job.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import msgspec
import pytest

from p2p_node.core.requester import Job
from p2p_node.partition import receipts
from p2p_node.receipts import check_file
from protocols.envelope import seal
from protocols.limits import UNITS_MAX
from protocols.messages import PartRecord, WholeReceiptBody
from tests.support.forgery import edit, opened
from tests.support.keys import CRYPTO, keyring
from tests.support.swarm import MODEL, NETWORK, Swarm, request
from verification.receipt import ReceiptError
from verification.receipt_parts import Plan, WholeReport, check_whole_receipt, whole_id
from workloads.registry import KINDS

WHOLE = b"alpha beta gamma"
PARTS = (b"alpha beta", b"gamma")
COUNTS = (2, 1)


def split(workload: str, whole: bytes, counts: tuple[int, ...]) -> Plan:
    """Words are the items."""
    words = whole.split()
    if workload != "test.count" or sum(counts) != len(words):
        raise ReceiptError("plan", f"its parts have {sum(counts)} words, the job {len(words)}")
    firsts = [sum(counts[:number]) for number in range(len(counts))]
    inputs = [b" ".join(words[first : first + n]) for first, n in zip(firsts, counts, strict=True)]
    return Plan(((),) * len(inputs), lambda part, _: inputs[part])


@cache
def job(data: bytes, seed: int = 0, **changes: Any) -> Job:
    """A finished job of the test workload, in a swarm of its own."""
    swarm = Swarm(5)
    # Another time makes another job of the same request.
    swarm.run_until(lambda: swarm.now_ms >= 1_700_000_003_000 + 1_000 * seed)
    return swarm.run_job(request(input=data, **changes))


def record(part: int, made: Job) -> PartRecord:
    assert made.receipt is not None
    return PartRecord(part, made.receipt.raw)


@cache
def honest() -> WholeReceiptBody:
    jobs = tuple(record(number, job(data)) for number, data in enumerate(PARTS))
    return WholeReceiptBody(
        nonce=bytes(16),
        workload="test.count",
        model=MODEL,
        profile="exact14",
        input=WHOLE,
        counts=COUNTS,
        jobs=jobs,
        state="verified",
        finished_ms=2**42,
    )


def check(body: Any, signer: int = 0) -> WholeReport:
    raw = seal(body, network=NETWORK, key=keyring(signer)).raw
    return check_whole_receipt(raw, network=NETWORK, crypto=CRYPTO, split=split)


def changed(**fields: Any) -> Any:
    return msgspec.structs.replace(honest(), **fields)


# --- The truth -------------------------------------------------------------------------------------


def test_parts_make_up_the_whole() -> None:
    report = check(honest())
    first, second = job(PARTS[0]), job(PARTS[1])
    assert report.units == first.units + second.units
    assert [(part.first, part.count) for part in report.parts] == [(0, 2), (2, 1)]
    assert sum(report.earnings.values()) > 0
    assert report.whole_id == whole_id(
        keyring(0).public,
        nonce=bytes(16),
        workload="test.count",
        model=MODEL,
        profile="exact14",
        input=WHOLE,
        counts=COUNTS,
    )
    assert report.claims[0].step.startswith("part 0, job 0: attempt 0")


def test_a_part_that_was_offered_twice_has_both_jobs_and_counts_once() -> None:
    late = record(1, job(PARTS[1], seed=1))
    report = check(edit(honest(), ("jobs",), lambda jobs: (*jobs, late)))
    assert len(report.jobs) == 3
    assert report.units == check(honest()).units
    # But whoever worked twice is owed twice.
    assert sum(report.earnings.values()) > sum(check(honest()).earnings.values())


def test_what_is_missing_shows_where_the_whole_failed() -> None:
    report = check(edit(changed(state="cancelled"), ("jobs",), lambda jobs: jobs[1:]))
    assert [part.verified is not None for part in report.parts] == [False, True]
    assert report.units == job(PARTS[1]).units


# --- Lies ------------------------------------------------------------------------------------------


def _swapped(body: Any) -> Any:
    first, second = body.jobs
    return edit(body, ("jobs",), lambda _: (PartRecord(0, second.receipt), PartRecord(1, first.receipt)))


def _forged_units(body: Any) -> Any:
    def lie(raw: bytes) -> bytes:
        inner = opened(raw).body
        units = (inner.units[0] ^ 1, *inner.units[1:])
        return seal(msgspec.structs.replace(inner, units=units), network=NETWORK, key=keyring(0)).raw

    return edit(body, ("jobs", 0, "receipt"), lie)


def _a_strangers_job(body: Any) -> Any:
    def lie(raw: bytes) -> bytes:
        return seal(opened(raw).body, network=NETWORK, key=keyring(4)).raw

    return edit(body, ("jobs", 1, "receipt"), lie)


def _put(**fields: Any) -> Callable[[Any], Any]:
    return lambda body: msgspec.structs.replace(body, **fields)


def _jobs(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda body: edit(body, ("jobs",), change)


LIES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a part is missing": (_jobs(lambda jobs: jobs[:1]), "state: 'verified', but part 1 isn't"),
    "no parts at all": (_jobs(lambda jobs: ()), "state: 'verified', but part 0 isn't"),
    "two parts swapped": (_swapped, "part 0, job 0: input: it isn't what the plan gives this part"),
    "a part of another job": (
        _jobs(lambda jobs: (jobs[0], record(1, job(b"delta")))),
        "part 1, job 0: input: it isn't what the plan gives this part",
    ),
    "a part twice": (_jobs(lambda jobs: (*jobs, jobs[1])), "part 1, job 1: its job is here already"),
    "parts out of order": (_jobs(lambda jobs: jobs[::-1]), "jobs: they aren't in the order of their parts"),
    "a part that the plan doesn't have": (
        _jobs(lambda jobs: (*jobs, PartRecord(2, jobs[1].receipt))),
        "jobs: part=2, but the plan has 2 parts",
    ),
    "another cut": (_put(counts=(1, 2)), "part 0, job 0: input: it isn't what the plan gives this part"),
    "items left out": (_put(counts=(2,)), "plan: its parts have 2 words, the job 3"),
    "another whole": (
        _put(input=b"alpha beta delta"),
        "part 1, job 0: input: it isn't what the plan gives this part",
    ),
    "another workload": (_put(workload="other"), "plan: its parts have 3 words, the job 3"),
    "another model": (_put(model=bytes(32)), "part 0, job 0: model: it isn't that of the whole"),
    "a stricter profile": (_put(profile="exact21"), "part 0, job 0: profile: it isn't that of the whole"),
    "a part of a weaker profile": (
        _jobs(lambda jobs: (jobs[0], record(1, job(PARTS[1], profile="native")))),
        "part 1, job 0: profile: it isn't that of the whole",
    ),
    "a failure that was none": (
        _put(state="task_failed"),
        "state: 'task_failed', but all parts are verified",
    ),
    "a state that there isn't": (_put(state="done"), "state: 'done' is no final state"),
    "over before a part was": (_put(finished_ms=5), "finished_ms: 5 is before the end of a part, "),
    "output of a part forged": (_forged_units, "part 0, job 0: attempt 0, segment 0: units: "),
    "a job that somebody else paid": (_a_strangers_job, "part 1, job 0: its receipt isn't the requester's"),
    "rubbish for a part": (_jobs(lambda jobs: (jobs[0], PartRecord(1, b"x"))), "part 1, job 0: not a"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_refused_and_named(name: str) -> None:
    lie, message = LIES[name]
    with pytest.raises(ReceiptError) as caught:
        check(lie(honest()))
    assert str(caught.value).startswith(message), str(caught.value)


def test_nobody_else_can_sign_it() -> None:
    with pytest.raises(ReceiptError, match="its receipt isn't the requester's"):
        check(honest(), signer=1)


# --- Parts that start from others' output -----------------------------------------------------------


def follow(workload: str, whole: bytes, counts: tuple[int, ...]) -> Plan:
    """Each word is a part, and its input holds what the last one's units come to."""
    words = whole.split()

    def input(part: int, needed: Sequence[tuple[int, ...]]) -> bytes:
        return b"%s %d" % (words[part], sum(sum(units) for units in needed))

    return Plan(tuple((part - 1,) if part else () for part in range(len(words))), input)


@cache
def chained() -> WholeReceiptBody:
    first = job(b"alpha 0")
    second = job(b"beta %d" % sum(first.units))
    return msgspec.structs.replace(
        honest(), input=b"alpha beta", counts=(1, 1), jobs=(record(0, first), record(1, second))
    )


def check_chain(body: Any) -> WholeReport:
    raw = seal(body, network=NETWORK, key=keyring(0)).raw
    return check_whole_receipt(raw, network=NETWORK, crypto=CRYPTO, split=follow)


def test_a_part_follows_from_the_verified_units_of_those_before_it() -> None:
    report = check_chain(chained())
    assert [part.verified is not None for part in report.parts] == [True, True]


CHAIN_LIES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "begun from something else": (
        _jobs(lambda jobs: (jobs[0], record(1, job(b"beta 0")))),
        "part 1, job 0: input: it isn't what the plan gives this part",
    ),
    "what it starts from left out": (
        lambda body: edit(_put(state="cancelled")(body), ("jobs",), lambda jobs: jobs[1:]),
        "part 1, job 0: it starts from part 0, which isn't verified",
    ),
    "another first part, of the same input": (
        _jobs(lambda jobs: (record(0, job(b"alpha 1")), jobs[1])),
        "part 0, job 0: input: it isn't what the plan gives this part",
    ),
    "the second round in place of the first": (
        _jobs(lambda jobs: (PartRecord(0, jobs[1].receipt), PartRecord(1, jobs[0].receipt))),
        "part 0, job 0: input: it isn't what the plan gives this part",
    ),
    "a first part that failed": (
        lambda body: edit(
            _put(state="cancelled")(body),
            ("jobs",),
            lambda jobs: (record(0, job(b"alpha 0", price_micros_max=1, rebids=0)), jobs[1]),
        ),
        "part 1, job 0: it starts from part 0, which isn't verified",
    ),
}


@pytest.mark.parametrize("name", CHAIN_LIES)
def test_a_lie_about_what_a_part_starts_from_is_refused_and_named(name: str) -> None:
    lie, message = CHAIN_LIES[name]
    with pytest.raises(ReceiptError) as caught:
        check_chain(lie(chained()))
    assert str(caught.value).startswith(message), str(caught.value)


# --- The file --------------------------------------------------------------------------------------


@pytest.fixture
def as_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "plan_of_parts", split)


def file_of(body: Any) -> bytes:
    raw = seal(body, network=NETWORK, key=keyring(0)).raw
    return receipts.render(raw, network=NETWORK, crypto=CRYPTO)


@pytest.mark.usefixtures("as_words")
def test_the_file_holds_and_no_field_of_it_can_change() -> None:
    data = file_of(honest())
    assert isinstance(receipts.check_any_file(data, CRYPTO), WholeReport)
    document = json.loads(data)
    assert document["units"] == 2 * len(job(PARTS[0]).units) <= UNITS_MAX
    for name, value in document.items():
        lie = f"{value}x" if isinstance(value, str) else [] if value else {"x": 1}
        with pytest.raises(ReceiptError) as caught:
            receipts.check_any_file(
                (json.dumps(document | {name: lie}, sort_keys=True, indent=2) + "\n").encode(), CRYPTO
            )
        assert caught.value.step in (f"file field {name!r}", "receipt"), name


@pytest.mark.usefixtures("as_words")
def test_a_single_jobs_file_is_another_format() -> None:
    with pytest.raises(ReceiptError, match="isn't 'p2p-node/receipt/1'"):
        check_file(file_of(honest()), CRYPTO)


def test_a_workload_that_does_not_fall_into_parts_has_no_such_receipt() -> None:
    with pytest.raises(ReceiptError, match="no workload"):
        receipts.plan_of_parts("nobody.knows", b"", (1,))
    with pytest.raises(ReceiptError, match="plan: not a"):
        receipts.plan_of_parts("render.trace", b"rubbish", (1,))
    alone = KINDS["training.run"].probe()
    with pytest.raises(ReceiptError, match="plan: a run by one peer isn't split"):
        receipts.plan_of_parts("training.run", alone, (1,))


def test_checking_needs_no_torch() -> None:
    code = "import sys, p2p_node.partition.receipts; print(*{'torch', 'libp2p', 'trio'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
