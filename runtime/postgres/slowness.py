"""Who watches for statements that have waited suspiciously long."""

from __future__ import annotations

from typing import Protocol

import trio
from trio.lowlevel import RunVar

__all__ = ["SlowWatch"]

_LOOKS = 4
"""Looks for each time limit: a statement is told of at most a quarter of its limit too late."""


class Watched(Protocol):
    """A connection whose statement waits for an answer."""

    @property
    def slow_after(self) -> float: ...

    def tell_slow(self, seconds: float) -> None: ...


class SlowWatch:
    """Looks at the statements that wait, a few times a second; one for all connections of a run of trio.

    A cancel scope around each wait would do it, too, and cost two thirds of the rest of a short statement. This costs
    an entry in a dictionary. The price is a task that belongs to no nursery: a system task of trio, which holds
    nothing, and ends by itself when nothing has waited for a while, or with the run.
    """

    def __init__(self) -> None:
        self._since: dict[Watched, float] = {}
        self._pause = float("inf")
        self._nap = trio.CancelScope()
        self._in_use = False
        self._running = False

    @staticmethod
    def current() -> SlowWatch:
        """The one of this run of trio."""
        try:
            return _of_this_run.get()
        except LookupError:
            watch = SlowWatch()
            _of_this_run.set(watch)
            return watch

    def begin(self, connection: Watched) -> None:
        """*connection* begins to wait. Call `end` in any case."""
        self._since[connection] = trio.current_time()
        self._in_use = True
        if not self._running:
            self._running = True
            self._pause = connection.slow_after / _LOOKS
            trio.lowlevel.spawn_system_task(self._run, name="watch for slow PostgreSQL statements")
        elif connection.slow_after < self._pause * _LOOKS:
            self._pause = connection.slow_after / _LOOKS
            self._nap.deadline = min(self._nap.deadline, trio.current_time() + self._pause)

    def end(self, connection: Watched) -> None:
        """It has waited."""
        self._since.pop(connection, None)

    async def _run(self) -> None:
        """Look while there is anything to look at. A listener cannot break it: what it raises is logged."""
        try:
            while self._in_use:
                self._in_use = bool(self._since)
                with trio.CancelScope(deadline=trio.current_time() + self._pause) as self._nap:
                    await trio.sleep_forever()
                now = trio.current_time()
                for connection, since in list(self._since.items()):
                    if now - since >= connection.slow_after:
                        self.end(connection)
                        connection.tell_slow(connection.slow_after)
        finally:
            self._running = False


_of_this_run: RunVar[SlowWatch] = RunVar("penstock_postgres_slow_watch")
