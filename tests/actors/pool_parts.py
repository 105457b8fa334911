"""What the tests of a handler pool alone put around it: an event, open gates, a supervisor, a Redis."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import trio
from attrs import define, field, frozen

from penstock.actors.assignment import Assignment
from penstock.actors.backlog import Backlog
from penstock.actors.event import Envelope, event
from penstock.actors.handler_pool import HandlerPool
from penstock.actors.handling import Entry
from penstock.actors.settings import DeliverySettings
from penstock.actors.site import Site
from penstock.actors.store import Store, Transaction
from penstock.actors.system import Group, Stream

STREAM, GROUP, PLACE = "orders", "payments", "handler-pool"


@event("ORDER", key="key")
@frozen
class Order:
    number: int
    key: str | None = None


class OpenGate:
    """A gate that nobody shuts."""

    is_open = True

    async def wait_open(self) -> None:
        await trio.lowlevel.checkpoint()


@define
class Child:
    """What a pool asks of its supervisor."""

    path: str = PLACE
    draining: trio.Event = field(factory=trio.Event)

    def started(self) -> None:
        """It is up."""


class Acknowledging:
    """A Redis that takes acknowledgements."""

    async def xack(self, stream: str, group: str, *ids: str) -> int:
        await trio.lowlevel.checkpoint()
        return len(ids)


async def publish_nothing(transaction: Transaction, stream: str, envelopes: Sequence[Envelope], group: str) -> None:
    """Where no handler publishes."""
    raise AssertionError(f"{group} publishes to {stream}")


def pool_over(
    store: Store,
    stream: Stream,
    group: Group,
    backlog: Backlog,
    *,
    postgres_trouble: Callable[[Exception], None],
    chance: Callable[[], float] = random.random,
) -> HandlerPool:
    """A pool that works off `backlog`, with everything else of its process made up."""
    redis: Any = Acknowledging()
    gates: Any = defaultdict(OpenGate)
    site = Site(
        client=lambda: redis,
        store=store,
        gates=gates,
        settings=DeliverySettings(),
        instance="test",
        live_instances=lambda: None,
        redis_trouble=lambda _: None,
        reader_trouble=lambda _: None,
        postgres_trouble=postgres_trouble,
        publish=publish_nothing,
        chance=chance,
        wall=lambda: datetime.now(UTC),
        read_within=lambda block: block,
        patience=0.0,
    )
    return HandlerPool(site, Assignment(stream=stream, group=group, partition=stream.key, backlog=backlog))


def entry_of(stream: Stream, order: Order, entry_id: str, *, event_id: int, redelivered: bool) -> Entry:
    data = {"number": order.number, "key": order.key}
    envelope = Envelope(event_type="ORDER", data=data, key=order.key, event_id=UUID(int=event_id))
    fields = {name.encode(): text.encode() for name, text in stream.encode(envelope).items()}
    return Entry(STREAM, entry_id, fields, redelivered=redelivered)
