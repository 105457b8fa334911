"""``penstock streams``, ``groups`` and ``pending``: what is in Redis, as a running system sees it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

import click

from ...runtime.cli import json_option
from ...runtime.output import duration, echo_json, echo_table
from .remote import remote_of, url_option

__all__ = ["groups", "pending", "streams"]


@click.command(short_help="Show the streams of a running system.")
@url_option
@json_option
def streams(url: str | None, as_json: bool) -> None:
    """Show the streams of a running system, a line for each partition.

    While Redis is away they are shown as they were seen last, and the last line says so.

    Where entries were lost to somebody's trimming, or deleted unread, a second table says which groups lost them, how
    many, and who deleted them, if that was by `penstock delete`.
    """
    remote = remote_of(url)
    found = remote.get("/api/v1/streams")
    losses = remote.get("/api/v1/losses")["losses"]
    if as_json:
        echo_json({**found, "losses": losses})
        return
    rows = [
        [each["key"], each["length"], each["entriesAdded"], each["firstId"], each["lastId"], len(each["groups"])]
        for each in found["streams"]
    ]
    echo_table(rows, ["stream", "entries", "added", "first", "last", "groups"])
    if losses:
        click.echo("\nTrimmed or deleted before the group was given them:")
        lost = [[*_loss_cells(each)] for each in losses]
        echo_table(lost, ["stream", "group", "entries", "after", "before", "found at", "deleted by"])
    _tell_stale(found)


def _tell_stale(found: dict[str, Any]) -> None:
    if found["stale"]:
        click.echo(f"\nNot as it is now. {found['stale']}")


def _loss_cells(loss: dict[str, Any]) -> list[Any]:
    entries = "unknown" if loss["entries"] is None else loss["entries"]
    return [
        loss["stream"],
        loss["group"],
        entries,
        loss["afterId"],
        loss["beforeId"],
        loss["detectedAt"],
        _deleted_by(loss),
    ]


def _deleted_by(loss: dict[str, Any]) -> str | None:
    if loss["deletedBy"] is None or loss["entries"] == loss["deleted"]:
        return loss["deletedBy"]  # type: ignore[no-any-return]
    return f"{loss['deletedBy']} ({loss['deleted']} of them)"


@click.command(short_help="Show the consumer groups of a running system.")
@url_option
@json_option
def groups(url: str | None, as_json: bool) -> None:
    """Show the consumer groups of a running system, each over all partitions of its stream.

    lag: entries that it was not given yet (- where nobody can tell). pending: given, and not acknowledged; of them
    DELIVERED, with a consumer that may be at work on them, and PENDING, left lying (- where there are more than 1,000).
    While Redis is away they are shown as they were seen last, and the last line says so.
    """
    found = remote_of(url).get("/api/v1/groups")
    if as_json:
        echo_json(found)
        return
    rows = [
        [
            each["stream"],
            each["name"],
            _kind(each),
            each["partitions"],
            each["lag"],
            each["pending"],
            each["states"]["DELIVERED"],
            each["states"]["PENDING"],
            each["consumers"],
        ]
        for each in found["groups"]
    ]
    headers = ["stream", "group", "kind", "partitions", "lag", "pending", "DELIVERED", "PENDING", "consumers"]
    echo_table(rows, headers)
    _tell_stale(found)


def _kind(group: dict[str, Any]) -> str:
    if not group["declared"]:
        return "not ours"
    return ("ordered" if group["ordered"] else "shared") if group["enabled"] else "not read here"


@click.command(short_help="Show what the consumers of a group have and have not acknowledged.")
@click.argument("stream")
@click.argument("group")
@click.option("--consumer", metavar="NAME", help="Only what this consumer has.")
@click.option(
    "--idle", type=click.IntRange(0), default=0, metavar="SECONDS", help="Only what nobody has touched for so long."
)
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="Entries at the most.")
@url_option
@json_option
def pending(
    stream: str, group: str, consumer: str | None, idle: int, limit: int, url: str | None, as_json: bool
) -> None:
    """Show the entries that consumers of GROUP were given from STREAM and have not acknowledged, oldest first.

    DELIVERED: its consumer has it and may be at work on it. PENDING: nobody has touched it for so long that the next
    process to look takes it over. Once an entry is acknowledged (ACK) it stands here no more. Events that wait for
    another attempt are not here either: their entries are acknowledged, and they wait in the table penstock_retry.
    """
    query: dict[str, str | int] = {"limit": limit, "idle": idle}
    if consumer is not None:
        query["consumer"] = consumer
    path = f"/api/v1/streams/{quote(stream, safe='')}/groups/{quote(group, safe='')}/pending?{urlencode(query)}"
    found = remote_of(url).get(path)
    if as_json:
        echo_json(found)
        return
    rows = [
        [each["key"], each["entryId"], each["state"], each["consumer"], duration(each["idle"]), each["deliveries"]]
        for each in found["entries"]
    ]
    echo_table(rows, ["stream", "entry", "state", "consumer", "idle", "deliveries"])
    click.echo(f"\n{len(rows)} of {found['total']} pending\n")
    consumers = [[each["key"], each["name"], each["pending"], duration(each["idle"])] for each in found["consumers"]]
    echo_table(consumers, ["stream", "consumer", "pending", "last seen"])
