"""Mailboxes: bounded, typed, and owned by nobody who can crash.

The actor that reads a mailbox may die and be started again; what is queued stays. So a mailbox belongs to whoever
builds the tree, and actors only borrow its receiving end (`Mailbox.receive`).

Three ways to send, each with its promise: `Mailbox.tell` waits for room, `Mailbox.offer` never waits and counts what
did not fit, `Mailbox.ask` waits for the answer, and for the bad news.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import trio
from attrs import frozen

__all__ = ["AskTimeout", "Inbox", "Mailbox", "MailboxStatistics", "PeerDied", "Reply"]

T = TypeVar("T")
R = TypeVar("R")


class AskTimeout(Exception):
    """No answer came within the limit. The request may still be worked on; a late answer harms nobody."""


class PeerDied(Exception):
    """The actor that had taken the request ended before it answered; its error, if it had one, is the cause."""


class Reply(Generic[R]):
    """The one-shot slot for the answer to one request.

    The first answer counts; a later one, or one whose asker has left, is dropped and counted (`Mailbox.statistics`).
    """

    __slots__ = ("_done", "_error", "_mailbox", "_value", "_waiting")

    def __init__(self, mailbox: Mailbox[object]) -> None:
        self._done = trio.Event()
        self._value: R | None = None
        self._error: Exception | None = None
        self._waiting = True
        self._mailbox = mailbox

    @property
    def is_answered(self) -> bool:
        """Whether an answer was set."""
        return self._done.is_set()

    @property
    def is_abandoned(self) -> bool:
        """Whether the asker has left; work for it may be spared."""
        return not self._waiting

    def set(self, value: R) -> None:
        """Answer. Never blocks, never raises."""
        self._answer(value, None)

    def fail(self, error: Exception) -> None:
        """Answer with an error, which is raised where the answer is awaited. Never blocks, never raises."""
        self._answer(None, error)

    def _answer(self, value: R | None, error: Exception | None) -> None:
        if self._done.is_set():
            return
        if not self._waiting:
            self._mailbox._late += 1
        self._value, self._error = value, error
        self._done.set()

    async def _wait(self) -> R:
        try:
            await self._done.wait()
        finally:
            self._waiting = False
        return self._answered()

    def _answered(self) -> R:
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
            return self._value  # type: ignore[return-value]
        finally:
            del error  # its traceback holds this frame: no cycle


@frozen(kw_only=True)
class MailboxStatistics:
    """A mailbox at one moment.

    Attributes:
        name: its name.
        capacity: how many messages it holds at the most.
        depth: how many are queued.
        peak: the most that ever were.
        oldest_age: seconds that the oldest queued message has waited; 0.0 when empty.
        received: messages taken so far.
        dropped: offers that found it full.
        late_replies: answers that came after their asker had left.
    """

    name: str
    capacity: int
    depth: int
    peak: int
    oldest_age: float
    received: int
    dropped: int
    late_replies: int


class Mailbox(Generic[T]):
    """A bounded queue of messages for one actor.

    Args:
        name: for errors, logs and metrics.
        capacity: messages it holds before senders wait or offers are dropped; 1 or more.
    """

    def __init__(self, name: str, capacity: int) -> None:
        if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
            raise ValueError(f"capacity of mailbox {name!r} must be a whole number of 1 or more, not {capacity!r}")
        self.name = name
        self.capacity = capacity
        # Each message with whether it goes through the buffer: a waiting reader is handed it directly.
        self._send, self._receive = trio.open_memory_channel[tuple[bool, T]](capacity)
        # Beside the channel: when each buffered message came in. Same order, same length.
        self._stamps: deque[float] = deque()
        self._peak = 0
        self._received = 0
        self._dropped = 0
        self._late = 0
        self._inbox: Inbox[T] | None = None

    async def tell(self, message: T) -> None:
        """Queue a message; blocks while the mailbox is full, without limit: while its reader is held, for hours.

        Senders get in in the order in which they came. Cancelled, the message is not queued.
        """
        await trio.lowlevel.checkpoint()
        try:
            self._put(message)
        except trio.WouldBlock:
            # It is stamped when it gets into the buffer (`_taken`), not when its sender began to wait.
            await self._send.send((True, message))

    def offer(self, message: T) -> bool:
        """Queue a message if there is room; never blocks. False, and a counted drop, if there is none."""
        try:
            self._put(message)
        except trio.WouldBlock:
            self._dropped += 1
            return False
        return True

    async def ask(self, make: Callable[[Reply[R]], T], timeout: float) -> R:  # noqa: ASYNC109 - names the peer
        """Send the message that `make` builds around a reply slot, and wait for the answer.

        Blocks for `timeout` seconds at the most, room in the mailbox included. A message that is queued by then stays
        queued; its reader can tell by `Reply.is_abandoned` that nobody waits any more.

        Raises:
            AskTimeout: there was no answer in time; the error names the mailbox.
            PeerDied: the actor that had taken the message, and said so by `Inbox.owe`, ended without an answer.
            Exception: whatever the actor answered with (`Reply.fail`).
        """
        reply: Reply[R] = Reply(self)  # type: ignore[arg-type]
        with trio.move_on_after(timeout):
            await self.tell(make(reply))
            return await reply._wait()
        reply._waiting = False
        if reply.is_answered:  # in the very tick in which the time was up
            return reply._answered()
        raise AskTimeout(f"no answer from {self.name} within {timeout:g} s")

    @asynccontextmanager
    async def receive(self) -> AsyncIterator[Inbox[T]]:
        """Borrow the receiving end: ``async with mailbox.receive() as inbox: async for message in inbox: …``.

        What is queued when the block ends stays queued for the next one. Replies that the actor registered with
        `Inbox.owe` and did not answer fail with `PeerDied` when the block ends, with what ended it as the cause.

        Raises:
            RuntimeError: another task is receiving already: one actor, one mailbox.
        """
        if self._inbox is not None:
            raise RuntimeError(f"the mailbox {self.name!r} has a reader already")
        self._inbox = inbox = Inbox(self)
        cause: BaseException | None = None
        try:
            yield inbox
        except BaseException as error:
            cause = error
            raise
        finally:
            self._inbox = None
            inbox._default(cause)

    def statistics(self) -> MailboxStatistics:
        """How full it is and was. Never blocks."""
        oldest = trio.current_time() - self._stamps[0] if self._stamps else 0.0
        return MailboxStatistics(
            name=self.name,
            capacity=self.capacity,
            depth=len(self._stamps),
            peak=self._peak,
            oldest_age=oldest,
            received=self._received,
            dropped=self._dropped,
            late_replies=self._late,
        )

    def _put(self, message: T) -> None:
        through_buffer = self._send.statistics().tasks_waiting_receive == 0
        self._send.send_nowait((through_buffer, message))
        if through_buffer:
            self._stamp()

    def _stamp(self) -> None:
        self._stamps.append(trio.current_time())
        self._peak = max(self._peak, len(self._stamps))

    def _taken(self, through_buffer: bool) -> None:
        self._received += 1
        if through_buffer:
            self._stamps.popleft()
            # Taking one lets in the first of the waiting senders.
            if self._receive.statistics().current_buffer_used > len(self._stamps):
                self._stamp()


class Inbox(Generic[T]):
    """The receiving end of a mailbox, borrowed by its actor; an async iterator over the messages."""

    def __init__(self, mailbox: Mailbox[T]) -> None:
        self._mailbox = mailbox
        self._owed: set[Reply[object]] = set()
        self._prune_at = 64

    def __aiter__(self) -> Inbox[T]:
        return self

    async def __anext__(self) -> T:
        return await self.next()

    async def next(self) -> T:
        """The next message; blocks until there is one. Cancelled, it takes none.

        Raises:
            trio.ClosedResourceError: the block that borrowed it has ended.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            message = self.next_nowait()
        except trio.WouldBlock:
            _, message = await self._mailbox._receive.receive()
            self._mailbox._taken(through_buffer=False)
        else:
            # Counted already: between the taking and the counting nobody else may run.
            await trio.lowlevel.cancel_shielded_checkpoint()
        return message

    def next_nowait(self) -> T:
        """The next message if one is queued; raises `trio.WouldBlock` otherwise, and what `next` raises."""
        self._check()
        through_buffer, message = self._mailbox._receive.receive_nowait()
        self._mailbox._taken(through_buffer)
        return message

    def _check(self) -> None:
        if self._mailbox._inbox is not self:
            raise trio.ClosedResourceError(f"this inbox of {self._mailbox.name} was given back")

    def owe(self, reply: Reply[R]) -> None:
        """Answer `reply` with `PeerDied` should this actor end without answering it."""
        if len(self._owed) >= self._prune_at:
            self._owed = {each for each in self._owed if not each.is_answered}
            self._prune_at = max(64, 2 * len(self._owed))
        self._owed.add(reply)  # type: ignore[arg-type]

    def _default(self, cause: BaseException | None) -> None:
        for reply in self._owed:
            if not reply.is_answered and not reply.is_abandoned:
                died = PeerDied(f"the reader of {self._mailbox.name} ended before it answered")
                if cause is not None and not isinstance(cause, trio.Cancelled):
                    died.__cause__ = cause
                reply.fail(died)
