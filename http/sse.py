"""Server-sent events (WHATWG HTML, 9.2) as the body of an answer.

A body that is a context manager: while it is open, a task of its own takes the events from their source, so that a
heartbeat can be sent, and the stream ended, while the source has nothing to say.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager
from types import TracebackType
from typing import Self

import trio
from attrs import define, frozen
from quart.wrappers.response import ResponseBody
from quart_trio.wrappers import TrioResponse

from ..runtime.telemetry import get_logger
from .boundary import hold

__all__ = ["Event", "Places", "event_stream"]

log = get_logger(__name__)

HEARTBEAT = 15.0
"""Seconds of silence after which a comment is sent: proxies close connections that are silent for a minute."""

RETRY = 1000
"""Milliseconds after which the browser connects again."""


@frozen
class Event:
    """One event.

    Attributes:
        data: its text.
        name: its type; a browser calls the listeners of that name.
        id: what the client sends back as ``Last-Event-ID``.
    """

    data: str
    name: str = "message"
    id: str = ""

    def encode(self) -> bytes:
        """As it travels. `name` and `id` must be of one line."""
        head = f"event: {self.name}\n" if self.name != "message" else ""
        head += f"id: {self.id}\n" if self.id else ""
        return (head + "".join(f"data: {line}\n" for line in self.data.split("\n")) + "\n").encode()


@define(eq=False)
class Places:
    """The clients of one kind of event stream, or of WebSockets.

    Attributes:
        limit: how many there may be.
        taken: how many there are.
    """

    limit: int
    taken: int = 0

    @property
    def is_full(self) -> bool:
        """Whether no further client is taken."""
        return self.taken >= self.limit

    @contextmanager
    def take(self) -> Iterator[None]:
        """Be one of the clients."""
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


Source = Callable[[], AsyncGenerator[Event, None]]


def event_stream(
    source: Source, draining: trio.Event, place: AbstractContextManager[object] | None = None
) -> TrioResponse:
    """The answer that sends what `source` yields, until it ends, the client leaves, or `draining` is set.

    A slow client is waited for, not buffered for. `place` is entered at once, in the same step as the caller's look
    whether there is one, and left when the request is over.
    """
    if place is not None:
        hold(place)
    body = _EventStream(source, draining)
    response = TrioResponse(body, content_type="text/event-stream; charset=utf-8")
    response.headers["X-Accel-Buffering"] = "no"  # nginx would hold events back
    response.timeout = None
    return response


class _EventStream(ResponseBody):
    def __init__(self, source: Source, draining: trio.Event) -> None:
        self._source = source
        self._draining = draining
        self._begun = False
        self._send, self._receive = trio.open_memory_channel[bytes](0)

    async def __aenter__(self) -> Self:
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        self._nursery.start_soon(self._pump)
        self._nursery.start_soon(self._end_at_drain)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self._nursery.cancel_scope.cancel(reason="the event stream has ended")
        await self._manager.__aexit__(kind, error, trace)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._begun:
            self._begun = True
            return f"retry: {RETRY}\n\n".encode()
        try:
            with trio.move_on_after(HEARTBEAT):
                return await self._receive.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
        return b": still here\n\n"

    async def _end_at_drain(self) -> None:
        await self._draining.wait()
        self._send.close()

    async def _pump(self) -> None:
        try:
            async with aclosing(self._source()) as events:
                async for event in events:
                    await self._send.send(event.encode())
        except trio.ClosedResourceError:
            pass  # draining
        except Exception:
            # The status has been sent long ago. The client connects again, and gets a proper answer if it lasts.
            log.exception("an event stream broke off")
        finally:
            self._send.close()
