"""Errors of the Redis link, on top of redis-py's own.

What the *server* answers stays redis-py's exception (`redis.exceptions.ResponseError` and its kin); the types here say
what happened to the *connection*, and what that means for the command. `replies.classify` finds the action for each.
"""

from __future__ import annotations

import redis.exceptions

__all__ = [
    "CommandRefused",
    "InvalidRedisUrl",
    "NotSent",
    "OutcomeUnknown",
    "RedisClosed",
    "RedisStalled",
    "RedisUnavailable",
]


class RedisUnavailable(redis.exceptions.ConnectionError):
    """There is no usable connection: refused, reset, closed, timed out, or turned away in the handshake.

    Attributes:
        address: where, without secrets (`redis://127.0.0.1:6379/0`).
        reason: what happened, in a few words.
    """

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)
        self.address = address
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.address}: {self.reason}"


class RedisStalled(RedisUnavailable, redis.exceptions.TimeoutError):
    """Commands are under way and the server sends nothing: frozen, half-open TCP, partition, or a very slow command.

    Raised to a caller it also says that the outcome of the command is unknown.
    """


class NotSent(RedisUnavailable):
    """The command was never sent. Sending it again is safe, whatever it does. The cause is chained."""


class RedisClosed(NotSent):
    """The client was left (`async with` is over), or its connection closed for good: no attempt will ever succeed."""


class OutcomeUnknown(RedisUnavailable):
    """The command was sent and no reply came: it may have been executed. The cause is chained.

    Send it again only if it does no harm twice (a write that the receiver recognises). Reads were sent again already.
    """


class CommandRefused(redis.exceptions.DataError):
    """The command would harm the connection that it would run on; nothing was sent. The message says what to use."""


class InvalidRedisUrl(ValueError):
    """The Redis URL cannot be used. The message names the part at fault, and never shows the URL with its password."""
