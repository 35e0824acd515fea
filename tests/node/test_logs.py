"""What never reaches a log, and what a log's reader is kept safe from."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator

import pytest
import structlog

from p2p_node import logs
from p2p_node.logs import REDACTED, configure_logging, hide

SEED = bytes(range(100, 132))


@pytest.fixture(autouse=True)
def forgotten_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logs, "_hidden", set())
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def logged(form: str, capsys: pytest.CaptureFixture[str], event: str = "event", **values: object) -> str:
    configure_logging(form, level=logging.DEBUG)
    structlog.get_logger().debug(event, **values)
    line = capsys.readouterr().err
    assert line
    return line


@pytest.fixture(params=["console", "json"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    "spelling",
    [
        SEED.hex(),
        SEED.hex().upper(),
        base64.b64encode(SEED).decode(),
        base64.urlsafe_b64encode(SEED).decode(),
        f"bad seed {SEED!r}",
    ],
)
def test_a_hidden_key_is_struck_out_however_it_is_spelt(
    form: str, capsys: pytest.CaptureFixture[str], spelling: str
) -> None:
    assert spelling[5:25] in logged(form, capsys, why=spelling).replace("\\\\", "\\")
    hide(SEED)
    line = logged(form, capsys, why=spelling)
    assert REDACTED in line
    assert spelling[5:25] not in line.replace("\\\\", "\\")


@pytest.mark.parametrize("secret", ["correct horse battery", "Grüße, 'Welt' \"x\""])
def test_a_passphrase_is_struck_out_of_messages_and_tracebacks(
    form: str, capsys: pytest.CaptureFixture[str], secret: str
) -> None:
    hide(secret)
    configure_logging(form)
    try:
        raise ValueError(f"no such file: {secret}")
    except ValueError:
        structlog.get_logger().exception(f"failed on {secret}", nested={"why": [secret]})
    line = capsys.readouterr().err
    assert line.count(REDACTED) == 3
    assert secret not in line
    assert "ValueError" in line


def test_libraries_that_log_are_no_way_round(capsys: pytest.CaptureFixture[str]) -> None:
    token = "token-of-the-api"
    hide(token)
    formatter = logs._StrikingFormatter()
    try:
        raise OSError(f"GET /?token={token}")
    except OSError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "x", 1, "asked with %s", (token,), info)
    line = formatter.format(record)
    assert line.count(REDACTED) == 2
    assert token not in line


@pytest.mark.parametrize("name", ["prompt", "text", "token", "passphrase", "seed", "data", "output"])
def test_what_stands_under_such_names_is_left_out(
    form: str, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert "in confidence" not in logged(form, capsys, **{name: "in confidence"})


def test_bytes_are_cut_to_what_tells_them_apart(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = logged(form, capsys, key=b"\x01" * 8 + b"a job's content")
    assert "01" * 8 in line
    assert "(23 bytes)" in line
    assert "content" not in line


def test_a_peers_words_are_bounded_and_do_not_act_on_a_terminal(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = logged(form, capsys, why="\x1b[2J\nforged=line " + "x" * 100_000)
    assert len(line) < 1_000
    assert line.count("\n") == 1
    assert "\x1b[2J" not in line


def test_a_secret_too_short_to_be_one_does_not_blank_the_log(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hide("e")
    assert "event" in logged(form, capsys)
