"""``penstock queues``: the work queues, as a running system sees them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from ...runtime.cli import json_option
from ...runtime.output import duration, echo_json, echo_table
from .remote import remote_of, url_option

__all__ = ["queues"]


@click.command(short_help="Show the work queues of a running system.")
@url_option
@json_option
def queues(url: str | None, as_json: bool) -> None:
    """Show the work queues of a running system.

    waiting: jobs that nobody has. returned: jobs whose consumer was gone; they are taken first. taken: jobs that
    consumers have and have not finished; a second table says who has how many. next is: how old the job is that is
    taken next. Jobs that failed and wait for another attempt are not here: they are in the table penstock_retry.
    """
    found = remote_of(url).get("/api/v1/queues")
    if as_json:
        echo_json(found)
        return
    now = datetime.fromisoformat(found["time"])
    rows = [
        [
            each["name"],
            each["waiting"],
            each["returned"],
            sum(consumer["taken"] for consumer in each["consumers"]),
            _age(each["oldest"], now),
        ]
        for each in found["queues"]
    ]
    echo_table(rows, ["queue", "waiting", "returned", "taken", "next is"])
    consumers = [row for each in found["queues"] for row in _consumers(each)]
    if consumers:
        click.echo()
        echo_table(consumers, ["queue", "consumer", "taken", "last seen"])


def _consumers(queue: dict[str, Any]) -> list[list[Any]]:
    found = queue["consumers"]
    return [[queue["name"], each["name"], each["taken"], f"{duration(each['idle'])} ago"] for each in found]


def _age(oldest: str | None, now: datetime) -> str | None:
    if oldest is None:
        return None
    return f"{duration(max(0.0, (now - datetime.fromisoformat(oldest)).total_seconds()))} old"
