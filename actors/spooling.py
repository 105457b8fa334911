"""Spooling: what Redis does not take is accepted into the outbox instead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import psycopg
import trio

from ..runtime.postgres import PostgresUnavailable
from ..runtime.telemetry import get_logger
from .detours import Detours
from .outgoing import Outgoing, row_of
from .sending import Refusal

if TYPE_CHECKING:
    from ..runtime.supervision import Gate
    from .outbox_table import Kind
    from .store import Store

__all__ = ["Spool"]

log = get_logger(__name__)

SPOOLED_WITHIN: Final = 5.0
"""Seconds that PostgreSQL has to take a burst: a frozen one is known after one, and its gate is shut; the rest is for a
pool whose connections are all lent."""

LOOK_PAUSE: Final = 2.0
"""How long the outbox is not looked into after a look without an answer, by the time that this took: whoever publishes
waits for the look."""


class Spool:
    """The way into the outbox.

    Attributes:
        spooled: events that it has taken.

    Args:
        store: whose outbox it is.
        gates: ``postgres`` and ``schema``: without them nothing can be written.
        detours: is told what waits there.
        created_by: who we are, for people.
    """

    def __init__(self, store: Store, gates: Sequence[Gate], detours: Detours, created_by: str) -> None:
        self.spooled = 0
        self._store = store
        self._gates = tuple(gates)
        self._detours = detours
        self._created_by = created_by
        self._looking = trio.Lock()
        self._look_at = -math.inf

    def why_not(self) -> str:
        """Why nothing can be spooled now; empty if it can."""
        return next((f"{gate.name}: {gate.cause}" for gate in self._gates if not gate.is_open), "")

    async def wait(self) -> None:
        """Block until it can be tried. A checkpoint."""
        await trio.lowlevel.checkpoint()
        while self.why_not():  # the first may be shut again when the last has opened
            for gate in self._gates:
                await gate.wait_open()

    async def wait_not(self) -> None:
        """Block until nothing can be spooled."""
        async with trio.open_nursery() as nursery:
            for gate in self._gates:
                nursery.start_soon(_when_shut, gate, nursery.cancel_scope)

    async def look(self) -> None:
        """Find out what was in the outbox before we could hear of it: a process before us, or another, wrote that.

        Asks once, for all who come meanwhile, and again after we were deaf. Where the database does not answer, it
        stays unknown, and is not asked again for a while: to publish nothing for that would be worse. Raises nothing
        for PostgreSQL.
        """
        if not self._is_look_due():
            return
        async with self._looking:
            if not self._is_look_due():
                return
            started = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._give_up, nursery.cancel_scope)
                nursery.cancel_scope.deadline = started + SPOOLED_WITHIN
                await self._find()
                nursery.cancel_scope.cancel(reason="we have looked")
            now = trio.current_time()
            if not self._detours.is_known and not self.why_not():
                self._look_at = now + LOOK_PAUSE * (now - started)

    def _is_look_due(self) -> bool:
        return not self._detours.is_known and not self.why_not() and trio.current_time() >= self._look_at

    async def _find(self) -> None:
        forgotten = self._detours.forgotten
        try:
            streams = await self._store.outbox.streams()
        except (PostgresUnavailable, psycopg.Error) as error:
            log.debug("what is in the outbox is not known", error=str(error))
            return
        for stream in streams:
            self._detours.enter(stream)
        self._detours.is_known = self._detours.forgotten == forgotten

    async def add(self, stream: str, entries: Sequence[Outgoing], kind: Kind = "spool") -> list[int] | Refusal:
        """Write entries of one stream behind what is in its outbox, all or none; their rows' ids, or why not.

        Of `kind` ``behind``, where Redis was not asked, other processes are not sent behind them.
        Blocks until they are committed, and never when the database is known to be away. Raises nothing for PostgreSQL.
        Cancelled, the outcome is unknown.
        """
        if why := self.why_not():
            await trio.lowlevel.checkpoint()
            return Refusal(why)
        with self._detours.spooling(stream):
            rows = await self._write(entries, kind)
        if not isinstance(rows, Refusal):
            self.spooled += len(rows)
            self._detours.count(stream, len(rows))
        return rows

    async def _write(self, entries: Sequence[Outgoing], kind: Kind) -> list[int] | Refusal:
        ids: list[int] | Refusal = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give_up, nursery.cancel_scope)
            nursery.cancel_scope.deadline = trio.current_time() + SPOOLED_WITHIN
            ids = await self._insert(entries, kind)
            nursery.cancel_scope.cancel(reason="the rows are written")
        return ids or Refusal(self.why_not() or f"postgres: no answer within {SPOOLED_WITHIN:g} s", unknown=True)

    async def _insert(self, entries: Sequence[Outgoing], kind: Kind) -> list[int] | Refusal:
        rows = [row_of(entry, kind, self._created_by) for entry in entries]
        try:
            async with self._store.transaction() as transaction:
                ids = await self._store.outbox.add(transaction, rows)
        except PostgresUnavailable as error:
            return Refusal(f"postgres: {error}", unknown=True)
        except psycopg.Error as error:
            return Refusal(f"postgres: {error}", unknown=not _has_refused(error))
        return ids

    async def take_back(self, ids: Sequence[int]) -> None:
        """Delete rows that turned out to be needless. If that fails, they come to the stream twice, for one effect."""
        try:
            with trio.move_on_after(SPOOLED_WITHIN):
                async with self._store.transaction() as transaction:
                    await self._store.outbox.remove(transaction, ids)
        except (PostgresUnavailable, psycopg.Error) as error:
            log.debug("spooled events stay in the outbox, and in the stream", count=len(ids), error=str(error))

    async def _give_up(self, write: trio.CancelScope) -> None:
        await self.wait_not()
        write.cancel(reason="the database is away")


def _has_refused(error: psycopg.Error) -> bool:
    """Whether the server itself says that nothing was written (read-only, full, no right), and is still there."""
    return error.sqlstate is not None and error.sqlstate[:2] not in ("08", "40", "57", "58", "XX")


async def _when_shut(gate: Gate, others: trio.CancelScope) -> None:
    await gate.wait_shut()
    others.cancel(reason="one is enough")
