"""``penstock dead-letters``: what was given up, why, and what to do with it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

import click

from ...runtime.cli import CommandError, json_option
from ...runtime.output import echo_json, echo_table
from ...runtime.printable import printable
from ..headers import ACTOR
from .letter_options import filters, selection
from .remote import Remote, me, remote_of, url_option

__all__ = ["dead_letters", "local_time"]

BASE = "/api/v1/dead-letters"

PAGE = 500
"""Letters that are asked for at a time."""

LOOK = 0.25
"""Seconds between two looks at an order."""


@click.group("dead-letters", short_help="Look at dead letters of a running system, replay or discard them.")
def dead_letters() -> None:
    """Look at dead letters of a running system, replay or discard them.

    An event that cannot be handled becomes a dead letter: a row in the database with all its fields, the error and how
    it came to that. Start with `groups`: it shows what died of the same error.
    """


_to_option = click.option(
    "--to", type=click.Choice(["group", "stream"]), default="group", show_default=True,
    help="Tried again by the group that gave it up, or published again for all groups.",
)  # fmt: skip
_limit_option = click.option("--limit", type=click.IntRange(1, 1_000_000), default=5_000, show_default=True,
                             help="Letters at the most; the oldest.")  # fmt: skip
_note_option = click.option("--note", metavar="TEXT", help="Why, for the record.")
_dry_run_option = click.option("--dry-run", is_flag=True, help="Only say how many it would be.")
_yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
_all_option = click.option("--all", "everything", is_flag=True, help="All that are dead.")


# Looking -------------------------------------------------------------------------------------------------------------


@dead_letters.command("list", short_help="List them, the last one first.")
@filters(status=True)
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Letters at the most.")
@url_option
@json_option
def list_letters(which: dict[str, Any], limit: int, url: str | None, as_json: bool) -> None:
    """List dead letters, the one buried last first."""
    found = list(_letters(remote_of(url), which, limit))
    if as_json:
        echo_json(found)
        return
    rows = [
        [each["id"], local_time(each["deadAt"]), each["stream"], each["group"], each["eventType"], each["reason"],
         each["deliveries"], *([each["status"]] if which["status"] != "dead" else []), _error(each)]
        for each in found
    ]  # fmt: skip
    status = ["status"] if which["status"] != "dead" else []
    echo_table(rows, ["id", "dead since", "stream", "group", "type", "reason", "tries", *status, "error"])


def _letters(remote: Remote, which: dict[str, Any], limit: int) -> Iterator[dict[str, Any]]:
    before: dict[str, Any] = {}
    while limit > 0:
        page = remote.get(f"{BASE}?{urlencode({**which, **before, 'limit': min(PAGE, limit)})}")
        yield from page["letters"]
        limit -= len(page["letters"])
        if page["next"] is None:
            return
        before = {"before": page["next"]}


@dead_letters.command("groups", short_help="Show what died of the same error.")
@filters(status=True)
@click.option("--limit", type=click.IntRange(1, 1_000), default=50, show_default=True, help="Groups at the most.")
@url_option
@json_option
def group_letters(which: dict[str, Any], limit: int, url: str | None, as_json: bool) -> None:
    """Show what died of the same error, the most frequent first.

    Its fingerprint selects the letters of one such group elsewhere: `penstock dead-letters replay --fingerprint …`
    """
    found = remote_of(url).get(f"{BASE}/groups?{urlencode({**which, 'limit': limit})}")["groups"]
    if as_json:
        echo_json(found)
        return
    rows = [
        [each["count"], each["group"], ", ".join(each["eventTypes"]) or None, each["reason"], local_time(each["first"]),
         local_time(each["last"]), each["fingerprint"], each["example"], _error(each)]
        for each in found
    ]  # fmt: skip
    echo_table(rows, ["count", "group", "types", "reason", "first", "last", "fingerprint", "example", "error"])


@dead_letters.command("show", short_help="Show one with its fields, its traceback and its history.")
@click.argument("number", type=click.IntRange(1), metavar="ID")
@url_option
@json_option
def show_letter(number: int, url: str | None, as_json: bool) -> None:
    """Show the dead letter ID with its fields, its traceback and its history. What may be a secret is hidden."""
    found = remote_of(url).get(f"{BASE}/{number}")
    if as_json:
        echo_json(found)
        return
    apart = ("fields", "fieldsExact", "traceback", "audit")
    facts = [[name, value] for name, value in found.items() if value is not None and name not in apart]
    echo_table(facts, ["dead letter", ""])
    click.echo()
    echo_table(list(found["fields"].items()), ["field", "value" if found["fieldsExact"] else "value (not exactly)"])
    if found["traceback"]:
        click.echo("\n" + "\n".join(map(printable, found["traceback"].rstrip().split("\n"))))
    if found["audit"]:
        click.echo()
        history = [[local_time(each["at"]), each["action"], each["by"], each["note"]] for each in found["audit"]]
        echo_table(history, ["when", "what", "by", "note"])


# Changing ------------------------------------------------------------------------------------------------------------


@dead_letters.command("note", short_help="Write a note on one.")
@click.argument("number", type=click.IntRange(1), metavar="ID")
@click.argument("text")
@url_option
def note_letter(number: int, text: str, url: str | None) -> None:
    """Write TEXT on the dead letter ID, for whoever looks at it next."""
    _post(remote_of(url), f"/{number}/note", {"note": text})


@dead_letters.command("discard", short_help="Settle some that nobody will try again.")
@click.argument("numbers", type=click.IntRange(1), nargs=-1, metavar="[ID]...")
@filters(status=False)
@_all_option
@_limit_option
@_note_option
@_dry_run_option
@_yes_option
@url_option
@json_option
def discard_letters(
    numbers: tuple[int, ...],
    which: dict[str, Any],
    everything: bool,
    limit: int,
    note: str | None,
    dry_run: bool,
    yes: bool,
    url: str | None,
    as_json: bool,
) -> None:
    """Settle dead letters that nobody will try again: those with the given IDs, or all that the options select.

    They stay in the database, with who discarded them and why, until retention deletes them.
    """
    remote, wanted = remote_of(url), selection(numbers, which, everything)
    body = {"filter": wanted, "limit": limit, "note": note}
    preview = _post(remote, "/discard", {**body, "dryRun": True})
    if dry_run:
        _say(preview, f"{_letters_of(preview['letters'])} would be discarded", as_json)
        return
    _confirm(preview["letters"], f"Discard {_letters_of(preview['letters'])}?", yes)
    done = _post(remote, "/discard", body)
    _say(done, f"{_letters_of(done['letters'])} discarded", as_json)
    if numbers and done["letters"] < len(set(numbers)):
        raise CommandError(f"{len(set(numbers)) - done['letters']} of {len(set(numbers))} are not there, or not dead")


@dead_letters.command("replay", short_help="Try some again, at a pace.")
@click.argument("numbers", type=click.IntRange(1), nargs=-1, metavar="[ID]...")
@filters(status=False)
@_all_option
@_to_option
@click.option("--rate", type=click.FloatRange(0.1, 10_000), default=50, show_default=True, help="Letters a second.")
@_limit_option
@_note_option
@_dry_run_option
@_yes_option
@click.option("--no-wait", is_flag=True, help="Order it, and do not wait until all are moved.")
@url_option
@json_option
def replay_letters(
    numbers: tuple[int, ...],
    which: dict[str, Any],
    everything: bool,
    to: str,
    rate: float,
    limit: int,
    note: str | None,
    dry_run: bool,
    yes: bool,
    no_wait: bool,
    url: str | None,
    as_json: bool,
) -> None:
    """Try dead letters again: those with the given IDs, or all that the options select.

    They keep their event ids, so what was handled meanwhile has no second effect. The order is stored: it is worked off
    also if this command is interrupted, or the system restarted. Waits until all are moved to where they are tried;
    what came of them says `penstock dead-letters orders`.
    """
    remote, wanted = remote_of(url), selection(numbers, which, everything)
    body = {"filter": wanted, "to": to, "rate": rate, "limit": limit, "note": note}
    preview = _post(remote, "/replay", {**body, "dryRun": True})
    if dry_run:
        _say(preview, f"{_letters_of(preview['letters'])} would be replayed{_left_out(preview)}", as_json)
        return
    if not preview["letters"]:
        raise CommandError(f"there is nothing to replay{_left_out(preview)}")
    _confirm(preview["letters"], f"Replay {_letters_of(preview['letters'])}{_left_out(preview)}?", yes)
    order = _post(remote, "/replay", body)
    if not no_wait:
        order = _wait(remote, order)
    _say(order, f"{_story(order)}\norder {order['id']}", as_json)
    if order["state"] == "cancelled":
        raise CommandError("the order was cancelled")


@dead_letters.command("orders", short_help="Show replays that were ordered, or stop one.")
@click.option("--cancel", "number", type=click.UUID, metavar="ORDER", help="Stop this one.")
@url_option
@json_option
def show_orders(number: Any, url: str | None, as_json: bool) -> None:
    """Show the last replays that were ordered, and what came of them. With --cancel, stop one: what is not moved yet
    stays dead."""
    remote = remote_of(url)
    if number is not None:
        order = _post(remote, f"/orders/{number}/cancel", None)
        _say(order, _story(order), as_json)
        return
    found = remote.get(f"{BASE}/orders")["orders"]
    if as_json:
        echo_json(found)
        return
    rows = [
        [each["id"], local_time(each["orderedAt"]), each["orderedBy"], each["to"], each["state"], each["total"],
         each["moved"], each["replayed"], each["dead"], each["waiting"]]
        for each in found
    ]  # fmt: skip
    echo_table(rows, ["order", "when", "by", "to", "state", "letters", "moved", "replayed", "dead", "waiting"])


# Parts ---------------------------------------------------------------------------------------------------------------


def local_time(text: str | None) -> str | None:
    """A time of the API for people: local, to the second."""
    return None if text is None else f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M:%S}"


def _error(found: dict[str, Any]) -> str | None:
    kind, message = found["errorClass"], found["errorMessage"]
    name = kind.rpartition(".")[2] if kind else ""
    lines = (message or "").splitlines()
    return ": ".join(part for part in (name, lines[0] if lines else "") if part) or None


def _post(remote: Remote, path: str, body: dict[str, Any] | None) -> Any:
    given = {name: value for name, value in (body or {}).items() if value is not None}
    headers = {ACTOR: me()}
    answer = remote.request("POST", BASE + path, json.dumps(given).encode(), "application/json", headers)
    if answer.status not in (200, 202):
        raise CommandError(answer.complaint)
    return answer.json()


def _letters_of(count: int) -> str:
    return "1 dead letter" if count == 1 else f"{count:,} dead letters"


def _left_out(preview: dict[str, Any]) -> str:
    reasons = [
        (preview["trimmed"], "of which nothing is left, their entries being trimmed"),
        (preview["noEvents"], "that are no events, and only go to their group"),
        (preview["undeclared"], "whose group is not declared here"),
        (
            preview["matching"] - preview["letters"] - preview["trimmed"] - preview["noEvents"] - preview["undeclared"],
            "beyond the limit",
        ),
    ]
    told = "; ".join(f"{count:,} {why}" for count, why in reasons if count > 0)
    return f" (without {told})" if told else ""


def _confirm(count: int, question: str, yes: bool) -> None:
    """Ask before many; one was named by whoever wants it."""
    if yes or count <= 1:
        return
    if not sys.stdin.isatty():
        raise CommandError(f"{question[:-1]}: give --yes, for there is nobody to ask", 2)
    if not click.confirm(question, err=True):
        raise CommandError("nothing was done")


def _say(value: Any, words: str, as_json: bool) -> None:
    if as_json:
        echo_json(value)
    else:
        click.echo(words)


def _story(order: dict[str, Any]) -> str:
    parts = [f"{order['moved']:,} of {_letters_of(order['total'])} moved to be tried again"]
    parts += [f"{order[name]:,} {words}" for name, words in _OUTCOMES if order[name]]
    return ", ".join(parts)


_OUTCOMES = (("replayed", "replayed"), ("dead", "dead"), ("waiting", "waiting"))


def _wait(remote: Remote, order: dict[str, Any]) -> dict[str, Any]:
    """Look at the order until it has ended; on a terminal with a bar. Ctrl-C leaves it to the system."""
    with _bar(order["total"]) as show:
        while order["state"] == "running":
            time.sleep(LOOK)
            order = remote.insist(f"{BASE}/orders/{order['id']}")
            show(order["moved"])
    return order


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=total, label="replaying", file=sys.stderr) as bar:
        yield lambda moved: bar.update(moved - bar.pos)
