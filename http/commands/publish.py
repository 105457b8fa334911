"""``penstock publish``: events onto a stream of a running system, however long an outage takes.

Every event has its id before it is first sent. What is sent again after an outage, or after an answer that never came,
is therefore the same event, and one effect. It goes out as it is written, so that the server sees each number with all
its digits.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO
from urllib.parse import quote

import click
from attrs import define, field

from ...actors.event import event_id_of, new_event_id
from ...runtime.cli import CommandError, json_option
from .remote import Remote, Unreachable, remote_of, url_option

__all__ = ["publish"]

BATCH = 500
"""Events in one request: large enough to be fast, small enough for progress to be seen."""

_LONGEST_PAUSE = 5.0


@click.command(short_help="Publish events to a stream of a running system.")
@click.argument("stream")
@click.argument("file", type=click.File("rb"), required=False)
@click.option("--type", "event_type", metavar="TYPE", help="The event type; each line of FILE is then the data alone.")
@click.option("--data", metavar="JSON", help="The data of one event, instead of FILE.")
@click.option("--key", metavar="KEY", help="What must stay in order among itself.")
@click.option("--event-id", metavar="UUID", help="The id of the one event of --data.")
@click.option(
    "--retry-for", type=click.FloatRange(0), default=60.0, show_default=True, help="Seconds to go on in an outage."
)
@url_option
@json_option
def publish(
    stream: str,
    file: BinaryIO | None,
    event_type: str | None,
    data: str | None,
    key: str | None,
    event_id: str | None,
    retry_for: float,
    url: str | None,
    as_json: bool,
) -> None:
    """Publish events to STREAM of a running system.

    One event with --type and --data, or one event a line (NDJSON) from FILE or, with -, from standard input: each line
    is {"eventType": …, "data": …, "eventId"?, "key"?, "timestamp"?}, or the data alone where --type is given.

    Prints the event's id and its entry's id, a line each. An outage is waited for: the same ids are sent again. Exit
    code 1 if any event was not published; which ones stands on standard error.
    """
    if (data is None) == (file is None):
        raise click.UsageError("Give either --data or a FILE (- for standard input).")
    if data is not None and event_type is None:
        raise click.UsageError("--data needs --type.")
    if event_id is not None and data is None:
        raise click.UsageError("--event-id is for the one event of --data.")
    work = _Publishing(remote_of(url), stream, retry_for, as_json)
    template = {name: value for name, value in (("eventType", event_type), ("key", key)) if value is not None}
    if data is not None:
        extra = {} if event_id is None else {"eventId": event_id}
        # Arguments that are no UTF-8 have half surrogate pairs in the place of their bytes.
        work.send([_read(1, data.encode(errors="surrogateescape"), {**template, **extra})])
    elif file is not None:
        for lines in _batches(file):
            work.send([_read(number, line, template) for number, line in lines])
    work.finish()


# Reading -------------------------------------------------------------------------------------------------------------


_BLANKS = str.maketrans("\t\r\n", "   ")
"""JSON has them only between its tokens; an event is to be one line."""


@define
class _Line:
    """One event: where it came from, and the event as a line of NDJSON, or why it is none."""

    number: int
    text: str = ""
    complaint: str = ""


def _read(number: int, line: bytes, template: Mapping[str, str]) -> _Line:
    try:
        text = line.decode().translate(_BLANKS).strip(" ")
        value = json.loads(text)
    except UnicodeDecodeError as error:
        return _Line(number, complaint=f"byte {error.start + 1} is not UTF-8")
    except (ValueError, RecursionError) as error:
        return _Line(number, complaint=f"malformed JSON: {error}")
    if "eventType" in template:
        text, value = f'{{"data": {text}}}', {"data": value}
    if not isinstance(value, dict):
        return _Line(number, complaint="an event is a JSON object")
    given = {**value, **template}.get("eventId")
    event_id = new_event_id() if given is None else event_id_of(given)
    if event_id is None:
        return _Line(number, complaint="eventId: must be a UUID, written with dashes")
    return _Line(number, _with(text, {**template, "eventId": str(event_id)}))


def _with(text: str, members: Mapping[str, str]) -> str:
    """The JSON object with these members instead of its own; of two of a name, JSON's readers take the last."""
    inside = text[1:-1].strip()
    return f"{{{inside}{', ' if inside else ''}{json.dumps(members)[1:]}"


