"""The declaration of a broadcast channel: what every process of the system is told, beside a group, where one is.

    announcements = system.channel("chat:announcements")

    @announcements.on
    async def show(message: Broadcast) -> None: ...

    @announcements.on_gap
    async def read_again(gap: Gap) -> None: ...

It is Redis's publish and subscribe: fast, to whoever listens at that moment, and nothing is kept.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from attrs import define, field, frozen

from .declarations import DeclarationError, check_async

if TYPE_CHECKING:
    from ..runtime.postgres import Connection

__all__ = ["Broadcast", "Channel", "Gap", "Notice", "OnGap", "OnMessage", "read"]


Connect = Callable[[], AbstractAsyncContextManager["Connection[Any]"]]


def _no_database() -> NoReturn:
    raise RuntimeError("it was made by hand, and brings no database")


@frozen(kw_only=True)
class Broadcast:
    """One message of a channel.

    Attributes:
        channel: that it was sent to.
        data: what was sent: JSON, or, where that is none (another program sent it), the text.
        pattern: that matched the channel, where one is declared; else None.
    """

    channel: str
    data: Any
    pattern: str | None = None
    _connect: Connect = field(default=_no_database, eq=False, repr=False)

    def connection(self) -> AbstractAsyncContextManager[Connection[Any]]:
        """See `Gap.connection`."""
        return self._connect()


@frozen(kw_only=True)
class Gap:
    """Messages may have been missed. Read again all that they would have told.

    Attributes:
        reason: what happened, in a few words, without secrets.
        lost_at: nothing that was sent before is missing (`trio.current_time()`); ``-inf`` when the process has begun to
            listen.
        back_at: nothing that was sent after is missing.
        channels: the name of the channel, or the pattern.
    """

    reason: str
    lost_at: float
    back_at: float
    channels: tuple[str, ...]
    _connect: Connect = field(default=_no_database, eq=False, repr=False)

    def connection(self) -> AbstractAsyncContextManager[Connection[Any]]:
        """A connection to PostgreSQL, in autocommit mode: ``async with gap.connection() as connection: …``.

        Waits until the migrations are applied.

        Raises:
            PostgresUnavailable: it is away; a gap handler that lets this pass is called again later.
        """
        return self._connect()


OnMessage = Callable[[Broadcast], Awaitable[None]]
OnGap = Callable[[Gap], Awaitable[None]]

M = TypeVar("M", bound=OnMessage)
G = TypeVar("G", bound=OnGap)


@define(eq=False)
class Channel:
    """A declared channel, or pattern of channels. Made by `System.channel`.

    Attributes:
        name: of the channel in Redis, or the glob-style pattern.
        pattern: whether it is a pattern.
        handlers: called for each message, in order of declaration.
        gap_handlers: called where messages may have been missed.
    """

    name: str
    pattern: bool = False
    handlers: list[OnMessage] = field(factory=list)
    gap_handlers: list[OnGap] = field(factory=list)

    def on(self, call: M) -> M:
        """Have the decorated ``async (message: Broadcast)`` called for each message, in every process.

        A channel's messages are handled one after the other, in the order in which they came; of several handlers each
        is called for each. One that raises, or takes longer than the setting ``delivery.handler_timeout``, is logged
        and counted, and nothing else follows from it: there is nothing that it could be tried again from. While Redis
        is away, what is at work is cancelled.

        Raises:
            DeclarationError: it is no async function, or is registered already.
        """
        self._register(self.handlers, "handler", call)
        return call

    def on_gap(self, call: G) -> G:
        """Have the decorated ``async (gap: Gap)`` called where messages may have been missed: to read again all that
        they would have told.

        That is when the process has begun to listen (``gap.lost_at`` is ``-inf`` then), and each time when the link
        to Redis was lost and is back, or the server has cut us off, because the handlers were too slow for what came.
        One that raises is called again, after 1 s, 2 s … up to every 60 s, until it returns; meanwhile the messages
        that come are handled.

        Raises:
            DeclarationError: it is no async function, or is registered already.
        """
        self._register(self.gap_handlers, "gap handler", call)
        return call

    def _register(self, calls: list[Any], what: str, call: object) -> None:
        where = f"channel {self.name!r}"
        check_async(where, what, call)
        if call in calls:
            raise DeclarationError(f"{where}: {call!r} is registered already")
        calls.append(call)


@frozen
class Notice:
    """A message that is ready to be sent.

    Attributes:
        channel: where to.
        text: what; JSON.
    """

    channel: str
    text: str

    @classmethod
    def of(cls, channel: str, data: Any) -> Notice:
        """Of JSON-like data.

        Raises:
            ValueError: the channel has no name, or the data are no JSON (NaN, a surrogate alone, a circle).
            TypeError: the data are of a type that JSON does not have.
        """
        if not channel:
            raise ValueError("a channel has a name: it is not empty")
        text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        (channel + text).encode()  # what cannot be sent is told now
        return cls(channel, text)


def read(payload: str | bytes) -> Any:
    """What a message says: JSON, or else its text, with U+FFFD for what is no UTF-8."""
    text = payload if isinstance(payload, str) else payload.decode("utf-8", "replace")
    try:
        return json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return text


def _no_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
