"""Job files: what they mean, and how their faults are told."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_node.errors import ExitCode, UserError
from p2p_node.jobspec import JobSpecError, LmTask, TimeoutsSpec, load_job_spec, parse_job_spec
from protocols.identity import peer_id
from workloads.registry import KINDS

EXAMPLE = Path(__file__).parents[2] / "examples" / "verse.yaml"

LEAST = """\
apiVersion: p2p/v1
kind: Job
name: verse
task:
  workload: lm.generate
  model: kjv-2m
  prompt: "In the beginning"
"""

FULL = """\
apiVersion: p2p/v1
kind: Job
name: verse
task: {workload: lm.generate, model: kjv-2m, prompt: "Über\\n", max_tokens: 7, seed: 42, temperature: 0.825, top_k: 5}
resources: {ram: 3MiB, min_rate: 12.5}
placement: {exclude: [%s]}
auction: {mode: posted, window: 1500ms, max_price: 9, rebids: 0, max_total: 77}
verify: {profile: exact21, verifiers: 3, chunks: 4, reveal: 2s}
timeouts: {queue: 1m, stall: 40s, execution: 1h, total: 2h}
retry: {max: 0}
parts: 3
"""  # noqa: E501


ESCAPE = "must be a share from 1e-9 to 0.5, in whole 1/1,000,000,000"
FIELDS = (
    "apiVersion, kind, name, task, resources, placement, auction, verify, timeouts, retry, parts, encrypt"
)


def fault_of(document: str | bytes) -> JobSpecError:
    raw = document.encode() if isinstance(document, str) else document
    with pytest.raises(JobSpecError) as caught:
        parse_job_spec(raw, source="job.yaml")
    return caught.value


def test_the_example_is_valid() -> None:
    spec = load_job_spec(EXAMPLE)
    assert spec.task == LmTask(
        workload="lm.generate",
        model="kjv-2m",
        prompt="In the beginning",
        max_tokens=64,
        seed=42,
        temperature_milli=800,
        top_k=0,
    )
    assert spec.verify.chunks == "all"


def test_checking_in_the_clients_own_terms() -> None:
    asked = "verify: {profile: native, escape: 1e-3, forged_share: 0.05, assumed_colluding: 0.3, lazy: 0.1}\n"
    verify = parse_job_spec((LEAST + asked).encode()).verify
    assert (verify.profile, verify.escape_ppb, verify.chunks) == ("native", 1_000_000, "auto")
    assert (verify.forged_ppm, verify.colluding_ppm, verify.lazy_ppm) == (50_000, 300_000, 100_000)
    full = parse_job_spec((LEAST + "verify: full\n").encode()).verify
    assert (full.chunks, full.escape_ppb) == ("all", 0)


def test_what_is_absent_has_its_default() -> None:
    spec = parse_job_spec(LEAST.encode())
    assert spec.task.max_tokens == 64
    assert spec.task.temperature_milli == 1_000
    assert spec.resources.ram_bytes_min == 0
    assert spec.placement.exclude == ()
    assert (spec.auction.mode, spec.auction.window_ms, spec.auction.price_micros_max) == (
        "auction",
        2_000,
        500,
    )
    assert (spec.verify.profile, spec.verify.verifiers, spec.verify.chunks) == ("exact14", 2, "auto")
    assert spec.timeouts == TimeoutsSpec(queue_ms=30_000, execution_ms=300_000, total_ms=600_000)
    assert spec.retry.retries == 3


def test_every_field_arrives_in_its_unit() -> None:
    key = bytes(range(32))
    spec = parse_job_spec((FULL % peer_id(key)).encode())
    assert spec.task.prompt == "Über\n"
    assert (spec.task.max_tokens, spec.task.seed, spec.task.temperature_milli, spec.task.top_k) == (
        7,
        42,
        825,
        5,
    )
    assert (spec.resources.ram_bytes_min, spec.resources.rate_milli_min) == (3 * 2**20, 12_500)
    assert spec.placement.exclude == (key,)
    auction = spec.auction
    assert (auction.mode, auction.window_ms, auction.price_micros_max, auction.rebids) == (
        "posted",
        1_500,
        9,
        0,
    )
    verify = spec.verify
    assert (verify.profile, verify.verifiers, verify.chunks, verify.reveal_ms) == ("exact21", 3, 4, 2_000)
    assert spec.timeouts == TimeoutsSpec(
        queue_ms=60_000, stall_ms=40_000, execution_ms=3_600_000, total_ms=7_200_000
    )
    assert spec.retry.retries == 0
    assert (spec.parts, auction.total_micros_max) == (3, 77)


def test_parts_go_to_the_best_posted_price_unless_said_otherwise() -> None:
    assert parse_job_spec(LEAST.encode()).auction.mode == "auction"
    assert parse_job_spec((LEAST + "parts: auto\n").encode()).auction.mode == "posted"
    said = "parts: auto\nauction: {mode: auction}\n"
    assert parse_job_spec((LEAST + said).encode()).auction.mode == "auction"


@pytest.mark.parametrize(
    ("added", "line", "field", "rule", "value"),
    [
        ("  max_tokens: many\n", 8, "task.max_tokens", "must be an integer from 1 to 65536", "'many'"),
        ("  max_tokens: 0\n", 8, "task.max_tokens", "must be an integer from 1 to 65536", "'0'"),
        ('  max_tokens: "64"\n', 8, "task.max_tokens", "must be an integer from 1 to 65536", "'64'"),
        ("  max_tokens: 1:30\n", 8, "task.max_tokens", "must be an integer from 1 to 65536", "'1:30'"),
        ("  max_tokens: 0x40\n", 8, "task.max_tokens", "must be an integer from 1 to 65536", "'0x40'"),
        ("  max_tokens:\n", 8, "task.max_tokens", "must be an integer from 1 to 65536", "nothing"),
        ("  max_tokens: [1]\n", 8, "task.max_tokens", "must be an integer from 1 to 65536", "a list"),
        ("  seed: -1\n", 8, "task.seed", "must be an integer from 0 to 9223372036854775807", "'-1'"),
        (
            "  seed: 9223372036854775808\n",
            8,
            "task.seed",
            "must be an integer from 0 to 9223372036854775807",
            "'9223372036854775808'",
        ),
        (
            "  temperature: hot\n",
            8,
            "task.temperature",
            "must be a number from 0 to 10 with at most 3 decimals",
            "'hot'",
        ),
        (
            "  temperature: 0.8001\n",
            8,
            "task.temperature",
            "must be a number from 0 to 10 with at most 3 decimals",
            "'0.8001'",
        ),
        (
            "  temperature: .nan\n",
            8,
            "task.temperature",
            "must be a number from 0 to 10 with at most 3 decimals",
            "'.nan'",
        ),
        (
            "  temperature: 10.001\n",
            8,
            "task.temperature",
            "must be a number from 0 to 10 with at most 3 decimals",
            "'10.001'",
        ),
        ("  max_token: 5\n", 8, "task.max_token", "is not a field; did you mean max_tokens?", ""),
        ("  seed: 1\n  seed: 1\n", 9, "task.seed", "must be given only once", ""),
        ("seed: 1\n", 8, "seed", f"is not a field; known: {FIELDS}", ""),
        (
            "auction:\n  window: 2\n",
            9,
            "auction.window",
            "must be a duration from 1ms to 10m: a whole number and one of ms, s, m, h",
            "'2'",
        ),
        ("auction: {mode: dutch}\n", 8, "auction.mode", "must be one of auction, posted", "'dutch'"),
        (
            "auction: {max_price: 0.5}\n",
            8,
            "auction.max_price",
            "must be an integer from 0 to 1000000000000",
            "'0.5'",
        ),
        ("auction: [2s]\n", 8, "auction", "must be a mapping of fields to values", "a list"),
        (
            "resources: {ram: 1GB}\n",
            8,
            "resources.ram",
            "must be a size from 0B to 1024TiB: a whole number and one of B, KiB, MiB, GiB, TiB",
            "'1GB'",
        ),
        ("placement: {exclude: 12D3}\n", 8, "placement.exclude", "must be a list", "'12D3'"),
        (
            "placement:\n  exclude:\n    - 12D3\n",
            10,
            "placement.exclude[0]",
            "must be a peer id (12D3Koo…)",
            "'12D3'",
        ),
        (
            "verify: {profile: bf16}\n",
            8,
            "verify.profile",
            "must be one of exact14, exact21, homogeneous, native",
            "'bf16'",
        ),
        ("verify: {escape: 0.6}\n", 8, "verify.escape", ESCAPE, "'0.6'"),
        ("verify: {escape: 1e-12}\n", 8, "verify.escape", ESCAPE, "'1e-12'"),
        ("verify: {escape: .1}\n", 8, "verify.escape", ESCAPE, "'.1'"),
        (
            "verify: {lazy: 1}\n",
            8,
            "verify.lazy",
            "must be a share from 0 to 0.9, in whole 1/1,000,000",
            "'1'",
        ),
        (
            "verify: {escape: 1e-3, chunks: 2}\n",
            8,
            "verify.chunks",
            "must not be given together with verify.escape",
            "both",
        ),
        ("verify: half\n", 8, "verify", "must be a mapping of fields to values", "'half'"),
        (
            "verify: {chunks: some}\n",
            8,
            "verify.chunks",
            "must be an integer from 1 to 4096, or all, or auto",
            "'some'",
        ),
        ("verify: {verifiers: 0}\n", 8, "verify.verifiers", "must be an integer from 1 to 64", "'0'"),
        (
            "verify: {reveal: 11m}\n",
            8,
            "verify.reveal",
            "must be at most timeouts.total (600000ms)",
            "660000ms",
        ),
        (
            "timeouts:\n  total: 1m\n",
            9,
            "timeouts.total",
            "must be at least timeouts.execution (300000ms)",
            "60000ms",
        ),
        (
            "timeouts: {queue: 25h}\n",
            8,
            "timeouts.queue",
            "must be a duration from 1ms to 24h: a whole number and one of ms, s, m, h",
            "'25h'",
        ),
        (
            "timeouts: {queue: 1s}\nauction: {window: 2s}\n",
            9,
            "auction.window",
            "must be at most timeouts.queue (1000ms)",
            "2000ms",
        ),
        ("retry: {max: 16}\n", 8, "retry.max", "must be an integer from 0 to 15", "'16'"),
        ("parts: 0\n", 8, "parts", "must be an integer from 1 to 64, or auto", "'0'"),
        ("parts: some\n", 8, "parts", "must be an integer from 1 to 64, or auto", "'some'"),
        ("? [a]\n: 1\n", 8, "", "must have plain words as keys", "a list"),
    ],
)
def test_a_fault_names_line_field_rule_and_value(
    added: str, line: int, field: str, rule: str, value: str
) -> None:
    error = fault_of(LEAST + added)
    assert (error.line, error.field, error.rule, error.value) == (line, field, rule, value)
    assert error.exit_code == ExitCode.USAGE
    where = f"job.yaml: line {line}" + (f": {field}" if field else "")
    assert str(error) == f"{where}: {rule}" + (f", got {value}" if value else "")


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "rule"),
    [
        ("p2p/v1", "p2p/v2", 1, "apiVersion", "must be p2p/v1"),
        ("kind: Job", "kind: Pod", 2, "kind", "must be Job"),
        ("name: verse\n", "", 1, "name", "is required"),
        ("  model: kjv-2m\n", "", 5, "task.model", "is required"),
        (
            "name: verse",
            "name: a/b",
            3,
            "name",
            "must be letters, digits, '.', '_' and '-', beginning with a letter or digit",
        ),
        ("name: verse", f"name: {'x' * 65}", 3, "name", "must have 1 to 64 bytes"),
        ('"In the beginning"', "no", 7, "task.prompt", "must be text (put it in quotes)"),
        ('"In the beginning"', "", 7, "task.prompt", "must be text (put it in quotes)"),
        ('"In the beginning"', '""', 7, "task.prompt", "must have 1 to 32768 bytes"),
        ('"In the beginning"', "{a: b}", 7, "task.prompt", "must be text"),
        ('"In the beginning"', '"\\ud800"', 7, "task.prompt", "must be text without lone surrogates"),
        (
            "lm.generate",
            "lm.train",
            5,
            "task.workload",
            f"must be one of {', '.join(KINDS)}",
        ),
    ],
)
def test_what_must_be_there_must_be_right(old: str, new: str, line: int, field: str, rule: str) -> None:
    error = fault_of(LEAST.replace(old, new))
    assert (error.line, error.field, error.rule) == (line, field, rule)


@pytest.mark.parametrize(
    ("document", "line", "rule"),
    [
        (b"", 1, "must not be empty"),
        (b"# only a comment\n", 1, "must not be empty"),
        (b"- a list\n", 1, "must be a mapping of fields to values"),
        (b"kind: Job\nname: \xff\n", 2, "must be UTF-8"),
        (b"kind: Job\nname: [\n", 3, "must be YAML: "),
        (b"kind: Job\nname: a\x07b\n", 2, "must be YAML without control characters"),
        (b"a: 1\n---\nb: 2\n", 2, "must be YAML: "),
        (b"a: 1\nb: &x [1]\n", 2, "must not use anchors"),
        (b"a: 1\nb: *x\n", 2, "must not use aliases"),
        (b"a: 1\nb: !!python/object/apply:os.getcwd []\n", 2, "must not use tags"),
        (b"[" * 60_000, 1, "must not be nested deeper than 8 levels"),
        (b"{a: " * 15_000, 1, "must not be nested deeper than 8 levels"),
        (b"#" * 524_289, 1, "must have at most 524288 bytes"),
    ],
)
def test_a_file_that_is_no_plain_document_is_refused(document: bytes, line: int, rule: str) -> None:
    error = fault_of(document)
    assert (error.line, error.field) == (line, "")
    assert error.rule.startswith(rule)


def test_a_tree_of_aliases_never_grows() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    assert fault_of("\n".join(lines)).rule == "must not use anchors"


def test_a_long_value_is_shortened() -> None:
    error = fault_of(LEAST + f"  seed: {'9' * 50_000}\n")
    assert len(error.value) < 80


def test_a_value_cannot_write_to_the_terminal() -> None:
    assert fault_of(LEAST + '  seed: "\\x1b[2J"\n').value == r"'\x1b[2J'"


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't read the job file"):
        load_job_spec(tmp_path / "none.yaml")


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_not_crashed_on(document: bytes) -> None:
    fault_of(document)


@given(st.data())
def test_a_damaged_job_file_is_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(EXAMPLE.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    try:
        parse_job_spec(bytes(raw))
    except JobSpecError as error:
        assert error.rule
        assert 1 <= error.line <= raw.count(b"\n") + raw.count(b"\r") + 3
