"""``penstock tail``: a stream's entries as they come."""

from __future__ import annotations

import json
from urllib.parse import quote

import click

from ...runtime.cli import CommandError, json_option
from ...runtime.printable import printable, printable_json
from .follow import follow, until_interrupted
from .remote import remote_of, url_option

__all__ = ["tail"]


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
    path = f"/api/v1/streams/{quote(stream, safe='')}/tail?after={quote(after, safe='')}"
    with until_interrupted():
        for shown, entry in enumerate(follow(remote_of(url), path), 1):
            click.echo(printable_json(entry.data) if as_json else _line(entry.data))
            if shown == count:
                return


def _line(data: str) -> str:
    try:
        entry = json.loads(data)
        key = f"  key={entry['key']}" if entry["key"] is not None else ""
        text = printable_json(json.dumps(entry["data"], ensure_ascii=False))
        return printable(f"{entry['entryId']}  {entry['timestamp']}  {entry['eventType']}{key}  {text}")
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(f"the server sent an entry that cannot be read: {error}") from error
