"""`InProcessRedis`: a Redis inside the test's own process, in virtual time, that fails when it is told to.

The real driver talks to it, over memory streams; only the server is replaced. Under trio's MockClock an hour of idle
time, a blocking read that ends, or an outage with its backoff, takes milliseconds.
"""

from __future__ import annotations

import errno
from collections import Counter
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Literal, Self

import trio
import trio.testing
from attrs import define, field

from .redis_engine import EPOCH, Session, UnsupportedCommand, make_engine, virtual_time

__all__ = ["EPOCH", "InProcessRedis", "UnsupportedCommand"]


class _Cut(Exception):
    """The connection ends here."""


@define
class _PlannedCut:
    """A cut to come: at the `remaining`-th of these commands."""

    remaining: int
    effect: Literal["before", "after"]
    command: str | None


@define
class _PlannedError:
    """An error to answer with, instead of running the command."""

    command: str
    text: str
    times: int


class InProcessRedis:
    """One server. `Redis(options, connect=server.connect)` uses it.

    ::

        async with InProcessRedis() as server, Redis(RedisOptions(), connect=server.connect) as redis:
            await redis.xadd("orders", {"data": "{}"})
            server.hang()

    Its wall clock is EPOCH + trio's clock. Faults are ordered from the test and take effect at once; none of them
    blocks. A command that it cannot answer as a real server would ends the test with UnsupportedCommand.

    Attributes:
        commands: how often each command has run ("XADD", "XGROUP CREATE"), handshakes included.
    """

    def __init__(self) -> None:
        self._engine: Any = None
        self._clock = ExitStack()
        self._nurseries: Any = None
        self._nursery: trio.Nursery | None = None
        self._connections: set[_Connection] = set()
        self._refusing = False
        self._running = trio.Event()
        self._running.set()
        self._cuts: list[_PlannedCut] = []
        self._errors: list[_PlannedError] = []
        self.commands: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        self._clock.enter_context(virtual_time())
        self._engine = make_engine()
        self._nurseries = trio.open_nursery()
        self._nursery = await self._nurseries.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._nursery is not None  # noqa: S101
        self._nursery.cancel_scope.cancel()
        try:
            # Without the body's exception: it goes on as it is, not wrapped in a group.
            await self._nurseries.__aexit__(None, None, None)
        except BaseExceptionGroup as group:
            raise _first_leaf(group) from group
        finally:
            self._clock.close()

    async def connect(self) -> trio.abc.Stream:
        """Open a connection: the `connect` of `Redis`. Raises ConnectionRefusedError after `refuse`."""
        await trio.lowlevel.checkpoint()
        if self._refusing or self._nursery is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        ours, theirs = trio.testing.memory_stream_pair()
        connection = _Connection(self, ours)
        self._connections.add(connection)
        self._nursery.start_soon(connection.serve)
        return theirs

    def refuse(self) -> None:
        """The process is gone: cut every connection and refuse new ones, until `restore`. Data are kept."""
        self._refusing = True
        self.cut()

    def restore(self) -> None:
        """Take connections again."""
        self._refusing = False

    def cut(self) -> None:
        """End every connection now; what is under way gets no reply."""
        for connection in list(self._connections):
            connection.close()

    def cut_after(
        self, commands: int, effect: Literal["before", "after"] = "after", *, command: str | None = None
    ) -> None:
        """End the connection that sends the n-th command from now (of this name, if one is given; handshakes are not
        counted): before the command runs, or after it ran and without its reply. Earlier replies are delivered.
        """
        self._cuts.append(_PlannedCut(commands, effect, command and command.upper()))

    def hang(self) -> None:
        """Freeze (SIGSTOP): connections are accepted and bytes taken, nothing is run or answered, until `resume`."""
        if self._running.is_set():
            self._running = trio.Event()

    def resume(self) -> None:
        """Go on with what has come meanwhile, also from clients that are gone."""
        self._running.set()

    def fail_next(self, command: str, error_text: str, times: int = 1) -> None:
        """Answer the next `times` commands of this name ("*": any) with this error line, without running them."""
        self._errors.append(_PlannedError(command.upper(), error_text, times))

    async def _until_running(self) -> None:
        while not self._running.is_set():
            await self._running.wait()

    def _admit(self, name: str) -> str | None:
        """Whether a command may run; the error line to answer with instead. Raises _Cut."""
        name = name.upper()
        if name == "HELLO":
            return None
        for planned in self._errors:
            if planned.command in ("*", name):
                planned.times -= 1
                if planned.times <= 0:
                    self._errors.remove(planned)
                return planned.text
        for cut in self._cuts:
            if cut.command in (None, name):
                cut.remaining -= 1
                if cut.remaining == 0 and cut.effect == "before":
                    self._cuts.remove(cut)
                    raise _Cut
        return None

    def _done(self, name: str) -> None:
        self.commands[name.upper()] += 1
        for cut in self._cuts:
            if cut.remaining == 0:
                self._cuts.remove(cut)
                raise _Cut


def _first_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first_leaf(first) if isinstance(first, BaseExceptionGroup) else first


@define(eq=False)
class _Connection:
    """The server's end of one connection."""

    server: InProcessRedis
    stream: trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]
    output: bytearray = field(factory=bytearray)
    more: trio.Event = field(factory=trio.Event)
    sending: trio.Lock = field(factory=trio.Lock)

    async def serve(self) -> None:
        """Run the client's commands until either side ends the connection."""
        session: Session | None = None
        try:
            async with trio.open_nursery() as nursery:
                session = self._session(nursery)
                nursery.start_soon(self._send)
                await self._receive(session)
                nursery.cancel_scope.cancel()
        finally:
            self.server._connections.discard(self)
            self.close()
            if session is not None:
                session.close()

    def close(self) -> None:
        """End both directions; the client sees the end of the stream. Does not block."""
        self.stream.send_stream.close()
        self.stream.receive_stream.close()

    def _session(self, nursery: trio.Nursery) -> Session:
        server = self.server
        return Session(server._engine, admit=server._admit, done=server._done, send=self._queue, nursery=nursery)

    async def _receive(self, session: Session) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            try:
                while data := await self.stream.receive_some():
                    await self.server._until_running()
                    session.sendall(bytes(data))
            except _Cut:
                await self._flush()  # to a client that may have left meanwhile

    def _queue(self, data: bytes) -> None:
        self.output += data
        self.more.set()

    async def _send(self) -> None:
        try:
            while True:
                await self.more.wait()
                self.more = trio.Event()
                await self.server._until_running()
                await self._flush()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # `_receive` sees it too

    async def _flush(self) -> None:
        async with self.sending:
            data = bytes(self.output)
            self.output.clear()
            if data:
                await self.stream.send_all(data)
