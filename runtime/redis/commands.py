"""`Commands`: what every kind of client has in common: redis-py's command methods, and its shapes of replies."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

import redis.exceptions

from . import _compat
from .options import RedisOptions
from .script import Script

__all__ = ["Commands", "StreamsReply", "shape"]

StreamsReply = list[list[Any]]
"""What a read of streams gives: `[key, [(entry id, {field: value}), …]]` for each stream that has something new."""

_CALLBACKS: Final = {2: _compat.response_callbacks(2), 3: _compat.response_callbacks(3)}


class Commands(_compat.AsyncCoreCommands):
    """redis-py's `AsyncCoreCommands` on any transport: a subclass brings `execute_command`."""

    _is_async_client: Literal[True] = True  # redis-py's overloads choose the awaitable results by it
    _event_dispatcher: Any = None  # redis-py's; declared by its protocol, used by its own clients only

    def __init__(self, options: RedisOptions) -> None:
        self.options = options
        self._encoder = _compat.Encoder("utf-8", "strict", options.decode_responses)  # type: ignore[no-untyped-call]

    def get_encoder(self) -> _compat.Encoder:
        """redis-py's encoder; some command methods ask for it."""
        return self._encoder

    def get_connection_kwargs(self) -> dict[str, Any]:
        """redis-py's connection arguments, as far as command methods ask for them."""
        return {"decode_responses": self.options.decode_responses}

    if TYPE_CHECKING:
        # redis-py types these as unions over both protocols and shapes; here they have one shape.
        def xread(  # type: ignore[override]
            self, streams: dict[Any, Any], count: int | None = None, block: int | None = None
        ) -> Awaitable[StreamsReply]: ...

        def xreadgroup(  # type: ignore[override]
            self,
            groupname: str,
            consumername: str,
            streams: dict[Any, Any],
            count: int | None = None,
            block: int | None = None,
            noack: bool = False,
            claim_min_idle_time: int | None = None,
        ) -> Awaitable[StreamsReply]: ...

    def watch(self, *names: Any) -> Awaitable[None]:  # type: ignore[override]
        """Refused, as every WATCH is: redis-py's own method would warn, and watch nothing."""
        return self.execute_command("WATCH", *names)

    def unwatch(self) -> Awaitable[None]:  # type: ignore[override]
        """Refused, as `watch` is."""
        return self.execute_command("UNWATCH")

    def register_script(self, script: str | bytes) -> Script:  # type: ignore[override]
        """A Lua script as a callable: `await script(keys=[...], args=[...])`. See `Script`."""
        return Script(self, script)


def shape(name: str, reply: Any, options: Mapping[str, Any], protocol: Literal[2, 3] = 3) -> Any:
    """The Python value that redis-py gives for the wire's reply; raises the error if the reply is one.

    `options` are those that redis-py's command method passed to `execute_command`; `protocol` is that of the wire.
    """
    if isinstance(reply, Exception):
        if _compat.EMPTY_RESPONSE in options and isinstance(reply, redis.exceptions.ResponseError):
            return options[_compat.EMPTY_RESPONSE]  # MGET of no keys
        raise reply
    callback = _CALLBACKS[protocol].get(name)
    if callback is None:
        return reply
    if not options:
        return callback(reply)
    return callback(reply, **{key: value for key, value in options.items() if key not in _TRANSPORT_OPTIONS})


# For the transport, not for the callback ("keys" is redis-py's client-side cache).
_TRANSPORT_OPTIONS: Final = frozenset({_compat.NEVER_DECODE, _compat.EMPTY_RESPONSE, "keys"})
