"""The transactions of a handler pool: one attempt at some events, and what is written when it fails.

Everything that an event comes to is decided in PostgreSQL, in one transaction each; only then is its entry
acknowledged, or its row gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

import trio
from attrs import define, evolve, field

from .blame import Progress, Stage, away_of, is_sure
from .calling import call_handlers, plan
from .claims import Claims
from .failures import Counts, Failures, Sentence
from .handling import Context, Delivery, Entry
from .once import Steps
from .once_in_redis import RedisSteps
from .retry_table import RetryRow
from .sorting import Handle, Ignore, Refuse, Verdict, expired, key_of, verdict_of
from .store import ABANDON_MARGIN, InboxEntry

if TYPE_CHECKING:
    from .assignment import Assignment
    from .channels import Notice
    from .site import Site
    from .store import Transaction

__all__ = ["Attempts"]

V = TypeVar("V", bound=Verdict)


class _Apart(Exception):
    """What failed cannot be committed beside what was handled with it."""


@define
class _Sorted:
    """The entries of one attempt, by what is to be done with them; in order.

    Attributes:
        given: all of them.
        failed: those that have failed before, and now come to their end or their row.
        parked: those that must wait behind another one of their key.
    """

    given: list[Verdict] = field(factory=list)
    handles: list[Handle] = field(factory=list)
    refusals: list[Refuse] = field(factory=list)
    ignored: list[Ignore] = field(factory=list)
    failed: list[Verdict] = field(factory=list)
    parked: list[Handle] = field(factory=list)

    @classmethod
    def of(cls, verdicts: Iterable[Verdict], failed: Collection[str]) -> _Sorted:
        made = cls(list(verdicts))
        for verdict in made.given:
            match verdict:
                case _ if verdict.entry.id in failed:
                    made.failed.append(verdict)
                case Handle():
                    made.handles.append(verdict)
                case Refuse():
                    made.refusals.append(verdict)
                case Ignore():
                    made.ignored.append(verdict)
        return made

    def hold_back(self, waiting: Collection[str], judged: Sequence[Sentence]) -> list[Sentence]:
        """Set aside what must wait: for a row of its key (of one of `waiting`), or for one that is tried again later.

        What is a row stays one; the others are to be parked. Who waits and has failed has come too early, which was no
        attempt: the sentences on the others.
        """
        sentences: list[Sentence] = []
        by_id = {each.entry.id: each for each in judged}
        halted: set[str | None] = set()
        behind: set[str] = set()
        for verdict in self.given:
            key, sentence = key_of(verdict), by_id.get(verdict.entry.id)
            must_wait = key is not None and (key in halted or (key in waiting and verdict.entry.retry is None))
            if sentence is not None and (sentence.reason is not None or not must_wait):
                sentences.append(sentence)
                if sentence.reason is None:
                    halted.add(key)
            elif must_wait:
                behind.add(verdict.entry.id)
        self.parked = [
            each
            for each in self.given
            if isinstance(each, Handle) and each.entry.id in behind and each.entry.retry is None
        ]
        self.given = [each for each in self.given if each.entry.id not in behind or each.entry.retry is None]
        self.handles = [each for each in self.handles if each.entry.id not in behind]
        self.failed = [each for each in self.failed if each.entry.id not in behind]
        return sentences


class Attempts:
    """See the module.

    Args:
        site: where everything goes, time limits and policies.
        assignment: whose entries are handled.
        claims: the lease, and what is held against entries.
    """

    def __init__(self, site: Site, assignment: Assignment, claims: Claims) -> None:
        self._site = site
        self._stream = assignment.stream
        self._group = assignment.group
        self._partition = assignment.partition
        self._store = site.store
        self._consumer = site.instance
        self._position = assignment.backlog.position
        self._claims = claims
        self._failures = Failures(site, assignment)
        self._redis_steps = RedisSteps(site.client, site.redis_gates, assignment.group.name)

    # An attempt -----------------------------------------------------------------------------------------------------

    async def handle(
        self, entries: Sequence[Entry], progress: Progress, failed: Mapping[str, BaseException] | None = None
    ) -> Counts:
        """Commit the effects of all entries together, with everything else that they come to; what that was.

        Args:
            entries: in order; either all of them are rows or none is.
            progress: how far it comes, who is known to have failed in it, and what is to be broadcast after it.
            failed: what those failed of, by their own fault, that are not to be handled: for each of them is written
                what becomes of it. Where somebody else who handled the same event has decided, nothing is.

        Raises:
            Exception: anything; nothing was committed then, unless the answer to the commit was lost.
        """
        now, before = self._site.wall(), failed or {}
        verdicts = [self._verdict(entry) for entry in entries]
        verdicts = [each if each.entry.id in before else expired(each, now) or each for each in verdicts]
        limit = self._time_for(verdicts)
        with trio.fail_after(limit):
            async with self._store.transaction() as transaction:
                progress.transaction = transaction
                await self._claims.hold_lease(transaction)
                sorted_ = _Sorted.of(await self._still_ours(transaction, verdicts), before)
                sentences = await self._set_apart(transaction, sorted_, before, progress)
                fresh = await self._first_time(transaction, sorted_.handles)
                if fresh and limit > self._site.settings.handler_timeout:
                    await transaction.expect_silence(limit + ABANDON_MARGIN)
                progress.stage = Stage.HANDLING
                steps = Steps(self._store.steps, self._group.name, self._stream.key)
                apart = await self._call(transaction, fresh, progress, steps, alone=len(entries) == 1)
                # Whoever held the processor beyond the limit has exceeded it, too.
                await trio.lowlevel.checkpoint()
                progress.stage = Stage.CLOSING
                await steps.clear(transaction, frozenset(_id_of(each) for each in fresh if each.entry.id in apart))
                more = await self._close(transaction, entries, sorted_, fresh, apart)
        self._claims.ended(entries)
        counts = self._failures.tell([*sentences, *more])
        refused = len(more) - len(apart)
        counts.handled = len(fresh) - len(apart)
        counts.ignored = len(sorted_.ignored)
        counts.parked = len(sorted_.parked)
        ends = len(fresh) + len(sentences) + refused + counts.ignored + counts.parked
        counts.duplicates = len(sorted_.given) - ends
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

    async def _set_apart(
        self, transaction: Transaction, sorted_: _Sorted, failed: Mapping[str, BaseException], progress: Progress
    ) -> list[Sentence]:
        """Write what becomes of those that have failed, and put behind it what must wait; the sentences on them."""
        waiting = await self._waiting(transaction, [*sorted_.handles, *sorted_.failed])
        sentences: list[Sentence] = []
        if sorted_.failed:
            progress.stage = Stage.CLOSING
            opened = await self._open(transaction, sorted_.failed)
            sentences = [self._failures.judge(each, failed[each.entry.id]) for each in opened]
        if self._group.ordered:
            sentences = sorted_.hold_back(waiting, sentences)
        await self._failures.carry_out(transaction, sentences)
        progress.stage = Stage.OPENING
        # What is over, or has its row already, needs none; nor does what stands here twice, and is handled now: its row
        # would take the place of the earlier entry, behind what is parked with it.
        now = {handle.envelope.event_id for handle in sorted_.handles}
        parked = [handle for handle in sorted_.parked if handle.envelope.event_id not in now]
        sorted_.parked = await self._open(transaction, parked)
        await self._store.retries.add(transaction, [self._failures.parked(handle) for handle in sorted_.parked])
        return sentences

    async def _waiting(self, transaction: Transaction, verdicts: Sequence[Verdict]) -> set[str]:
        """In an ordered group: which keys of those that are no rows have rows, behind which they must wait."""
        keys = {key for each in verdicts if not each.entry.retry and (key := key_of(each)) is not None}
        if not keys or not self._group.ordered:
            return set()
        return await self._store.retries.keys(transaction, self._group.name, self._partition, keys)

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

    async def _call(
        self, transaction: Transaction, fresh: Sequence[Handle], progress: Progress, steps: Steps, *, alone: bool
    ) -> dict[str, Exception]:
        """Call the handlers; what failed by itself, by entry id."""

        def blame(handle: Handle, error: Exception) -> None:
            if is_sure(error) and away_of(error, self._group.behind) is None:
                progress.failed[handle.entry.id] = error

        def context(delivery: Delivery[object] | None) -> Context:
            return self._context(transaction, delivery, steps, progress.notices)

        failed = await call_handlers(plan(fresh, ordered=self._group.ordered), context, blame)
        if away := next((each for each in failed.values() if away_of(each, self._group.behind)), None):
            raise away
        if failed and alone:
            raise next(iter(failed.values()))
        if failed and not _can_fail_alone(fresh, failed, ordered=self._group.ordered):
            progress.failed.update(failed)
            raise _Apart("what failed by itself cannot be committed beside the others")
        return failed

    def _context(
        self, transaction: Transaction, delivery: Delivery[object] | None, steps: Steps, notices: list[Notice]
    ) -> Context:
        group, publish = self._group.name, self._site.publish
        made = Context(connection=transaction.connection, stream=self._stream.key, group=group, delivery=delivery)
        made._steps, made._redis_steps, made._notices = steps, self._redis_steps, notices
        made._publish = lambda stream, envelopes: publish(transaction, stream, envelopes, group)
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

    # Inside ---------------------------------------------------------------------------------------------------------

    def _verdict(self, entry: Entry) -> Verdict:
        return verdict_of(entry, self._stream, self._group)

    def _time_for(self, verdicts: Iterable[Verdict]) -> float:
        """Seconds for one transaction: the limit of all, or of the handler that may take longer."""
        own = (verdict.handler.timeout for verdict in verdicts if isinstance(verdict, Handle))
        return max(self._site.settings.handler_timeout, *(limit for limit in own if limit is not None), 0.0)


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
