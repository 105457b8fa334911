"""What Hypercorn is not left to do with the frames of a WebSocket's client, for it sets no bound to their memory.

It takes what a client compressed apart before it looks at the size, a thousand bytes for each that came; and it goes on
keeping what comes after it has closed with 1009. So nothing is compressed, and what follows a message that is too long
is thrown away until the client has gone.
"""

from __future__ import annotations

from typing import Any

import trio
from hypercorn.protocol.ws_stream import FrameTooLargeError, WebsocketBuffer, WSStream
from hypercorn.typing import ASGIFramework
from wsproto.events import Message

__all__ = ["TOO_LONG", "curbed"]

TOO_LONG = "penstock.too-long"
"""Where in the scope's state an event stands that is set when a message was longer than may be, and its close sent."""


def curbed(app: ASGIFramework) -> ASGIFramework:
    """The application with a bound to what each WebSocket that Hypercorn gives it costs."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        stream = getattr(send, "__self__", None)
        if isinstance(stream, WSStream):
            stream.handshake.extensions = None
            stream.buffer = buffer = _Buffer(stream.buffer.max_length)
            scope["state"][TOO_LONG] = buffer.overflowed
        await app(scope, receive, send)

    return serve


class _Buffer(WebsocketBuffer):
    """Keeps one message, and nothing any more once one was too long."""

    def __init__(self, max_length: int) -> None:
        super().__init__(max_length)
        self.overflowed = trio.Event()

    def extend(self, event: Message[Any]) -> None:
        if not self.overflowed.is_set():
            try:
                super().extend(event)
                return
            except FrameTooLargeError:
                self.clear()
                self.overflowed.set()
        raise FrameTooLargeError
