"""The actor ``channels``: listens to the declared broadcast channels, and calls their handlers.

Each channel has a subscription of its own (`PubSub`), and that is all the buffer there is: while a handler is at work,
messages wait there (about 1 MiB), then in the server, and when that has had enough of it, it cuts us off, which is a
gap. So a slow handler holds up no other channel, and no memory grows.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final

import redis.exceptions
import trio
from attrs import define

from ..runtime.redis import Gap as LinkGap
from ..runtime.redis import Message
from ..runtime.redis.replies import reply_text
from ..runtime.supervision import ErrorInfo
from ..runtime.supervision.outcome import outcome_of
from ..runtime.telemetry import get_logger
from .calling import kept_in
from .channels import Broadcast, Channel, Gap, OnGap, read
from .sparing import Sparing

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis, PubSub
    from ..runtime.supervision import Child
    from .channels import Connect

__all__ = ["Channels", "Listening"]

log = get_logger(__name__)

SUBSCRIBE_AGAIN: Final = 10.0
"""Seconds before a channel is asked for again that the server refuses: somebody must mend that."""

LINK_AGAIN: Final = 1.0
"""Seconds before the next attempt where there is no link, and the gate knows nothing of it yet."""

READ_AGAIN, READ_AGAIN_AT_MOST = 1.0, 60.0
"""Seconds before a gap handler that failed is called again: the first pause, doubled each time, and the longest."""

FIRST: Final = "the process has begun to listen"
AWAY: Final = "the link to Redis was lost"


class Channels:
    """The body of the actor ``channels``.

    Args:
        channels: those that are declared.
        client: opens a client of their own.
        connect: a connection to PostgreSQL, for the handlers.
        within: seconds that a handler may take for one message.
        silence: seconds for which a link may have been dead before anybody noticed, at the most.

    Attributes:
        listening: to each channel that has handlers.
    """

    def __init__(
        self,
        channels: Iterable[Channel],
        client: Callable[[], AbstractAsyncContextManager[AnyRedis]],
        connect: Connect,
        *,
        within: float,
        silence: float,
    ) -> None:
        self._client = client
        heard = [channel for channel in channels if channel.handlers or channel.gap_handlers]
        self.listening = [Listening(each, connect, within=within, silence=silence) for each in heard]

    async def __call__(self, child: Child) -> None:
        """Listen until cancelled; the actor is ready when Redis has answered for each channel.

        Cancellation: what is at work is cancelled, what waits is dropped; the next start is a gap.
        """
        child.note(self._told())
        async with self._client() as client, trio.open_nursery() as nursery:
            answers = [trio.Event() for _ in self.listening]
            for listening, answered in zip(self.listening, answers, strict=True):
                nursery.start_soon(
                    listening.run, client, answered, lambda: child.note(self._told()), name=listening.name
                )
            for answered in answers:
                await answered.wait()
            child.started()
            await trio.sleep_forever()

    def _told(self) -> str:
        each = self.listening
        handled, errors, gaps = (
            sum(counts)
            for counts in (
                [listening.handled for listening in each],
                [listening.errors.total for listening in each],
                [listening.gaps for listening in each],
            )
        )
        refused = [f"{listening.name}: {listening.refused}" for listening in each if listening.refused]
        told = f"channels: {len(each)}, messages handled: {handled}, errors: {errors}, gaps: {gaps}"
        return "; ".join([told, *refused])


@define
class _Reading:
    """What a gap asks for: to read again.

    Attributes:
        gap: it.
        left: the handlers that have not returned yet, in order.
        failures: how often one has failed.
        at: when to call them (`trio.current_time()`); in the past: now.
    """

    gap: Gap
    left: list[OnGap]
    failures: int = 0
    at: float = -math.inf


class Listening:
    """Listens to one channel, or pattern, over every loss of the link. See `Channels` for the arguments.

    Attributes:
        name: the channel's.
        handled: messages that its handlers were called for.
        errors: calls that failed.
        gaps: how often messages may have been missed, beside the beginning.
        refused: why the server lets us not listen; empty while it does.
    """

    def __init__(self, channel: Channel, connect: Connect, *, within: float, silence: float) -> None:
        self.name = channel.name
        self.handled = 0
        self.errors = Sparing()
        self.gaps = 0
        self.refused = ""
        self._channel = channel
        self._connect = connect
        self._within = within
        self._silence = silence
        self._since = self._heard_until = -math.inf
        self._reading: _Reading | None = None

    async def run(self, client: AnyRedis, answered: trio.Event, changed: Callable[[], None]) -> None:
        """Until cancelled; sets `answered` once the server has let us in, or refused to, and tells what has changed."""
        while True:
            try:
                async with client.pubsub() as pubsub:
                    await self._subscribe(pubsub)
                    answered.set()
                    await self._listen(pubsub, changed)
            except redis.exceptions.RedisError as error:
                pause = LINK_AGAIN
                if isinstance(error, redis.exceptions.ResponseError):
                    answered.set()
                    pause = SUBSCRIBE_AGAIN
                self._refuse(reply_text(error))
                changed()
                await trio.sleep(pause)

    async def _subscribe(self, pubsub: PubSub) -> None:
        await (pubsub.psubscribe if self._channel.pattern else pubsub.subscribe)(self.name)
        self.refused = ""
        lost_at, now = max(self._since, self._heard_until - self._silence), trio.current_time()
        self._miss(FIRST if lost_at == -math.inf else AWAY, lost_at, now)
        self._since = self._heard_until = now

    def _refuse(self, why: str) -> None:
        if why != self.refused:
            log.error("not listening to a channel", channel=self.name, error=why)
        self.refused = why

    async def _listen(self, pubsub: PubSub, changed: Callable[[], None]) -> None:
        while True:
            await self._read_again()
            changed()
            match await self._next(pubsub):
                case Message() as message:
                    await self._handle(message)
                case LinkGap() as gap:
                    self._miss(gap.reason, gap.lost_at, gap.back_at)

    async def _next(self, pubsub: PubSub) -> Message | LinkGap | None:
        """The next item; None when it is time to read again."""
        item = await pubsub.get(0)
        if item is not None:
            return item
        try:
            return await pubsub.get(self._rest())
        finally:
            # Nothing was waiting here until now. (What comes now is, if it is not handled, within the silence.)
            self._heard_until = trio.current_time()

    def _rest(self) -> float:
        """Seconds until it is time to read again."""
        return math.inf if self._reading is None else max(0.0, self._reading.at - trio.current_time())

    # Messages

    async def _handle(self, message: Message) -> None:
        pattern = None if message.pattern is None else _text(message.pattern)
        channel, data = _text(message.channel), read(message.data)
        broadcast = Broadcast(channel=channel, data=data, pattern=pattern, connect=self._connect)
        for handler in self._channel.handlers:
            await self._call(handler, broadcast)
        self.handled += 1

    # Gaps

    def _miss(self, reason: str, lost_at: float, back_at: float) -> None:
        """Note that all is to be read again; a gap that was not filled yet is part of this one."""
        if lost_at != -math.inf:
            self.gaps += 1
            seconds = round(back_at - lost_at, 3)
            log.warning("messages may have been missed", channel=self.name, reason=reason, seconds=seconds)
        if self._reading is not None:
            lost_at = min(lost_at, self._reading.gap.lost_at)
        gap = Gap(reason=reason, lost_at=lost_at, back_at=back_at, channels=(self.name,), connect=self._connect)
        self._reading = _Reading(gap, list(self._channel.gap_handlers))

    async def _read_again(self) -> None:
        reading = self._reading
        if reading is None or trio.current_time() < reading.at:
            return
        while reading.left:
            if not await self._call(reading.left[0], reading.gap):
                pause = min(READ_AGAIN_AT_MOST, READ_AGAIN * 2.0 ** min(reading.failures, 10))
                reading.failures += 1
                reading.at = trio.current_time() + pause
                return
            del reading.left[0]
        self._reading = None

    # Both

    async def _call(self, handler: Callable[[Any], Awaitable[None]], argument: object) -> bool:
        """Whether it has returned, in time."""
        name = f"{handler.__module__}.{getattr(handler, '__qualname__', repr(handler))}"
        try:
            with trio.fail_after(self._within):
                await kept_in(name, handler(argument))
                # Whoever held the processor beyond the limit has exceeded it, too.
                await trio.lowlevel.checkpoint()
        except Exception as raised:  # noqa: BLE001 - the boundary of handlers: whatever they raise costs one message
            self._failed(name, outcome_of(raised).error or raised)
            return False
        return True

    def _failed(self, handler: str, error: BaseException) -> None:
        if since := self.errors.count():
            info = ErrorInfo.of(error)
            log.error("broadcast not handled", channel=self.name, handler=handler, failed=since,
                      errors=self.errors.total, error=str(info), traceback=info.traceback)  # fmt: skip


def _text(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode("utf-8", "replace")
