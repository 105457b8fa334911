"""The data of an in-process server, in virtual time: fakeredis' databases, with blocked clients served in order."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import define

from ._fakeredis import CLOCK_USERS, Database, FakeServer
from .redis_pubsub import Channels

if TYPE_CHECKING:
    from .redis_session import Session

__all__ = ["EPOCH", "Blocked", "Data", "Engine", "Watch", "virtual_time", "wall_clock"]

EPOCH: Final = 1_767_225_600.0
"""Wall clock of the server when trio's clock reads 0: 2026-01-01T00:00:00Z, seconds."""


def wall_clock() -> float:
    """The server's clock: EPOCH + trio's, in seconds."""
    # A microsecond more: fakeredis truncates to milliseconds, and x.1 s is not a whole number of them in binary.
    return EPOCH + trio.current_time() + 1e-6


class _VirtualTime:
    """Takes the place of the module `time` inside fakeredis: wall clock = EPOCH + trio's clock."""

    def time(self) -> float:
        return wall_clock()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@contextlib.contextmanager
def virtual_time() -> Iterator[None]:
    """fakeredis reads trio's clock meanwhile: entry ids, idle times and expiry are reproducible under MockClock.

    May be nested. It is process-wide: while it lasts, fakeredis is used inside trio only.
    """
    before = [module.time for module in CLOCK_USERS]
    for module in CLOCK_USERS:
        module.time = _VirtualTime()
    try:
        yield
    finally:
        for module, original in zip(CLOCK_USERS, before, strict=True):
            module.time = original


class _Database(Database):
    """One numbered database; it tells the data set when a key has changed."""

    def __init__(self, data: Data) -> None:
        super().__init__(None)
        self._data = data

    def wake_all(self) -> None:
        self._data.changed = True


Watch = Callable[[str, Sequence[Any], Any], None]


class Data:
    """A data set: what a master shares with its replicas.

    Attributes:
        databases: by number.
        changed: whether a key has changed since the blocked sessions were last served.
        blocked: sessions that wait for a key, the longest-waiting first.
        watch: told of every command that has run on them, also in scripts and transactions: its name, its words after
            the name, and its reply. May raise, which ends the test.
    """

    def __init__(self) -> None:
        self.watch: Watch | None = None
        self.databases: dict[int, _Database] = defaultdict(lambda: _Database(self))
        self.changed = False
        self.blocked: dict[Session, Blocked] = {}

    def serve_blocked(self) -> None:
        """Give what has come to those who wait for it."""
        while self.changed:
            self.changed = False
            for session in list(self.blocked):
                session.try_again()

    def lose(self) -> None:
        """Forget everything."""
        for database in self.databases.values():
            database.clear()


@define(eq=False)
class Blocked:
    """What a blocked session waits for.

    Attributes:
        attempt: gives the result, or None; may raise SimpleError.
        shape: makes the reply of the result.
        words: the command.
        deadline: trio's clock; infinite without a limit.
    """

    attempt: Callable[[bool], Any]
    shape: Callable[[Any], Any]
    words: Sequence[bytes]
    deadline: float


class Engine(FakeServer):
    """One server: its data, clients, scripts and subscriptions. A Valkey: its streams are those of Redis 7.2.

    Attributes:
        data: the data set; replaced when a node changes sides.
        channels: who listens to what.
        peers: the other nodes of a cluster, which get what is published here.
        users: name -> password; without "default", nobody needs to log in.
        idempotent: whether it is a Redis 8.6 instead, whose XADD takes IDMP.
    """

    def __init__(self, users: Mapping[str, str] | None = None, *, idempotent: bool = False) -> None:
        if idempotent:
            super().__init__(version=(8, 6), server_type="redis")
        else:
            super().__init__(version=(8, 0), server_type="valkey")
        self.idempotent = idempotent
        self.data = Data()
        self.channels = Channels()
        self.peers: list[Engine] = []
        self.users = dict(users or {})

    @property
    def dbs(self) -> Any:
        return self.data.databases

    @dbs.setter
    def dbs(self, _: Any) -> None:
        """fakeredis sets its own first."""

    def publish(self, channel: bytes, message: bytes) -> int:
        """Send to the listeners here and on all other nodes; returns the number of those here."""
        for peer in self.peers:
            peer.channels.publish(channel, message)
        return self.channels.publish(channel, message)

    def forget_scripts(self) -> None:
        """As a restart does."""
        self.script_cache.clear()
