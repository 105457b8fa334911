"""`Inbox`: what a `PubSub` wishes for, who waits for the server's answer, and the messages that nobody has taken yet.

Nothing here does input or output. It is told by a `Subscriber` (`Owner` is its side), and asked by `PubSub`.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import trio
from attrs import define, evolve, field

from .errors import NotSent, RedisClosed, RedisUnavailable
from .messages import Gap, Loss, Message, Topic
from .replies import Kind, classify

__all__ = ["Call", "Inbox", "Limits", "Wish"]

_OVERHEAD: Final = 200
"""Bytes that a message of no bytes takes."""


class Limits(Protocol):
    """What is read of the client's options."""

    @property
    def address(self) -> str: ...

    @property
    def decode_responses(self) -> bool: ...

    @property
    def response_timeout(self) -> float: ...

    @property
    def retry_for(self) -> float: ...


@define(eq=False)
class Call:
    """One subscribe or unsubscribe under way.

    Attributes:
        waiting: the topics that the server has not answered for.
        error: why it fails.
        hindrance: what has kept it from its answer up to now.
    """

    waiting: set[Topic]
    started: float = field(factory=trio.current_time)
    done: trio.Event = field(factory=trio.Event)
    error: Exception | None = None
    hindrance: Exception | None = None

    def answered(self, topic: Topic) -> None:
        self.waiting.discard(topic)
        if not self.waiting:
            self.done.set()

    def fail(self, error: Exception) -> None:
        if not self.done.is_set():
            self.error = error
            self.done.set()


@define(eq=False)
class Wish:
    """A topic that is wished for.

    Attributes:
        calls: those under way that asked for it.
        confirmed: whether the server has us subscribed, as far as we know.
        settled: whether a call for it has succeeded; only `unsubscribe` or a refusal ends it then.
    """

    calls: set[Call] = field(factory=set)
    confirmed: bool = False
    settled: bool = False


class Inbox:
    """See the module.

    Attributes:
        wishes: what is to be subscribed to.
        leaving: the calls that wait for the end of a subscription.
        closed: whether it is over.
    """

    def __init__(self, limits: Limits, most_bytes: int) -> None:
        self.wishes: dict[Topic, Wish] = {}
        self.leaving: dict[Topic, list[Call]] = {}
        self.closed = False
        self._limits = limits
        self._most_bytes = most_bytes
        self._items: deque[tuple[int, Message | Gap | Exception]] = deque()
        self._bytes = 0
        self._takers = trio.lowlevel.ParkingLot()

    def text(self, value: bytes) -> str | bytes:
        """As the user wants it. Raises UnicodeDecodeError."""
        return value.decode() if self._limits.decode_responses else value

    def name(self, topic_name: bytes) -> str | bytes:
        """As the user wants it, if it can be had so: who subscribed to bytes that are no UTF-8 knows them as bytes."""
        try:
            return self.text(topic_name)
        except UnicodeDecodeError:
            return topic_name

    async def take(self, resume: Callable[[], None]) -> Message | Gap:
        """The oldest item, as soon as there is one; calls `resume` when there is room again.

        Raises what stands in the place of an item, and RedisClosed. Cancelled, it has taken nothing. A checkpoint only
        when it has to wait, so that an item which is there is had even with no time left.
        """
        while not self._items and not self.closed:
            await self._takers.park()
        if self.closed:
            raise RedisClosed(self._limits.address, "the PubSub is closed")
        was_full = self.is_full
        size, item = self._items.popleft()
        self._bytes -= size
        if was_full and not self.is_full:
            resume()
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        """Fail everybody who waits."""
        self.closed = True
        self._takers.unpark_all()
        for call in {*self._callers(), *(call for calls in self.leaving.values() for call in calls)}:
            call.fail(RedisClosed(self._limits.address, "the PubSub was closed"))

    # What a Subscriber tells.

    @property
    def is_full(self) -> bool:
        return self._bytes >= self._most_bytes

    def received(self, topic: Topic, channel: bytes, data: bytes) -> None:
        size = _OVERHEAD + len(channel) + len(data)
        try:
            self._put(self._message(topic, channel, data), size)
        except UnicodeDecodeError as error:
            self._put(error, size)

    def confirmed(self, topic: Topic) -> None:
        wish = self.wishes.get(topic)
        if wish is not None:
            wish.confirmed = True
            for call in wish.calls:
                call.answered(topic)

    def released(self, topic: Topic) -> None:
        for call in self.leaving.pop(topic, ()):
            call.answered(topic)

    def refused(self, topic: Topic, error: Exception, loss: Loss | None) -> None:
        wish = self.wishes.pop(topic, None)
        if wish is None:
            return
        name = topic.name.decode(errors="backslashreplace")
        for call in wish.calls:
            call.fail(_own(error, f"{topic.kind} {name}"))
        if wish.settled:
            self._put(_own(error, f"{topic.kind} {name} is not subscribed to any more"), _OVERHEAD)

    def hindered(self, topics: Iterable[Topic], error: Exception) -> None:
        for topic in topics:
            if topic in self.wishes:
                self.wishes[topic].confirmed = False
        now, is_lasting = trio.current_time(), classify(error).kind is Kind.CONFIG
        for call in self._callers(topics):
            call.hindrance = error
            if is_lasting or now >= call.started + self._limits.retry_for:
                call.fail(_not_subscribed(error))

    def interrupted(self, gap: Gap) -> None:
        names = tuple(self.name(name) for name in gap.channels if isinstance(name, bytes))
        self._put(evolve(gap, channels=names), _OVERHEAD)

    def _callers(self, topics: Iterable[Topic] | None = None) -> set[Call]:
        wishes = [self.wishes[each] for each in (self.wishes if topics is None else topics) if each in self.wishes]
        return {call for wish in wishes for call in wish.calls}

    def _message(self, topic: Topic, channel: bytes, data: bytes) -> Message:
        if topic.kind == "pattern":
            pattern = self.text(topic.name)
            return Message(kind="pmessage", channel=self.text(channel), pattern=pattern, data=self.text(data))
        return Message(
            kind="message" if topic.kind == "channel" else "smessage",
            channel=self.text(channel),
            data=self.text(data),
        )

    def _put(self, item: Message | Gap | Exception, size: int) -> None:
        self._items.append((size, item))
        self._bytes += size
        if self._takers:
            self._takers.unpark()


def _own(error: Exception, note: str) -> Exception:
    """An error of its own for each who gets it: shared ones would share a traceback."""
    mine = copy.copy(error)
    mine.add_note(note)
    return mine


def _not_subscribed(error: Exception) -> Exception:
    if not isinstance(error, RedisUnavailable):
        return copy.copy(error)
    failure = NotSent(error.address, f"not subscribed: {error.reason}")
    failure.__cause__ = error
    return failure
