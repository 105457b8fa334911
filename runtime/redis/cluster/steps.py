"""What to do after an attempt that failed, as a pure function of its error."""

from __future__ import annotations

import enum
from typing import Final

import redis.exceptions

from ..errors import RedisUnavailable
from ..replies import classify
from ..retry import may_resend
from .topology import Address, redirected_to

__all__ = ["Step", "step_after", "target_of"]


class Step(enum.Enum):
    """The next step of a command."""

    GIVE_UP = "give up"  # the error is the command's result
    MOVED = "moved"  # the slot is elsewhere: note it, go there at once
    ASK = "ask"  # this one key is elsewhere already: ask there once, and forget it
    PAUSE = "pause"  # it passes by itself, on this node
    REFRESH = "refresh"  # another node may be the right one now: read the topology, try again
    VERIFY = "verify"  # a blocked read says that its key is gone: it may have gone to another node


_GONE: Final = frozenset({"unblocked-key-gone", "group-destroyed"})
_HERE: Final = frozenset({"try-again", "busy-script", "too-many-clients"})


def step_after(error: Exception, *, reads: bool) -> Step:
    """The step after an attempt that ended with this error.

    Args:
        error: raised by the connection, or the server's reply.
        reads: whether the command may run twice.
    """
    # The order matters: redis-py's MovedError *is* an AskError.
    if isinstance(error, redis.exceptions.MovedError):
        return Step.MOVED
    if isinstance(error, redis.exceptions.AskError):
        return Step.ASK
    row = classify(error)
    if row.name in _GONE:
        return Step.VERIFY
    if not may_resend(error, reads=reads):
        return Step.GIVE_UP
    return Step.PAUSE if row.name in _HERE and not isinstance(error, RedisUnavailable) else Step.REFRESH


def target_of(error: Exception, asked: Address) -> Address | None:
    """The node that a MOVED or ASK names, as seen from the node that said it; None if it has no name."""
    assert isinstance(error, redis.exceptions.AskError)  # noqa: S101  # both are
    return redirected_to(error.host, error.port, asked)