def _batches(file: BinaryIO) -> Iterator[list[tuple[int, bytes]]]:
    """The lines as they come: a slow writer's lines are not held back until there are many."""
    lines: list[tuple[int, bytes]] = []
    with _progress(file) as advance:
        for number, line, size in _lines(file):
            lines.append((number, line))
            if len(lines) == BATCH or size:
                yield lines
                lines = []
            if size:
                advance(size)
    if lines:
        yield lines


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes, int]]:
    """Each line that is not blank with its number; with the last one of each read, how many bytes were read."""
    rest, number, end = b"", 0, False
    while not end:
        read = os.read(file.fileno(), 1 << 16)
        end = not read
        *whole, rest = (rest + read).split(b"\n") if read else (rest, b"")
        found = []
        for line in whole:
            number += 1
            if line.strip():
                found.append((number, line))
        for index, (place, line) in enumerate(found, 1):
            yield place, line, len(read) if index == len(found) else 0


@contextmanager
def _progress(file: BinaryIO) -> Iterator[Callable[[int], None]]:
    """What to call with each number of bytes that are done; on a terminal, for what has a length, it moves a bar."""
    size = os.fstat(file.fileno()).st_size
    if not sys.stderr.isatty() or size <= 1 << 16:
        yield lambda _: None
        return
    with click.progressbar(length=size, label="publishing", file=sys.stderr) as bar:
        yield bar.update


# Sending -------------------------------------------------------------------------------------------------------------


@define
class _Publishing:
    """What is published to one stream, and how it goes."""

    remote: Remote
    stream: str
    retry_for: float
    as_json: bool
    total: int = 0
    failed: int = 0
    _reached: bool = field(default=False)

    def send(self, lines: list[_Line]) -> None:
        """Publish some events; goes on in an outage, and returns when each has its result."""
        self.total += len(lines)
        for line in lines:
            if line.complaint:
                self._fail(line, line.complaint)
        waiting = [line for line in lines if not line.complaint]
        until = time.monotonic() + self.retry_for
        pause = 0.25
        while waiting:
            waiting, wait, why = self._attempt(waiting)
            left = until - time.monotonic()
            if waiting and left <= 0:
                for line in waiting:
                    self._fail(line, why)
                raise CommandError(f"gave up after {self.retry_for:g} s: {why} {self._sum()}")
            if waiting:
                click.echo(f"penstock: waiting: {why}", err=True)
                time.sleep(min(max(wait, pause), left, _LONGEST_PAUSE))
                pause = min(2 * pause, _LONGEST_PAUSE)

    def finish(self) -> None:
        """Raise `CommandError` if any event was not published."""
        if self.total == 0:
            raise CommandError("there were no events to publish")
        if self.failed:
            raise CommandError(self._sum())

    def _attempt(self, lines: list[_Line]) -> tuple[list[_Line], float, str]:
        """One request; what is to be sent again, after how many seconds at least, and why."""
        body = "".join(line.text + "\n" for line in lines).encode()
        path = f"/api/v1/streams/{quote(self.stream, safe='')}/events"
        try:
            answer = self.remote.request("POST", path, body, "application/x-ndjson")
        except Unreachable as error:
            if not self._reached:  # nothing ever answered there: that is an address, not an outage
                raise
            return lines, 0.0, f"{error}."
        self._reached = True
        if answer.status == 202:
            results = [json.loads(text) for text in answer.body.splitlines()]
            return self._take(lines, results)
        if answer.status == 503:
            problem = answer.json() or {}
            if isinstance(problem.get("results"), list):
                again, _, why = self._take(lines, problem["results"])
                return again, answer.retry_after, why or answer.complaint
            return lines, answer.retry_after, answer.complaint
        raise CommandError(answer.complaint)

    def _take(self, lines: list[_Line], results: list[dict[str, Any]]) -> tuple[list[_Line], float, str]:
        again, wait, why = [], 0.0, ""
        for line, result in zip(lines, results, strict=True):
            error = result.get("error")
            if error is None:
                self._done(result)
            elif error.get("status") == 503:
                again.append(line)
                wait = max(wait, float(error.get("retryAfter", 0)))
                why = why or str(error.get("detail"))
            else:
                self._fail(line, str(error.get("detail")))
        return again, wait, why

    def _done(self, result: dict[str, Any]) -> None:
        click.echo(json.dumps(result) if self.as_json else f"{result['eventId']}  {result['entryId'] or '-'}")

    def _fail(self, line: _Line, why: str) -> None:
        self.failed += 1
        click.echo(f"line {line.number}: {why}", err=True)

    def _sum(self) -> str:
        return f"{self.failed} of {self.total} events were not published"
