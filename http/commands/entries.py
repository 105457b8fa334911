"""``penstock range`` and ``info``: the entries of a stream, and what Redis says of it (XRANGE, XINFO)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

import click

from ...runtime.cli import json_option
from ...runtime.output import duration, echo_json, echo_table
from .remote import remote_of, url_option

__all__ = ["info", "range_command", "stream_path"]

SHORT = 80
"""Characters of an event's data that a line shows."""


def stream_path(stream: str) -> str:
    """The path of a stream, whatever its name has in it."""
    return f"/api/v1/streams/{quote(stream, safe='')}"


@click.command("range", short_help="Show the entries of a stream of a running system (XRANGE).")
@click.argument("stream")
@click.option("--from", "first", metavar="ID|TIME", help="Begin with this entry, or at this time. (ID: behind it.)")
@click.option("--to", "last", metavar="ID|TIME", help="End with this entry, or at this time. (ID: before it.)")
@click.option("--reverse", is_flag=True, help="The youngest first (XREVRANGE).")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="Entries at the most.")
@click.option("--group", metavar="NAME", help="Say how each entry stands in this group.")
@url_option
@json_option
def range_command(
    stream: str,
    first: str | None,
    last: str | None,
    reverse: bool,
    limit: int,
    group: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Show entries of STREAM (all its partitions together, or by a partition's key that one), oldest first.

    Times are ISO 8601, with an offset or in the system's zone, or milliseconds. With --group, each entry is NEW (not
    given to the group yet), DELIVERED (its consumer has it and may be at work on it), PENDING (left lying; it is taken
    over by the next process that looks) or ACK (given and acknowledged, or the group was made behind it).
    """
    given = {"from": first, "to": last, "group": group, "limit": limit, "reverse": "true" if reverse else None}
    query = urlencode({name: value for name, value in given.items() if value is not None})
    found = remote_of(url).get(f"{stream_path(stream)}/entries?{query}")
    if as_json:
        echo_json(found)
        return
    shown = found["entries"]
    is_spread = len({each["partition"] for each in shown}) > 1
    leading = [*(["partition"] if is_spread else []), *([] if group is None else ["state", "consumer"])]
    rows = [[each["entryId"], *(each[name] for name in leading), *_cells(each)] for each in shown]
    echo_table(rows, ["entry", *leading, "time", "type", "key", "data"])
    if found["next"] is not None:
        click.echo(f"\nThere may be more: go on with {'--to' if reverse else '--from'} '{found['next']}'.")


def _cells(entry: dict[str, Any]) -> list[Any]:
    is_event = entry["problem"] is None
    kind, value = (entry["eventType"], entry["data"]) if is_event else ("(no event)", entry["fields"])
    return [_local(entry["time"]), kind, entry["key"], _short(value)]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHORT else f"{text[: SHORT - 1]}…"


def _local(text: str | None) -> str | None:
    if text is None:
        return None
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


@click.command(short_help="Show what Redis says of a stream of a running system (XINFO).")
@click.argument("stream")
@url_option
@json_option
def info(stream: str, url: str | None, as_json: bool) -> None:
    """Show what Redis says of STREAM, of its groups and their consumers; of each partition for itself.

    XINFO STREAM, GROUPS and CONSUMERS, and MEMORY USAGE where that is allowed. idle: since the consumer last asked for
    something; inactive: since it last got something (from Redis 7.2 on). --json gives all, with the first and the last
    entry as they are.
    """
    found = remote_of(url).get(f"{stream_path(stream)}/info")
    if as_json:
        echo_json(found)
        return
    for number, each in enumerate(found["partitions"]):
        if number:
            click.echo()
        _show(each)


def _show(facts: dict[str, Any]) -> None:
    if not facts["exists"]:
        click.echo(f"{facts['key']}: there is no such key in Redis yet")
        return
    memory = None if facts["memory"] is None else f"{facts['memory']:,} bytes"
    rows: list[list[Any]] = [
        ["entries", f"{facts['length']:,}"],
        ["first entry", _id_of(facts["first"])],
        ["last entry", _id_of(facts["last"])],
        ["last id given out", facts["lastGeneratedId"]],
        ["greatest id deleted", facts["maxDeletedId"]],
        ["entries ever added", facts["entriesAdded"]],
        ["radix tree", f"{facts['radixTreeKeys']:,} keys, {facts['radixTreeNodes']:,} nodes"],
        ["memory", memory],
    ]
    echo_table(rows, ["stream", facts["key"]])
    if facts["groups"]:
        click.echo()
        echo_table(_group_rows(facts["groups"]), ["group", "last delivered", "read", "lag", "pending", "consumers"])
    consumers = [(group["name"], each) for group in facts["groups"] for each in group["consumers"]]
    if consumers:
        click.echo()
        echo_table([_consumer_cells(*each) for each in consumers], ["group", "consumer", "pending", "idle", "inactive"])
    if facts["missing"]:
        click.echo(f"\nNot made yet: {', '.join(facts['missing'])}")


def _id_of(entry: dict[str, Any] | None) -> str | None:
    return None if entry is None else str(entry["entryId"])


def _group_rows(groups: Iterable[dict[str, Any]]) -> Iterator[Sequence[object]]:
    for each in groups:
        name = each["name"] if each["declared"] else f"{each['name']} (not ours)"
        yield [
            name,
            each["lastDeliveredId"],
            each["entriesRead"],
            each["lag"],
            each["pending"],
            len(each["consumers"]),
        ]


def _consumer_cells(group: str, consumer: dict[str, Any]) -> list[Any]:
    inactive = None if consumer["inactive"] is None else duration(consumer["inactive"])
    return [group, consumer["name"], consumer["pending"], duration(consumer["idle"]), inactive]
