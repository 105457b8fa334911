"""The publisher: what a program gives it goes to a Penstock server over HTTP, in order, and its outcome comes back."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

import anyio
import httpx

from ...runtime.telemetry import get_logger
from ..answers import Accepted
from .address import address_of, client_of
from .errors import BufferFull, GaveUp, NotPublished, PublisherClosed, Unsent, UnsentEvent
from .item import Item, encode, envelope_of
from .lane import Lane
from .room import Room
from .sender import Pace, Sender
from .statistics import PublisherStatistics

if TYPE_CHECKING:
    from anyio.abc import TaskGroup, TaskStatus
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

__all__ = ["Publisher"]

log = get_logger(__name__)

P = TypeVar("P", bound="Publisher")


class Publisher:
    """Publishes events to a Penstock server over HTTP, from a program on asyncio or trio.

    ::

        async with Publisher("http://127.0.0.1:47170") as publisher:
            accepted = await publisher.publish("order-events", OrderPlaced("o-1", 9.5))

    Every event has its id before it is first sent, and keeps it: over time-outs, broken connections and answers that
    never came it is the same event, and one effect. Events of one stream are sent one request after the other, so they
    arrive in the order in which they were given. An event that the server rejects costs its neighbours nothing.

    Entered in one task, it may be used by all tasks of the event loop; not by other threads. It may be entered once.
    When it is left it goes on for at most `close_within` seconds (shielded from cancellation) and then raises `Unsent`
    with what was not accepted. If the block was cancelled, the cancellation goes on instead; `unsent` has the events.

    Args:
        url: of the server: ``http://…``, ``https://…``, or ``unix:PATH``.
        buffer_size: events that may wait at a time.
        buffer_bytes: their bytes.
        batch_size: events in one request at the most; the server's limit is `http.max_items`.
        batch_bytes: bytes in one request at the most, but for an event that is larger alone; the server's limit is
            `http.body_limit`.
        linger: seconds that the first event of an idle stream waits for others to go with it. While a request is under
            way the next batch gathers by itself.
        request_timeout: seconds after which an answer is no longer waited for. Longer than the server's own 15 s.
        give_up_after: seconds after which an event that was not accepted fails with `GaveUp`, also while its request
            is under way; None: never, as long as the publisher is there.
        close_within: seconds that leaving may take.
        on_failed: called with the error of each event that was given by `send` or `send_nowait`, for nobody waits for
            their outcome. It must not block. Such errors stand in the log, too.
        client: what to send with, for credentials, certificates or a proxy of your own. It is not closed.

    Raises:
        ValueError: the URL is none of these, or a number is not above zero (`linger` and `close_within` may be zero).
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:47170",
        *,
        buffer_size: int = 10_000,
        buffer_bytes: int = 64_000_000,
        batch_size: int = 500,
        batch_bytes: int = 1_000_000,
        linger: float = 0.005,
        request_timeout: float = 20.0,
        give_up_after: float | None = None,
        close_within: float = 10.0,
        on_failed: Callable[[NotPublished], None] | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        self._base, self._socket = address_of(url)
        self._pace = Pace(
            buffer_size=buffer_size,
            buffer_bytes=buffer_bytes,
            batch_size=batch_size,
            batch_bytes=batch_bytes,
            linger=linger,
            request_timeout=request_timeout,
            give_up_after=give_up_after,
            close_within=close_within,
        )
        self._on_failed = on_failed
        self._given_client = client
        self._state = "not entered"
        self._crashed = False
        self._lanes: dict[str, Lane] = {}
        self._counts = dict.fromkeys(("accepted", "accepted_by_outbox", "rejected", "gave_up", "withdrawn"), 0)
        self.unsent: tuple[UnsentEvent, ...] = ()
        """After it was left: the events that were not accepted, as in `Unsent`."""

    # In and out -----------------------------------------------------------------------------------------------------

    async def __aenter__(self: P) -> P:
        if self._state != "not entered":
            raise PublisherClosed("a publisher is entered once; make another one")
        self._client = self._given_client or client_of(self._socket, self._pace.request_timeout)
        self._room = Room(self._pace.buffer_size, self._pace.buffer_bytes)
        self._sender = Sender(self._client, self._base, self._pace, self._settle)
        self._new_lanes: MemoryObjectSendStream[Lane]
        self._new_lanes, arriving = anyio.create_memory_object_stream(math.inf)
        self._senders = anyio.CancelScope(shield=True)
        self._group: TaskGroup = anyio.create_task_group()
        await self._group.__aenter__()
        try:
            await self._group.start(self._dispatch, arriving)
        except BaseException:
            self._senders.cancel()
            self._new_lanes.close()
            await self._group.__aexit__(*sys.exc_info())
            raise
        self._state = "open"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._state = "closed"
        self._room.shut()
        cancelled = isinstance(error, anyio.get_cancelled_exc_class())
        try:
            await self._bring_home()
        finally:
            await self._end_senders(*((kind, error, trace) if cancelled else (None, None, None)))
        if self.unsent and not cancelled:
            raise Unsent(self.unsent, self._sender.trouble) from error

    async def _bring_home(self) -> None:
        if self._crashed:  # nobody would send
            return
        self._sender.hurry.set()
        with anyio.move_on_after(self._pace.close_within, shield=True):
            await self._drained()

    async def _end_senders(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the group. Of the block's errors only a cancellation is for it: another would come out wrapped."""
        self._senders.cancel()
        try:
            await self._group.__aexit__(kind, error, trace)
        finally:
            self._new_lanes.close()
            self._write_off()
            if self._given_client is None:
                with anyio.move_on_after(1.0, shield=True):
                    await self._client.aclose()

    def _write_off(self) -> None:
        """Whatever has no outcome now will have none; whoever waits for it must not do so for ever."""
        left = [item for lane in self._lanes.values() for item in lane.items()]
        self._lanes.clear()
        self.unsent = tuple(UnsentEvent(item.stream, item.event, item.maybe) for item in left)
        if left:
            log.error("events were not published", events=len(left), why=self._sender.trouble or "no time was left")
        for item in left:
            reason = self._sender.trouble or "the publisher was left"
            item.outcome = GaveUp(item.stream, item.event_id, item.event, reason, outcome_unknown=item.maybe)
            self._counts["gave_up"] += 1
            self._room.give_back(len(item.line))
            item.done.set()

    # Publishing -----------------------------------------------------------------------------------------------------

    async def publish(
        self,
        stream: str,
        event: object,
        *,
        event_type: str | None = None,
        key: str | None = None,
        event_id: UUID | None = None,
        timestamp: datetime | None = None,
    ) -> Accepted:
        """Publish one event, and block until the server has accepted it, however long an outage takes.

        Cancelled, the event is withdrawn if it has not been sent; if it has, it goes on as if it had been given by
        `send`, and whether it is accepted is not known here. Give it an `event_id` if you may publish it again then.

        Args:
            stream: the stream's key.
            event: an object of an event class (`penstock.actors.event.event`), a mapping (JSON values, with
                `event_type`), or an `Envelope`.
            event_type: the type of a mapping.
            key: what must stay in order among itself; default that of the event class.
            event_id: default a new one (UUIDv7).
            timestamp: when it happened, aware; default now.

        Raises:
            Rejected: the server does not take it.
            GaveUp: it was not accepted within `give_up_after`, or before the publisher was left.
            PublisherClosed: the publisher is not open.
            InvalidEvent: it cannot be written as JSON.
        """
        item = _item(stream, event, event_type, key=key, event_id=event_id, timestamp=timestamp)
        (outcome,) = await self._published([item])
        if isinstance(outcome, NotPublished):
            raise outcome
        return outcome

    async def publish_many(
        self, stream: str, events: Iterable[object], *, event_type: str | None = None, key: str | None = None
    ) -> list[Accepted | NotPublished]:
        """Publish events, and block until each has its outcome; the outcomes in order.

        As many as you like: they go through the buffer as it has room. An event that is not accepted has its error
        (`Rejected`, `GaveUp`) in its place. If cancelled, it is with each as with `publish`.

        Raises:
            PublisherClosed: the publisher is not open, or was left before all were in the buffer.
            InvalidEvent: one cannot be written as JSON; none was sent.
        """
        return await self._published([_item(stream, event, event_type, key=key) for event in events])

    async def send(
        self,
        stream: str,
        event: object,
        *,
        event_type: str | None = None,
        key: str | None = None,
        event_id: UUID | None = None,
        timestamp: datetime | None = None,
    ) -> UUID:
        """Put an event into the buffer, blocking while that is full; returns its id, and does not wait for its outcome.

        What is not accepted is told in the log and to `on_failed`. If cancelled, nothing was kept. Arguments and the
        other errors as with `publish`.
        """
        item = _item(stream, event, event_type, key=key, event_id=event_id, timestamp=timestamp)
        await self._put(item)
        return item.event_id

    def send_nowait(
        self,
        stream: str,
        event: object,
        *,
        event_type: str | None = None,
        key: str | None = None,
        event_id: UUID | None = None,
        timestamp: datetime | None = None,
    ) -> UUID:
        """As `send`, but never blocks: raises `BufferFull` where `send` would wait."""
        self._check_open()
        item = _item(stream, event, event_type, key=key, event_id=event_id, timestamp=timestamp)
        if not self._try_put(item):
            why = f"; {self._sender.trouble}" if self._sender.trouble else ""
            raise BufferFull(f"{self._room.events} events ({self._room.bytes} bytes) wait to be sent{why}")
        return item.event_id

    async def flush(self) -> None:
        """Block until every event that is in the buffer now has its outcome; bound it by a time-out of your own."""
        self._check_open()
        await self._drained()

    def statistics(self) -> PublisherStatistics:
        """How it is doing; may be asked at any time after it was entered, also when it was left."""
        self._check_entered()
        return PublisherStatistics(
            waiting=self._room.events,
            waiting_bytes=self._room.bytes,
            requests=self._sender.requests,
            sent_again=self._sender.sent_again,
            trouble=self._sender.trouble,
            **self._counts,
        )

    # Inside ---------------------------------------------------------------------------------------------------------

    async def _published(self, items: Sequence[Item]) -> list[Accepted | NotPublished]:
        given = 0
        for item in items:
            item.awaited = True
        try:
            for item in items:
                # A step for each would let a fast server answer single events, where they could go by the hundred.
                if not self._try_put(item):
                    await self._put(item)
                given += 1
            for item in items:
                await item.done.wait()
        except BaseException:
            self._withdraw(items[:given])
            raise
        return [item.outcome for item in items if item.outcome is not None]

    def _try_put(self, item: Item) -> bool:
        self._check_open()
        if not self._room.try_take(len(item.line)):
            return False
        self._enqueue(item)
        return True

    async def _put(self, item: Item) -> None:
        self._check_open()
        size = len(item.line)
        if await self._room.take(size) and self._state != "open":
            self._room.give_back(size)
        self._check_open()
        self._enqueue(item)

    def _enqueue(self, item: Item) -> None:
        item.since = anyio.current_time()
        lane = self._lanes.get(item.stream)
        if lane is None:
            lane = self._lanes[item.stream] = Lane(item.stream)
            self._new_lanes.send_nowait(lane)
        lane.add(item)
        if len(lane.queue) >= self._pace.batch_size:
            lane.full.set()

    async def _dispatch(
        self, arriving: MemoryObjectReceiveStream[Lane], *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Run a sender for each lane.

        They are started from here, so that none inherits the context of whoever published first; and in a shielded
        scope, so that a cancellation ends the block at once, and them only when the time for leaving is over.
        """
        try:
            with self._senders:
                async with arriving, anyio.create_task_group() as group:
                    task_status.started()
                    async for lane in arriving:
                        group.start_soon(self._drive, lane)
        except BaseException:
            self._crashed = True
            raise

    async def _drive(self, lane: Lane) -> None:
        await self._sender.drive(lane)
        # Not in a `finally`: a lane whose sender was cancelled still holds what is unsent.
        del self._lanes[lane.stream]

    def _settle(self, item: Item, outcome: Accepted | NotPublished) -> None:
        item.outcome = outcome
        self._room.give_back(len(item.line))
        if isinstance(outcome, Accepted):
            self._counts["accepted"] += 1
            self._counts["accepted_by_outbox"] += outcome.durable == "outbox"
        else:
            self._counts["gave_up" if isinstance(outcome, GaveUp) else "rejected"] += 1
            if not item.awaited:
                self._tell(outcome)
        item.done.set()

    def _tell(self, failed: NotPublished) -> None:
        log.error("event was not published", stream=failed.stream, event_id=str(failed.event_id), why=str(failed))
        if self._on_failed is None:
            return
        try:
            self._on_failed(failed)
        except Exception:  # the caller's function; it must not end what the events of others depend on
            log.exception("on_failed failed", event_id=str(failed.event_id))

    def _withdraw(self, items: Sequence[Item]) -> None:
        """Nobody waits for these events of one stream any more."""
        for item in items:
            item.awaited = False
        lane = self._lanes.get(items[0].stream) if items else None
        for item in lane.withdraw(items) if lane is not None else ():
            self._counts["withdrawn"] += 1
            self._room.give_back(len(item.line))
            item.done.set()

    async def _drained(self) -> None:
        lanes = list(self._lanes.values())
        for lane in lanes:
            lane.full.set()
        for item in [item for lane in lanes for item in lane.items()]:
            await item.done.wait()

    def _check_open(self) -> None:
        self._check_entered()
        if self._state == "closed":
            raise PublisherClosed("the publisher has been left; what is published now would never be sent")

    def _check_entered(self) -> None:
        if self._state == "not entered":
            raise PublisherClosed("the publisher was not entered: use `async with Publisher(…)`")


def _item(stream: str, event: object, event_type: str | None, **given: object) -> Item:
    return encode(stream, envelope_of(event, event_type, given))
