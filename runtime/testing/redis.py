"""`InProcessRedis`: a Redis inside the test's own process, in virtual time, that fails when it is told to.

The real driver talks to it, over memory streams; only the server is replaced. Under trio's MockClock an hour of idle
time, a blocking read that ends, or an outage with its backoff, takes milliseconds.
"""

from __future__ import annotations

import errno
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal, Self

import trio
import trio.testing

from ..redis.replies import Reply
from ._fakeredis import SimpleError
from .redis_commands import UnsupportedCommand
from .redis_connection import Connection
from .redis_engine import EPOCH, Engine, virtual_time
from .redis_faults import WAKE_UPS, Trickle, row_named
from .redis_gate import Gate
from .simulation import outside

__all__ = ["EPOCH", "InProcessRedis", "UnsupportedCommand"]


class InProcessRedis:
    """One server. `Redis(options, connect=server.connect)` uses it.

    ::

        async with InProcessRedis() as server, Redis(RedisOptions(), connect=server.connect) as redis:
            await redis.xadd("orders", {"data": "{}"})
            server.hang()

    Its wall clock is EPOCH + trio's clock. Faults are ordered from the test and take effect at once; none of them
    blocks. A command that it cannot answer as a real server would ends the test with UnsupportedCommand.

    Args:
        users: name -> password. With "default" among them, a client must log in before anything else.
        idempotent: be a Redis 8.6, whose XADD takes IDMP, and not a Valkey. From its documentation: no test has
            compared this with a real one.
    """

    def __init__(self, *, users: Mapping[str, str] | None = None, idempotent: bool = False) -> None:
        self._users = users
        self._idempotent = idempotent
        self._clock = ExitStack()
        self._nurseries: Any = None
        self._nursery: trio.Nursery | None = None
        self._connections: dict[Connection, None] = {}  # in order, so that runs can be repeated
        self._refusing = False
        self._engine: Any = None
        self._gate = self._make_gate()

    async def __aenter__(self) -> Self:
        self._clock.enter_context(virtual_time())
        self._engine = Engine(self._users, idempotent=self._idempotent)
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

    @property
    def commands(self) -> Counter[str]:
        """How often each command has run ("XADD", "XGROUP CREATE"), handshakes included."""
        return self._gate.commands

    async def connect(self) -> trio.abc.Stream:
        """Open a connection: the `connect` of `Redis`. Raises ConnectionRefusedError after `refuse`."""
        await trio.lowlevel.checkpoint()
        if self._refusing or self._nursery is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        ours, theirs = trio.testing.memory_stream_pair()
        with outside():
            self._nursery.start_soon(Connection(self._engine, self._gate, ours, self._connections).serve)
        return theirs

    # Faults of the process and the network

    def refuse(self) -> None:
        """The process is gone: cut every connection and refuse new ones, until `restore`. Data are kept."""
        self._refusing = True
        self.cut()

    def restore(self) -> None:
        """Take connections again."""
        self._refusing = False

    def restart(self, *, loading: float = 0.0) -> None:
        """The process has died and is back: connections are cut, scripts and subscriptions forgotten, data kept (it
        wrote each command down). For `loading` seconds it answers LOADING. Takes connections, also after `refuse`.
        """
        self.cut()
        self._engine.forget_scripts()
        self.restore()
        self.resume()
        if loading:
            self.answer("loading", until=trio.current_time() + loading)

    def lose_data(self) -> None:
        """The process has died and is back without its data: `restart`, empty."""
        self._engine.data.lose()
        self.restart()

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
        self._gate.faults.cut_after(commands, effect, command)

    def hang(self) -> None:
        """Freeze (SIGSTOP): connections are accepted and bytes taken, nothing is run or answered, until `resume`."""
        if self._gate.running.is_set():
            self._gate.running = trio.Event()

    def resume(self) -> None:
        """Go on with what has come meanwhile, also from clients that are gone."""
        self._gate.running.set()

    def delay(self, seconds: float, command: str | None = None) -> None:
        """From now on each command (of this name, if one is given) waits so long before it runs, and those behind it
        on its connection with it. 0 takes it back.
        """
        self._gate.faults.delay(seconds, command)

    def drop_replies(self, client: int | None = None) -> None:
        """A half-open network: the connections of now (or that with this CLIENT ID) run what comes, and what they
        answer gets lost, for ever. New ones work.
        """
        for connection in self._of(client):
            connection.deaf = True

    def black_hole(self, client: int | None = None) -> None:
        """A network that swallows all: as `drop_replies`, and what the client sends gets lost, too."""
        for connection in self._of(client):
            connection.deaf = connection.blind = True

    def trickle(self, *, seed: int = 0, most: int = 40, pause: float = 0.001) -> None:
        """From now on replies come in pieces of 1 to `most` bytes, cut anywhere and glued together, `pause` seconds
        apart. The same seed cuts in the same places.
        """
        self._gate.faults.trickle = Trickle(random.Random(seed), most, pause)  # noqa: S311  # no secret

    # Replies

    def fail_next(self, command: str, error_text: str, times: int = 1) -> None:
        """Answer the next `times` commands of this name ("*": any) with this error line, without running them."""
        self._gate.faults.fail_next(command, error_text, times)

    def answer(self, reply: Reply | str, *, until: float | None = None, commands: Iterable[str] | None = None) -> None:
        """From now on the server is in the state in which it sends this reply (a row of REPLIES, or its name).

        It refuses what a real server refuses in that state and goes on with the rest: out of memory it takes no XADD,
        but XREADGROUP and XACK. Rows that a blocked command gets (``unblocked-…``, ``group-destroyed``) are no state:
        they wake those that are blocked now, or the next one. ``too-many-clients`` and ``protected-mode`` are told
        to new connections, which are closed.

        Args:
            until: `trio.current_time()` at which it passes by itself; None: with `heal`.
            commands: only these ("XADD"); needed for ``unknown-command``, which may be any.

        Raises ValueError for a row that no server sends.
        """
        row = row_named(reply)
        if row == "unknown-command" and commands is None:
            raise ValueError("name the commands that the server does not know: answer('unknown-command', commands=…)")
        if row in WAKE_UPS:
            self._wake_blocked(WAKE_UPS[row])
            return
        self._gate.faults.add_state(row, math.inf if until is None else until, commands)

    def heal(self) -> None:
        """Take back every fault that was ordered. (Lost data and cut connections stay so.)"""
        self._gate.faults.clear()
        self._gate.next_wake_up = None
        self._gate.pause(-math.inf, False)
        self.restore()
        self.resume()

    def _make_gate(self) -> Gate:
        return Gate()

    def _of(self, client: int | None) -> list[Connection]:
        return [each for each in self._connections if client is None or each.session.client_id() == client]

    def _wake_blocked(self, text: str) -> None:
        blocked = list(self._engine.data.blocked)
        if not blocked:
            self._gate.next_wake_up = text
        for session in blocked:
            session.unblock(SimpleError(text))


def _first_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first_leaf(first) if isinstance(first, BaseExceptionGroup) else first
