"""``penstock tail``: a stream's entries as they come."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from urllib.parse import quote

import click

from ...runtime.cli import CommandError, json_option
from .remote import Refused, Remote, Unreachable, remote_of, url_option

__all__ = ["tail"]

PATIENCE = 30.0
"""Seconds for which a connection that was lost is tried again: the time of a restart."""


@click.command(short_help="Follow a stream of a running system.")
@click.argument("stream")
@click.option(
    "--after", metavar="ID", default="$", help="Begin behind this entry; 0 begins with the first. Default: now."
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N entries.")
@url_option
@json_option
def tail(stream: str, after: str, count: int | None, url: str | None, as_json: bool) -> None:
    """Follow STREAM of a running system: one line for each entry, until Ctrl-C.

    A connection that is lost is made again, and goes on behind the last entry that was shown.
    """
    remote = remote_of(url)
    position, shown, connected = after, 0, False
    lost_at = time.monotonic()
    while True:
        try:
            for entry_id, data in _entries(remote, stream, position):
                position, connected, lost_at = entry_id, True, time.monotonic()
                click.echo(data if as_json else _line(data))
                shown += 1
                if shown == count:
                    return
            reason, connected, lost_at = "the stream of entries ended", True, time.monotonic()
        except (Unreachable, Refused) as error:
            temporary = isinstance(error, Unreachable) or error.status == 503
            if not temporary or not connected or time.monotonic() - lost_at > PATIENCE:
                raise
            reason = str(error)
        click.echo(f"penstock: {reason}; connecting again", err=True)
        time.sleep(1.0)


def _entries(remote: Remote, stream: str, position: str) -> Iterator[tuple[str, str]]:
    path = f"/api/v1/streams/{quote(stream, safe='')}/tail?after={quote(position, safe='')}"
    return remote.events(path)


def _line(data: str) -> str:
    try:
        entry = json.loads(data)
        key = f"  key={entry['key']}" if entry["key"] is not None else ""
        text = json.dumps(entry["data"], ensure_ascii=False)
        return f"{entry['entryId']}  {entry['timestamp']}  {entry['eventType']}{key}  {text}"
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(f"the server sent an entry that cannot be read: {error}") from error
