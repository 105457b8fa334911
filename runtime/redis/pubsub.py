"""`PubSub`: subscriptions that outlive their connection, and say where messages may be missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, Protocol, Self, overload

import redis.exceptions
import trio

from .errors import RedisClosed, RedisStalled
from .inbox import Call, Inbox, Limits, Wish
from .messages import Gap, Loss, Message, Owner, Topic, TopicKind

__all__ = ["Gap", "Message", "PubSub", "Subscriptions"]

BUFFER_BYTES: Final = 1024 * 1024
"""What waits for a slow consumer here; more waits in the kernel and in the server."""

_TURN: Final = 16
"""Messages that one task may take in a row: a turn of the scheduler for each would cost more than all the rest."""


class Subscriptions(Protocol):
    """What keeps the subscriptions up: a `Subscriber` for one server, several of them for a cluster."""

    def want(self, topic: Topic, loss: Loss | None = None) -> None: ...

    def unwant(self, topic: Topic) -> bool: ...

    def resume(self) -> None: ...

    async def run(self) -> None: ...


class PubSub:
    """Subscriptions of one consumer. Made by the client's `pubsub()`.

    ::

        async with redis.pubsub() as pubsub:
            await pubsub.subscribe("orders")
            async for item in pubsub:
                match item:
                    case Message(data=data):
                        handle(data)
                    case Gap():
                        read_again_what_may_be_missing()

    Connects with the first subscription. When the connection is lost (end of stream, silence, a failover), it connects
    again with backoff, subscribes to everything again, and yields one `Gap` between the messages of before and of
    after. Redis keeps no messages for those who are away: what must not be missed belongs into a stream.

    A slow consumer: at most about `buffer_bytes` of messages wait here; then reading stops, and the server keeps what
    comes, up to a limit of its own (``client-output-buffer-limit pubsub``; by default 32 MiB, or 8 MiB for a minute).
    Beyond it, it cuts the connection, which is a `Gap`, too. While a subscription is being changed, reading goes on for
    the confirmation's sake, and the buffer may grow by what the server held.

    Every method may be called while other tasks iterate; several tasks may iterate, and share the messages. Everything
    may be cancelled at any point. Leave it in the task that entered it. After that, and after its client was closed,
    all methods raise RedisClosed.
    """

    def __init__(
        self, options: Limits, subscriptions: Callable[[Owner], Subscriptions], *, buffer_bytes: int = BUFFER_BYTES
    ) -> None:
        self._options = options
        self._inbox = Inbox(options, buffer_bytes)
        self._subscriptions = subscriptions(self._inbox)
        self._nurseries: Any = None
        self._nursery: trio.Nursery | None = None
        self._taken = 0

    async def __aenter__(self) -> Self:
        if self._nurseries is not None:
            raise RuntimeError("this PubSub was entered before; make a new one")
        self._nurseries = trio.open_nursery()
        self._nursery = await self._nurseries.__aenter__()
        self._nursery.start_soon(self._subscriptions.run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        # Without the body's exception: that one goes on as it is, not wrapped in a group. The wait is bounded.
        await self._nurseries.__aexit__(None, None, None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message | Gap:
        return await self.get()

    @property
    def channels(self) -> frozenset[str | bytes]:
        """The channels that are subscribed to (at this moment perhaps being subscribed to again)."""
        return self._names("channel")

    @property
    def patterns(self) -> frozenset[str | bytes]:
        """The patterns that are subscribed to."""
        return self._names("pattern")

    @property
    def shard_channels(self) -> frozenset[str | bytes]:
        """The shard channels that are subscribed to."""
        return self._names("shard")

    @overload
    async def get(self, timeout: None = None) -> Message | Gap: ...  # noqa: ASYNC109 - see below

    @overload
    async def get(self, timeout: float) -> Message | Gap | None: ...  # noqa: ASYNC109 - see below

    async def get(self, timeout: float | None = None) -> Message | Gap | None:  # noqa: ASYNC109 - as in redis-py
        """The next item; None when none has come within `timeout` seconds (None: wait without a limit).

        Every call can be cancelled, and loses nothing then; while messages are waiting, every 16th lets others run.
        During an outage it waits; `on_trouble` is told meanwhile.

        Raises the server's refusal (NoPermissionError …) when it does not let us back into a channel that we had: that
        one is unsubscribed then, the others are not concerned, and one may go on. With `decode_responses` raises
        UnicodeDecodeError for a message that is no UTF-8, and one may go on.
        """
        self._taken += 1
        if self._taken % _TURN:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()
        if timeout is None:
            return await self._inbox.take(self._subscriptions.resume)
        with trio.move_on_after(timeout):
            return await self._inbox.take(self._subscriptions.resume)
        return None

    async def subscribe(self, *channels: str | bytes) -> None:
        """Subscribe to channels, and wait until the server has confirmed it: later messages will come.

        An attempt may take `options.response_timeout` (or `connect_timeout`), and failed ones are repeated for
        `options.retry_for`. When it raises or is cancelled, nothing has changed: what it had added is taken back.

        Raises NotSent (no connection, or no answer in time: to call again is safe), redis.exceptions.NoPermissionError
        and other ResponseErrors (the server's refusal), redis.exceptions.DataError (no names, or no str or bytes).
        """
        await self._add("channel", channels)

    async def psubscribe(self, *patterns: str | bytes) -> None:
        """Subscribe to all channels that match the glob-style patterns; else as `subscribe`."""
        await self._add("pattern", patterns)

    async def ssubscribe(self, *channels: str | bytes) -> None:
        """Subscribe to shard channels (SPUBLISH); else as `subscribe`. Needs Redis 7 or Valkey."""
        await self._add("shard", channels)

    async def unsubscribe(self, *channels: str | bytes) -> None:
        """Unsubscribe from these channels, or from all, and wait until the server has confirmed it.

        What came before is still yielded. Waits at most `options.response_timeout`. It takes effect even when it is
        cancelled or raises RedisStalled (no confirmation in time).
        """
        await self._remove("channel", channels)

    async def punsubscribe(self, *patterns: str | bytes) -> None:
        """Unsubscribe from these patterns, or from all; else as `unsubscribe`."""
        await self._remove("pattern", patterns)

    async def sunsubscribe(self, *channels: str | bytes) -> None:
        """Unsubscribe from these shard channels, or from all; else as `unsubscribe`."""
        await self._remove("shard", channels)

    def close(self) -> None:
        """End it at once; whoever waits gets RedisClosed. Does not block. For the client, mostly."""
        self._inbox.close()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def _names(self, kind: TopicKind) -> frozenset[str | bytes]:
        return frozenset(self._inbox.name(topic.name) for topic in self._inbox.wishes if topic.kind == kind)

    def _check_open(self) -> None:
        if self._inbox.closed:
            raise RedisClosed(self._options.address, "the PubSub is closed")
        if self._nursery is None:
            raise RuntimeError("the PubSub is not open: use `async with redis.pubsub() as pubsub:`")

    async def _add(self, kind: TopicKind, names: tuple[str | bytes, ...]) -> None:
        self._check_open()
        if not names:
            raise redis.exceptions.DataError("give at least one name to subscribe to")
        inbox, topics = self._inbox, _topics(kind, names)
        new = [topic for topic in topics if topic not in inbox.wishes]
        wishes = {topic: inbox.wishes.setdefault(topic, Wish()) for topic in topics}
        call = Call({topic for topic, wish in wishes.items() if not wish.confirmed})
        for wish in wishes.values():
            wish.calls.add(call)
        for topic in new:
            inbox.released(topic)  # whoever waits for its end has been overtaken
            self._subscriptions.want(topic)
        try:
            await self._answer_to(call, self._options.response_timeout + self._options.retry_for)
        except BaseException:
            self._take_back(call, wishes)
            raise
        for wish in wishes.values():
            wish.calls.discard(call)
            wish.settled = True

    def _take_back(self, call: Call, wishes: dict[Topic, Wish]) -> None:
        """Unsubscribe from what nobody but this call has asked for."""
        for topic, wish in wishes.items():
            wish.calls.discard(call)
            if not wish.settled and not wish.calls and self._inbox.wishes.get(topic) is wish:
                del self._inbox.wishes[topic]
                self._subscriptions.unwant(topic)

    async def _remove(self, kind: TopicKind, names: tuple[str | bytes, ...]) -> None:
        self._check_open()
        inbox = self._inbox
        topics = _topics(kind, names) if names else [topic for topic in inbox.wishes if topic.kind == kind]
        call = Call({topic for topic in topics if topic in inbox.wishes})
        for topic in list(call.waiting):
            for other in inbox.wishes.pop(topic).calls:
                other.answered(topic)  # overtaken
            inbox.leaving.setdefault(topic, []).append(call)
            if not self._subscriptions.unwant(topic):
                inbox.released(topic)
        try:
            await self._answer_to(call, self._options.response_timeout)
        finally:
            for topic in call.waiting:
                inbox.leaving[topic].remove(call)

    async def _answer_to(self, call: Call, limit: float) -> None:
        if not call.waiting:
            await trio.lowlevel.checkpoint()
            return
        with trio.move_on_after(limit):
            await call.done.wait()
        if call.error is not None:
            raise call.error
        if not call.done.is_set():
            late = RedisStalled(self._options.address, f"the server has not confirmed it within {limit:g} s")
            raise late from call.hindrance


def _topics(kind: TopicKind, names: Iterable[str | bytes]) -> list[Topic]:
    """The topics of the names, each once. Raises redis.exceptions.DataError."""
    found: dict[Topic, None] = {}
    for name in names:
        if not isinstance(name, (str, bytes)):
            raise redis.exceptions.DataError(f"names of channels are str or bytes, not {type(name).__name__!r}")
        found[Topic(kind, name.encode() if isinstance(name, str) else name)] = None
    return list(found)
