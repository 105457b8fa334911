"""Which streams go by way of the outbox at the moment, so that nothing overtakes what waits there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import trio
from attrs import define, field

from ..runtime.telemetry import get_logger

__all__ = ["Detours", "Hold"]

log = get_logger(__name__)

TELL_AFTER = 1.0
"""Seconds after which it is worth a line in the log that events go into the outbox."""


@define(eq=False)
class _Detour:
    """One stream's.

    Attributes:
        version: grows with everything that is put into the outbox: who found that empty knows whether it still is.
        spooling: writes to the outbox that are under way.
        unresolved: bursts that Redis was sent, and has not answered, while their rows are in the outbox.
        is_on: whether new events go behind.
        since: `trio.current_time()` when that began.
        events: how many have gone this way since then.
        is_told: whether that is in the log; a detour of a moment is not.
        turn: held by who publishes to the stream, burst by burst, and by the relay while it ends the detour.
    """

    version: int = 0
    spooling: int = 0
    unresolved: int = 0
    is_on: bool = False
    since: float = 0.0
    events: int = 0
    is_told: bool = False
    turn: trio.Lock = field(factory=trio.Lock)


@define(eq=False)
class Detours:
    """Shared by the producer and the relay of one process. Nothing of it blocks but `news`.

    Attributes:
        is_known: whether we have seen what is in the outbox from before we listened, and have listened ever since.
        forgotten: how many times that has become untrue: who looks knows by it whether he has seen all.
    """

    is_known: bool = field(default=False, init=False)
    forgotten: int = field(default=0, init=False)
    _streams: dict[str, _Detour] = field(factory=dict, init=False)
    _news: trio.Event = field(factory=trio.Event, init=False)

    def is_on(self, stream: str) -> bool:
        """Whether something of the stream waits in the outbox, or may, so that new events must go behind it."""
        found = self._streams.get(stream)
        return found is not None and found.is_on

    def forget(self) -> None:
        """Something may have come into the outbox of which we have not heard."""
        self.is_known = False
        self.forgotten += 1

    @property
    def streams(self) -> list[str]:
        """Those whose events go by way of the outbox."""
        return [stream for stream, detour in self._streams.items() if detour.is_on]

    def enter(self, stream: str) -> None:
        """From now on its events go behind what is in the outbox."""
        detour = self._of(stream)
        detour.version += 1
        if not detour.is_on:
            detour.is_on, detour.since = True, trio.current_time()
            self.tell()

    def count(self, stream: str, events: int) -> None:
        """So many events were accepted into the outbox because Redis did not take them."""
        detour = self._of(stream)
        detour.events += events
        if not detour.is_told and trio.current_time() - detour.since >= TELL_AFTER:
            detour.is_told = True
            log.warning("events go into the outbox", stream=stream)

    def counted(self, stream: str) -> int:
        """How many were, since its detour began."""
        found = self._streams.get(stream)
        return 0 if found is None else found.events

    @contextmanager
    def spooling(self, stream: str) -> Iterator[None]:
        """While the block runs, rows of the stream are written: nobody may find its outbox empty."""
        self.enter(stream)
        detour = self._of(stream)
        detour.spooling += 1
        try:
            yield
        finally:
            detour.version += 1
            detour.spooling -= 1
            self.tell()

    @contextmanager
    def unresolved(self, stream: str) -> Iterator[None]:
        """While the block runs, the rows of the stream may turn out to be needless: they are not relayed meanwhile."""
        detour = self._of(stream)
        detour.unresolved += 1
        try:
            yield
        finally:
            detour.unresolved -= 1
            self.tell()

    def is_unresolved(self, stream: str) -> bool:
        """Whether Redis still owes the answer to a burst whose rows are in the outbox."""
        found = self._streams.get(stream)
        return found is not None and found.unresolved > 0

    def versions(self) -> dict[str, int]:
        """To be taken before one looks what is in the outbox; see `leave`."""
        return {stream: detour.version for stream, detour in self._streams.items() if detour.is_on}

    def leave(self, versions: Mapping[str, int], full: Iterable[str]) -> None:
        """Go straight again to those streams of `versions` that are not in `full`, unless anything has come since."""
        waiting = set(full)
        for stream, version in versions.items():
            detour = self._streams[stream]
            if stream not in waiting and detour.version == version and not detour.spooling:
                self.end(stream)

    def turn(self, stream: str) -> trio.Lock:
        """Whose holder alone may publish to the stream, on either way."""
        return self._of(stream).turn

    def end(self, stream: str) -> None:
        """Go straight again: whoever holds the stream's `turn` has seen that its outbox is empty."""
        detour = self._of(stream)
        if detour.is_told:
            seconds = round(trio.current_time() - detour.since, 3)
            log.info("the outbox is empty again", stream=stream, events=detour.events, seconds=seconds)
        detour.is_on, detour.is_told, detour.events = False, False, 0

    def tell(self) -> None:
        """Wake who waits for news."""
        self._news.set()
        self._news = trio.Event()

    async def news(self) -> None:
        """Block until a stream is on a detour, rows were written, or a burst was resolved."""
        await self._news.wait()

    def _of(self, stream: str) -> _Detour:
        return self._streams.setdefault(stream, _Detour())


@define(eq=False)
class Hold:
    """A stream's turn, held by a task of its own, so that who publishes is let go on as soon as it takes too long.

    Its `__call__` is that task: it starts when it has the turn, and gives it back when it is released, cancelled, or
    when its time is up.

    Attributes:
        is_held: whether it has the turn.

    Args:
        detours: whose turn it is.
        stream: the stream's key.
        at_most: seconds that it has the turn.
    """

    _detours: Detours
    _stream: str
    _at_most: float
    is_held: bool = field(default=False, init=False)
    _until: float = field(default=math.inf, init=False)
    _scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    _released: trio.Event = field(factory=trio.Event, init=False)
    _is_empty: bool = field(default=False, init=False)

    async def __call__(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the turn. If it was held until the release, and the outbox is empty then, the detour is ended."""
        async with self._detours.turn(self._stream):
            self._until = self._scope.deadline = trio.current_time() + self._at_most
            self.is_held = True
            try:
                with self._scope:
                    task_status.started()
                    await self._released.wait()
                    if self._is_empty:
                        self._detours.end(self._stream)
            finally:
                self.is_held = False

    @contextmanager
    def for_only(self, seconds: float) -> Iterator[None]:
        """While the block runs, hold it for so long at the most."""
        self._scope.deadline = min(self._until, trio.current_time() + seconds)
        try:
            yield
        finally:
            self._scope.deadline = self._until

    def release(self, *, is_empty: bool = False) -> None:
        """Give the turn back; the first call counts. `is_empty`: nothing of the stream is in the outbox."""
        if not self._released.is_set():
            self._is_empty = is_empty
            self._released.set()
