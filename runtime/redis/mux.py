"""`Mux`: one connection that carries the commands of all tasks.

The writer sends whatever the tasks queued since it last ran, in one `send_all`; the reader gives the replies, which
come in the order of the commands, to the waiting tasks. So the number of system calls falls as the load rises, without
any delay being added at low load.

States of a request: (WAITING ->) QUEUED -> SENT -> done, or abandoned by its task. A cancelled wait is never shielded
and never hurts the connection: a WAITING or QUEUED request is taken out (provably never sent), the reply of a SENT one
is dropped when it comes.

WAITING is what a limit makes of a request. Room is given to those who wait in the order in which they came, also to one
that is large: nobody overtakes, so nobody starves.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Container
from math import inf
from typing import Any, Final

import hiredis
import outcome
import redis.exceptions
import trio
from attrs import define

from . import _compat
from .errors import NotSent, OutcomeUnknown, RedisClosed, RedisStalled, RedisUnavailable
from .options import RedisOptions
from .silence import Silence
from .wire import STREAM_ERRORS, Wire, describe

__all__ = ["Mux"]

_PING: Final = _compat.pack_command(("PING",))


@define(eq=False, repr=False)  # attrs' repr looks up a global `_compat` of its own
class _Request:
    """One command, or one burst of commands that must stay adjacent."""

    payload: bytes
    count: int  # replies that it gets
    raw: Container[int]  # which of them must not be decoded
    task: trio.lowlevel.Task | None  # None: nobody waits (any more)
    replies: list[Any] | None = None  # of a burst, those that have come
    sent: bool = False

    def collect(self, reply: Any) -> list[Any] | None:
        """Keep one reply of a burst; all of them when it was the last."""
        if self.replies is None:
            self.replies = []
        self.replies.append(reply)
        return self.replies if len(self.replies) == self.count else None


class Mux:
    """The shared connection. `run` must be running while `call` is used.

    Args:
        wire: connected and greeted; the Mux owns it from now on.
        options: limits, and the address for messages.
        on_break: called once, in the tick of the failure, when the connection has broken (not when it is closed).
        on_stall: called, in the tick, each time the server falls silent for `options.stall_after`.
    """

    def __init__(
        self,
        wire: Wire,
        options: RedisOptions,
        *,
        on_break: Callable[[Mux, RedisUnavailable], None],
        on_stall: Callable[[RedisStalled], None],
    ) -> None:
        self._wire = wire
        self._options = options
        self._max_pending = options.max_pending
        self._max_queued_bytes = options.max_queued_bytes
        self._on_break = on_break
        self._on_stall = on_stall
        self._queue: dict[_Request, None] = {}  # an ordered set: a cancelled request leaves at once, with its bytes
        self._queued_bytes = 0
        # For room in the queue. Not a dict: one whose first entry is taken again and again is searched ever longer.
        self._waiting: OrderedDict[_Request, None] = OrderedDict()
        self._pending: deque[_Request] = deque()
        self._due = 0  # replies of all that is queued or pending
        self._idle_writer: trio.lowlevel.Task | None = None
        self._idle_watchdog: trio.lowlevel.Task | None = None
        self._silence = Silence()
        self._scope = trio.CancelScope()
        self._broken: RedisUnavailable | None = None
        self._retired = False
        self.sent = 0

    @property
    def pending(self) -> int:
        """Requests queued, or sent and not answered (abandoned ones too)."""
        return len(self._queue) + len(self._pending)

    @property
    def waiting(self) -> int:
        """Requests that wait for room in the queue."""
        return len(self._waiting)

    @property
    def queued_bytes(self) -> int:
        """Bytes queued and not given to the stream."""
        return self._queued_bytes

    async def call(self, payload: bytes, count: int = 1, raw: Container[int] = ()) -> Any:
        """Send `payload` and wait for its reply, or for the list of its replies when `count` is above 1.

        Error replies come as exception objects, and so does a reply that is no UTF-8 where text was asked for. Waits
        for room while the link's limits are reached, then for the reply; has no deadline of its own, but fails when the
        connection does. Cancelled: see the module.

        Raises NotSent or OutcomeUnknown when the connection breaks.
        """
        if self._broken is not None or self._retired:
            await trio.lowlevel.checkpoint()  # whoever sends again on NotSent must stay cancellable
            raise NotSent(
                self._options.address, "the connection was gone before the command was sent"
            ) from self._broken
        request = _Request(payload, count, raw, trio.lowlevel.current_task())
        if self._waiting or not self._has_room(request):
            self._waiting[request] = None
        else:
            self._enqueue(request)

        def abandon(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            request.task = None
            if not request.sent:
                self._take_back(request)
            return trio.lowlevel.Abort.SUCCEEDED

        return await trio.lowlevel.wait_task_rescheduled(abandon)

    @trio.lowlevel.enable_ki_protection  # Ctrl-C is for the program's own tasks: here it would lose a reply
    async def run(self) -> None:
        """Carry the calls until the connection breaks or `close` is called; then close the stream. Never raises."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._watch)
                    await self._read()
        finally:
            # Cancelled from outside, without close(): nobody may wait for ever.
            self._fail_all(RedisClosed(self._options.address, "the link was closed"))
            await self._wire.aclose()

    def close(self) -> None:
        """End `run` and fail what is under way; `on_break` is not called. Does not block."""
        self._fail_all(RedisClosed(self._options.address, "the link was closed"))

    def retire(self) -> None:
        """Take no more calls; end `run` when those under way have their replies. Does not block."""
        self._retired = True
        self._fail_waiting(RedisUnavailable(self._options.address, "the connection was given up"))
        self._close_if_over()

    def _close_if_over(self) -> None:
        if self._retired and not self._queue and not self._pending:
            self.close()

    def _has_room(self, request: _Request) -> bool:
        """Whether the limits allow it. What is beyond a limit by itself has room when there is nothing else."""
        due, queued = self._due, self._queued_bytes
        return (due + request.count <= self._max_pending or not due) and (
            queued + len(request.payload) <= self._max_queued_bytes or not queued
        )

    def _enqueue(self, request: _Request) -> None:
        self._queue[request] = None
        self._queued_bytes += len(request.payload)
        self._due += request.count
        if self._idle_writer is not None:
            trio.lowlevel.reschedule(self._idle_writer)
            self._idle_writer = None

    def _let_in(self) -> None:
        """Queue those who wait for room, first come first served, as far as there is room."""
        while self._waiting:
            request = next(iter(self._waiting))
            if not self._has_room(request):
                return
            del self._waiting[request]
            self._enqueue(request)

    def _take_back(self, request: _Request) -> None:
        """Forget a request that was not sent."""
        if request in self._waiting:
            del self._waiting[request]
        else:
            del self._queue[request]
            self._queued_bytes -= len(request.payload)
            self._due -= request.count
        self._let_in()
        self._close_if_over()

    @trio.lowlevel.enable_ki_protection
    async def _write(self) -> None:
        try:
            while True:
                if not self._queue:
                    await self._wait_for_work()
                data = self._take_queue()
                if data:
                    await self._wire.send(data, self._silence.end)
        except STREAM_ERRORS as error:
            self._break(error)

    async def _wait_for_work(self) -> None:
        def cancel(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            self._idle_writer = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._idle_writer = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(cancel)

    def _take_queue(self) -> bytes:
        """Turn everything QUEUED into SENT. From here on its outcome is unknown until the reply comes."""
        queue, self._queue = self._queue, {}
        self._queued_bytes = 0
        if not self._pending:
            self._start_silence()
        for request in queue:
            request.sent = True
        self._pending.extend(queue)
        self.sent += sum([request.count for request in queue])
        data = b"".join([request.payload for request in queue])
        if self._waiting:
            self._let_in()
        return data

    @trio.lowlevel.enable_ki_protection
    async def _read(self) -> None:
        wire, reader = self._wire, self._wire.reader
        try:
            while True:
                data = await wire.read()
                if not data:
                    raise EOFError
                self._silence.end()
                reader.feed(data)  # type: ignore[arg-type]  # the stub forgets bytearray
                self._deliver_all(reader)
        except (EOFError, redis.exceptions.InvalidResponse, *STREAM_ERRORS) as error:
            self._break(error)

    def _deliver_all(self, reader: hiredis.Reader) -> None:
        """Give each reply that is complete to its request, and the request's task its turn."""
        pending, next_reply, reschedule = self._pending, reader.gets, trio.lowlevel.reschedule
        while True:
            head = pending[0] if pending else None
            raw = head is not None and head.raw and len(head.replies or ()) in head.raw
            try:
                reply = next_reply(not raw)
            except UnicodeDecodeError as error:
                # hiredis has read the reply to its end: it is this caller's trouble, and nobody else's.
                reply = error.with_traceback(None)
            except Exception as error:  # a map with a list as key, say: hiredis cannot go on after it
                raise _compat.unreadable(error) from error
            if reply is _compat.NOT_ENOUGH_DATA:
                break
            if type(reply) is hiredis.PushNotification:
                continue
            if head is None:
                raise redis.exceptions.InvalidResponse("a reply that no command asked for")
            self._due -= 1
            if head.count > 1:
                reply = head.collect(reply)
                if reply is None:
                    continue
            pending.popleft()
            task, head.task = head.task, None
            if task is not None:
                reschedule(task, outcome.Value(reply))
        if self._waiting:
            self._let_in()
        self._close_if_over()

    @trio.lowlevel.enable_ki_protection
    async def _watch(self) -> None:
        """Report silence after `stall_after`, end the connection after `response_timeout`. No timer for each call."""
        limits, silence, reported = self._options, self._silence, None
        while True:
            if not self._pending:
                await self._wait_for_pending()
                continue
            # The shorter of the two may well be the time-out: then there is nothing to report before it.
            first = min(limits.stall_after, limits.response_timeout)
            limit = limits.response_timeout if reported == silence.turn else first
            await trio.sleep_until(silence.next_look(limit))
            await trio.lowlevel.checkpoint()  # a reader that the same tick woke has run now
            if self._wire.has_news():
                silence.end()
            if not silence.exceeds(limit) or not self._pending:
                continue
            stall = RedisStalled(limits.address, f"no byte for {limit:g} s, commands under way: {self.pending}")
            if limit >= limits.response_timeout:
                self._break(stall)
                return
            reported = silence.turn
            self._on_stall(stall)

    def _start_silence(self) -> None:
        self._silence.end()
        if self._idle_watchdog is not None:
            trio.lowlevel.reschedule(self._idle_watchdog)
            self._idle_watchdog = None

    async def _wait_for_pending(self) -> None:
        """Until something is under way; that is, after `health_check_interval`, a PING of our own."""
        with trio.move_on_after(self._options.health_check_interval or inf) as scope:
            await self._wait_until_sent()
        if scope.cancelled_caught and not self._pending and not self._queue and not self._retired:
            self._enqueue(_Request(_PING, 1, (), None))
            await self._wait_until_sent()

    async def _wait_until_sent(self) -> None:
        def cancel(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            self._idle_watchdog = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._idle_watchdog = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(cancel)

    def _break(self, error: BaseException) -> None:
        """The connection is of no use any more: tell the callers and the owner at once, in this tick."""
        if self._broken is not None:
            return
        if isinstance(error, RedisUnavailable):
            trouble = error
        else:
            trouble = RedisUnavailable(self._options.address, describe(error))
            trouble.__cause__ = error
        self._fail_all(trouble)
        self._on_break(self, trouble)

    def _fail_all(self, trouble: RedisUnavailable) -> None:
        if self._broken is not None:
            return
        self._broken = trouble
        for request in self._pending:
            self._fail(request, OutcomeUnknown(trouble.address, f"sent, and no reply came: {trouble.reason}"), trouble)
        for request in self._queue:
            self._fail(request, NotSent(trouble.address, f"not sent: {trouble.reason}"), trouble)
        self._fail_waiting(trouble)
        self._pending.clear()
        self._queue.clear()
        self._queued_bytes = self._due = 0
        self._scope.cancel()

    def _fail_waiting(self, trouble: RedisUnavailable) -> None:
        waiting, self._waiting = self._waiting, OrderedDict()
        for request in waiting:
            self._fail(request, NotSent(trouble.address, f"not sent: {trouble.reason}"), trouble)

    def _fail(self, request: _Request, error: RedisUnavailable, trouble: RedisUnavailable) -> None:
        error.__cause__ = trouble  # an error of its own for each caller: shared ones would share a traceback
        task, request.task = request.task, None
        if task is not None:
            trio.lowlevel.reschedule(task, outcome.Error(error))
