"""``penstock ledger``: what came of events."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO
from uuid import UUID

import click

from ...runtime.cli import CommandError, json_option
from ...runtime.output import echo_json, echo_table
from .dead_letters import local_time
from .remote import Remote, remote_of, url_option

__all__ = ["ledger"]

BASE = "/api/v1/ledger"

CHUNK = 1_000
"""Events in one request."""

_SHOWN = 1_000
"""Lines for people: beyond that only what is not done is worth reading."""


@click.command(short_help="Say what came of events.")
@click.argument("event_ids", nargs=-1, metavar="[EVENT_ID]...")
@click.option("--from-file", type=click.File("r"), metavar="FILE", help="Ids, one a line (- for standard input), as "
              "'penstock publish' prints them.")  # fmt: skip
@click.option("--summary", is_flag=True, help="How many events of each stream and group came to what.")
@click.option("--open", "open_only", is_flag=True, help="Show only what is not done.")
@click.option("--check", is_flag=True, help="Exit code 1 unless every event is done in every group.")
@click.option("--scan", type=click.IntRange(0), metavar="N", help="Entries, and jobs, that are read at the most to "
              "find what nobody has handled.")  # fmt: skip
@url_option
@json_option
def ledger(
    event_ids: tuple[str, ...],
    from_file: TextIO | None,
    summary: bool,
    open_only: bool,
    check: bool,
    scan: int | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Say what came of each event, in each group that is declared to read its stream.

    done: handled, or nothing to do for the group. retrying: an attempt failed, another will come. dead, expired: it was
    given up; see 'penstock dead-letters'. lost: it was taken from its stream before the group had it. waiting: in the
    outbox, in its stream, or in its work queue. unknown: there is no trace of it.
    """
    remote = remote_of(url)
    if summary:
        if event_ids or from_file is not None:
            raise click.UsageError("--summary is of all events.")
        _show_summary(remote.get(BASE)["lines"], as_json)
        return
    asked = list(dict.fromkeys([*map(_event_id, event_ids), *_read(from_file)]))
    if not asked:
        raise click.UsageError("Give event ids, --from-file or --summary.")
    counts: Counter[str] = Counter()
    rows: list[list[Any]] = []
    for event in _ask(remote, asked, scan):
        counts.update(fate["fate"] for fate in event["fates"])
        shown = [fate for fate in event["fates"] if not open_only or fate["fate"] != "done"]
        if as_json and shown:
            echo_json({**event, "fates": shown})
        rows += [_row(event["eventId"], fate) for fate in shown]
    if not as_json:
        echo_table(rows[:_SHOWN], ["event", "stream", "group", "fate", "why", "entry", "since"])
        if len(rows) > _SHOWN:
            click.echo(f"… and {len(rows) - _SHOWN:,} more; --open shows what is not done, --json all", err=True)
    if len(asked) > 1:
        click.echo(f"{len(asked):,} events: {_told(counts)}", err=True)
    if check and set(counts) - {"done"}:
        raise CommandError(f"not every event is done: {_told(counts)}")


def _event_id(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise CommandError(f"{text[:60]!r} is no event id", 2) from None


def _read(file: TextIO | None) -> Iterator[str]:
    """The ids of a file: the first word of each line, or the member ``eventId`` of a line of JSON."""
    for number, line in enumerate(file or (), 1):
        words = line.split()
        if not words:
            continue
        try:
            found = json.loads(line)["eventId"] if line.lstrip().startswith("{") else words[0]
            yield str(UUID(found))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CommandError(f"line {number} begins with no event id: {line.strip()[:60]!r}", 2) from None


def _ask(remote: Remote, event_ids: Sequence[str], scan: int | None) -> Iterator[dict[str, Any]]:
    with _bar(len(event_ids)) as advance:
        for start in range(0, len(event_ids), CHUNK):
            chunk = event_ids[start : start + CHUNK]
            body = {"eventIds": chunk, **({} if scan is None else {"scan": scan})}
            answer = remote.request("POST", BASE, json.dumps(body).encode(), "application/json")
            if answer.status != 200:
                raise CommandError(answer.complaint)
            yield from answer.json()["events"]
            advance(len(chunk))


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    if total <= CHUNK or not sys.stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=total, label="asking", file=sys.stderr) as bar:
        yield bar.update


def _row(event_id: str, fate: dict[str, Any]) -> list[Any]:
    return [event_id, fate["stream"], fate["group"], fate["fate"], fate["reason"], fate["entryId"],
            local_time(fate["since"])]  # fmt: skip


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {fate}" for fate, count in counts.most_common())


def _show_summary(lines: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        echo_json(lines)
        return
    names = ("done", "retrying", "dead", "expired", "lost", "outbox", "unread", "inWork")
    rows = [[line["stream"], line["group"], *(line[name] for name in names)] for line in lines]
    echo_table(rows, ["stream", "group", "done", "retrying", "dead", "expired", "lost", "outbox", "unread", "in work"])
