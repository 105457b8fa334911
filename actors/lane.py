"""A lane: one stream's way of publishing, one burst after the other, so that its events stay in order.

A burst goes straight to Redis. What Redis refuses, or does not answer in time, is accepted into the outbox, and so is
everything behind it, until the relay has emptied that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, evolve, field

from ..runtime.mailbox import AskTimeout, Mailbox, MailboxClosed, PeerDied, Reply
from .outgoing import Outgoing, Published, PublishFailed, Result, refused, unsent
from .sending import Refusal, Sender
from .spooling import Spool

if TYPE_CHECKING:
    from ..runtime.mailbox import Inbox
    from .detours import Detours

__all__ = ["BURST", "Lane"]

BURST: Final = 500
"""Entries in one burst at the most: the measured knee is near 100, and a burst must not hold up the connection."""

ANSWER_WITHIN: Final = 15.0
"""Seconds that a request waits for its answer: longer than the links' own limits, so that these speak first."""

AGAIN_AFTER: Final = 0.5
"""Seconds until a burst without an answer is spooled again, where that was refused: a database that was lost in the
middle may be there again."""

STEPS: Final = 5
"""Looks at the clock while a burst has no answer: between two of them our own delay is told from that of Redis."""


@define(eq=False)
class _Request:
    entries: Sequence[Outgoing]
    reply: Reply[list[Result]]


@define(eq=False)
class _Attempt:
    """A burst on its way to Redis."""

    results: list[str | Refusal] = field(factory=list)
    done: trio.Event = field(factory=trio.Event)

    @property
    def has_worked(self) -> bool:
        return self.done.is_set() and not any(isinstance(result, Refusal) for result in self.results)


@define(eq=False)
class _Writing:
    """The same burst on its way to the outbox."""

    rows: list[int] | Refusal = field(factory=list)
    done: trio.Event = field(factory=trio.Event)


