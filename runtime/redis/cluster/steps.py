"""What to do after an attempt that failed, as a pure function of its error."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, Final

import redis.exceptions
from attrs import frozen

from ..errors import RedisUnavailable
from ..replies import classify
from ..retry import READS, SCRIPTS, may_resend
from ..routing import reads_from_now
from .topology import Address, redirected_to

__all__ = ["Nature", "Step", "step_after", "target_of"]


class Step(enum.Enum):
    """The next step of a command."""

    GIVE_UP = "give up"  # the error is the command's result
    MOVED = "moved"  # the slot is elsewhere: note it, go there at once
    ASK = "ask"  # this one key is elsewhere already: ask there once, and forget it
    PAUSE = "pause"  # it passes by itself, on this node
    REFRESH = "refresh"  # another node may be the right one now: read the topology, try again
    VERIFY = "verify"  # a blocked read says that its key is gone: it may have gone to another node


@frozen
class Nature:
    """What a command is, as far as its way and its repetition go.

    Attributes:
        slot: of its keys; None if any master will do.
        reads: whether it may run twice.
        scripted: whether it runs a script, which may make errors of its own.
    """

    slot: int | None
    reads: bool
    scripted: bool = False

    @classmethod
    def of(cls, slot: int | None, name: str, args: Sequence[Any] = ()) -> Nature:
        """That of one command with its words; `name` as `full_name` gives it."""
        return cls(slot, name in READS and not reads_from_now(name, args), name in SCRIPTS)


_GONE: Final = frozenset({"unblocked-key-gone", "group-destroyed"})
_HERE: Final = frozenset({"try-again", "busy-script", "too-many-clients"})


def step_after(error: Exception, nature: Nature) -> Step:
    """The step after an attempt that ended with this error: raised by the connection, or the server's reply."""
    if isinstance(error, redis.exceptions.AskError):
        if nature.slot not in (None, int(error.slot_id)):
            return Step.GIVE_UP  # about another slot: a script's own words
        # The order matters: redis-py's MovedError *is* an AskError.
        return Step.MOVED if isinstance(error, redis.exceptions.MovedError) else Step.ASK
    row = classify(error)
    if row.name in _GONE:
        return Step.VERIFY
    if not may_resend(error, reads=nature.reads, scripted=nature.scripted):
        return Step.GIVE_UP
    return Step.PAUSE if row.name in _HERE and not isinstance(error, RedisUnavailable) else Step.REFRESH


def target_of(error: Exception, asked: Address) -> Address | None:
    """The node that a MOVED or ASK names, as seen from the node that said it; None if it has no name."""
    assert isinstance(error, redis.exceptions.AskError)  # noqa: S101  # both are
    return redirected_to(error.host, error.port, asked)
