"""The mailbox itself: a memory channel with an account, a policy for when it is full, and an end."""

from __future__ import annotations

import enum
import math
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from inspect import iscoroutinefunction
from typing import Any, Generic, TypeVar

import trio
import trio.lowlevel

from .errors import AskTimeout, Deadlock, MailboxClosed, Overloaded
from .inbox import Inbox
from .reply import Reply
from .statistics import REMEMBERED, MailboxStatistics, percentile
from .waits import Wait, certain_circle

__all__ = ["Item", "Mailbox", "Overflow"]

T = TypeVar("T")
R = TypeVar("R")

Item = tuple[float, T, Reply[Any] | None]
"""What stands in the channel: when the sender came, the message, and the slot for the answer if it was asked for."""


class Overflow(enum.Enum):
    """What a full mailbox does with one message more."""

    WAIT = "wait"
    """`Mailbox.tell` waits for room, ``wait_within`` seconds at the most, and then raises `Overloaded`."""
    REFUSE = "refuse"
    """`Mailbox.tell` raises `Overloaded` at once."""
    DROP_OLDEST = "drop_oldest"
    """The oldest queued message gives way: it goes to ``on_undelivered``, and who asked with it gets `Overloaded`."""


class Mailbox(Generic[T]):
    """A bounded queue of messages for one actor.

    Args:
        name: for errors, logs and metrics.
        capacity: messages it holds before it is full; 1 or more.
        overflow: what it does when it is full. Default `Overflow.WAIT`: nothing is lost, and whoever is too fast is
            slowed down.
        wait_within: seconds that a sender waits for room at the most; 0 or more, only with `Overflow.WAIT`. Default: no
            limit, for a reader may be held for hours.
        on_undelivered: called with messages that were queued and that nobody will read any more, and the reason: those
            that gave way, those that `close` found. They are the hook's then. It must not block. It runs in the task
            that sends or closes and cannot harm it: what it raises is kept (`hook_error`), and the messages count as
            undelivered, as they do without a hook.

    Attributes:
        hook_error: the last that ``on_undelivered`` raised, or None.

    Raises:
        ValueError: an argument is not as said above.
    """

    def __init__(
        self,
        name: str,
        capacity: int,
        *,
        overflow: Overflow = Overflow.WAIT,
        wait_within: float = math.inf,
        on_undelivered: Callable[[list[T], str], object] | None = None,
    ) -> None:
        if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
            raise ValueError(f"capacity of mailbox {name!r} must be a whole number of 1 or more, not {capacity!r}")
        if not isinstance(overflow, Overflow):
            raise ValueError(f"overflow of mailbox {name!r} must be an Overflow, not {overflow!r}")
        if not isinstance(wait_within, int | float) or not wait_within >= 0:
            raise ValueError(f"wait_within of mailbox {name!r} must be seconds, 0 or more, not {wait_within!r}")
        if wait_within != math.inf and overflow is not Overflow.WAIT:
            raise ValueError(f"wait_within of mailbox {name!r} is for Overflow.WAIT; with {overflow.name} nobody waits")
        if on_undelivered is not None and (not callable(on_undelivered) or iscoroutinefunction(on_undelivered)):
            raise ValueError(f"on_undelivered of mailbox {name!r} must be an ordinary function, not {on_undelivered!r}")
        self.name = name
        self.capacity = capacity
        self.overflow = overflow
        self.wait_within = wait_within
        self._may_drop = overflow is Overflow.DROP_OLDEST
        self.hook_error: Exception | None = None
        self._on_undelivered = on_undelivered
        # The receive end here is never closed: readers have clones, and with the last end the buffer would go.
        self._send, self._receive = trio.open_memory_channel[Item[T]](capacity)
        # When each message got into the channel: of those in the buffer and, before them, of those that were handed
        # directly to a reader that has not run yet. How many are in the buffer, the channel knows (`_buffered`); to
        # ask it at every message would cost as much as the sending.
        self._stamps: deque[float] = deque()
        # Who waits for room. Not left to the channel, for here a cancel is seen in the very moment, not when the
        # cancelled task next runs; so it is exactly known who is let in, and when.
        self._senders: OrderedDict[trio.lowlevel.Task, tuple[Item[T], Wait]] = OrderedDict()
        self._waits: deque[float] = deque(maxlen=REMEMBERED)
        self._inbox: Inbox[T] | None = None
        self._closed: str | None = None
        self._peak = 0
        self._received = 0
        self._dropped = 0
        self._refused = 0
        self._undelivered = 0
        self._late = 0

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed is not None

    async def tell(self, message: T) -> None:
        """Queue a message; blocks while the mailbox is full, as its `Overflow` says: by default without limit.

        Senders get in in the order in which they came. A checkpoint, also when it raises. Cancelled, the message is not
        queued; neither is it after an error.

        Raises:
            Overloaded: there is no room, or was none within ``wait_within``.
            Deadlock: this task reads a mailbox whose senders or askers it would now wait for, in a circle.
            MailboxClosed: the mailbox is closed, or was closed while this waited.
        """
        item = (trio.current_time(), message, None)
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._push(item):
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            await self._wait_for_room(item, Wait(self))

    def offer(self, message: T) -> bool:
        """Queue a message if there is room; never blocks, and raises nothing.

        False, and a counted drop, if there is none, or if the mailbox is closed. With `Overflow.DROP_OLDEST` there is
        always room: the oldest message is the drop.
        """
        if not self.is_closed and self._push((trio.current_time(), message, None)):
            return True
        self._dropped += 1
        return False

    async def ask(self, make: Callable[[Reply[R]], T], timeout: float) -> R:  # noqa: ASYNC109 - names the peer
        """Send the message that `make` builds around a reply slot, and wait for the answer.

        Blocks for `timeout` seconds at the most, room in the mailbox included. A message that is queued by then stays
        queued, also when this is cancelled; its reader can tell by `Reply.is_abandoned` that nobody waits any more. The
        request of a reader that ends before it has taken it is answered by the next one.

        The type of the answer is that of the slot: from the message's class (``box.ask(Ping, 1.0)``), from a function
        with types, or from where the answer goes (``name: str = await box.ask(lambda reply: Who(7, reply), 1.0)``).

        Args:
            make: called once, at once; the slot goes into the message and nowhere else (or is `Reply.detach`-ed).
            timeout: seconds.

        Raises:
            AskTimeout: there was no answer in time; the error names the mailbox.
            Deadlock: this task reads a mailbox, and the reader of this one waits for it, in a circle. At once where
                that is certain, otherwise in place of `AskTimeout`.
            PeerDied: the actor that had taken the message ended without an answer.
            Overloaded: there was no room (as for `tell`), or the message had to give way.
            MailboxClosed: the mailbox is closed, or was before the message was taken.
            Exception: whatever the actor answered with (`Reply.fail`).
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        reply: Reply[R] = Reply(self)
        wait = Wait(self, reply)
        await self._refuse_deadlock(wait)
        try:
            with trio.move_on_after(timeout):
                # From the look for a deadlock to the sleep nobody else may run: he would see no wait, and add his own.
                item = (trio.current_time(), make(reply), reply)
                if not self._push(item):
                    await self._wait_for_room(item, wait)
                return await reply._wait(wait)
            if reply.is_answered:  # in the very tick in which the time was up
                return reply._answered()
            if wait.circle is not None:
                raise Deadlock(wait.circle, timeout)
            raise AskTimeout(f"no answer from {self.name} within {timeout:g} s")
        finally:
            reply._leave()

    @asynccontextmanager
    async def receive(self) -> AsyncIterator[Inbox[T]]:
        """Borrow the receiving end: ``async with mailbox.receive() as inbox: async for message in inbox: …``.

        What is queued when the block ends stays queued for the next one. Requests that were taken and not answered by
        then fail with `PeerDied`, with what ended the block as the cause. Of a mailbox that is closed, nothing comes.

        Raises:
            RuntimeError: another task is receiving already: one actor, one mailbox.
        """
        if self._inbox is not None:
            raise RuntimeError(f"the mailbox {self.name!r} has a reader already")
        self._inbox = inbox = Inbox(self, self._receive.clone())
        cause: BaseException | None = None
        try:
            yield inbox
        except BaseException as error:
            cause = error
            raise
        finally:
            self._inbox = None
            inbox._end(cause)

    @trio.lowlevel.enable_ki_protection
    def close(self, reason: str) -> Exception | None:
        """Give it up: for whoever owns it, when its actor is gone for good. Never blocks; once is enough.

        Queued messages go to ``on_undelivered(messages, reason)``, or count as undelivered. Waiting senders, and askers
        whose request is unread, get `MailboxClosed` at once, and so does whoever sends later; `offer` returns False. A
        reader that is still inside comes to the end of its iteration; what it has taken it may still answer.

        Returns:
            What ``on_undelivered`` raised, for the log; None otherwise, and for a mailbox that is closed already.
        """
        if self._closed is not None:
            return None
        self._closed = reason
        self._send.close()
        senders = list(self._senders.items())
        self._senders.clear()
        for task, (_, wait) in senders:
            if wait.reply is None:
                trio.lowlevel.reschedule(task)
            else:
                wait.reply._break(self._closed_error())
        items: list[Item[T]] = []
        while True:
            try:
                items.append(self._pull(self._receive))
            except trio.EndOfChannel:
                break
        for _, _, reply in items:
            if reply is not None:
                reply._break(self._closed_error())
        return self._give_up([message for _, message, _ in items], reason)

    def statistics(self) -> MailboxStatistics:
        """How full it is and was. Never blocks. Sorts the last waits: for a look now and then, not for each message."""
        depth = self._buffered()
        return MailboxStatistics(
            name=self.name,
            capacity=self.capacity,
            depth=depth,
            peak=max(self._peak, depth),
            oldest_age=trio.current_time() - self._stamps[-depth] if depth else 0.0,
            received=self._received,
            dropped=self._dropped,
            refused=self._refused,
            undelivered=self._undelivered,
            late_replies=self._late,
            wait_p99=percentile(self._waits, 99),
            senders_waiting=len(self._senders),
        )

    # Sending ----------------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    def _push(self, item: Item[T]) -> bool:
        """Into the buffer, or to a waiting reader. False if there is no room, and none can be made."""
        if self._put(item):
            return True
        if self._may_drop:
            self._displace_oldest(item)
        return self._may_drop

    def _put(self, item: Item[T]) -> bool:
        if self._senders:
            return False  # it is full, and they are first
        try:
            self._send.send_nowait(item)
        except trio.ClosedResourceError:
            raise self._closed_error() from None
        except trio.WouldBlock:
            return False
        self._stamps.append(item[0])
        return True

    def _displace_oldest(self, item: Item[T]) -> None:
        _, message, reply = self._pull(self._receive)
        self._put(item)
        self._dropped += 1
        if reply is not None:
            reply._break(Overloaded(self.name, self.capacity, "the request had to give way to newer messages"))
        self._give_up([message], f"mailbox {self.name} was full: the oldest message gave way")

    async def _wait_for_room(self, item: Item[T], wait: Wait) -> None:
        """Until the message is in or, if there is a reply, until it is answered: so an asker never stops to wait."""
        if self.overflow is Overflow.REFUSE:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise self._refusal("it is full")
        await self._refuse_deadlock(wait)
        with trio.move_on_after(self.wait_within) as wait.for_room:
            return await self._queue_up(item, wait)
        raise self._refusal(f"there was no room within {self.wait_within:g} s (`wait_within`)")

    @trio.lowlevel.enable_ki_protection
    async def _queue_up(self, item: Item[T], wait: Wait) -> None:
        task = trio.lowlevel.current_task()
        self._senders[task] = (item, wait)
        if wait.reply is None:
            await wait.sleep(lambda: self._senders.pop(task))
            if not wait.has_room:
                raise self._closed_error()
        else:
            await wait.reply._sleep(wait, lambda: self._senders.pop(task, None))
            self._senders.pop(task, None)  # somebody has answered who did not get it from here

    async def _refuse_deadlock(self, wait: Wait) -> None:
        circle = certain_circle(wait)
        if circle is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise Deadlock(circle)

    def _refuses(self) -> bool:
        return self.overflow is Overflow.REFUSE and self._buffered() == self.capacity

    def _refusal(self, how: str) -> Overloaded:
        self._refused += 1
        return Overloaded(self.name, self.capacity, how)

    def _closed_error(self) -> MailboxClosed:
        return MailboxClosed(self.name, self._closed or "")

    # Taking -----------------------------------------------------------------------------------------------------------

    def _buffered(self) -> int:
        return self._receive.statistics().current_buffer_used

    @trio.lowlevel.enable_ki_protection
    def _pull(self, channel: trio.MemoryReceiveChannel[Item[T]]) -> Item[T]:
        """Take the oldest out of the buffer, and let in the first who waits for room."""
        # The buffer is fullest just before something is taken. Stamps are at least as many as what is in it.
        if len(self._stamps) > self._peak:
            self._peak = max(self._peak, self._buffered())
        item = channel.receive_nowait()
        self._stamps.popleft()
        if self._senders:
            task, (entering, wait) = self._senders.popitem(last=False)
            self._send.send_nowait(entering)
            self._stamps.append(trio.current_time())
            wait.has_room = True
            if wait.reply is None:
                trio.lowlevel.reschedule(task)
            elif wait.for_room is not None:
                wait.for_room.deadline = math.inf  # it sleeps on, until it is answered
        return item

    def _give_up(self, messages: list[T], reason: str) -> Exception | None:
        if not messages:
            return None
        failed: Exception | None = None
        if self._on_undelivered is not None:
            try:
                self._on_undelivered(messages, reason)
            except Exception as error:  # noqa: BLE001 - the hook's fault is neither the sender's nor the supervisor's
                self.hook_error = failed = error
            else:
                return None
        self._undelivered += len(messages)
        return failed
