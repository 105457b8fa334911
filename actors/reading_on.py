"""Reading on for a handler pool: the loop of who reads for it, of a stream or of a queue.

Nothing is read that the pool has no room for. At its start, and now and then, the reader looks back at what it was
given before: a server may have given something to a connection of ours that was gone already, and that it did not know
of. Where another node may take over, a connection that breaks is made again at once; only if that does not help, it is
trouble.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, NoReturn

import redis.exceptions
import trio

from ..runtime.redis import RedisStalled, RedisUnavailable
from ..runtime.telemetry import get_logger
from .group_making import BREATH

if TYPE_CHECKING:
    from ..runtime.supervision import Child
    from .backlog import Backlog

__all__ = ["LOOK_AGAIN", "LOOK_BACK", "Patience", "read_on", "wait_room"]

log = get_logger(__name__)

LOOK_BACK: Final = 30.0
"""Seconds between two looks back: what is stranded is late by so much, and a look costs one read."""

LOOK_AGAIN: Final = 3.0
"""The same after a start or a connection that broke: it takes a moment until a server has noticed, and that is when
entries strand."""


class Patience:
    """With a connection that breaks: where another node may be taking over, that is no trouble yet.

    Args:
        seconds: how long it lasts.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: float | None = None

    async def bear(self, error: RedisUnavailable) -> None:
        """Wait a little, or raise `error` if reads have been failing for longer than our patience."""
        now = trio.current_time()
        if self._until is None:
            self._until = now + self._seconds
        # A server that has gone silent has had its time.
        if now >= self._until or isinstance(error, RedisStalled):
            self._until = None
            raise error
        log.debug("reading again", address=error.address, error=str(error))
        await trio.sleep(BREATH)

    def renew(self) -> None:
        """A read went well."""
        self._until = None


async def wait_room(backlog: Backlog, child: Child) -> None:
    """Block until the pool can take an entry; waiting for it is no stall of the reader."""
    while not backlog.room:
        child.progress()
        with trio.move_on_after(1.0):
            await backlog.wait_room()
    child.progress()


async def read_on(
    child: Child,
    backlog: Backlog,
    patience: Patience,
    *,
    read: Callable[[], Awaitable[None]],
    look_back: Callable[[], Awaitable[None]],
    bear: Callable[[redis.exceptions.ResponseError], Awaitable[None]],
) -> NoReturn:
    """Read until cancelled.

    Args:
        child: whose progress it is.
        backlog: where everything goes, and whose room is the credit.
        patience: with a connection that breaks.
        read: reads what is new, and waits for it.
        look_back: reads what this reader was given before and does not know of.
        bear: mends, or waits out, what a server says that goes on serving us; raises what it does not.

    Raises:
        redis.exceptions.RedisError: what the link or the server said.
    """
    look_back_at, look_again = trio.current_time(), LOOK_AGAIN
    while True:
        await wait_room(backlog, child)
        try:
            if trio.current_time() >= look_back_at:
                await look_back()
                look_back_at, look_again = trio.current_time() + look_again, LOOK_BACK
            else:
                await read()
        except redis.exceptions.ResponseError as error:
            await bear(error)
        except RedisUnavailable as error:
            await patience.bear(error)
            # What was given to the connection that broke is found by looking back, or will be soon.
            look_back_at, look_again = trio.current_time(), LOOK_AGAIN
        else:
            patience.renew()
