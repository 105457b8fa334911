"""The producer: puts events on streams, in batches, and answers with the entry ids.

Two ways in. Requests (`Producer.publish`) wait for the answer: accepted means that XADD was acknowledged. Captured
events (`Producer.capture`) are what is recorded beside somebody's request, and never make it wait: they stand in a
bounded buffer that survives outages and restarts of the actor, and what does not fit is counted and told.

The producer requires no gate: while Redis is away or full it refuses requests at once, and keeps what was captured.
What cannot be written as an entry at all (half a surrogate pair, a value without a text) fails alone.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import redis.exceptions
import trio
from attrs import define, frozen

from ..runtime.mailbox import AskTimeout, Mailbox, MailboxClosed, PeerDied, Reply
from ..runtime.redis import Kind, NotSent, RedisUnavailable, classify
from ..runtime.redis.replies import reply_text
from ..runtime.telemetry import get_logger
from .texts import well_formed

if TYPE_CHECKING:
    from ..runtime.mailbox import Inbox, MailboxStatistics
    from ..runtime.redis import AnyRedis
    from ..runtime.supervision import Child, Gate
    from .ownership import Claim, Ownership, Written

__all__ = ["Outgoing", "Producer", "PublishFailed", "Published"]

log = get_logger(__name__)

BURST = 500
"""Entries in one pipeline at the most: the measured knee is near 100, and a burst must not hold up the connection."""

ANSWER_WITHIN = 15.0
"""Seconds that a request waits for its answer: longer than the link's own limits, so that these speak first."""


@frozen
class Outgoing:
    """One entry to be added.

    Attributes:
        stream: the stream's key.
        event_id: of the event in it, for the answer.
        fields: the entry's fields.
    """

    stream: str
    event_id: UUID
    fields: dict[str, str]


@frozen
class Published:
    """The event is durable.

    Attributes:
        event_id: of the event.
        entry_id: its id in the stream; None while it is only in the outbox.
        durable: where it is safe now.
    """

    event_id: UUID
    entry_id: str | None
    durable: Literal["redis", "outbox"] = "redis"


@frozen
class PublishFailed:
    """The event was not accepted.

    Attributes:
        event_id: of the event; publish again with the same id, and it is one effect however often.
        reason: what happened, for people.
        retry_after: seconds after which it makes sense to try again.
        outcome_unknown: it may be in the stream all the same.
        permanent: trying again will not help before somebody mends something.
    """

    event_id: UUID
    reason: str
    retry_after: float = 1.0
    outcome_unknown: bool = False
    permanent: bool = False


Result = Published | PublishFailed


@define(eq=False)
class _Request:
    entries: Sequence[Outgoing]
    reply: Reply[list[Result]]


