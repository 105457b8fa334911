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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import BinaryIO
from urllib.parse import quote
from uuid import UUID

import click
from attrs import Factory, define, field

from ...actors.event import event_id_of, new_event_id
from ...runtime.cli import CommandError, json_option
from ...runtime.output import notice
from ...runtime.printable import printable_json
from ..answers import Accepted, Again, Refused, Smaller, Verdict, read_answer
from .remote import NotConnected, Remote, Unreachable, remote_of, url_option

__all__ = ["publish"]

BATCH = 500
"""Events in one request: large enough to be fast, small enough for progress to be seen."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0

_OF_EACH_EVENT = (202, 503)
"""Answers that may speak of single events; any other that refuses does so with the request."""


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

    Prints the event's id and its entry's id, a line each. An outage, or that of a proxy, is waited for: the same
    ids are sent again. Exit code 1 if any event was not published; which ones stands on standard error. What has no
    outcome at the end (--retry-for is over, Ctrl-C) stands there as lines with their ids, to be published again.
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
    event_id: UUID = field(factory=new_event_id)
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
    return _Line(number, _with(text, {**template, "eventId": str(event_id)}), event_id)


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
class _Outage:
    """How long to go on while events are not accepted, and how long to pause between two attempts."""

    longest: float
    _ends: float | None = None
    _pause: float = _FIRST_PAUSE

    def is_over(self) -> None:
        self._ends, self._pause = None, _FIRST_PAUSE

    def wait(self, asked: float, why: str) -> bool:
        """Whether to try again, after a pause of `asked` seconds or so; not if it has lasted for its longest."""
        now = time.monotonic()
        self._ends = now + self.longest if self._ends is None else self._ends
        if now >= self._ends:
            return False
        notice(f"penstock: waiting: {why}")
        time.sleep(min(max(asked, self._pause), self._ends - now, _LONGEST_PAUSE))
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return True


@define
class _Publishing:
    """What is published to one stream, and how it goes."""

    remote: Remote
    stream: str
    retry_for: float
    as_json: bool
    total: int = 0
    failed: int = 0
    _outage: _Outage = field(default=Factory(lambda self: _Outage(self.retry_for), takes_self=True))
    _reached: bool = field(default=False)
    """Whether a request may have come through: before, what refuses a connection is no outage, and nothing was sent."""

    def send(self, lines: Sequence[_Line]) -> None:
        """Publish some events; goes on in an outage, and returns when each has its outcome.

        However else it ends, the events without an outcome are printed, with their ids.
        """
        self.total += len(lines)
        for line in lines:
            if line.complaint:
                self._fail(line, line.complaint)
        waiting = [line for line in lines if not line.complaint]
        limit = BATCH
        try:
            while waiting:
                batch = waiting[:limit]
                verdicts = self._attempt(batch)
                waiting = [*self._take(batch, verdicts), *waiting[limit:]]
                if any(isinstance(each, Smaller) for each in verdicts):
                    limit = len(batch) // 2
                elif self._is_clear(verdicts, len(waiting)):
                    limit = min(2 * limit, BATCH)
        finally:
            if waiting and self._reached:
                _hand_back(waiting, lines[-1].number)

    def finish(self) -> None:
        """Raise `CommandError` if any event was not published."""
        if self.total == 0:
            raise CommandError("there were no events to publish")
        if self.failed:
            raise CommandError(self._sum())

    def _attempt(self, lines: Sequence[_Line]) -> list[Verdict]:
        """One request, and what it says of each event; raises `CommandError` if it says that none will ever do."""
        body = "".join(line.text + "\n" for line in lines).encode()
        path = f"/api/v1/streams/{quote(self.stream, safe='')}/events"
        before, self._reached = self._reached, True  # an interruption may come at any time
        try:
            answer = self.remote.request("POST", path, body, "application/x-ndjson")
        except NotConnected as error:
            self._reached = before
            if not before:  # that is an address, not an outage
                raise
            return [Again(str(error))] * len(lines)
        except Unreachable as error:
            return [Again(str(error), unknown=True)] * len(lines)
        verdicts = read_answer(answer.status, answer.headers, answer.body, [line.event_id for line in lines])
        if answer.status not in _OF_EACH_EVENT and isinstance(verdicts[0], Refused):
            self._reached = before
            raise CommandError(verdicts[0].why)
        return [each.alone if isinstance(each, Smaller) and len(lines) == 1 else each for each in verdicts]

    def _take(self, lines: Sequence[_Line], verdicts: Sequence[Verdict]) -> list[_Line]:
        """Tell the outcomes; the lines that have none."""
        rest = []
        for line, verdict in zip(lines, verdicts, strict=True):
            if isinstance(verdict, Accepted):
                self._done(verdict)
            elif isinstance(verdict, Refused):
                self._fail(line, verdict.why)
            else:
                rest.append(line)
        return rest

    def _is_clear(self, verdicts: Sequence[Verdict], waiting: int) -> bool:
        """Whether nothing is in the way; else after a pause, or `CommandError` when it has been for long enough."""
        troubles = [each for each in verdicts if isinstance(each, Again)]
        if not troubles:
            self._outage.is_over()
            return True
        if not self._outage.wait(max(each.after for each in troubles), troubles[0].why):
            self.failed += waiting
            raise CommandError(f"gave up after {self.retry_for:g} s: {troubles[0].why.rstrip('.')}. {self._sum()}")
        return False

    def _done(self, accepted: Accepted) -> None:
        result = {"eventId": str(accepted.event_id), "entryId": accepted.entry_id, "durable": accepted.durable}
        click.echo(json.dumps(result) if self.as_json else f"{accepted.event_id}  {accepted.entry_id or '-'}")

    def _fail(self, line: _Line, why: str) -> None:
        self.failed += 1
        notice(f"line {line.number}: {why}")

    def _sum(self) -> str:
        return f"{self.failed} of {self.total} events were not published"


def _hand_back(lines: Sequence[_Line], last: int) -> None:
    notice(
        "penstock: these events have no outcome. Publish the lines again as they stand here, with their ids; "
        f"of a file, what is behind line {last} was not sent:"
    )
    for line in lines:
        click.echo(printable_json(line.text), err=True)
