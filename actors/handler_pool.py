"""The handler pool: takes entries from the backlog, commits their effects, and acknowledges them afterwards.

Many events share one transaction; when it fails, they are tried one by one, so that only the event at fault pays. The
transaction holds the handlers' writes, the inbox rows that make a second delivery harmless, the dead letters, and the
group's position. Only after its commit are the entries acknowledged, in batches.

An outage of PostgreSQL costs no event an attempt (`blame` tells it from a failure of the event): the entries go back,
and wait at the gate.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import redis.exceptions
import trio
from attrs import define, frozen

from ..runtime.supervision import ErrorInfo
from ..runtime.supervision.outcome import outcome_of
from ..runtime.telemetry import get_logger
from .blame import Progress, Stage, is_hopeless, passes
from .dead_letter import DeadLetter, Reason
from .event import Envelope
from .handling import Context, Delivery, Entry
from .sorting import Handle, Ignore, Refuse, Verdict, sort_entry
from .store import InboxEntry

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis
    from ..runtime.supervision import Child, Gate
    from .backlog import Backlog
    from .settings import DeliverySettings
    from .store import Store, Transaction
    from .system import Group, Handler, Stream

__all__ = ["Counts", "HandlerPool"]

log = get_logger(__name__)

ACKNOWLEDGE = 100
"""Ids in one XACK at the most; one at a time halved the measured throughput."""

LINGER = 0.02
"""Seconds that an acknowledgement waits for company. One that is lost is only a duplicate, which the inbox absorbs."""

LETTER_PAUSE = 60.0
"""Seconds before an event is looked at again whose dead letter the database does not take: somebody must mend that."""


@define
class Counts:
    """What became of entries, since the start of the process.

    Attributes:
        handled: an effect was committed.
        duplicates: the inbox knew the event already.
        ignored: not for this group.
        retried: attempts that failed and are tried again.
        dead: buried as dead letters.
    """

    handled: int = 0
    duplicates: int = 0
    ignored: int = 0
    retried: int = 0
    dead: int = 0


class _Fate(enum.Enum):
    """What an attempt came to."""

    SETTLED = "settled"  # committed, buried, or put off with its attempt counted
    SPLIT = "split"  # somebody in the batch failed: try them one by one
    OUTAGE = "outage"  # nobody's fault: the entries go back


@frozen
class _Result:
    """What one committed transaction did."""

    handled: int
    duplicates: int
    ignored: int
    dead: int


class HandlerPool:
    """The body of the actor ``handler-pool`` of one group.

    Args:
        stream: the declared stream.
        group: the declared group, with its handlers.
        backlog: where the entries come from.
        store: where effects go.
        client: the link to Redis, for the acknowledgements.
        settings: attempts, pauses, time limits.
        redis_gate: while it is shut, acknowledgements wait.
        postgres_gate: while it is shut, nothing is attempted.
        redis_trouble: told of every error of Redis, so that its gate can be shut at once.
        postgres_trouble: told of what keeps the database from working for us, for the same reason.
        consumer: the instance's name, for dead letters.
        chance: random numbers in [0, 1) for the jitter.
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
        postgres_gate: Gate,
        redis_trouble: Callable[[Exception], None],
        postgres_trouble: Callable[[Exception], None],
        consumer: str,
        chance: Callable[[], float] | None = None,
    ) -> None:
        self.counts = Counts()
        self._stream = stream
        self._group = group
        self._backlog = backlog
        self._store = store
        self._client = client
        self._settings = settings
        self._redis_gate = redis_gate
        self._postgres_gate = postgres_gate
        self._redis_trouble = redis_trouble
        self._postgres_trouble = postgres_trouble
        self._consumer = consumer
        self._chance = chance or random.random
        self._draining = False

    async def __call__(self, child: Child) -> None:
        """Work until cancelled; entries in work go back to the backlog, their transactions are rolled back.

        When drained, finish what is in work, acknowledge what is committed, and return; the rest stays pending.
        """
        self._draining = False
        async with trio.open_nursery() as acknowledging:
            acknowledging.start_soon(self._acknowledge)
            async with trio.open_nursery() as working:
                for number in range(self._group.workers):
                    working.start_soon(self._work, name=f"{child.path}/worker-{number + 1}")
                child.started()
                await child.draining.wait()
                self._draining = True
                self._backlog.wake()
            while not self._backlog.is_acknowledged and self._redis_gate.is_open:
                # In turns, for a gate that shuts meanwhile makes the waiting pointless.
                with trio.move_on_after(0.1):
                    await self._backlog.wait_acknowledged()
            acknowledging.cancel_scope.cancel(reason="the handler pool is drained")

    async def _work(self) -> None:
        while not self._draining:
            batch = await self._backlog.take(self._group.batch, lambda: self._draining)
            if batch:
                await self._settle(batch)

    # One batch ------------------------------------------------------------------------------------------------------

    async def _settle(self, batch: Sequence[Entry]) -> None:
        """Bring every entry of the batch to one of its ends: done, to be retried, or given back."""
        left = {entry.id: entry for entry in batch}
        try:
            fate = await self._attempt(batch)
            if fate is _Fate.SETTLED:
                left.clear()
            if fate is _Fate.SPLIT:
                for entry in batch:
                    if await self._attempt([entry]) is not _Fate.SETTLED:
                        break
                    del left[entry.id]
        finally:
            # Cancelled, or an outage: nobody's attempt. In their order, to the front.
            self._backlog.give_back(list(left.values()))

    async def _attempt(self, entries: Sequence[Entry]) -> _Fate:
        """One transaction for `entries`."""
        verdicts = [sort_entry(entry, self._stream, self._group) for entry in entries]
        progress = Progress()
        try:
            result = await self._transact(verdicts, progress)
        except Exception as raised:  # noqa: BLE001 - the boundary of handlers: whatever they raise is judged here
            error = outcome_of(raised).error or raised
            if not progress.blames(error, database_is_up=self._postgres_gate.is_open):
                await self._wait_out(error)
                return _Fate.OUTAGE
            if len(entries) > 1:
                return _Fate.SPLIT
            return await self._fail(verdicts[0], error)
        self._count(result)
        self._backlog.done(entries)
        return _Fate.SETTLED

    async def _transact(self, verdicts: Sequence[Verdict], progress: Progress) -> _Result:
        """Commit the effects of all verdicts together."""
        handles = [verdict for verdict in verdicts if isinstance(verdict, Handle)]
        refusals = [verdict for verdict in verdicts if isinstance(verdict, Refuse)]
        with trio.fail_after(self._settings.handler_timeout):
            async with self._store.transaction() as transaction:
                progress.transaction = transaction
                fresh = await self._first_time(transaction, handles)
                progress.stage = Stage.HANDLING
                await self._call(transaction, fresh)
                # Whoever held the processor beyond the limit has exceeded it, too.
                await trio.lowlevel.checkpoint()
                progress.stage = Stage.CLOSING
                for refusal in refusals:
                    await transaction.bury(self._letter(refusal.entry, refusal.envelope, refusal.reason, refusal.error))
                position = self._backlog.position(verdict.entry for verdict in verdicts)
                if position is not None:
                    await transaction.position(self._group.name, self._stream.key, position)
        for refusal in refusals:
            self._tell_dead(refusal.entry, refusal.reason, refusal.error)
        ignored = sum(isinstance(verdict, Ignore) for verdict in verdicts)
        return _Result(len(fresh), len(handles) - len(fresh), ignored, len(refusals))

    async def _first_time(self, transaction: Transaction, handles: Sequence[Handle]) -> list[Handle]:
        """Those whose event the group has not handled before, one for each event id, in order."""
        if not handles:
            return []
        rows = [InboxEntry(handle.envelope.event_id, handle.entry.stream, handle.entry.id) for handle in handles]
        left = set(await transaction.first_time(self._group.name, rows))
        fresh = []
        for handle in handles:
            if handle.envelope.event_id in left:
                left.discard(handle.envelope.event_id)
                fresh.append(handle)
        return fresh

    async def _call(self, transaction: Transaction, fresh: Sequence[Handle]) -> None:
        """Call the handlers: single ones in the order of the entries, batch ones once, with all that is theirs."""
        batches: dict[str, list[Handle]] = {}
        for handle in fresh:
            if handle.handler.batch:
                batches.setdefault(handle.handler.event_type.name, []).append(handle)
            else:
                delivery = _delivery(handle)
                await handle.handler.call(handle.event, self._context(transaction, delivery))
        for handles in batches.values():
            handler: Handler = handles[0].handler
            await handler.call([_delivery(handle) for handle in handles], self._context(transaction, None))

    def _context(self, transaction: Transaction, delivery: Delivery[object] | None) -> Context:
        return Context(
            connection=transaction.connection, stream=self._stream.key, group=self._group.name, delivery=delivery
        )

    def _count(self, result: _Result) -> None:
        self.counts.handled += result.handled
        self.counts.duplicates += result.duplicates
        self.counts.ignored += result.ignored
        self.counts.dead += result.dead

    # Failures -------------------------------------------------------------------------------------------------------

    async def _wait_out(self, error: BaseException) -> None:
        """PostgreSQL cannot do our work: block until it can, or until the gate has this pool cancelled."""
        told = str(ErrorInfo.of(error))
        if not self._postgres_gate.is_open:
            log.debug("transaction given back", group=self._group.name, error=told)
        elif passes(error):
            log.warning("database is busy, trying again", group=self._group.name, error=told)
        elif isinstance(error, Exception):
            # Shut, and opened by the probe: so that it is seen, and the pace is that of the health monitor.
            self._postgres_trouble(error)
        # Never at full speed, and not all workers in step.
        await trio.sleep(0.1 + 0.9 * self._chance())
        await self._postgres_gate.wait_open()

    async def _fail(self, verdict: Verdict, error: BaseException) -> _Fate:
        """The event's attempt failed by its own fault, or its handler's: try it again later, or bury it."""
        entry = verdict.entry
        entry.attempts += 1
        reason = self._end(error, entry.attempts)
        if reason is None:
            delay = self._pause(entry.attempts)
            self.counts.retried += 1
            log.warning("event will be retried", **self._where(entry), attempt=entry.attempts, next_in=round(delay, 3),
                        error=str(ErrorInfo.of(error)))  # fmt: skip
            self._backlog.retry(entry, trio.current_time() + delay)
            return _Fate.SETTLED
        return await self._bury(verdict, reason, error)

    def _end(self, error: BaseException, attempts: int) -> Reason | None:
        """Why there will be no further attempt; None if there will."""
        if is_hopeless(error):
            return Reason.PERMANENT
        return Reason.MAX_DELIVERIES if attempts >= self._settings.max_deliveries else None

    def _pause(self, attempts: int) -> float:
        """Seconds before the next attempt: doubling up to the cap, full jitter."""
        settings = self._settings
        return self._chance() * min(settings.retry_maximum, settings.retry_minimum * 2.0 ** min(attempts - 1, 60))

    async def _bury(self, verdict: Verdict, reason: Reason, error: BaseException) -> _Fate:
        entry = verdict.entry
        envelope = None if isinstance(verdict, Ignore) else verdict.envelope
        letter = self._letter(entry, envelope, reason, error)
        progress = Progress()
        try:
            with trio.fail_after(self._settings.handler_timeout):
                async with self._store.transaction() as transaction:
                    progress = Progress(Stage.CLOSING, transaction)
                    await transaction.bury(letter)
        except Exception as failed:  # noqa: BLE001 - the letter must not be lost: whatever it was, it goes again
            entry.attempts -= 1
            if not progress.blames(failed, database_is_up=self._postgres_gate.is_open):
                await self._wait_out(failed)
                return _Fate.OUTAGE
            log.error("dead letter not stored, trying again", **self._where(entry), next_in=LETTER_PAUSE,
                      error=str(ErrorInfo.of(failed)))  # fmt: skip
            self._backlog.retry(entry, trio.current_time() + LETTER_PAUSE)
            return _Fate.SETTLED
        self.counts.dead += 1
        self._tell_dead(entry, reason, error)
        self._backlog.done([entry])
        return _Fate.SETTLED

    def _letter(self, entry: Entry, envelope: Envelope | None, reason: Reason, error: BaseException) -> DeadLetter:
        return DeadLetter.of(
            error,
            stream=entry.stream,
            entry_id=entry.id,
            consumer_group=self._group.name,
            consumer=self._consumer,
            reason=reason,
            fields=entry.fields,
            deliveries=max(1, entry.attempts),
            event_id=envelope.event_id if envelope else None,
            event_type=envelope.event_type if envelope else None,
            event_key=envelope.key if envelope else None,
            published_at=envelope.timestamp if envelope else None,
        )

    def _tell_dead(self, entry: Entry, reason: Reason, error: BaseException) -> None:
        told = str(ErrorInfo.of(error))
        log.error("event is dead", **self._where(entry), reason=reason.value, attempts=entry.attempts, error=told)

    def _where(self, entry: Entry) -> dict[str, str]:
        return {"stream": entry.stream, "group": self._group.name, "entry": entry.id}

    # Acknowledgements -----------------------------------------------------------------------------------------------

    async def _acknowledge(self) -> None:
        while True:
            await self._redis_gate.wait_open()
            ids = await self._backlog.take_done(ACKNOWLEDGE, 0.0 if self._draining else LINGER)
            acknowledged = False
            try:
                await self._client().xack(self._stream.key, self._group.name, *ids)
                acknowledged = True
            except redis.exceptions.RedisError as error:
                log.debug("acknowledgement postponed", group=self._group.name, ids=len(ids), error=str(error))
                self._redis_trouble(error)
            finally:
                (self._backlog.acknowledged if acknowledged else self._backlog.acknowledge_again)(ids)
            if not acknowledged:
                # Harmless to repeat, useless to hurry: the gate, or this pause, sets the pace.
                await trio.sleep(0.5)


def _delivery(handle: Handle) -> Delivery[object]:
    return Delivery(
        event=handle.event,
        envelope=handle.envelope,
        entry_id=handle.entry.id,
        attempt=handle.entry.attempts + 1,
    )