class Lane:
    """See the module. Its tasks run in the producer's nursery.

    Attributes:
        requests: those that wait.
        published: entries that Redis has acknowledged.

    Args:
        stream: the key of the declared stream.
        sender: the way to Redis.
        spool: the way to the outbox.
        detours: whether there is something in it.
        capacity: requests that may wait.
        hedge_after: seconds after which a burst without an answer is spooled, too.
    """

    def __init__(
        self, stream: str, sender: Sender, spool: Spool, detours: Detours, *, capacity: int, hedge_after: float
    ) -> None:
        self.requests: Mailbox[_Request] = Mailbox(f"producer.{stream}", capacity)
        self.published = 0
        self._stream = stream
        self._sender = sender
        self._spool = spool
        self._detours = detours
        self._hedge_after = hedge_after
        # The first that waits, taken from the mailbox to be refused, when there was a way for it again.
        self._kept: _Request | None = None

    async def ask(self, entries: Sequence[Outgoing]) -> list[Result]:
        """Have entries published by the actor; see `Producer.publish`."""
        why = self._why_nowhere()
        if why:
            await trio.lowlevel.checkpoint()
            return refused(entries, why)
        try:
            return await self.requests.ask(lambda reply: _Request(entries, reply), ANSWER_WITHIN)
        except AskTimeout:
            return refused(entries, f"no answer within {ANSWER_WITHIN:g} s", unknown=True)
        except MailboxClosed as closed:
            return refused(entries, str(closed))
        except PeerDied as died:
            return refused(entries, str(died), unknown=True)

    def _why_nowhere(self) -> str:
        """Why an event can be accepted neither by Redis nor by the outbox; empty if it can."""
        outbox = self._spool.why_not()
        if not outbox:
            return ""
        if redis := self._sender.why_not():
            return f"{redis}; {outbox}"
        return f"events before it wait in the outbox; {outbox}" if self._detours.is_on(self._stream) else ""

    # Requests -------------------------------------------------------------------------------------------------------

    async def serve(self, background: trio.Nursery) -> None:
        """Answer requests for ever; what outlives a burst goes on in `background`."""
        async with self.requests.receive() as inbox:
            while True:
                requests = await self._gather(inbox)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._refuse_queued, inbox)
                    await self._answer(requests, background)
                    nursery.cancel_scope.cancel(reason="the burst is answered")

    async def _refuse_queued(self, inbox: Inbox[_Request]) -> None:
        """While a burst waits for a Redis that is silent, and there is no outbox, refuse what is queued behind it.

        It was never sent; it need not wait until the connection is given up.
        """
        while True:
            await self._sender.gates[0].wait_shut()
            await self._spool.wait_not()
            request = self._kept or await inbox.next()
            # Until it came, each gate may have opened again.
            why = self._why_nowhere()
            self._kept = None if why else request
            if why:
                request.reply.set(refused(request.entries, why))

    async def _gather(self, inbox: Inbox[_Request]) -> list[_Request]:
        requests = [self._kept or await inbox.next()]
        self._kept = None
        size = len(requests[0].entries)
        while size < BURST:
            try:
                requests.append(inbox.next_nowait())
            except trio.WouldBlock:
                break
            size += len(requests[-1].entries)
        return requests

    async def _answer(self, requests: Sequence[_Request], background: trio.Nursery) -> None:
        wanted = [request for request in requests if not request.reply.is_abandoned]
        entries = [entry for request in wanted for entry in request.entries]
        if len(entries) > BURST:
            answers = iter(await self._put_many(wanted, background))
        else:
            answers = iter(await self.put(entries, background) if entries else ())
        for request in wanted:
            request.reply.set([next(answers) for _ in request.entries])

    async def _put_many(self, requests: Sequence[_Request], background: trio.Nursery) -> list[Result]:
        """In several bursts. Of a request of which something was refused the rest is not sent: it would overtake."""
        pairs = [(request, entry) for request in requests for entry in request.entries]
        results: list[Result] = []
        refusals: dict[_Request, PublishFailed] = {}
        for start in range(0, len(pairs), BURST):
            burst = pairs[start : start + BURST]
            sound = [entry for request, entry in burst if request not in refusals]
            found = iter(await self.put(sound, background) if sound else ())
            answers = [
                unsent(entry.event_id, refusals[request]) if request in refusals else next(found)
                for request, entry in burst
            ]
            for (request, _), answer in zip(burst, answers, strict=True):
                if isinstance(answer, PublishFailed) and not answer.permanent:
                    refusals.setdefault(request, answer)
            results += answers
        return results

    # Bursts ---------------------------------------------------------------------------------------------------------

    async def put(self, entries: Sequence[Outgoing], background: trio.Nursery) -> list[Result]:
        """Accept one burst, or refuse it; one result for each entry, in order. Bursts wait for each other."""
        async with self._detours.turn(self._stream):
            if not self._detours.is_known:
                await self._spool.look()
            if self._sender.why_not():
                return self._spooled(entries, await self._spool.add(self._stream, entries))
            if self._detours.is_on(self._stream):
                return self._spooled(entries, await self._spool.add(self._stream, entries, "behind"))
            return await self._straight(entries, background)

    async def _straight(self, entries: Sequence[Outgoing], background: trio.Nursery) -> list[Result]:
        attempt, doubt = _Attempt(), False
        background.start_soon(self._send, entries, attempt)
        await self._wait_for(attempt)
        while not attempt.done.is_set():
            rows = await self._beside(entries, attempt, background)
            if rows is None:
                break
            if not isinstance(rows, Refusal):
                return self._spooled(entries, rows)
            doubt = doubt or rows.unknown
            with trio.move_on_after(AGAIN_AFTER):
                await attempt.done.wait()
        await attempt.done.wait()
        results = await self._settled(entries, attempt.results)
        if not doubt:
            return results
        # The rows of the hedge may be there, whatever was answered since.
        return [evolve(each, outcome_unknown=True) if isinstance(each, PublishFailed) else each for each in results]

    async def _beside(
        self, entries: Sequence[Outgoing], attempt: _Attempt, background: trio.Nursery
    ) -> list[int] | Refusal | None:
        """The rows of a burst that Redis has not answered, or why there are none; None if Redis has answered first.

        While the database is away, that is waited for, too: Redis may say nothing for as long as the link allows.
        """
        await _first(attempt.done.wait, self._spool.wait)
        if attempt.done.is_set():
            return None
        writing = _Writing()
        background.start_soon(self._hedge, entries, attempt, writing)
        await _first(attempt.done.wait, writing.done.wait)
        if attempt.has_worked:
            return None
        await writing.done.wait()
        return writing.rows

    async def _wait_for(self, attempt: _Attempt) -> None:
        """Give Redis its time, and on top of it that for which this very process kept the answer waiting."""
        deadline = trio.current_time() + self._hedge_after
        while not attempt.done.is_set() and (now := trio.current_time()) < deadline:
            until = min(deadline, now + self._hedge_after / STEPS)
            with trio.move_on_at(until):
                await attempt.done.wait()
            deadline += max(0.0, trio.current_time() - until)

    async def _send(self, entries: Sequence[Outgoing], attempt: _Attempt) -> None:
        attempt.results = await self._sender.add(entries)
        self.published += sum(isinstance(result, str) for result in attempt.results)
        attempt.done.set()

    async def _hedge(self, entries: Sequence[Outgoing], attempt: _Attempt, writing: _Writing) -> None:
        """Spool a burst that Redis has not answered; when it turns out that this was needless, take the rows back."""
        with self._detours.unresolved(self._stream):
            writing.rows = await self._spool.add(self._stream, entries)
            writing.done.set()
            await attempt.done.wait()
            if not isinstance(writing.rows, Refusal):
                results = zip(writing.rows, attempt.results, strict=True)
                if needless := [row for row, result in results if isinstance(result, str)]:
                    await self._spool.take_back(needless)

    async def _settled(self, entries: Sequence[Outgoing], results: Sequence[str | Refusal]) -> list[Result]:
        """The answers; what Redis did not take is spooled."""
        left = [
            entry
            for entry, result in zip(entries, results, strict=True)
            if isinstance(result, Refusal) and not result.permanent
        ]
        if not left:
            return [_result(entry, result) for entry, result in zip(entries, results, strict=True)]
        rows = await self._spool.add(self._stream, left)
        spooled = iter(self._spooled(left, rows, results))
        return [
            next(spooled) if isinstance(result, Refusal) and not result.permanent else _result(entry, result)
            for entry, result in zip(entries, results, strict=True)
        ]

    def _spooled(
        self, entries: Sequence[Outgoing], rows: list[int] | Refusal, results: Sequence[str | Refusal] = ()
    ) -> list[Result]:
        if not isinstance(rows, Refusal):
            return [Published(entry.event_id, None, "outbox") for entry in entries]
        refusals = [result for result in results if isinstance(result, Refusal)]
        redis = refusals[0].reason if refusals else self._sender.why_not() or "events before it wait in the outbox"
        unknown = rows.unknown or any(refusal.unknown for refusal in refusals)
        return refused(entries, f"{redis}; {rows.reason}", unknown=unknown)


def _result(entry: Outgoing, result: str | Refusal) -> Result:
    if isinstance(result, str):
        return Published(entry.event_id, result)
    return PublishFailed(entry.event_id, result.reason, outcome_unknown=result.unknown, permanent=result.permanent)


async def _first(*waits: Callable[[], Awaitable[object]]) -> None:
    """Block until one of them has ended."""

    async def run(wait: Callable[[], Awaitable[object]]) -> None:
        await wait()
        nursery.cancel_scope.cancel(reason="one is enough")

    async with trio.open_nursery() as nursery:
        for wait in waits:
            nursery.start_soon(run, wait)
