"""The producer: puts events on streams, in batches, and answers with the entry ids.

Two ways in. Requests (`Producer.publish`) wait for the answer: accepted means that XADD was acknowledged, or that the
event is in the outbox in PostgreSQL. Captured events (`Producer.capture`) are what is recorded beside somebody's
request, and never make it wait: they stand in a bounded buffer that survives outages and restarts of the actor, and
take the same two ways; what does not fit is counted and told.

The producer requires no gate: while Redis is away or full it spools, and only when PostgreSQL is away, too, it refuses
requests at once, and keeps what was captured.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import trio

from ..runtime.mailbox import Mailbox
from ..runtime.telemetry import get_logger
from .detours import Detours
from .lane import BURST, Lane
from .outgoing import Outgoing, Published, PublishFailed, Result
from .sending import Sender
from .spooling import Spool

if TYPE_CHECKING:
    from ..runtime.mailbox import Inbox, MailboxStatistics
    from ..runtime.supervision import Child

__all__ = ["Outgoing", "Producer", "PublishFailed", "Published"]

log = get_logger(__name__)

LINGER: Final = 0.05
"""Seconds that a captured event waits for company: nobody waits for its answer, and events that are added together cost
one exchange with Redis, and one transaction of whoever handles them."""


class Producer:
    """See the module. One for a process; its `__call__` is the body of the actor ``producer``.

    Attributes:
        unwritable: captured events that were dropped because they cannot be written.

    Args:
        streams: the keys of the declared streams.
        sender: the way to Redis.
        spool: the way to the outbox.
        detours: which streams must take it.
        requests: how many requests may wait for each stream. Default 1,000.
        buffer: how many captured events may wait. Default 10,000: they wait only while PostgreSQL is away, too.
        hedge_after: seconds after which a burst that Redis has not answered is spooled, too. Default 0.05: a healthy
            server answers in a millisecond, and a request is worth more than a row that is deleted again.
    """

    def __init__(
        self,
        streams: Iterable[str],
        sender: Sender,
        spool: Spool,
        detours: Detours,
        *,
        requests: int = 1_000,
        buffer: int = 10_000,
        hedge_after: float = 0.05,
    ) -> None:
        self._sender = sender
        self._spool = spool
        self._lanes = {
            stream: Lane(stream, sender, spool, detours, capacity=requests, hedge_after=hedge_after)
            for stream in streams
        }
        self._captured: Mailbox[Outgoing] = Mailbox("producer.captured", buffer)
        # Taken out of the mailbox and not yet accepted; here, and not in the task, so that it survives the task.
        self._carried: deque[Outgoing] = deque()
        self._flushed = trio.Event()
        self._told_drop = -math.inf
        self.unwritable = 0

    async def publish(self, entries: Sequence[Outgoing]) -> list[Result]:
        """Have entries accepted; one result for each, in order.

        Blocks until Redis has acknowledged, the outbox is committed, or both have refused; 15 s at the most. Refuses at
        once while neither is there. Never raises for Redis or PostgreSQL. Cancelled, the outcome is unknown.

        Raises:
            KeyError: no stream of that key is declared.
        """
        shares: dict[str, list[Outgoing]] = {}
        for entry in entries:
            shares.setdefault(entry.stream, []).append(entry)
        results = {stream: iter(await self._lanes[stream].ask(share)) for stream, share in shares.items()}
        return [next(results[entry.stream]) for entry in entries]

    def capture(self, entry: Outgoing | PublishFailed) -> bool:
        """Take an entry along; never blocks, never raises.

        False, and a counted drop, if the buffer is full, or if it could not be made.
        """
        if isinstance(entry, PublishFailed):
            self._drop(str(entry.event_id), entry.reason)
            return False
        if self._captured.offer(entry):
            return True
        now = trio.current_time()
        if now - self._told_drop >= 10:
            self._told_drop = now
            dropped = self._captured.statistics().dropped
            log.error("captured events dropped", dropped=dropped, buffer=self._captured.capacity, why=self._why_not())
        return False

    def _drop(self, event_id: str, why: str) -> None:
        self.unwritable += 1
        log.error("captured event dropped", event_id=event_id, why=why)

    @property
    def published(self) -> int:
        """Entries that Redis has acknowledged to us."""
        return sum(lane.published for lane in self._lanes.values())

    @property
    def mailboxes(self) -> tuple[Mailbox[Any], ...]:
        """Those that it reads: one for each stream, and the last for captured events."""
        return (*(lane.requests for lane in self._lanes.values()), self._captured)

    @property
    def waiting(self) -> int:
        """Captured events that are neither in Redis nor in the outbox."""
        return len(self._carried) + self._captured.statistics().depth

    def statistics(self) -> tuple[MailboxStatistics, ...]:
        """Of its mailboxes."""
        return tuple(mailbox.statistics() for mailbox in self.mailboxes)

    async def __call__(self, child: Child) -> None:
        """Work until cancelled; when drained, have accepted what has come, and return."""
        try:
            async with trio.open_nursery() as nursery:
                for lane in self._lanes.values():
                    nursery.start_soon(lane.serve, nursery)
                nursery.start_soon(self._serve_captured, nursery)
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
        """Why nothing can be accepted now; empty if it can."""
        redis, outbox = self._sender.why_not(), self._spool.why_not()
        return f"{redis}; {outbox}" if redis and outbox else ""

    # Captured events ------------------------------------------------------------------------------------------------

    async def _serve_captured(self, background: trio.Nursery) -> None:
        async with self._captured.receive() as inbox:
            while True:
                await self._wait_for_somewhere()
                await self._carry(inbox)
                await self._deliver(background)
                if not self.waiting:
                    self._flushed.set()
                    self._flushed = trio.Event()
                if self._carried:
                    await trio.sleep(1.0)

    async def _wait_for_somewhere(self) -> None:
        """Block until Redis or the outbox is there."""

        async def wait(wait_for_all: Any) -> None:
            await wait_for_all()
            nursery.cancel_scope.cancel(reason="one is enough")

        if not self._why_not():
            await trio.lowlevel.checkpoint()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, self._sender.wait)
            nursery.start_soon(wait, self._spool.wait)

    async def _carry(self, inbox: Inbox[Outgoing]) -> None:
        """Take along what waits, up to `BURST`; where that is little, what comes in a moment, too."""
        if not self._carried:
            self._carried.append(await inbox.next())
        self._take_along(inbox)
        if len(self._carried) < BURST:
            await trio.sleep(LINGER)
            self._take_along(inbox)

    def _take_along(self, inbox: Inbox[Outgoing]) -> None:
        while len(self._carried) < BURST:
            try:
                self._carried.append(inbox.next_nowait())
            except trio.WouldBlock:
                return

    async def _deliver(self, background: trio.Nursery) -> None:
        """Have accepted what is carried; what nobody takes is carried on, in its order."""
        shares: dict[str, list[Outgoing]] = {}
        for entry in self._carried:
            shares.setdefault(entry.stream, []).append(entry)
        for stream, share in shares.items():
            results = await self._lanes[stream].put(share, background)
            over = set()
            for entry, result in zip(share, results, strict=True):
                if isinstance(result, PublishFailed):
                    if not result.permanent:
                        continue  # unknown outcomes go again, too: the same event id twice is one effect
                    self._drop(str(entry.event_id), result.reason)
                over.add(id(entry))
            self._carried = deque(entry for entry in self._carried if id(entry) not in over)
