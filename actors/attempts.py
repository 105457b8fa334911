"""The transactions of a handler pool: one attempt at some events, and what is written when it fails.

Everything that an event comes to is decided in PostgreSQL, in one transaction each; only then is its entry
acknowledged, or its row gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

import trio
from attrs import define, evolve, field

from .blame import Progress, Stage
from .calling import call_handlers, plan
from .claims import Claims
from .dead_letter import Reason
from .event import Envelope
from .failures import Counts, Failures, Sentence
from .handling import Context, Delivery, Entry
from .retry_table import RetryRow
from .sorting import Handle, Ignore, Refuse, Verdict, expired, key_of, verdict_of
from .store import InboxEntry

if TYPE_CHECKING:
    from .settings import DeliverySettings
    from .store import Store, Transaction
    from .system import Group, Stream

__all__ = ["Attempts", "Publish"]

V = TypeVar("V", bound=Verdict)

Publish = Callable[["Transaction", str, Sequence[Envelope]], Awaitable[None]]
"""Puts events into the outbox, within a transaction."""


class _Apart(Exception):
    """These events cannot be committed together: one by one."""


@define
class _Sorted:
    """The entries of one attempt, by what is to be done with them."""

    handles: list[Handle] = field(factory=list)
    refusals: list[Refuse] = field(factory=list)
    ignored: list[Ignore] = field(factory=list)
    parked: list[Handle] = field(factory=list)

    @classmethod
    def of(cls, verdicts: Iterable[Verdict]) -> _Sorted:
        made = cls()
        for verdict in verdicts:
            match verdict:
                case Handle():
                    made.handles.append(verdict)
                case Refuse():
                    made.refusals.append(verdict)
                case Ignore():
                    made.ignored.append(verdict)
        return made


class Attempts:
    """See the module.

    Args:
        stream: the declared stream.
        group: the declared group.
        partition: the key of the partition whose entries are handled.
        store: where everything goes.
        settings: time limits and policies.
        failures: what failed attempts leave behind.
        claims: the lease, and what is held against entries.
        position: the group's position once entries are done; see `Backlog.position`.
        publish: what `Context.publish` does.
        wall: what time it is, for events that expire.
        consumer: the instance's name, for people.
    """

    def __init__(
        self,
        stream: Stream,
        group: Group,
        partition: str,
        store: Store,
        settings: DeliverySettings,
        failures: Failures,
        claims: Claims,
        *,
        position: Callable[[Iterable[Entry]], str | None],
        publish: Publish | None,
        wall: Callable[[], datetime],
        consumer: str,
    ) -> None:
        self._stream = stream
        self._group = group
        self._partition = partition
        self._store = store
        self._settings = settings
        self._failures = failures
        self._position = position
        self._claims = claims
        self._publish = publish
        self._wall = wall
        self._consumer = consumer

    # An attempt -----------------------------------------------------------------------------------------------------

    async def handle(self, entries: Sequence[Entry], progress: Progress) -> Counts:
        """Commit the effects of all entries together, with everything else that they come to; what that was.

        Raises:
            Exception: anything; nothing was committed then, unless the answer to the commit was lost.
        """
        now = self._wall()
        verdicts = [self._verdict(entry) for entry in entries]
        verdicts = [expired(verdict, now) or verdict for verdict in verdicts]
        with trio.fail_after(self._time_for(verdicts)):
            async with self._store.transaction() as transaction:
                progress.transaction = transaction
                await self._claims.hold_lease(transaction)
                verdicts = await self._still_ours(transaction, verdicts)
                sorted_ = _Sorted.of(verdicts)
                await self._park(transaction, sorted_)
                fresh = await self._first_time(transaction, sorted_.handles)
                progress.stage = Stage.HANDLING
                failed = await self._call(transaction, fresh, alone=len(entries) == 1)
                # Whoever held the processor beyond the limit has exceeded it, too.
                await trio.lowlevel.checkpoint()
                progress.stage = Stage.CLOSING
                sentences = await self._close(transaction, entries, sorted_, fresh, failed)
        self._claims.ended(entries)
        counts = self._failures.tell(sentences)
        refused = len(sentences) - len(failed)
        counts.handled = len(fresh) - len(failed)
        counts.ignored = len(sorted_.ignored)
        counts.parked = len(sorted_.parked)
        counts.duplicates = len(verdicts) - len(fresh) - refused - counts.ignored - counts.parked
        return counts

    async def _still_ours(self, transaction: Transaction, verdicts: Sequence[Verdict]) -> list[Verdict]:
        """Without the rows that somebody else has, or has handled, since they were claimed."""
        rows = _rows(verdict.entry for verdict in verdicts)
        if not rows:
            return list(verdicts)
        ordered = self._group.ordered
        held = {row.id for row in await self._store.retries.hold(transaction, rows, ordered=ordered)}
        # In order, one that somebody else has just in hand holds back what stands behind it.
        halted = {row.event_key for row in rows if row.id not in held and ordered} - {None}
        return [
            verdict
            for verdict in verdicts
            if (row := verdict.entry.retry) is None or (row.id in held and row.event_key not in halted)
        ]

    async def _park(self, transaction: Transaction, sorted_: _Sorted) -> None:
        """Put what must wait for an earlier event of its key behind it."""
        if not self._group.ordered:
            return
        keys = {key for handle in sorted_.handles if not handle.entry.retry and (key := key_of(handle)) is not None}
        if not keys:
            return
        waiting = await self._store.retries.keys(transaction, self._group.name, self._partition, keys)
        if not waiting:
            return
        behind = [handle for handle in sorted_.handles if key_of(handle) in waiting and not handle.entry.retry]
        sorted_.handles = [handle for handle in sorted_.handles if handle not in behind]
        # What is over, or has its row already, needs none.
        sorted_.parked = await self._open(transaction, behind)
        await self._store.retries.add(transaction, [self._failures.parked(handle) for handle in sorted_.parked])

    async def _first_time(self, transaction: Transaction, verdicts: Sequence[V]) -> list[V]:
        """Those whose event has come to no end in the group before, one for each event id, in order."""
        given = [
            InboxEntry(_id_of(each), each.entry.stream, each.entry.id) for each in verdicts if not each.entry.retry
        ]
        left = set(await transaction.first_time(self._group.name, given)) if given else set()
        entered = await self._enter_rows(transaction, [each for each in verdicts if each.entry.retry is not None])
        fresh = []
        for verdict in verdicts:
            if verdict.entry.id in entered:
                fresh.append(verdict)
            elif verdict.entry.retry is None and _id_of(verdict) in left:
                left.discard(_id_of(verdict))
                fresh.append(verdict)
        return fresh

    async def _enter_rows(self, transaction: Transaction, verdicts: Sequence[Verdict]) -> set[str]:
        entered = set()
        # In one order, so that two transactions that share events wait for each other and never deadlock.
        for verdict in sorted(verdicts, key=_id_of):
            row = verdict.entry.retry
            if row is not None and await self._store.retries.enter(transaction, _named(row, _id_of(verdict))):
                entered.add(verdict.entry.id)
        return entered

    async def _call(self, transaction: Transaction, fresh: Sequence[Handle], *, alone: bool) -> dict[str, Exception]:
        """Call the handlers; what failed by itself, by entry id."""
        calls = plan(fresh, ordered=self._group.ordered)
        failed = await call_handlers(calls, lambda delivery: self._context(transaction, delivery))
        if failed and alone:
            raise next(iter(failed.values()))
        if failed and not _can_fail_alone(fresh, failed, ordered=self._group.ordered):
            raise _Apart("what failed by itself cannot be committed beside the others")
        return failed

    def _context(self, transaction: Transaction, delivery: Delivery[object] | None) -> Context:
        publish, made = self._publish, Context(
            connection=transaction.connection, stream=self._stream.key, group=self._group.name, delivery=delivery
        )  # fmt: skip
        if publish is not None:
            made._publish = lambda stream, envelopes: publish(transaction, stream, envelopes)
        return made

    async def _close(
        self,
        transaction: Transaction,
        entries: Sequence[Entry],
        sorted_: _Sorted,
        fresh: Sequence[Handle],
        failed: dict[str, Exception],
    ) -> list[Sentence]:
        """Write what the attempt came to beside the effects; the sentences on those that failed in it."""
        group = self._group.name
        by_id = {handle.entry.id: handle for handle in fresh}
        sentences = [self._failures.judge(by_id[entry_id], error) for entry_id, error in failed.items()]
        if failed:
            events = [by_id[entry_id].envelope.event_id for entry_id in failed]
            await self._store.retries.withdraw(transaction, group, events)
        refused = await self._open(transaction, sorted_.refusals)
        sentences += [self._failures.judge(refusal, refusal.error, refusal.reason) for refusal in refused]
        if sentences:
            await self._failures.carry_out(transaction, sentences)
        over = [refusal for refusal in sorted_.refusals if refusal not in refused]
        await self._finish_rows(transaction, [*sorted_.handles, *sorted_.ignored, *over], failed)
        await self._claims.clear(transaction, entries)
        position = self._position(entries) if not _rows(entries) else None
        if position is not None:
            await transaction.position(group, self._partition, position)
        return sentences

    async def _open(self, transaction: Transaction, verdicts: Sequence[V]) -> list[V]:
        """Those that have come to no other end, and come to none until the end of the transaction; in order.

        The others come again because an acknowledgement was lost, or because their event was published twice.
        """
        # Whoever ordered a row by force knows that there was an end before.
        told = [each for each in verdicts if each.envelope is not None and not _is_forced(each)]
        fresh = await self._first_time(transaction, told)
        if fresh:
            await self._store.retries.withdraw(transaction, self._group.name, [_id_of(each) for each in fresh])
        untold = [each.entry.id for each in verdicts if each.envelope is None and each.entry.retry is None]
        group, key = self._group.name, self._partition
        left = await self._store.retries.remaining(transaction, group, key, untold) if untold else set()
        over = {each.entry.id for each in told}.difference(each.entry.id for each in fresh).union(untold) - left
        return [each for each in verdicts if each.entry.id not in over]

    async def _finish_rows(
        self, transaction: Transaction, verdicts: Sequence[Verdict], failed: Collection[str]
    ) -> None:
        """Delete the rows that have come to a good end, and settle the letters that they were."""
        rows = _rows(verdict.entry for verdict in verdicts if verdict.entry.id not in failed)
        if not rows:
            return
        await self._store.retries.delete(transaction, rows)
        events = {verdict.entry.id: verdict.envelope.event_id for verdict in verdicts if verdict.envelope is not None}
        for row in rows:
            if row.is_ordered:
                await self._store.dead_letters.settle(
                    transaction, row.consumer_group, row.stream, row.entry_id, self._consumer, events.get(row.entry_id)
                )

    # A failed attempt -----------------------------------------------------------------------------------------------

    async def fail(
        self, entry: Entry, error: BaseException, progress: Progress, reason: Reason | None = None
    ) -> Counts:
        """Write what becomes of an entry whose attempt failed, by its own fault; what that was.

        Whoever else handles the same event at the same time decides; then nothing is written.
        """
        verdict = self._verdict(entry)
        with trio.fail_after(self._settings.handler_timeout):
            async with self._store.transaction() as transaction:
                progress.transaction = transaction
                await self._claims.hold_lease(transaction)
                progress.stage = Stage.CLOSING
                is_open = await self._is_open(transaction, verdict)
                sentence = self._failures.judge(verdict, error, reason)
                if is_open:
                    await self._failures.carry_out(transaction, [sentence])
                await self._claims.clear(transaction, [entry])
        self._claims.ended([entry])
        return self._failures.tell([sentence]) if is_open else Counts(duplicates=1)

    async def _is_open(self, transaction: Transaction, verdict: Verdict) -> bool:
        """Whether the event has come to no other end; it cannot, until the end of the transaction."""
        row = verdict.entry.retry
        if row is not None and not await self._store.retries.hold(transaction, [row]):
            return False
        return bool(await self._open(transaction, [verdict]))

    # Inside ---------------------------------------------------------------------------------------------------------

    def _verdict(self, entry: Entry) -> Verdict:
        return verdict_of(entry, self._stream, self._group)

    def _time_for(self, verdicts: Iterable[Verdict]) -> float:
        """Seconds for one transaction: the limit of all, or of the handler that may take longer."""
        own = (verdict.handler.timeout for verdict in verdicts if isinstance(verdict, Handle))
        return max(self._settings.handler_timeout, *(limit for limit in own if limit is not None), 0.0)


def _can_fail_alone(fresh: Sequence[Handle], failed: Collection[str], *, ordered: bool) -> bool:
    """Whether the rest can be committed: nothing of a failed key came later, and nothing was handled on order."""
    halted: set[str] = set()
    for handle in fresh:
        key = key_of(handle) if ordered else None
        if handle.entry.id in failed:
            if _is_forced(handle):
                return False  # the inbox may have known it before
            if key is not None:
                halted.add(key)
        elif key in halted:
            return False
    return True


def _rows(entries: Iterable[Entry]) -> list[RetryRow]:
    return [entry.retry for entry in entries if entry.retry is not None]


def _is_forced(verdict: Verdict) -> bool:
    return verdict.entry.retry is not None and verdict.entry.retry.forced


def _id_of(verdict: Verdict) -> UUID:
    assert verdict.envelope is not None  # noqa: S101 - only those come to the inbox that could be read
    return verdict.envelope.event_id


def _named(row: RetryRow, event_id: UUID) -> RetryRow:
    """The row with the id that its event has; a row that somebody else wrote may have none."""
    return row if row.event_id is not None else evolve(row, event_id=event_id)
