"""`InProcessRedis`: a Redis inside the test's own process, in virtual time, that fails when it is told to.

The real driver talks to it, over memory streams; only the server is replaced. Under trio's MockClock an hour of idle
time, a blocking read that ends, or an outage with its backoff, takes milliseconds.
"""

from __future__ import annotations

import errno
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal, Self

import trio
import trio.testing

from ..redis.replies import Reply
from ._fakeredis import SimpleError
from .redis_commands import Command, UnsupportedCommand, name_of
from .redis_connection import Connection
from .redis_engine import EPOCH, Engine, Session, virtual_time
from .redis_faults import WAKE_UPS, Faults, Trickle, row_named

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

    Attributes:
        commands: how often each command has run ("XADD", "XGROUP CREATE"), handshakes included.
    """

    def __init__(self, *, users: Mapping[str, str] | None = None) -> None:
        self._users = users
        self._clock = ExitStack()
        self._nurseries: Any = None
        self._nursery: trio.Nursery | None = None
        self._connections: set[Connection] = set()
        self._refusing = False
        self._running = trio.Event()
        self._running.set()
        self._paused_until = -math.inf
        self._pause_writes_only = False
        self._resumed = trio.Event()
        self._pending_wake_up: str | None = None
        self._faults = Faults()
        self._engine: Any = None
        self.commands: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        self._clock.enter_context(virtual_time())
        self._engine = Engine(self._users)
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
        self._nursery.start_soon(Connection(self, ours).serve)
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
        self._faults.cut_after(commands, effect, command)

    def hang(self) -> None:
        """Freeze (SIGSTOP): connections are accepted and bytes taken, nothing is run or answered, until `resume`."""
        if self._running.is_set():
            self._running = trio.Event()

    def resume(self) -> None:
        """Go on with what has come meanwhile, also from clients that are gone."""
        self._running.set()

    def delay(self, seconds: float, command: str | None = None) -> None:
        """From now on each command (of this name, if one is given) waits so long before it runs, and those behind it
        on its connection with it. 0 takes it back.
        """
        self._faults.delay(seconds, command)

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
        self._faults.trickle = Trickle(random.Random(seed), most, pause)  # noqa: S311  # no secret

    # Replies

    def fail_next(self, command: str, error_text: str, times: int = 1) -> None:
        """Answer the next `times` commands of this name ("*": any) with this error line, without running them."""
        self._faults.fail_next(command, error_text, times)

    def answer(self, reply: Reply | str, *, until: float | None = None, commands: Iterable[str] | None = None) -> None:
        """From now on the server is in the state in which it sends this reply (a row of REPLIES, or its name).

        It refuses what a real server refuses in that state and goes on with the rest: out of memory it takes no XADD,
        but XREADGROUP and XACK. Rows that a blocked command gets (``unblocked-…``, ``group-destroyed``) are no state:
        they wake those that are blocked now, or the next one. With ``too-many-clients`` new connections are told so.

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
        self._faults.add_state(row, math.inf if until is None else until, commands)

    def heal(self) -> None:
        """Take back every fault that was ordered. (Lost data and cut connections stay so.)"""
        self._faults.clear()
        self._pending_wake_up = None
        self.pause(-math.inf, False)
        self.restore()
        self.resume()

    # What a connection asks

    def admit(self, session: Session, command: Command | None, words: Sequence[bytes]) -> str | None:
        """See `Gatekeeper`."""
        planned = self._faults.before(name_of(words))
        if planned is not None or command is None:
            return planned
        return self._faults.refusal(session, command, words)

    def refuse_call(self, session: Session, command: Command) -> str | None:
        """See `Gatekeeper`."""
        return self._faults.refusal(session, command, [command.name.encode(), b""])

    def done(self, session: Session, command: Command | None, words: Sequence[bytes]) -> None:
        """See `Gatekeeper`."""
        self.commands[name_of(words).upper()] += 1
        self._faults.after()
        if self._pending_wake_up is not None and session.blocked is not None:
            text, self._pending_wake_up = self._pending_wake_up, None
            session.unblock(SimpleError(text))

    def cluster(self, session: Session, words: Sequence[bytes]) -> Any:
        """The answer to a command about the cluster."""
        raise SimpleError("ERR This instance has cluster support disabled")

    def facts(self) -> dict[str, Any]:
        """What INFO and HELLO say."""
        return {"mode": "standalone", "role": "master", "replicas": 0, "loading": 0, "cluster": 0}

    def role(self) -> list[Any]:
        """The answer to ROLE."""
        return [b"master", 0, []]

    def pause(self, until: float, writes_only: bool) -> None:
        """CLIENT PAUSE, until `trio.current_time()` is this."""
        self._paused_until, self._pause_writes_only = until, writes_only
        self._resumed.set()
        self._resumed = trio.Event()

    async def clearance(self, command: Command | None) -> None:
        """Block while the server hangs, is paused, or is slow for this command."""
        while not self._running.is_set():
            await self._running.wait()
        if command is not None and (delay := self._faults.delay_of(command.name)):
            await trio.sleep(delay)
            while not self._running.is_set():
                await self._running.wait()
        while command is not None and self._is_paused(command):
            resumed = self._resumed
            with trio.move_on_at(self._paused_until):
                await resumed.wait()

    def _is_paused(self, command: Command) -> bool:
        if trio.current_time() >= self._paused_until or command.name in ("client unpause", "client pause"):
            return False
        return not self._pause_writes_only or command.writes or command.runs_scripts or command.name == "publish"

    def _of(self, client: int | None) -> list[Connection]:
        return [each for each in self._connections if client is None or each.session.client_id() == client]

    def _wake_blocked(self, text: str) -> None:
        blocked = list(self._engine.data.blocked)
        if not blocked:
            self._pending_wake_up = text
        for session in blocked:
            session.unblock(SimpleError(text))


def _first_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first_leaf(first) if isinstance(first, BaseExceptionGroup) else first
