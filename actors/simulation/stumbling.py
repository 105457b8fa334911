"""Handlers that are watched, and made to fail: a copy of a declaration, with handlers that stumble.

What an event meets in a group is drawn from the seed and its id alone: always the same, whoever handles it, and when.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final
from uuid import UUID

import psycopg
import trio
from attrs import define, evolve, field, frozen

from ...runtime.postgres import PoolTimeout, PostgresUnavailable
from ..handling import Context, Delivery, Permanent, Unavailable
from ..queue import Queue
from ..system import Group, Handler, Stream, System
from .ledger import EFFECT, Ledger

__all__ = ["Stumbling"]

PASSING: Final[tuple[Callable[[], Exception], ...]] = (
    lambda: RuntimeError("a bug"),
    lambda: ConnectionError("the payment service is away"),
    lambda: trio.TooSlowError("the payment service is slow"),
    lambda: psycopg.OperationalError("connection to another database failed"),
    lambda: PostgresUnavailable("another database is away", address="elsewhere"),
    lambda: PoolTimeout("all connections are taken"),
    lambda: psycopg.errors.DeadlockDetected("deadlock detected"),
    lambda: ExceptionGroup("two tasks failed", [OSError("a"), psycopg.OperationalError("b")]),
)
LASTING: Final[tuple[Callable[[], BaseException], ...]] = (
    lambda: Permanent("never"),
    lambda: ExceptionGroup("tasks failed", [Permanent("never"), RuntimeError("and more")]),
    lambda: psycopg.errors.UniqueViolation("there is one"),
    lambda: SystemExit(3),
)


@frozen
class _Fate:
    """What an event meets in a group, attempt by attempt; afterwards the handler is left alone."""

    errors: tuple[Callable[[], BaseException], ...] = ()
    for_ever: bool = False
    pause: float = 0.0
    freezes: float = 0.0
    late: bool = False


@define(eq=False)
class Stumbling:
    """See the module.

    Attributes:
        seed: of all fates.
        ledger: where effects and failures are noted; set before the copy runs.
        on: whether handlers are made to stumble at all.
        freeze: freezes the process whose task calls it for so many seconds.
        time_limit: seconds that a handler's transaction may take.
        away: what is away behind gates of the system's own, and why.
    """

    seed: int
    on: bool = True
    time_limit: float = 10.0
    freeze: Callable[[float], None] = lambda seconds: None
    away: dict[str, str] = field(factory=dict)
    ledger: Ledger = field(init=False)
    _tries: Counter[tuple[str, UUID]] = field(factory=Counter)

    def copy_of(self, system: System) -> System:
        """The same declaration with watched handlers."""
        streams = {}
        for key, stream in system.streams.items():
            groups = {name: self._group(stream, group) for name, group in stream.groups.items()}
            streams[key] = evolve(stream, groups=groups)
        made = system.with_streams(streams)
        made.queues = {name: self._queue(queue) for name, queue in system.queues.items()}
        return made

    def _queue(self, queue: Queue) -> Queue:
        made = evolve(queue)  # with a stream and a group of its own, that have no handlers yet
        made.stream.types.update(queue.stream.types)
        made.group.handlers.update(self._group(queue.stream, queue.group).handlers)
        return made

    def _group(self, stream: Stream, group: Group) -> Group:
        handlers = {name: self._handler(stream, group, handler) for name, handler in group.handlers.items()}
        return evolve(group, handlers=handlers)

    def _handler(self, stream: Stream, group: Group, handler: Handler) -> Handler:
        async def single(event: Any, context: Context) -> None:
            assert context.delivery is not None  # noqa: S101 - a single handler's
            memory = context.connection
            event_id = context.delivery.envelope.event_id
            began = trio.current_time()
            try:
                await self._record(stream, group, context.delivery, memory)
                fate = self._fate(group, event_id)
                await self._stumble(group, event_id, fate, late=False)
                self._look_outside(group)
                await handler.call(event, context)
                self._look_outside(group)
                await self._stumble(group, event_id, fate, late=True)
            except BaseException as error:
                self._note(group, [event_id], error, memory, began)
                raise

        async def batch(deliveries: Sequence[Delivery[Any]], context: Context) -> None:
            memory, began = context.connection, trio.current_time()
            sound = []
            for delivery in deliveries:
                event_id = delivery.envelope.event_id
                try:
                    fate = self._fate(group, event_id)
                    await self._stumble(group, event_id, fate, late=False)
                except BaseException as error:
                    self._note(group, [event_id], error, memory, began)
                    if not isinstance(error, Exception):
                        raise
                    context.fail(delivery, error)  # as a batch handler does for one of its events
                else:
                    sound.append(delivery)
            if not sound:
                return
            try:
                self._look_outside(group)
                await handler.call(sound, context)
                for delivery in sound:
                    if delivery.entry_id not in context.failures:
                        await self._record(stream, group, delivery, memory)
            except BaseException as error:
                self._note(group, [each.envelope.event_id for each in sound], error, memory, began)
                raise
            for delivery in sound:
                if delivery.entry_id in context.failures:
                    self._note(group, [delivery.envelope.event_id], context.failures[delivery.entry_id], memory, began)

        return evolve(handler, call=batch if handler.batch else single)

    async def _record(self, stream: Stream, group: Group, delivery: Delivery[Any], memory: Any) -> None:
        envelope = delivery.envelope
        await memory.execute(EFFECT, (stream.key, group.name, envelope.event_id, envelope.key))

    def _look_outside(self, group: Group) -> None:
        """Raise what a handler does that meets with something away, behind a gate of its group."""
        for gate in group.requires:
            if why := self.away.get(gate):
                raise Unavailable(gate, why)

    async def _stumble(self, group: Group, event_id: UUID, fate: _Fate, *, late: bool) -> None:
        if fate.late is not late:
            return
        tries = self._tries[group.name, event_id]
        self._tries[group.name, event_id] += 1
        if fate.freezes and not tries:
            self.freeze(fate.freezes)
            await trio.lowlevel.checkpoint()
        if fate.pause and not tries:
            await trio.sleep(fate.pause)
        if tries < len(fate.errors):
            raise fate.errors[tries]()
        if fate.for_ever:
            raise fate.errors[-1]()

    def _fate(self, group: Group, event_id: UUID) -> _Fate:
        if not self.on:
            return _Fate()
        chance = random.Random(f"{self.seed} {group.name} {event_id}")  # noqa: S311 - no secret
        draw, late = chance.random(), chance.random() < 0.5
        if draw < 0.03:
            return _Fate((chance.choice(PASSING),), for_ever=True, late=late)
        if draw < 0.06:
            return _Fate((chance.choice(LASTING),), for_ever=True, late=late)
        if draw < 0.16:
            return _Fate(tuple(chance.choices(PASSING, k=chance.randint(1, 4))), late=late)
        if draw < 0.22:
            return _Fate(pause=chance.choice([0.5, 3.0, 60.0]), late=late)
        if draw < 0.23:
            # Longer than a lease: the process goes on with a transaction of a partition that is another's by then.
            return _Fate(freezes=chance.choice([5.0, 40.0, 100.0]), late=late)
        return _Fate()

    def _note(self, group: Group, event_ids: Sequence[UUID], error: BaseException, memory: Any, began: float) -> None:
        """Count a failure that is the handler's own: not one that it met because the database, or what a gate stands
        for, went."""
        if memory.is_lost or (isinstance(error, Unavailable) and error.gate in group.requires):
            return
        # What went before in the same transaction may have taken some of its time.
        timed_out = trio.current_time() - began >= self.time_limit / 2
        if isinstance(error, Exception | SystemExit) or timed_out:
            self.ledger.failures.update((group.name, event_id) for event_id in event_ids)