class Producer:
    """See the module. One for a process; its `__call__` is the body of the actor ``producer``.

    Attributes:
        published: entries that Redis has acknowledged.
        unwritable: captured entries that were dropped because they cannot be written.

    Args:
        client: the link, asked for at each start of the actor.
        gates: all must be open for entries to be added: ``redis``, then ``redis-memory``.
        trouble: told of every error of Redis, so that the gate can be shut at once.
        requests: how many requests may wait. Default 1,000.
        buffer: how many captured events may wait. Default 10,000: minutes of an outage at the speed of Hypercorn's one
            worker would take more memory than they are worth; the outbox is where more belongs.
        believes_late: whether an answer counts that comes after the gate ``redis`` was shut. Where another node may
            take over, it does not: a master that was silent for so long may be none any more when it goes on,
            acknowledge what it has, and lose it.
        ownership: who is asked, in a cluster, whether an acknowledgement counts that comes after a silence; None
            where no other node can have taken over.
    """

    def __init__(
        self,
        client: Callable[[], AnyRedis],
        gates: Sequence[Gate],
        trouble: Callable[[Exception], None],
        *,
        requests: int = 1_000,
        buffer: int = 10_000,
        believes_late: bool = True,
        ownership: Ownership | None = None,
    ) -> None:
        self._client = client
        self._gates = tuple(gates)
        self._trouble = trouble
        self._believes_late = believes_late
        self._ownership = ownership
        self._requests: Mailbox[_Request] = Mailbox("producer", requests)
        self._captured: Mailbox[Outgoing] = Mailbox("producer.captured", buffer)
        # Taken out of the mailbox and not yet acknowledged; here, and not in the task, so that it survives the task.
        self._carried: deque[Outgoing] = deque()
        self._flushed = trio.Event()
        self._told_drop = -math.inf
        self.published = 0
        self.unwritable = 0

    async def publish(self, entries: Sequence[Outgoing]) -> list[Result]:
        """Add entries to their streams; one result for each, in order.

        Blocks until Redis has acknowledged or refused, 15 s at the most; refuses at once while a gate is shut. Never
        raises for Redis. What cannot be written fails alone. Cancelled, the outcome is unknown.
        """
        defects = [_defect(entry) for entry in entries]
        sound = [entry for entry, defect in zip(entries, defects, strict=True) if not defect]
        results = iter(await self._ask(sound) if sound else ())
        return [
            PublishFailed(entry.event_id, defect, permanent=True) if defect else next(results)
            for entry, defect in zip(entries, defects, strict=True)
        ]

    async def _ask(self, entries: Sequence[Outgoing]) -> list[Result]:
        if why := self._why_not():
            return _refused(entries, why)
        try:
            return await self._requests.ask(lambda reply: _Request(entries, reply), ANSWER_WITHIN)
        except AskTimeout:
            return _refused(entries, f"no answer from Redis within {ANSWER_WITHIN:g} s", unknown=True)
        except MailboxClosed as closed:
            return _refused(entries, str(closed))
        except PeerDied as died:
            return _refused(entries, str(died), unknown=True)

    def capture(self, entry: Outgoing) -> bool:
        """Take an entry along; never blocks, never raises.

        False, and a counted drop, if the buffer is full or the entry cannot be written.
        """
        if defect := _defect(entry):
            self.unwritable += 1
            log.error("captured event dropped", stream=entry.stream, event_id=str(entry.event_id), why=defect)
            return False
        if self._captured.offer(entry):
            return True
        now = trio.current_time()
        if now - self._told_drop >= 10:
            self._told_drop = now
            dropped = self._captured.statistics().dropped
            log.error("captured events dropped", dropped=dropped, buffer=self._captured.capacity, why=self._why_not())
        return False

    @property
    def mailboxes(self) -> tuple[Mailbox[Any], ...]:
        """Those that it reads."""
        return self._requests, self._captured

    @property
    def waiting(self) -> int:
        """Captured events that are not yet in Redis."""
        return len(self._carried) + self._captured.statistics().depth

    def statistics(self) -> tuple[MailboxStatistics, MailboxStatistics]:
        """Of the requests and of the captured events."""
        return self._requests.statistics(), self._captured.statistics()

    async def __call__(self, child: Child) -> None:
        """Work until cancelled; when drained, put what has come on the streams, and return."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve_requests)
                nursery.start_soon(self._serve_captured)
                child.started()
                await child.draining.wait()
                while self.waiting and not self._why_not():
                    # In turns, for a gate that shuts meanwhile makes the waiting pointless.
                    with trio.move_on_after(0.1):
                        await self._flushed.wait()
                nursery.cancel_scope.cancel(reason="the producer is drained")
        finally:
            if self.waiting and child.draining.is_set():
                why = self._why_not() or "there was no time left"
                log.error("captured events are still in memory at the stop", count=self.waiting, why=why)

    def _why_not(self) -> str:
        """Why no entry can be added now; empty if it can."""
        return next((f"{gate.name}: {gate.cause}" for gate in self._gates if not gate.is_open), "")

    # Requests -------------------------------------------------------------------------------------------------------

    async def _serve_requests(self) -> None:
        async with self._requests.receive() as inbox:
            while True:
                requests = await self._gather(inbox)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._refuse_queued, inbox)
                    await self._answer(requests)
                    nursery.cancel_scope.cancel(reason="the burst is answered")

    async def _refuse_queued(self, inbox: Inbox[_Request]) -> None:
        """While a burst waits for a Redis that has gone silent, refuse at once what is queued behind it.

        It was never sent; it need not wait until the connection is given up.
        """
        while True:
            await self._gates[0].wait_shut()
            request = await inbox.next()
            request.reply.set(_refused(request.entries, self._why_not()))

    async def _gather(self, inbox: Inbox[_Request]) -> list[_Request]:
        requests = [await inbox.next()]
        size = len(requests[0].entries)
        while size < BURST:
            try:
                requests.append(inbox.next_nowait())
            except trio.WouldBlock:
                break
            size += len(requests[-1].entries)
        return requests

    async def _answer(self, requests: Sequence[_Request]) -> None:
        wanted = [request for request in requests if not request.reply.is_abandoned]
        entries = [entry for request in wanted for entry in request.entries]
        results: list[Result] = []
        for start in range(0, len(entries), BURST):
            results.extend(await self._add(entries[start : start + BURST]))
        answers = iter(results)
        for request in wanted:
            request.reply.set([next(answers) for _ in request.entries])

    # Captured events ------------------------------------------------------------------------------------------------

    async def _serve_captured(self) -> None:
        async with self._captured.receive() as inbox:
            while True:
                for gate in self._gates:
                    await gate.wait_open()
                await self._carry(inbox)
                kept = [
                    entry
                    for entry, result in zip(self._carried, await self._add(list(self._carried)), strict=True)
                    # Unknown outcomes go again: the same event id twice is one effect.
                    if isinstance(result, PublishFailed)
                ]
                self._carried = deque(kept)
                if not self.waiting:
                    self._flushed.set()
                    self._flushed = trio.Event()
                if kept:
                    await trio.sleep(1.0)

    async def _carry(self, inbox: Inbox[Outgoing]) -> None:
        if not self._carried:
            self._carried.append(await inbox.next())
        while len(self._carried) < BURST:
            try:
                self._carried.append(inbox.next_nowait())
            except trio.WouldBlock:
                return

    # Redis ----------------------------------------------------------------------------------------------------------

    async def _add(self, entries: Sequence[Outgoing]) -> list[Result]:
        """XADD them in one burst, in order."""
        if why := self._why_not():
            return _refused(entries, why)
        try:
            results = await self._execute(entries)
        except redis.exceptions.RedisError as error:
            self._trouble(error)
            return _refused(entries, str(error), unknown=not isinstance(error, NotSent))
        if results is None:
            return _refused(entries, self._why_not() or "Redis was away meanwhile", unknown=True)
        self.published += sum(isinstance(result, Published) for result in results)
        return results

    async def _execute(self, entries: Sequence[Outgoing]) -> list[Result] | None:
        """The results; None if the gate was shut before the replies came, and nobody would believe them."""
        if self._believes_late:
            return await self._send(entries)
        results: list[Result] | None = None
        failure: redis.exceptions.RedisError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give_up, nursery.cancel_scope)
            try:
                results = await self._send(entries)
            except redis.exceptions.RedisError as error:
                failure = error
            nursery.cancel_scope.cancel(reason="the burst is answered")
        if failure is not None:
            raise failure
        return results

    async def _send(self, entries: Sequence[Outgoing]) -> list[Result]:
        ownership = self._ownership
        claims = await ownership.claims(entry.stream for entry in entries) if ownership is not None else {}
        pipeline = self._client().pipeline(transaction=False)
        for entry in entries:
            pipeline.xadd(entry.stream, entry.fields)  # type: ignore[arg-type]
        replies = await pipeline.execute(raise_on_error=False)
        results = [self._result(entry, reply) for entry, reply in zip(entries, replies, strict=True)]
        return results if ownership is None else await _believed(ownership, claims, entries, results)

    async def _give_up(self, burst: trio.CancelScope) -> None:
        await self._gates[0].wait_shut()
        burst.cancel(reason="the gate redis was shut")

    def _result(self, entry: Outgoing, reply: object) -> Result:
        if isinstance(reply, Exception):
            self._trouble(reply)
            if isinstance(reply, RedisUnavailable):  # of one node of a cluster
                return PublishFailed(entry.event_id, str(reply), outcome_unknown=not isinstance(reply, NotSent))
            permanent = classify(reply).kind in _HOPELESS
            return PublishFailed(entry.event_id, f"Redis refused: {reply_text(reply)}", permanent=permanent)
        return Published(entry.event_id, reply.decode() if isinstance(reply, bytes) else str(reply))


_HOPELESS = (Kind.CONFIG, Kind.BUG)


def _defect(entry: Outgoing) -> str:
    """Why Redis cannot be given the entry at all; empty if it can. One such would take its whole burst along."""
    try:
        "".join((*entry.fields, *entry.fields.values())).encode()
    except (TypeError, UnicodeEncodeError):
        pass
    else:
        return "" if entry.fields else "the entry has no fields"
    for name, text in entry.fields.items():
        if not isinstance(name, str) or not isinstance(text, str):
            return f"the field {name!r} is no text"
        if name != well_formed(name) or text != well_formed(text):
            return f"the field {name!r} holds half of a surrogate pair, which is no UTF-8"
    return "a field is no text"


async def _believed(
    ownership: Ownership, claims: Mapping[str, Claim], entries: Sequence[Outgoing], results: Sequence[Result]
) -> list[Result]:
    """The results, but for acknowledgements that do not count."""
    written: dict[str, list[Written]] = {}
    for entry, result in zip(entries, results, strict=True):
        if isinstance(result, Published) and result.entry_id is not None:
            written.setdefault(entry.stream, []).append((result.entry_id, entry.fields))
    doubts = await ownership.doubts(claims, written)
    return [
        PublishFailed(entry.event_id, doubts[entry.stream], outcome_unknown=True)
        if isinstance(result, Published) and entry.stream in doubts
        else result
        for entry, result in zip(entries, results, strict=True)
    ]


def _refused(entries: Sequence[Outgoing], reason: str, *, unknown: bool = False) -> list[Result]:
    return [PublishFailed(entry.event_id, reason, outcome_unknown=unknown) for entry in entries]
