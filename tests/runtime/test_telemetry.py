from __future__ import annotations

import io
import json
import logging
import os
import pty
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TextIO

import pytest

from penstock.runtime.settings import LogSettings
from penstock.runtime.telemetry import close_logging, configure_logging, flush_logging, get_logger
from penstock.runtime.telemetry.writer import LineWriter

log = get_logger("penstock.tests.telemetry")


@pytest.fixture(autouse=True)
def _undone() -> Iterator[None]:
    """The root logger is the whole process's: leave it as it was."""
    levels = {name: logging.getLogger(name).level for name in ("", "penstock")}
    yield
    close_logging()
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@contextmanager
def without_pytest_s_handlers() -> Iterator[None]:
    """They render every record too, and raise where it cannot be shown."""
    root = logging.getLogger()
    before = list(root.handlers)
    root.handlers[:] = [handler for handler in before if type(handler).__module__.startswith("penstock")]
    try:
        yield
    finally:
        root.handlers[:] = before


def console(level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    configure_logging(LogSettings(level=level, format="console"), stream)  # type: ignore[arg-type]
    return stream


def lines(stream: io.StringIO) -> list[str]:
    assert flush_logging()
    return stream.getvalue().splitlines()


def records(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines(stream)]


@pytest.fixture
def as_json() -> io.StringIO:
    stream = io.StringIO()
    configure_logging(LogSettings(), stream)
    return stream


# The two forms -------------------------------------------------------------------------------------------------------


def test_on_a_terminal_a_line_is_time_level_event_and_keys() -> None:
    stream = console()
    log.info("batch added", stream="EVENT_STREAM", entries=12, ok=True, nobody=None, ratio=0.25)
    (line,) = lines(stream)
    clock, rest = line.split(" ", 1)
    assert len(clock) == len("07:42:11.123")
    assert (
        rest == "info     " + "batch added".ljust(48) + " stream=EVENT_STREAM entries=12 ok=true nobody=none ratio=0.25"
    )


def test_elsewhere_a_line_is_a_json_object_with_time_in_utc(as_json: io.StringIO) -> None:
    log.warning("batch refused", stream="주문", entries=12)
    (record,) = records(as_json)
    assert list(record) == ["time", "level", "logger", "event", "stream", "entries"]
    assert record["time"].endswith("Z")
    assert abs(datetime.fromisoformat(record["time"]).timestamp() - time.time()) < 60
    del record["time"]
    assert record == {
        "level": "warning",
        "logger": "penstock.tests.telemetry",
        "event": "batch refused",
        "stream": "주문",
        "entries": 12,
    }


def test_auto_takes_the_console_on_a_terminal_with_colours_unless_they_are_not_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def shown() -> str:
        controller, terminal = pty.openpty()
        with os.fdopen(terminal, "w") as stream:
            configure_logging(LogSettings(), stream)
            log.error("it broke")
            close_logging()
            text = os.read(controller, 4096).decode()
        os.close(controller)
        return text

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[31merror" in shown()
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown()
    assert "error    it broke" in text
    assert "\x1b" not in text


def test_levels_below_the_chosen_one_are_not_written() -> None:
    stream = console("warning")
    log.info("quiet")
    log.warning("loud")
    assert [line.split()[-1] for line in lines(stream)] == ["loud"]


def test_libraries_come_through_the_same_lines_and_never_below_info(as_json: io.StringIO) -> None:
    configure_logging(LogSettings(level="debug"), as_json)
    logging.getLogger("hpack").debug("header authorization: secret")
    logging.getLogger("a_library.part").info("Running on %s", "http://127.0.0.1:47170")
    log.debug("ours")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old ways", DeprecationWarning, stacklevel=1)
    library, ours, warned = records(as_json)
    assert (library["logger"], library["event"]) == ("a_library.part", "Running on http://127.0.0.1:47170")
    assert (ours["level"], ours["event"]) == ("debug", "ours")
    assert (warned["level"], warned["logger"]) == ("warning", "py.warnings")


def test_on_a_terminal_a_library_s_line_says_whose_it_is() -> None:
    stream = console()
    logging.getLogger("a_library.part").info("Running")
    assert lines(stream)[0].endswith("logger=a_library.part")


def test_an_exception_is_shown_with_its_traceback_below_the_line_and_as_a_key_in_json(as_json: io.StringIO) -> None:
    def both() -> None:
        try:
            raise ExceptionGroup("several", [ValueError("a"), OSError("redis://u:s3cret@h")])
        except ExceptionGroup:
            log.exception("it broke")

    both()
    (record,) = records(as_json)
    assert "ValueError: a" in record["exception"]
    assert "redis://u:***@h" in record["exception"]
    stream = console()
    both()
    first, *traceback = lines(stream)
    assert first.endswith("it broke")
    assert all(line.startswith("    ") for line in traceback)
    assert "s3cret" not in stream.getvalue()


# Secrets and forgeries -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_secret_gets_into_the_log_by_any_way(form: str) -> None:
    stream = io.StringIO()
    configure_logging(LogSettings(format=form), stream)  # type: ignore[arg-type]

    class Holder:
        def __repr__(self) -> str:
            return "Holder(redis://u:s3cret@h)"

    log.info(
        "cannot reach redis://u:s3cret@h",
        url="postgresql://u:s3cret@h/d",
        password="s3cret",
        headers={"Authorization": "s3cret", "Cookie": ["s3cret"], "Accept": "*/*"},
        error=ConnectionError("redis://u:s3cret@h is away"),
        holder=Holder(),
        holders=[Holder(), {"in": Holder()}],
        raw=b"Bearer s3cret-s3cret",
    )
    logging.getLogger("lib").info("connect to %s with %r", "redis://u:s3cret@h", {"token": "s3cret"})
    text = "\n".join(lines(stream))
    assert "s3cret" not in text
    assert text.count("***") >= 10
    assert "*/*" in text


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_value_cannot_forge_a_line_or_send_codes_to_the_terminal(form: str) -> None:
    stream = io.StringIO()
    configure_logging(LogSettings(format=form), stream)  # type: ignore[arg-type]
    evil = "x\n07:42:11.123 info     all is well\r\x1b[2J\u2028\x9b31m"
    log.info(f"request {evil}", user_agent=evil, nested={evil: [evil]})
    written = stream.getvalue() if flush_logging() else ""
    assert written.count("\n") == 1
    assert "\x1b" not in written
    assert "\r" not in written
    if form == "console":
        assert written.rstrip("\n").isprintable()


def test_values_that_cannot_be_shown_cost_the_value_and_not_the_run(as_json: io.StringIO) -> None:
    class Vicious:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    log.info("odd values", nan=float("nan"), keys={(1, 2): 3}, when=datetime(2026, 1, 2), kind=int, lone="\ud800")
    with without_pytest_s_handlers():
        log.info("vicious", value=Vicious())
        logging.getLogger("lib").info("wrong %d arguments", "x", "y")
    odd, vicious, wrong = records(as_json)
    assert odd["event"] == "odd values"
    assert "2026-01-02" in odd["when"]
    assert (vicious["event"], vicious["log_error"][:12]) == ("vicious", "RuntimeError")
    assert (wrong["event"], wrong["log_error"][:9]) == ("wrong %d arguments", "TypeError")


# A reader that stops reading, or goes away ---------------------------------------------------------------------------


def _writer(stream: TextIO | None, capacity: int = 100) -> LineWriter:
    return LineWriter(stream, lambda count: f"{count} dropped\n", capacity)


def test_a_reader_that_stops_reading_holds_nobody_up_and_is_told_later_what_it_missed() -> None:
    """Twenty times what pipe and queue can hold: every write returns, and afterwards the gap is named."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream, os.fdopen(reading, "rb") as reader:
        writer = _writer(stream)
        line = "x" * 1023 + "\n"
        began = time.monotonic()
        for _ in range(4000):
            writer.write(line)
        assert time.monotonic() - began < 5
        assert not writer.flush(0.05)
        read = bytearray()
        while len(_heard(read)) + _told(read) < 4000:
            read += os.read(reader.fileno(), 1 << 16)
        assert writer.flush(5)
        writer.close(1)
    assert _told(read) > 3000
    assert len(_heard(read)) + _told(read) == 4000


def _heard(read: bytearray) -> list[bytes]:
    return [line for line in read.splitlines(keepends=True) if line.startswith(b"x") and line.endswith(b"\n")]


def _told(read: bytearray) -> int:
    return sum(int(line.split()[0]) for line in read.splitlines(keepends=True) if line.endswith(b" dropped\n"))


def test_a_reader_that_goes_away_ends_the_writing_and_nothing_else() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        writer = _writer(stream)
        writer.write("heard\n")
        assert writer.flush(5)
        os.close(reading)
        for _ in range(300):
            writer.write("unheard\n")
        assert writer.flush(5)  # never can be written: no reason to wait
        writer.close(1)


def test_a_full_disk_ends_no_log() -> None:
    """What waits meanwhile is written once there is room, and what did not fit in the queue is told."""
    reading, writing = os.pipe()
    with open("/dev/full", "w") as stream, os.fdopen(reading, "rb") as reader:
        writer = _writer(stream)
        writer.write("x first\n")
        assert not writer.flush(0.2)  # it is not given up
        for number in range(300):
            writer.write(f"x {number}\n")
        os.dup2(writing, stream.fileno())  # room again
        os.close(writing)
        assert writer.flush(30)
        writer.write("x last\n")
        writer.close(30)
        read = bytearray(os.read(reader.fileno(), 1 << 16))
    heard = _heard(read)
    assert heard[:2] == [b"x first\n", b"x 0\n"]
    assert heard[-1] == b"x last\n"
    assert _told(read) >= 200
    assert len(heard) + _told(read) == 302


def test_without_a_stream_everything_is_dropped() -> None:
    writer = _writer(None)
    writer.write("x\n")
    assert writer.flush(0)
    writer.close(0)


def test_a_stream_that_was_closed_under_it_is_no_error() -> None:
    stream = io.StringIO()
    writer = _writer(stream)
    stream.close()
    writer.write("x\n")
    assert writer.flush(5)


def test_lines_are_written_in_order_and_a_closed_writer_writes_no_more() -> None:
    stream = io.StringIO()
    writer = _writer(stream, capacity=10_000)
    for number in range(1000):
        writer.write(f"{number}\n")
    writer.close(5)
    writer.write("late\n")
    assert stream.getvalue() == "".join(f"{number}\n" for number in range(1000))


_PROGRAM = """
import sys
from penstock.runtime.settings import LogSettings
from penstock.runtime.telemetry import configure_logging, get_logger
configure_logging(LogSettings(format="console"), {stream})
log = get_logger("penstock.program")
for number in range({count}):
    log.info("line", number=number)
sys.exit(7)
"""


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("redirection", ["| head -n 1 >/dev/null", ">&- 2>&-", ">/dev/full 2>&1"])
def test_a_program_whose_output_is_gone_ends_with_its_own_exit_code(stream: str, redirection: str) -> None:
    program = _PROGRAM.format(stream=f"sys.{stream}", count=5000)
    both = "2>&1 " + redirection if redirection.startswith("|") else redirection
    done = subprocess.run(
        ["bash", "-c", f'"$1" -c "$2" {both}; exit "${{PIPESTATUS[0]}}"', "-", sys.executable, program],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (7, "")


def test_the_last_lines_before_the_exit_are_written() -> None:
    program = _PROGRAM.format(stream="None", count=500)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1].endswith("number=499")
    assert done.stdout == ""
