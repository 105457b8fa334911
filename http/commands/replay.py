"""``penstock replay``: a range of a stream again, into another stream or to one of its groups."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from ...runtime.cli import CommandError, json_option
from ...runtime.output import echo_json, echo_table
from ..headers import ACTOR
from .remote import Remote, me, remote_of, url_option

__all__ = ["replay"]

LOOK = 0.3
"""Seconds between two looks at how far it is."""


@click.command(short_help="Replay a range of a stream.")
@click.argument("stream", required=False)
@click.option("--from", "first", metavar="WHEN", help="The beginning: a time (2026-05-04T10:00) or an entry id.")
@click.option("--to", "last", metavar="WHEN", help="The end, which belongs to it. Default: what is there now.")
@click.option("--to-group", "group", metavar="GROUP", help="Have this group handle the events again, and no other.")
@click.option("--into", metavar="STREAM", help="Where copies go. Default: STREAM:reprocess.")
@click.option("--rate", type=click.FloatRange(0.001), metavar="N", help="Events a second. Default: as fast as it goes.")
@click.option("--original-pace", is_flag=True, help="With the pauses that lay between the events.")
@click.option("--dry-run", is_flag=True, help="Count the events of the range, and replay nothing.")
@click.option("--no-wait", is_flag=True, help="Order it, and do not wait until it is done.")
@click.option("--cancel", "cancelled", metavar="ID", help="Stop a replay.")
@click.option("--list", "listed", is_flag=True, help="Show the last replays.")
@url_option
@json_option
def replay(
    stream: str | None,
    first: str | None,
    last: str | None,
    group: str | None,
    into: str | None,
    rate: float | None,
    original_pace: bool,
    dry_run: bool,
    no_wait: bool,
    cancelled: str | None,
    listed: bool,
    url: str | None,
    as_json: bool,
) -> None:
    """Replay the events of a range of STREAM, in their order, with the same event ids.

    Without --to-group each becomes an entry of another stream, with reprocessed=true and originalRecordId. With it,
    that group handles them again although it has done so before: its effects are made twice, which is what you ask for.

    Times without an offset are in the system's zone. The order is kept in the database: it goes on after a restart, and
    when this command is interrupted (--cancel stops it). Exit code 1 if it fails or is cancelled.
    """
    remote = remote_of(url)
    if listed:
        _list(remote, as_json)
        return
    if cancelled is not None:
        _show(_sent(remote, f"/api/v1/replays/{cancelled}/cancel", {}), as_json)
        return
    if stream is None or first is None:
        raise click.UsageError("Give a STREAM and --from (or --list, or --cancel ID).")
    body = {
        "stream": stream,
        "from": first,
        "to": last,
        "group": group,
        "into": into,
        "rate": rate,
        "originalPace": original_pace,
        "dryRun": dry_run,
    }
    ordered = _sent(remote, "/api/v1/replays", {name: value for name, value in body.items() if value is not None})
    if dry_run or no_wait:
        _show(ordered, as_json)
        return
    done = _follow(remote, ordered)
    _show(done, as_json)
    if done["state"] != "done":
        raise CommandError(f"the replay is {done['state']}" + (f": {done['error']}" if done["error"] else ""))


def _sent(remote: Remote, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = remote.request("POST", path, json.dumps(body).encode(), "application/json", {ACTOR: me()})
    found = answer.json()
    if answer.status not in (200, 202) or not isinstance(found, dict):
        raise CommandError(answer.complaint)
    return found


def _follow(remote: Remote, ordered: dict[str, Any]) -> dict[str, Any]:
    """Wait for its end, with a bar on a terminal; a system that restarts meanwhile is waited for."""
    found = ordered
    with _bar(ordered["total"]) as advance:
        while found["state"] in ("waiting", "running"):
            time.sleep(LOOK)
            now = remote.insist(f"/api/v1/replays/{ordered['id']}")
            advance(now["replayed"] - found.get("replayed", 0))
            found = now
    return found


@contextmanager
def _bar(total: int | None) -> Iterator[Callable[[int], None]]:
    if not total or not sys.stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=total, label="replaying", file=sys.stderr) as bar:
        yield bar.update


def _show(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        echo_json(found)
        return
    target = f"the group {found['group']}" if found["group"] else found["into"]
    total = "an unknown number of" if found["total"] is None else found["total"]
    if found.get("dryRun"):
        click.echo(f"{total} events from {found['from']} to {found['to']} would go to {target}")
    else:
        click.echo(f"{found['id']}: {found['state']}, {found['replayed']} of {total} events to {target}")


def _list(remote: Remote, as_json: bool) -> None:
    found = remote.get("/api/v1/replays")
    if as_json:
        echo_json(found)
        return
    names = ("id", "state", "stream", "to", "replayed", "total", "orderedAt", "orderedBy", "error")
    rows = [[{**each, "to": each["group"] or each["into"]}[name] for name in names] for each in found["replays"]]
    echo_table(rows, ["replay", "state", "stream", "to", "replayed", "of", "ordered at", "by", "error"])
