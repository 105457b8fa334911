"""`classify`: the row of the table of replies that an error belongs to."""

from __future__ import annotations

import re
from typing import Final

import redis.exceptions
import trio

from .errors import CommandRefused, RedisStalled, RedisUnavailable
from .reply_table import REPLIES, UNCLASSIFIED, Kind, Reply

__all__ = ["REPLIES", "UNCLASSIFIED", "Kind", "Reply", "classify", "reply_text"]

_BY_NAME: Final = {row.name: row for row in REPLIES}
_WRAPPINGS: Final = re.compile(
    r"EXECABORT Transaction discarded because of: "
    # Redis 6.2 hides what a command in a script was refused for; later versions say it first.
    r"|ERR Error running script \(call to f_\w+\): (@user_script: ?\d+: )+-?"
)
"""What stands before the reply that something was refused for."""


def classify(error: BaseException) -> Reply:
    """The row of an error that a command or `on_trouble` brought.

    Looks through `NotSent`, `OutcomeUnknown` and `RedisUnavailable` to what caused them: a server that turns the login
    away is a matter of credentials, not of the network. What is no error of Redis is UNCLASSIFIED.
    """
    each = error
    while isinstance(each, RedisUnavailable):
        if isinstance(each, RedisStalled) or isinstance(each.__cause__, trio.TooSlowError):
            return _BY_NAME["silence"]
        if not isinstance(each.__cause__, redis.exceptions.RedisError):
            return _BY_NAME["disconnected"]
        each = each.__cause__
    return _classify_reply(each) if isinstance(each, redis.exceptions.RedisError) else UNCLASSIFIED


def reply_text(error: BaseException) -> str:
    """The whole line of the server's reply; redis-py takes the first word off the message."""
    text: str | None = getattr(error, "reply_text", None)
    if text is not None:
        return text
    code: str | None = getattr(error, "status_code", None)
    return f"{code} {error}" if code else str(error)


def _classify_reply(error: BaseException) -> Reply:
    if isinstance(error, CommandRefused):
        return _BY_NAME["refused-by-link"]
    whole = reply_text(error)
    for text in (_WRAPPINGS.sub("", whole, count=1), whole):
        for row in REPLIES:
            if row.pattern is not None and row.pattern.match(text):
                return row
    if isinstance(error, redis.exceptions.TimeoutError):
        return _BY_NAME["silence"]
    if isinstance(error, redis.exceptions.ConnectionError):
        return _BY_NAME["disconnected"]
    return UNCLASSIFIED
