"""Functions that tests of the settings name as handlers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import frozen

from penstock.actors.event import event
from penstock.actors.handling import Context

if TYPE_CHECKING:
    from decimal import Decimal


@event("PLACED", key="number")
@frozen
class Placed:
    number: int


async def take_object(placed: Placed, context: Context) -> None:
    await context.connection.execute("object", [placed.number])


async def take_data(data: dict[str, Any], context: Context) -> None:
    await context.connection.execute("data", [data["number"]])


async def take_whatever(placed, context) -> None:  # type: ignore[no-untyped-def]
    await context.connection.execute(type(placed).__name__, [])


async def take_one(placed: Placed) -> None:
    """No handler: it has no context."""


async def take_unknown(placed: Decimal, context: Context) -> None:
    """No handler: its parameter's class is not there when it runs."""


async def take_settings(placed: Undeclared, context: Context) -> None:
    """No handler: its parameter is of an attrs class that is no event."""


@frozen
class Undeclared:
    number: int


def take_nothing(placed: Placed, context: Context) -> None:
    """No handler: it is not async."""


class Taker:
    """No handler, but makes such."""

    def __init__(self, one: object, other: object) -> None: ...

    async def __call__(self, placed: Placed, context: Context) -> None:
        await context.connection.execute("object", [placed.number])


async def _take_for(whom: str, data: dict[str, Any], context: Context) -> None:
    await context.connection.execute(whom, [data["number"]])


take_for_somebody = partial(_take_for, "somebody")
