"""`Link`: the shared connection to one server, opened when it is needed and again when it has broken."""

from __future__ import annotations

from collections.abc import Callable

import trio
from attrs import define, field

from .backoff import Backoff
from .errors import NotSent, RedisClosed, RedisStalled, RedisUnavailable
from .mux import Mux
from .options import RedisOptions
from .wire import Connect, open_wire

__all__ = ["Link", "OnTrouble"]

OnTrouble = Callable[[Exception], None]
"""Told of trouble at once; synchronous, must not raise."""

_SETTLED_AFTER = 1.0
"""Seconds a connection must live to count as a success; else a server that greets and hangs up makes a hot loop."""


@define(eq=False)
class _Attempt:
    """One connect attempt, shared by all who wait for it. `failure`: why there is no connection, if there is none."""

    failure: RedisUnavailable
    done: trio.Event = field(factory=trio.Event)


class Link:
    """Lazy, single-flight, with backoff. Its tasks run in `nursery` and never raise (unless `on_trouble` does).

    A command that finds no connection waits for one attempt (the one under way, or the next one that the backoff
    allows) and fails when that fails; there is no loop inside, for only the caller knows how long to go on.

    Attributes:
        mux: the connection that there is, or None.
        connections: how many there have been.
        since: `trio.current_time()` of the last change of `mux`.
    """

    def __init__(
        self,
        options: RedisOptions,
        connect: Connect,
        on_trouble: OnTrouble,
        backoff: Backoff,
        nursery: trio.Nursery,
    ) -> None:
        self._options = options
        self._connect = connect
        self._on_trouble = on_trouble
        self._backoff = backoff
        self._nursery = nursery
        self.mux: Mux | None = None
        self._attempt: _Attempt | None = None
        self._closed = False
        self._sent_before = 0  # over connections that are gone
        self.connections = 0
        self.since = trio.current_time()

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self.mux is not None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def sent(self) -> int:
        """Commands sent over all connections."""
        return self._sent_before + (self.mux.sent if self.mux is not None else 0)

    @property
    def pending(self) -> int:
        """Requests queued or under way."""
        return self.mux.pending if self.mux is not None else 0

    @property
    def waiting(self) -> int:
        """Requests that wait for room."""
        return self.mux.waiting if self.mux is not None else 0

    @property
    def queued_bytes(self) -> int:
        """Bytes queued and not sent."""
        return self.mux.queued_bytes if self.mux is not None else 0

    def close(self) -> None:
        """Fail what is under way, and refuse everything from now on. Does not block."""
        self._closed = True
        if self.mux is not None:
            self.mux.close()
            self._forget_mux()

    def retire(self, mux: Mux) -> None:
        """Give this connection no more calls; it is closed when those under way have their replies. Does not block.

        The next call opens another one, after the backoff if this one was young. For a server that is not the one it
        used to be: a demoted master, say.
        """
        if mux is self.mux:
            self._rate()
            self._forget_mux()
            mux.retire()

    async def open(self) -> Mux:
        """The connection that there is, or a new one. Raises NotSent."""
        if self.mux is not None:
            return self.mux
        if self._closed:
            await trio.lowlevel.checkpoint()  # whoever sends again on NotSent must stay cancellable
            raise RedisClosed(self._options.address, "the client is closed")
        attempt = self._attempt
        if attempt is None:
            attempt = self._attempt = _Attempt(RedisUnavailable(self._options.address, "the link was closed"))
            # In the link's own nursery: a caller that gives up does not take the attempt from the others.
            self._nursery.start_soon(self._try_to_connect, attempt)
        await attempt.done.wait()
        if self.mux is None:
            failure = attempt.failure
            raise NotSent(failure.address, f"not sent: {failure.reason}") from failure
        return self.mux

    @trio.lowlevel.enable_ki_protection  # Ctrl-C is for the program's own tasks
    async def _try_to_connect(self, attempt: _Attempt) -> None:
        try:
            await self._backoff.wait()
            wire = await open_wire(self._options, self._connect)
        except RedisUnavailable as error:
            attempt.failure = error
            self._backoff.failed()
            self._on_trouble(error)
        else:
            if self._closed:  # in the meantime
                await wire.aclose()
                return
            self.mux = Mux(wire, self._options, on_break=self._broke, on_stall=self._stalled)
            self.connections += 1
            self.since = trio.current_time()
            self._nursery.start_soon(self.mux.run)
        finally:
            self._attempt = None
            attempt.done.set()

    def _broke(self, mux: Mux, trouble: RedisUnavailable) -> None:
        if mux is self.mux:
            self._rate()
            self._forget_mux()
        self._on_trouble(trouble)

    def _rate(self) -> None:
        """Whether the connection that goes now was a success."""
        if trio.current_time() - self.since < _SETTLED_AFTER:
            self._backoff.failed()
        else:
            self._backoff.succeeded()

    def _stalled(self, trouble: RedisStalled) -> None:
        self._on_trouble(trouble)

    def _forget_mux(self) -> None:
        self._sent_before = self.sent
        self.mux = None
        self.since = trio.current_time()
