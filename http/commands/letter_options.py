"""The options by which ``penstock dead-letters`` selects letters."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click

from ...actors.letter_terms import STATUSES, Reason

__all__ = ["filters", "selection"]

F = TypeVar("F", bound=Callable[..., Any])

_AGO = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _moment(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    ago = _AGO.fullmatch(value)
    if ago is not None:
        return (datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})).isoformat()
    try:
        return datetime.fromisoformat(value).astimezone().isoformat()  # without an offset it is meant as local time
    except ValueError:
        raise click.BadParameter("must be a time as 2026-03-01T09:30, or how long ago, as 90s, 30m, 2h or 7d") from None


def filters(*, status: bool) -> Callable[[F], F]:
    """Decorator: the options of a filter, passed on as ``which``."""
    options = [
        click.option("--stream", metavar="KEY", help="Of this stream, or partition."),
        click.option("--group", metavar="NAME", help="Of this consumer group."),
        click.option("--reason", type=click.Choice([each.value for each in Reason]), help="Given up for this reason."),
        click.option("--type", "event_type", metavar="TYPE", help="Of this event type."),
        click.option("--fingerprint", metavar="HEX", help="Died in this way; see `groups`."),
        click.option("--key", metavar="KEY", help="With this event key."),
        click.option("--event-id", metavar="UUID", help="Of this event."),
        click.option("--since", metavar="WHEN", callback=_moment, help="Dead since then: a time, or 30m, 2h, 7d ago."),
        click.option("--until", metavar="WHEN", callback=_moment, help="Dead before then."),
    ]
    if status:
        choice = click.Choice([*STATUSES, "any"])
        options.append(click.option("--status", type=choice, default="dead", show_default=True, help="As it is now."))

    def decorate(command: F) -> F:
        def gathered(**given: Any) -> Any:
            names = (
                "stream",
                "group",
                "reason",
                "event_type",
                "fingerprint",
                "key",
                "event_id",
                "since",
                "until",
                "status",
            )
            which = {_API_NAMES.get(name, name): given.pop(name) for name in names if name in given}
            return command(which={name: value for name, value in which.items() if value is not None}, **given)

        made: Any = gathered
        made.__doc__ = command.__doc__
        made.__click_params__ = getattr(command, "__click_params__", [])
        for option in reversed(options):
            made = option(made)
        result: F = made
        return result

    return decorate


_API_NAMES = {"event_type": "type", "event_id": "eventId"}


def selection(numbers: tuple[int, ...], which: dict[str, Any], everything: bool) -> dict[str, Any]:
    """The filter that ids, options and ``--all`` stand for.

    Raises:
        click.UsageError: nothing was selected, or everything and something.
    """
    if not (numbers or which or everything):
        raise click.UsageError("Say which: give IDs, options that select some, or --all.")
    if everything and (numbers or which):
        raise click.UsageError("--all leaves nothing to select.")
    return {**which, "ids": sorted(set(numbers))} if numbers else which
