"""The publish side of a deployment: its producer, its outbox and relay, and what others may ask of them."""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import psycopg
import trio

from ..runtime.postgres import PostgresUnavailable
from ..runtime.redis import Kind, classify
from ..runtime.supervision import ChildSpec
from ..runtime.telemetry import get_logger
from .capabilities import Capabilities
from .conditional import ConditionNotMet, Conditions
from .detours import Detours
from .lane import BURST
from .outgoing import Outgoing, Published, PublishFailed, outgoing, rows_of, unsent
from .producer import Producer
from .publishing import envelopes_of
from .relay import OutboxView, Relay
from .sending import Sender
from .spooling import Spool

if TYPE_CHECKING:
    from ..runtime.supervision import Gates
    from .event import Envelope
    from .redis_side import RedisSide
    from .settings import ActorSettings
    from .store import Store, Transaction
    from .system import System

__all__ = ["PublishSide"]

log = get_logger(__name__)

LATE: Final = 1.0
"""Seconds after which what waits in the outbox sends everybody behind it, whoever wrote it."""

COUNTED_FOR: Final = 0.05
"""Which part of the time may be spent on counting what waits: of a million rows that takes seconds."""


class PublishSide:
    """See the module.

    Args:
        system: what was declared.
        settings: what was set.
        store: whose outbox it is.
        gates: the deployment's.
        redis: its link, and who is told of its errors.
        instance: who we are, for IDMP and for people.

    Attributes:
        producer: the actor.
        relay: the actor.
        capabilities: what the servers can do.
        conditions: publishes on conditions.
    """

    def __init__(
        self,
        system: System,
        settings: ActorSettings,
        store: Store,
        gates: Gates,
        redis: RedisSide,
        *,
        instance: str,
    ) -> None:
        ownership, both = redis.ownership(), (gates["redis"], gates["redis-memory"])

        def way(trouble: Callable[[Exception], None]) -> Sender:
            return Sender(
                redis.client,
                both,
                trouble,
                f"penstock:{instance}",
                believes_late=not redis.may_move,
                ownership=ownership,
                capabilities=self.capabilities,
            )

        self._system = system
        self._store = store
        self._gates = gates
        self._detours = Detours()
        self._waiting: tuple[OutboxView, ...] = ()
        self._count_at = -math.inf
        self.capabilities = Capabilities(redis.client)
        sender = way(redis.trouble)
        self._spool = Spool(store, (gates["postgres"], gates["schema"]), self._detours, instance)
        self.producer = Producer(
            system.streams,
            sender,
            self._spool,
            self._detours,
            requests=settings.delivery.publish_capacity,
            buffer=settings.capture.buffer,
            hedge_after=settings.publish.hedge_after,
        )
        relaying = way(lambda error: None if _is_of_one_stream(error) else redis.trouble(error))
        self.relay = Relay(
            system,
            store,
            relaying,
            self._detours,
            hold=settings.publish.hedge_after,
            look_every=settings.publish.look_every,
        )
        self.conditions = Conditions(sender, self._detours)

    def children(self) -> Iterable[ChildSpec]:
        """The children, in the order of their start."""
        yield ChildSpec(id="producer", body=self.producer, drain_within=3.0, mailboxes=self.producer.mailboxes)
        yield ChildSpec(id="outbox-relay", body=self.relay, requires=("redis", "postgres", "schema"))

    async def publish(self, stream: str, envelopes: Sequence[Envelope]) -> list[Published | PublishFailed]:
        """See `Deployment.publish`."""
        declared = self._system.streams[stream]
        encoded = [outgoing(declared, envelope) for envelope in envelopes]
        sound = [each for each in encoded if isinstance(each, Outgoing)]
        results = iter(await self.producer.publish(sound) if sound else ())
        return [next(results) if isinstance(each, Outgoing) else each for each in encoded]

    async def publish_many(
        self, stream: str, events: Iterable[object] | AsyncIterable[object]
    ) -> list[Published | PublishFailed]:
        """See `Deployment.publish_many`."""
        results: list[Published | PublishFailed] = []
        waiting: list[object] = []
        refused: PublishFailed | None = None

        async def flush() -> None:
            nonlocal refused
            envelopes = envelopes_of(waiting)
            waiting.clear()
            if refused is not None:
                results.extend(unsent(each.event_id, refused) for each in envelopes)
                return
            found = await self.publish(stream, envelopes)
            refused = next((each for each in found if isinstance(each, PublishFailed) and not each.permanent), None)
            results.extend(found)

        async for event in _each(events):
            waiting.append(event)
            if len(waiting) == BURST:
                await flush()
        await flush()
        return results

    async def publish_if(
        self, stream: str, envelope: Envelope, condition: str
    ) -> Published | ConditionNotMet | PublishFailed:
        """See `Deployment.publish_if`."""
        made = outgoing(self._system.streams[stream], envelope)
        if isinstance(made, PublishFailed):
            return made
        await self._spool.look()
        return await self.conditions.publish(condition, made)

    async def publish_within(
        self, transaction: Transaction, stream: str, envelopes: Sequence[Envelope], created_by: str = ""
    ) -> None:
        """What `Context.publish` does; see there."""
        rows = rows_of(self._system.streams[stream], envelopes, "transaction", created_by)
        await self._store.outbox.add(transaction, rows)

    def capture(self, envelope: Envelope, stream: str) -> bool:
        """See `Deployment.capture`."""
        declared = self._system.streams.get(stream)
        return declared is not None and self.producer.capture(outgoing(declared, envelope))

    def outbox(self) -> list[OutboxView]:
        """What waits in the outbox, as it was last seen, by stream."""
        return list(self._waiting)

    async def observe(self) -> None:
        """Look what the servers can do and what waits in the outbox, where they are there to be asked.

        Raises nothing for Redis and PostgreSQL.
        """
        if self._gates["redis"].is_open:
            await self.capabilities.look()
        started = trio.current_time()
        if started < self._count_at or not (self._gates["postgres"].is_open and self._gates["schema"].is_open):
            return
        try:
            found = await self._store.outbox.waiting()
        except (PostgresUnavailable, psycopg.Error) as error:
            log.debug("outbox not observed", error=str(error))
            return
        now = trio.current_time()
        self._count_at = now + (now - started) / COUNTED_FOR
        for each in found:
            if each.age >= LATE:
                # It is on its way no longer: whoever wrote it, what comes now goes behind it.
                self._detours.enter(each.stream)
        self._waiting = tuple(
            OutboxView(stream=each.stream, waiting=each.count, oldest=each.age, blocked=self.relay.blocked(each.stream))
            for each in found
        )


def _is_of_one_stream(error: Exception) -> bool:
    """Whether what the server refuses says something about this key, or our right to it, and nothing of the server."""
    row = classify(error)
    return row.kind is Kind.BUG or (row.kind is Kind.CONFIG and not row.shuts_gate)


async def _each(events: Iterable[object] | AsyncIterable[object]) -> Any:
    if isinstance(events, AsyncIterable):
        async for event in events:
            yield event
        return
    for number, event in enumerate(events):
        yield event
        if number % BURST == BURST - 1:
            await trio.lowlevel.checkpoint()
