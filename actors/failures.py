"""What a failed attempt leaves behind: a row that is tried again later, or a dead letter.

Only the event's own fault comes here; `blame` has told it from outages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import define, evolve, frozen

from ..runtime.supervision import ErrorInfo
from ..runtime.telemetry import get_logger
from .blame import is_hopeless, parts_of
from .dead_letter import DeadLetter
from .event import Envelope
from .letter_terms import Reason
from .retry_table import RetryFailure, RetryOrigin, RetryRow
from .retrying import RetryPolicy
from .sorting import Handle, Verdict, key_of

if TYPE_CHECKING:
    from .assignment import Assignment
    from .handling import Entry
    from .site import Site
    from .store import Transaction

__all__ = ["Counts", "Failures", "HandlerExit", "PoisonousEvent", "Sentence"]

log = get_logger(__name__)

SECOND_CHANCE = 2
"""Deliveries after which an event is dead that cannot be decoded, or whose handler tries to end the process: another
release may know better, once."""


class HandlerExit(Exception):
    """A handler raised what ends a process (`SystemExit`, say); its cause. It ends its event instead."""


class PoisonousEvent(Exception):
    """An event was taken up several times, and whoever had it was gone each time."""


@define
class Counts:
    """What became of entries, since the start of the process.

    Attributes:
        handled: an effect was committed.
        duplicates: the inbox knew the event already, or the entry had its row or its letter.
        ignored: not for this group.
        retried: attempts that failed and are tried again.
        parked: put behind an earlier event of their key.
        dead: buried as dead letters, in all.
        expired: those of them that had become too old.
        poison: those of them that killed their workers.
    """

    handled: int = 0
    duplicates: int = 0
    ignored: int = 0
    retried: int = 0
    parked: int = 0
    dead: int = 0
    expired: int = 0
    poison: int = 0

    def add(self, more: Counts) -> None:
        """Count what one transaction has done."""
        self.handled += more.handled
        self.duplicates += more.duplicates
        self.ignored += more.ignored
        self.retried += more.retried
        self.parked += more.parked
        self.dead += more.dead
        self.expired += more.expired
        self.poison += more.poison


@frozen
class Sentence:
    """What is to become of a failed entry.

    Attributes:
        verdict: of the entry.
        error: what it failed of.
        attempts: how many have failed by now.
        reason: why there will be no further one; None if there will.
        pause: seconds until then.
    """

    verdict: Verdict
    error: BaseException
    attempts: int
    reason: Reason | None
    pause: float = 0.0

    @property
    def entry(self) -> Entry:
        """The entry."""
        return self.verdict.entry


class Failures:
    """See the module.

    Args:
        site: where rows and letters go, and the policy of those that have none.
        assignment: whose entries have failed.
    """

    def __init__(self, site: Site, assignment: Assignment) -> None:
        self._stream = assignment.stream
        self._group = assignment.group
        self._store = site.store
        self._chance = site.chance
        self._consumer = site.instance
        settings = site.settings
        self._policy = RetryPolicy(
            deliveries=settings.max_deliveries, minimum=settings.retry_minimum, maximum=settings.retry_maximum
        )

    def judge(self, verdict: Verdict, error: BaseException, reason: Reason | None = None) -> Sentence:
        """The sentence on an entry that failed of `error`, or that was refused for `reason`. Decides, does nothing."""
        attempts = verdict.entry.attempts + 1
        policy = self._policy_of(verdict)
        final = self._end(error, attempts, policy, reason)
        pause = 0.0 if final is not None else policy.pause(attempts, self._chance())
        return Sentence(verdict, error, attempts, final, pause)

    async def carry_out(self, transaction: Transaction, sentences: Sequence[Sentence]) -> None:
        """Write the rows and letters of entries within `transaction`, and change or delete the rows that they are."""
        fresh = []
        for sentence in sentences:
            row = sentence.entry.retry
            if sentence.reason is not None:
                await transaction.bury(self._letter(sentence))
                if row is not None:
                    await self._store.retries.delete(transaction, [row])
            elif row is not None:
                await self._store.retries.put_off(transaction, self._later(row, sentence))
            else:
                fresh.append(self._row(sentence))
        await self._store.retries.add(transaction, fresh)

    def parked(self, verdict: Verdict) -> RetryRow:
        """The row of an entry that must wait behind an earlier one of its key."""
        return self._facts(verdict, RetryOrigin.PARKED)

    def tell(self, sentences: Sequence[Sentence]) -> Counts:
        """Log what was committed; what it counts."""
        counts = Counts()
        for sentence in sentences:
            where = {"stream": sentence.entry.stream, "group": self._group.name, "entry": sentence.entry.id}
            error = str(ErrorInfo.of(sentence.error))
            if sentence.reason is None:
                counts.retried += 1
                log.warning("event will be retried", **where, attempt=sentence.attempts,
                            next_in=round(sentence.pause, 3), error=error)  # fmt: skip
                continue
            counts.dead += 1
            counts.expired += sentence.reason is Reason.EXPIRED
            counts.poison += sentence.reason is Reason.POISON
            log.error("event is dead", **where, reason=sentence.reason.value, attempts=sentence.attempts, error=error)
        return counts

    # Judging --------------------------------------------------------------------------------------------------------

    def _policy_of(self, verdict: Verdict) -> RetryPolicy:
        own = verdict.handler.retry if isinstance(verdict, Handle) else None
        return own or self._group.retry or self._policy

    def _end(self, error: BaseException, attempts: int, policy: RetryPolicy, reason: Reason | None) -> Reason | None:
        if reason is Reason.UNDECODABLE:
            return reason if attempts >= SECOND_CHANCE else None
        if reason is not None:
            return reason
        if isinstance(error, PoisonousEvent):
            return Reason.POISON
        if any(isinstance(part, HandlerExit) for part in parts_of(error)):
            return Reason.POISON if attempts >= SECOND_CHANCE else None
        if is_hopeless(error) or any(isinstance(part, policy.permanent) for part in parts_of(error)):
            return Reason.PERMANENT
        return Reason.MAX_DELIVERIES if attempts >= policy.deliveries else None

    # Writing --------------------------------------------------------------------------------------------------------

    def _row(self, sentence: Sentence) -> RetryRow:
        row = self._facts(sentence.verdict, RetryOrigin.ATTEMPT)
        return evolve(row, attempts=sentence.attempts, due_in=sentence.pause, failure=_failure(sentence.error))

    def _later(self, row: RetryRow, sentence: Sentence) -> RetryRow:
        return evolve(row, attempts=sentence.attempts, due_in=sentence.pause, failure=_failure(sentence.error))

    def _facts(self, verdict: Verdict, origin: RetryOrigin) -> RetryRow:
        entry, envelope = verdict.entry, verdict.envelope
        return RetryRow(
            consumer_group=self._group.name,
            stream=entry.stream,
            entry_id=entry.id,
            fields=entry.fields or {},
            origin=origin,
            event_id=envelope.event_id if envelope else None,
            event_type=envelope.event_type if envelope else None,
            event_key=key_of(verdict),
        )

    def _letter(self, sentence: Sentence) -> DeadLetter:
        entry, envelope = sentence.entry, sentence.verdict.envelope
        return DeadLetter.of(
            sentence.error,
            stream=entry.stream,
            entry_id=entry.id,
            consumer_group=self._group.name,
            consumer=entry.consumer or self._consumer,
            reason=sentence.reason,
            fields=entry.fields,
            deliveries=sentence.attempts,
            mirror=self._stream.mirror_key if self._stream.mirror else None,
            again=entry.retry is not None,
            first_delivered_at=entry.retry.first_failed_at if entry.retry else None,
            **_told(envelope),
        )


def _told(envelope: Envelope | None) -> dict[str, object]:
    if envelope is None:
        return {}
    return {
        "event_id": envelope.event_id,
        "event_type": envelope.event_type,
        "event_key": envelope.key,
        "published_at": envelope.timestamp,
        "traceparent": envelope.traceparent,
    }


def _failure(error: BaseException) -> RetryFailure:
    """What a letter would say of it."""
    told = DeadLetter.of(
        error,
        stream="",
        entry_id="",
        consumer_group="",
        consumer="",
        reason=Reason.PERMANENT,
        fields=None,
        deliveries=0,
    )
    return RetryFailure(
        error_class=told.error_class,
        error_message=told.error_message,
        traceback=told.traceback,
        fingerprint=told.fingerprint,
    )
