"""The published digests: this machine gives them, a change is noticed, and a worker refuses to start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from workloads import exact
from workloads.errors import NumericsRefused
from workloads.exact import published, selftest
from workloads.exact.accuracy import errors
from workloads.exact.cases import CASES, Form, operator_digests
from workloads.exact.published import FILE, check_operators, published_digests
from workloads.frames import Event, Failed, FrameReader, Load, ModelRef, Ready, encode_frame
from workloads.llama import selfcheck
from workloads.lm.manifest import load_manifest

VECTOR = Path(__file__).parents[2] / "vectors" / "exact.json"
OPERATORS = {name: digest for name, digest in published_digests().items() if name in CASES}


def test_the_vector_is_what_is_published() -> None:
    assert json.loads(VECTOR.read_text()) == json.loads(FILE.read_text())


def test_every_line_is_published_and_given_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert selftest.main(["--quick"]) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert printed == published_digests()
    assert list(CASES) == list(OPERATORS)


def test_every_way_to_run_a_model_has_one_digest() -> None:
    for profile in ("exact14", "exact21"):
        ways = {published_digests()[f"model-{way}/{profile}"] for way in ("prefill", "chunks", "decode")}
        assert len(ways) == 1


def test_batch_entries_alone_give_the_same_digests() -> None:
    assert operator_digests(Form(split=True)) == OPERATORS


@pytest.mark.parametrize("arithmetic", ["int8", "float32"])
def test_slices_give_the_same_digests(arithmetic: str) -> None:
    contracting = {name: case for name, case in CASES.items() if "/" in name}
    with exact.computed_in(arithmetic), pytest.MonkeyPatch.context() as patch:
        patch.setattr("workloads.exact.cases.CASES", contracting)
        assert operator_digests(Form()) == {name: OPERATORS[name] for name in contracting}


def test_threads_and_instruction_set_make_no_difference() -> None:
    # One process with everything held back at once; `selftest --matrix` has each alone.
    capped = selftest.CONFIGURATIONS[-1]
    assert "--threads" in capped.arguments
    done = subprocess.run(
        [sys.executable, "-m", "workloads.exact.selftest", "--quick", *capped.arguments],
        env={**os.environ, **capped.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert dict(line.split() for line in done.stdout.splitlines()) == published_digests()


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    right = published_digests()
    wrong = {**right, "softmax": "00" * 32}
    monkeypatch.setattr(selftest, "lines", lambda _: iter(right.items()))
    monkeypatch.setattr(published, "published_digests", lambda: wrong)
    monkeypatch.setattr(selftest, "published_digests", lambda: wrong)


@pytest.mark.usefixtures("broken")
def test_a_differing_line_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert selftest.main(["--quick"]) == 1
    assert f"differs: softmax, must be {'00' * 32}" in capsys.readouterr().err


@pytest.mark.usefixtures("broken")
def test_a_node_that_differs_refuses_the_exact_profiles() -> None:
    for check in (check_operators, selfcheck.check_arithmetic):
        with pytest.raises(NumericsRefused, match="does not reproduce the exact operators: softmax differs"):
            check()


BROKEN_WORKER = """
import os, sys
from workloads.exact import published
wrong = {**published.published_digests(), "softmax": "00" * 32}
published.published_digests = lambda: wrong
from workloads.worker import main
main()
"""


def test_a_worker_that_differs_takes_no_exact_work(tiny_model: Path) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", BROKEN_WORKER),
            *("--parent", str(os.getpid()), "--memory-bytes-max", str(4 << 30)),
            *("--readable", str(tiny_model)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    commands = [
        Load(run, ModelRef(str(tiny_model), load_manifest(tiny_model).digest, profile))
        for run, profile in enumerate(("exact14", "native"), 1)
    ]
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"".join(encode_frame(command) for command in commands))
    process.stdin.flush()
    events: list[Event] = []
    reader = FrameReader(Event)
    while len(events) < 3:
        data = os.read(process.stdout.fileno(), 1 << 16)
        assert data, process.communicate()[1].decode()
        events += reader.feed(data)
    _, errors = process.communicate()
    refusal = "this machine does not reproduce the exact operators: softmax differs"
    assert refusal in errors.decode()
    ready, refused, other = events
    assert isinstance(ready, Ready)
    assert isinstance(refused, Failed)
    assert refused.reason == "numerics-refused"
    assert refusal in refused.detail
    # The other profiles have rules of their own: this model wasn't calibrated.
    assert isinstance(other, Failed)
    assert (other.run, other.reason) == (2, "model-refused")


def test_exact14_beats_bfloat16_and_the_rest_beats_float32() -> None:
    for name, (exact14, exact21, float32, bfloat16) in errors().items():
        assert exact14 < bfloat16 / 4, name
        assert exact21 < 7 * float32, name
        # What doesn't contract is float64's accuracy.
        assert exact14 != exact21 or exact21 < 1e-12, name
