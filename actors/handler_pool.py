"""The handler pool: takes entries from the backlog, and rows that are due from the table of retries, lets their effects
be committed, and acknowledges what is committed.

Many events share one transaction; when it fails, they are tried again without the one at fault (`splitting`), so that
only that one pays, with a row in the table of retries or a dead letter. What the transactions hold is told in
`attempts`.

An outage of PostgreSQL costs no event an attempt (`blame` tells it from a failure of the event): the entries go back,
and wait at the gate.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import redis.exceptions
import trio

from ..runtime.supervision import ErrorInfo
from ..runtime.supervision.outcome import outcome_of
from ..runtime.telemetry import get_logger
from .attempts import Attempts
from .blame import Progress, away_of, met_redis, passes
from .broadcasting import to_nobody
from .claims import Claim, Claims
from .failures import Counts, Failures, PoisonousEvent
from .isolation import Isolation
from .lease_table import LeaseLost
from .once_in_redis import RedisSteps
from .sorting import key_of, verdict_of
from .splitting import Part, Splitting
from .stopping import DRAIN_WITHIN, Stopping
from .system import REDIS_GATES

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis
    from ..runtime.supervision import Child, Gate
    from .attempts import Publish
    from .backlog import Backlog
    from .channels import Notice
    from .handling import Entry, Unavailable
    from .lease_table import Lease
    from .settings import DeliverySettings
    from .store import Store
    from .system import Group, Stream

__all__ = ["Counts", "HandlerPool"]

log = get_logger(__name__)

T = TypeVar("T")

ACKNOWLEDGE = 100
"""Ids in one XACK at the most; one at a time halved the measured throughput."""

LINGER = 0.02
"""Seconds that an acknowledgement waits for company. One that is lost is only a duplicate, which the inbox absorbs."""

LETTER_PAUSE = 60.0
"""Seconds before an event is looked at again whose row or letter the database refuses: somebody must mend that."""

LOOK, LOOK_IDLE = 1.0, 10.0
"""Seconds between two looks for rows that somebody else wrote (what we wrote ourselves we know of): while there is
something to do, and when there was nothing for `IDLE_AFTER` seconds. A look is a transaction."""

IDLE_AFTER = 60.0


class HandlerPool:
    """The body of the actor ``handler-pool`` of one partition of a group.

    Args:
        stream: the declared stream.
        group: the declared group, with its handlers.
        backlog: where the entries come from.
        store: where effects go.
        client: the link to Redis, for the acknowledgements.
        settings: attempts, pauses, time limits.
        redis_gate: while it is shut, acknowledgements wait.
        memory_gate: while it is shut, Redis is full, and handlers that need it to take something wait.
        postgres_gate: while it is shut, nothing is attempted.
        redis_trouble: told of every error of Redis, so that its gate can be shut at once.
        postgres_trouble: told of what keeps the database from working for us, for the same reason.
        outside_trouble: told what a handler says is away, for the same reason.
        consumer: the instance's name, for dead letters.
        chance: random numbers in [0, 1) for the jitter.
        partition: the key of the partition in Redis. Default: the stream's.
        fence: of an ordered group: the lease of the partition, if it is in force.
        limiter: how many transactions the group may have open, in all its partitions. Default: no limit beside
            `Group.workers`.
        publish: what `Context.publish` does, within a transaction.
        broadcast: sends what `Context.broadcast` noted, after the transaction. Default: nobody is told.
        acknowledge: tells Redis that entries, by their ids, are over; raises its errors. Default: XACK.
        wall: what time it is, for events that expire.
        stopping: whether the process stops.
        isolation: what the pools of the process keep suspects apart by.
    """

    def __init__(
        self,
        stream: Stream,
        group: Group,
        backlog: Backlog,
        store: Store,
        client: Callable[[], AnyRedis],
        settings: DeliverySettings,
        *,
        redis_gate: Gate,
        memory_gate: Gate,
        postgres_gate: Gate,
        redis_trouble: Callable[[Exception], None],
        postgres_trouble: Callable[[Exception], None],
        outside_trouble: Callable[[Unavailable], None] = lambda _: None,
        consumer: str,
        chance: Callable[[], float] | None = None,
        partition: str | None = None,
        fence: Callable[[], Lease | None] | None = None,
        limiter: trio.CapacityLimiter | None = None,
        publish: Publish | None = None,
        broadcast: Callable[[Sequence[Notice]], Awaitable[None]] = to_nobody,
        acknowledge: Callable[[Sequence[str]], Awaitable[object]] | None = None,
        wall: Callable[[], datetime] | None = None,
        stopping: Stopping | None = None,
        isolation: Isolation | None = None,
    ) -> None:
        self.counts = Counts()
        self._group = group
        self._backlog = backlog
        self._client = client
        self._redis_gate = redis_gate
        self._redis_gates = (redis_gate, memory_gate)
        self._postgres_gate = postgres_gate
        self._redis_trouble = redis_trouble
        self._postgres_trouble = postgres_trouble
        self._outside_trouble = outside_trouble
        self._broadcast = broadcast
        self._chance = chance or random.random
        self._partition = partition or stream.key
        self._acknowledge_entries = acknowledge or self._xack
        self._limiter = limiter
        self._stopping = stopping or Stopping()
        self._isolation = isolation or Isolation()
        self._draining = False
        self._due = _Due()
        self._busy_at = -math.inf
        self._claims = Claims(group, self._partition, store, settings, fence)
        self._attempts = Attempts(
            stream,
            group,
            self._partition,
            store,
            settings,
            Failures(stream, group, store, settings, self._chance, consumer),
            self._claims,
            position=backlog.position,
            publish=publish,
            redis_steps=RedisSteps(client, self._redis_gates, group.name),
            wall=wall or (lambda: datetime.now(UTC)),
            consumer=consumer,
        )
        if group.ordered:
            backlog.order_by(lambda entry: key_of(verdict_of(entry, stream, group)))

    async def __call__(self, child: Child) -> None:
        """Work until cancelled; entries in work go back to the backlog, their transactions are rolled back.

        When drained, or when the process stops, finish what is in work and acknowledge what is committed; the rest
        stays pending. Returns when drained.
        """
        self._draining = False
        self._due.soon(0.0)
        await self._absolve(None)
        async with trio.open_nursery() as acknowledging:
            acknowledging.start_soon(self._acknowledge)
            async with trio.open_nursery() as working:
                for number in range(self._group.workers):
                    working.start_soon(self._work, name=f"{child.path}/worker-{number + 1}")
                child.started()
                with self._stopping.until():
                    await child.draining.wait()
                self._draining = True
                self._backlog.wake()
                # All pools of a process drain within the same time.
                working.cancel_scope.deadline = self._stopping.deadline(DRAIN_WITHIN)
            until = self._stopping.deadline(DRAIN_WITHIN + 1.0)
            while not self._backlog.is_acknowledged and self._redis_gate.is_open and trio.current_time() < until:
                # In turns, for a gate that shuts meanwhile makes the waiting pointless.
                with trio.move_on_after(0.1):
                    await self._backlog.wait_acknowledged()
            acknowledging.cancel_scope.cancel(reason="the handler pool is drained")
        await child.draining.wait()

    async def _work(self) -> None:
        """Entries and due rows in turns, so that neither keeps the other waiting."""
        while not self._draining:
            if self._due.is_due:
                await self._retry()
            batch = await self._backlog.take(self._group.batch, lambda: self._draining, lambda: self._due.at)
            if batch:
                await self._settle(batch)

    # One batch ------------------------------------------------------------------------------------------------------

    async def _settle(self, batch: Sequence[Entry]) -> None:
        """Bring every entry of the batch to one of its ends: done, to be retried, or given back."""
        left = {entry.id: entry for entry in batch}
        try:
            if batch[0].redelivered and batch[0].retry is None:
                await self._settle_suspects(batch, left)
            else:
                await self._in_turn(self._attempt_all, batch, left)
        finally:
            # Cancelled, or an outage: nobody's attempt. In their order, to the front.
            self._backlog.give_back([entry for entry in left.values() if entry.retry is None])

    async def _settle_suspects(self, batch: Sequence[Entry], left: dict[str, Entry]) -> None:
        """Those that were counted before while no other suspect is at work. (Before its turn, as with rows.)"""
        async with self._isolation.beside():
            wants_alone = await self._in_turn(self._attempt_suspects, batch, left, False)
        if wants_alone:
            async with self._isolation.alone():
                await self._in_turn(self._attempt_suspects, batch, left, True)

    async def _in_turn(
        self, attempt: Callable[..., Awaitable[T]], batch: Sequence[Entry], left: dict[str, Entry], *more: bool
    ) -> T | None:
        """What `attempt` returns, within the group's limit; None if the pool drains by then: nothing was begun."""
        async with self._limiter or nullcontext():
            result = None if self._draining else await attempt(batch, left, *more)
            await self._absolve(list(left.values()))
            return result

    async def _attempt_all(
        self, batch: Sequence[Entry], left: dict[str, Entry], failed: Mapping[str, BaseException] | None = None
    ) -> None:
        """Attempt the batch, in parts where it must be; takes out of `left` what is settled.

        Args:
            batch: in order.
            left: what is to be given back.
            failed: what those have failed of that are not to be handled.
        """
        splitting = Splitting(batch, failed)
        while splitting.parts:
            part = splitting.parts.pop(0)
            progress = Progress()
            ended = await self._attempt(part, progress)
            if isinstance(ended, Counts):
                self._end(part.entries, ended)
            elif not progress.blames(
                ended,
                database_is_up=self._postgres_gate.is_open,
                redis_is_up=self._redis_gate.is_open,
                gates=self._group.behind,
            ):
                await self._wait_out(ended)
                return
            elif splitting.again(part, ended, progress.failed):
                continue
            else:
                await self._postpone(part.entries[0], ended)
            for entry in part.entries:
                left.pop(entry.id, None)
            if isinstance(ended, Counts):
                if progress.notices:
                    await self._broadcast(progress.notices)
            elif self._group.ordered:
                return  # what is behind it under its key waits as well

    async def _attempt_suspects(self, batch: Sequence[Entry], left: dict[str, Entry], alone: bool) -> bool:
        """Attempt those of the redelivered entries that may be attempted together; the others stay in `left`.

        Returns whether none was, for the first one wants to be `alone`.
        """
        try:
            claim = await self._claims.suspect(batch, alone=alone)
        except Exception as raised:  # noqa: BLE001 - no handler was called: whatever it is, it is the database's
            await self._wait_out(outcome_of(raised).error or raised)
            return False
        if claim.entries:
            await self._attempt_all(claim.entries, left)
        await self._bury_poison(claim.poison, left)
        return claim.wants_alone

    async def _attempt(self, part: Part, progress: Progress) -> Counts | BaseException:
        """One transaction: what it came to, or why it came to nothing."""
        try:
            return await self._attempts.handle(part.entries, progress, part.failed)
        except Exception as raised:  # noqa: BLE001 - the boundary of handlers: whatever they raise is judged
            return outcome_of(raised).error or raised

    async def _bury_poison(self, entries: Sequence[Entry], left: dict[str, Entry]) -> None:
        if entries:
            error = PoisonousEvent(
                "it was taken up several times, and its worker was gone each time; it is not tried again"
            )
            await self._attempt_all(entries, left, {entry.id: error for entry in entries})

    def _end(self, entries: Sequence[Entry], counts: Counts) -> None:
        """What became of entries is committed."""
        self.counts.add(counts)
        self._busy_at = trio.current_time()
        # At once for a row that waits, or one that is gone and had others waiting behind it.
        self._due.soon(0.0 if counts.retried or counts.parked or entries[0].retry is not None else LOOK)
        for entry in entries:
            entry.verdict = None  # it knows its entry, and a circle lives on until the collector comes
        if entries[0].retry is None:
            self._backlog.done(entries)
        self._backlog.wake()

    async def _wait_out(self, error: BaseException) -> None:
        """PostgreSQL, or what handlers need beside it, is away: block until it is back, or a gate has us cancelled."""
        told = str(ErrorInfo.of(error))
        away = away_of(error, self._group.behind)
        in_redis = met_redis(error) if away is None else away.gate in REDIS_GATES
        if away is not None:
            self._outside_trouble(away)
        elif in_redis or not self._postgres_gate.is_open:
            log.debug("transaction given back", group=self._group.name, error=told)
        elif isinstance(error, LeaseLost):
            log.info("partition is not ours", group=self._group.name, stream=self._partition, error=told)
        elif passes(error):
            log.warning("database is busy, trying again", group=self._group.name, error=told)
        elif isinstance(error, Exception):
            # Shut, and opened by the probe: so that it is seen, and the pace is that of the health monitor.
            self._postgres_trouble(error)
        # Never at full speed, and not all workers in step.
        await trio.sleep(0.1 + 0.9 * self._chance())
        await self._postgres_gate.wait_open()
        while in_redis and not self._draining and not all(gate.is_open for gate in self._redis_gates):
            # In turns: nobody cancels a pool for these gates, and its end is not to wait for Redis.
            with trio.move_on_after(0.5):
                for gate in self._redis_gates:
                    await gate.wait_open()

    # Rows that are due ----------------------------------------------------------------------------------------------

    async def _retry(self) -> None:
        """Take rows that are due, and attempt them."""
        if not self._isolation.is_open:
            self._due.looking()
            self._due.soon(LOOK)
            return
        async with self._isolation.beside():
            wants_alone = await self._retry_some(alone=False)
        if wants_alone:
            async with self._isolation.alone():
                await self._retry_some(alone=True)

    async def _retry_some(self, *, alone: bool) -> bool:
        """Returns whether nothing was attempted, for the row whose turn it is wants to be `alone`."""
        occupied: set[str] = set()

        def occupy(keys: set[str]) -> set[str]:
            occupied.update(ours := self._backlog.occupy(keys))
            return ours

        try:
            claim = await self._claim(occupy, alone=alone)
            if claim.entries:
                await self._settle(claim.entries)
            await self._bury_poison(claim.poison, {})
            return claim.wants_alone
        finally:
            self._backlog.release(occupied)

    async def _claim(self, occupy: Callable[[set[str]], set[str]], *, alone: bool) -> Claim:
        again = look = LOOK if trio.current_time() - self._busy_at < IDLE_AFTER else LOOK_IDLE
        claim: Claim | None = None
        self._due.looking()
        try:
            async with self._limiter or nullcontext():
                claim = await self._claims.claim(self._group.batch, self._backlog.busy_keys, occupy, alone=alone)
            again = 0.0 if claim.more else min(look, claim.next_in or look)
            if claim.entries:
                self._busy_at = trio.current_time()
            return claim
        except Exception as raised:  # noqa: BLE001 - no handler was called: whatever it is, it is the database's
            await self._wait_out(outcome_of(raised).error or raised)
            return Claim()
        finally:
            self._due.soon(again)
            if claim is None or claim.entries or claim.poison:
                # This worker is busy now: another one must look next. If it found nothing, it will do so itself.
                self._backlog.wake()

    async def _postpone(self, entry: Entry, error: BaseException) -> None:
        """The database refuses what became of an entry."""
        log.error("failed event not stored, trying again", stream=entry.stream, group=self._group.name,
                  entry=entry.id, next_in=LETTER_PAUSE, error=str(ErrorInfo.of(error)))  # fmt: skip
        at = trio.current_time() + LETTER_PAUSE
        if entry.retry is None:
            self._backlog.postpone(entry, at)
            return
        try:
            await self._claims.put_away(entry.retry, LETTER_PAUSE)
        except Exception as raised:  # noqa: BLE001 - it is due again anyway, only sooner
            log.debug("row not put off", group=self._group.name, entry=entry.id, error=str(ErrorInfo.of(raised)))

    async def _absolve(self, entries: Sequence[Entry] | None) -> None:
        """What was broken off by others is held against no event (of all that this process had: None)."""
        try:
            await self._claims.absolve(entries)
        except Exception as raised:  # noqa: BLE001 - it is asked for again when the pool starts
            log.debug("suspects not absolved", group=self._group.name, error=str(ErrorInfo.of(raised)))

    # Acknowledgements -----------------------------------------------------------------------------------------------

    async def _acknowledge(self) -> None:
        while True:
            await self._redis_gate.wait_open()
            ids = await self._backlog.take_done(ACKNOWLEDGE, 0.0 if self._draining else LINGER)
            acknowledged = False
            try:
                await self._acknowledge_entries(ids)
                acknowledged = True
            except redis.exceptions.RedisError as error:
                log.debug("acknowledgement postponed", group=self._group.name, ids=len(ids), error=str(error))
                self._redis_trouble(error)
            finally:
                (self._backlog.acknowledged if acknowledged else self._backlog.acknowledge_again)(ids)
            if not acknowledged:
                # Harmless to repeat, useless to hurry: the gate, or this pause, sets the pace.
                await trio.sleep(0.5)

    async def _xack(self, ids: Sequence[str]) -> None:
        await self._client().xack(self._partition, self._group.name, *ids)


class _Due:
    """When to look for rows that are due: one look at a time.

    Attributes:
        at: when (`trio.current_time()`).
    """

    def __init__(self) -> None:
        self.at = -math.inf

    @property
    def is_due(self) -> bool:
        return trio.current_time() >= self.at

    def looking(self) -> None:
        """Somebody looks, and will say when to look again."""
        self.at = math.inf

    def soon(self, delay: float) -> None:
        """Look in so many seconds at the latest."""
        self.at = min(self.at, trio.current_time() + delay)
