"""``penstock claim`` and ``delete``: take pending entries over, or delete entries that nobody wants (XCLAIM, XDEL)."""

from __future__ import annotations

import json
import sys
from typing import Any
from urllib.parse import quote

import click

from ...runtime.cli import CommandError, json_option
from ...runtime.output import duration, echo_json, echo_table
from ..headers import ACTOR
from .entries import stream_path
from .remote import Remote, me, remote_of, url_option

__all__ = ["claim", "delete"]

_TOLD = {
    "claimed": "claimed: this process handles it now",
    "gone": "its entry is deleted: what is left of it becomes a dead letter",
    "busy": "left alone: touched less than {least} ago",
    "here": "this process has it already",
    "not-pending": "not pending: not given to the group yet, or acknowledged",
    "no-room": "left alone: this process has no room now, try again",
}


@click.command(short_help="Take pending entries over now (XCLAIM).")
@click.argument("stream")
@click.argument("group")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option(
    "--min-idle",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Only what nobody has touched for so long. Default: the setting delivery.reclaim_idle.",
)
@click.option(
    "--force",
    is_flag=True,
    help="However lately it was touched. Its handler may be at work on it: then it runs twice at a time, and the inbox"
    " keeps the effect single.",
)
@url_option
@json_option
def claim(
    stream: str, group: str, ids: tuple[str, ...], min_idle: float | None, force: bool, url: str | None, as_json: bool
) -> None:
    """Take entries of STREAM that are pending in GROUP over from their consumers, to the process that is asked, which
    handles them at once.

    This happens by itself once nobody has touched an entry for delivery.reclaim_idle seconds; `penstock pending` shows
    what is in whose hands. Exit code 1 unless this process has all of them now.
    """
    if force and min_idle is not None:
        raise CommandError("--min-idle and --force: one of them", 2)
    path = f"{stream_path(stream)}/groups/{quote(group, safe='')}/claim"
    body = {"ids": ids, "force": force, **({} if min_idle is None else {"minIdle": min_idle})}
    found = _post(remote_of(url), path, body)
    if as_json:
        echo_json(found)
    else:
        rows = [_claim_cells(each, duration(found["minIdle"])) for each in found["results"]]
        echo_table(rows, ["stream", "entry", "consumer before", "idle", "what came of it"])
    left = {each["entryId"] for each in found["results"] if each["outcome"] not in ("claimed", "gone", "here")}
    if left:
        raise CommandError(f"{len(left)} of {len({each['entryId'] for each in found['results']})} not claimed")


def _claim_cells(result: dict[str, Any], least: str) -> list[Any]:
    idle = None if result["idle"] is None else duration(result["idle"])
    told = _TOLD.get(result["outcome"], result["outcome"]).format(least=least)
    return [result["partition"], result["entryId"], result["consumer"], idle, told]


@click.command(short_help="Delete entries of a stream (XDEL).")
@click.argument("stream")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--unread", is_flag=True, help="Also what groups have not been given, or not acknowledged: they lose it.")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted and who wants it, and delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@url_option
@json_option
def delete(
    stream: str, ids: tuple[str, ...], unread: bool, dry_run: bool, yes: bool, url: str | None, as_json: bool
) -> None:
    """Delete entries of STREAM: all of them, or none if a group has not been given one yet, or not acknowledged it.

    What was deleted is written down, with who did it. What of it is kept elsewhere stays: effects, rows that wait for
    another attempt, dead letters. Exit code 1 if one of them is not there.
    """
    remote, path = remote_of(url), f"{stream_path(stream)}/entries/delete"
    body = {"ids": ids, "unread": unread}
    found = _post(remote, path, {**body, "dryRun": True})
    count = sum(each["found"] for each in found["entries"])
    if not dry_run and found["refusal"] is None and count:
        _confirm(found["entries"], count, yes)
        found = _post(remote, path, body)
    if as_json:
        echo_json(found)
    else:
        rows = [_delete_cells(each) for each in found["entries"]]
        echo_table(rows, ["stream", "entry", "type", "wanted by", "deleted"])
    if found["refusal"] is not None:
        raise CommandError(f"{'would not be' if dry_run else 'not'} deleted: {found['refusal']}")
    if count < len(found["entries"]):
        raise CommandError(f"{len(found['entries']) - count} of {len(found['entries'])} are not there")


def _delete_cells(entry: dict[str, Any]) -> list[Any]:
    wanted = [f"{each['group']} ({each['consumer'] or 'not given it'})" for each in entry["wantedBy"]]
    told = entry["deleted"] if entry["found"] else "not there"
    return [entry["partition"], entry["entryId"], entry["eventType"], ", ".join(wanted) or None, told]


def _confirm(entries: list[dict[str, Any]], count: int, yes: bool) -> None:
    if yes:
        return
    groups = sorted({wanted["group"] for each in entries for wanted in each["wantedBy"]})
    loses = f", which {', '.join(groups)} lose{'s' if len(groups) == 1 else ''}" if groups else ""
    question = f"Delete {'1 entry' if count == 1 else f'{count} entries'}{loses}?"
    if not sys.stdin.isatty():
        raise CommandError(f"{question[:-1]}: give --yes, for there is nobody to ask", 2)
    if not click.confirm(question, err=True):
        raise CommandError("nothing was done")


def _post(remote: Remote, path: str, body: dict[str, Any]) -> Any:
    answer = remote.request("POST", path, json.dumps(body).encode(), "application/json", {ACTOR: me()})
    if answer.status != 200:
        raise CommandError(answer.complaint)
    return answer.json()
