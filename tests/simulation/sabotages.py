"""Deliberately broken variants of the system: what a simulation must catch, or it proves nothing.

Each is a context manager that breaks one promise in one place while its block runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from penstock.actors.attempts import Attempts
from penstock.actors.backlog import Backlog
from penstock.actors.detours import Detours
from penstock.actors.group_making import GroupMaking
from penstock.actors.queue_keeper import QueueKeeper
from penstock.actors.queue_lists import QueueLists, Taken
from penstock.actors.queue_taker import Taker
from penstock.actors.relay import Relay, _Burst
from penstock.actors.settling import Settling
from penstock.actors.testing.retries import MemoryRetries
from penstock.actors.testing.store import MemoryTransaction

Sabotage = Callable[[], Any]


@contextmanager
def acknowledged_before_the_commit() -> Iterator[None]:
    """Entries are acknowledged when they are taken, as with Celery's default."""
    real = Settling._attempt

    async def attempt(self: Settling, part: Any, progress: Any) -> Any:
        if part.entries[0].retry is None:
            self._backlog.done(part.entries)
        return await real(self, part, progress)

    with patch.object(Settling, "_attempt", attempt):
        yield


@contextmanager
def inbox_off() -> Iterator[None]:
    """What the inbox knows is handled all the same."""
    real = MemoryTransaction.first_time

    async def first_time(self: MemoryTransaction, group: str, entries: Sequence[Any]) -> set[Any]:
        await real(self, group, entries)
        return {entry.event_id for entry in entries}

    async def enter(self: MemoryRetries, transaction: Any, row: Any) -> bool:
        await real_enter(self, transaction, row)
        return True

    real_enter = MemoryRetries.enter
    with patch.object(MemoryTransaction, "first_time", first_time), patch.object(MemoryRetries, "enter", enter):
        yield


@contextmanager
def retries_burn_in_outages() -> Iterator[None]:
    """Deliveries are counted, as Redis does it: what an outage gives back, or what comes again, loses an attempt."""
    give_back, add = Backlog.give_back, Backlog.add

    def burn_and_give_back(self: Backlog, entries: Sequence[Any]) -> None:
        for entry in entries:
            entry.attempts += 1
        give_back(self, entries)

    def burn_and_add(self: Backlog, entries: Iterable[Any]) -> int:
        listed = list(entries)
        for entry in listed:
            entry.attempts += entry.redelivered
        return add(self, listed)

    with patch.object(Backlog, "give_back", burn_and_give_back), patch.object(Backlog, "add", burn_and_add):
        yield


@contextmanager
def lost_groups_begin_at_the_end() -> Iterator[None]:
    """A group that was lost is made again at ``$``."""

    real = GroupMaking._start

    async def start(self: GroupMaking, connection: Any) -> str:
        return await real(self, connection) if await self._position() is None else "$"

    with patch.object(GroupMaking, "_start", start):
        yield


@contextmanager
def acknowledged_before_the_letter() -> Iterator[None]:
    """A failed event's entry is acknowledged before its row or its letter is committed."""
    real = Settling._attempt

    async def attempt(self: Settling, part: Any, progress: Any) -> Any:
        if part.entries[0].retry is None:
            self._backlog.done([entry for entry in part.entries if entry.id in part.failed])
        return await real(self, part, progress)

    with patch.object(Settling, "_attempt", attempt):
        yield


@contextmanager
def outbox_overtaken() -> Iterator[None]:
    """New events go straight to Redis while earlier ones wait in the outbox."""
    with patch.object(Detours, "is_on", lambda self, stream: False):
        yield


@contextmanager
def rows_deleted_before_redis_has_them() -> Iterator[None]:
    """The relay deletes a burst in a transaction of its own, and then adds it."""

    async def burst(self: Relay, stream: str, after: int, refused: dict[str, str], add: Any = None) -> Any:
        async with self._store.transaction() as transaction:
            stored = await self._store.outbox.take(transaction, stream, 500, after)
            await self._store.outbox.remove(transaction, [each.id for each in stored or ()])
        if not stored:
            return _Burst(0, after, is_end=True)
        results = await self._sender.add([self._add_of(each) for each in stored])
        return _Burst(len(results), stored[-1].id, is_end=True)

    with patch.object(Relay, "_burst", burst):
        yield


@contextmanager
def keys_not_halted() -> Iterator[None]:
    """In an ordered group, what comes behind a failed event of its key goes on."""

    async def waiting(self: Attempts, transaction: Any, verdicts: Any) -> set[str]:
        return set()

    with patch.object(Attempts, "_waiting", waiting):
        yield


@contextmanager
def positions_run_ahead() -> Iterator[None]:
    """The stored position is that of the last entry that was read."""
    with patch.object(Backlog, "position", lambda self, finishing: self._last):
        yield


@contextmanager
def publishes_are_believed() -> Iterator[None]:
    """An event counts as accepted whatever Redis says."""
    from penstock.actors.lane import Lane
    from penstock.actors.outgoing import Published

    async def put(self: Lane, entries: Sequence[Any], background: Any) -> list[Any]:
        results = await real(self, entries, background)
        return [
            each if isinstance(each, Published) else Published(entry.event_id, None, "outbox")
            for entry, each in zip(entries, results, strict=True)
        ]

    real = Lane.put
    with patch.object(Lane, "put", put):
        yield


# Of work queues ------------------------------------------------------------------------------------------------------


@contextmanager
def jobs_leave_the_list_when_they_are_taken() -> Iterator[None]:
    """A job that is taken is nowhere but with its consumer, as with ``BRPOP``."""
    take, wait = QueueLists.take, QueueLists.wait

    async def take_away(self: QueueLists, consumer: str, count: int) -> Taken:
        taken = await take(self, consumer, count)
        await self.finish(consumer, [*taken.returned, *taken.fresh])
        return taken

    async def wait_and_take_away(self: QueueLists, consumer: str, block: float) -> bytes | None:
        element = await wait(self, consumer, block)
        await self.finish(consumer, [] if element is None else [element])
        return element

    with patch.object(QueueLists, "take", take_away), patch.object(QueueLists, "wait", wait_and_take_away):
        yield


@contextmanager
def nobody_returns_jobs() -> Iterator[None]:
    """What a dead consumer has taken stays with it."""

    async def nothing(self: QueueKeeper) -> None:
        return

    with patch.object(QueueKeeper, "_return", nothing):
        yield


@contextmanager
def nobody_looks_what_it_holds() -> Iterator[None]:
    """A job whose taking was not answered stays with a consumer that does not know of it."""

    async def nothing(self: Taker, lists: QueueLists) -> None:
        return

    with patch.object(Taker, "_look_back", nothing):
        yield


# Two that are not here, for they break no promise by themselves, and so cannot be caught:
#
# - Transactions that do not look at the lease. Whoever stood still longer than the lease has also stood still longer
#   than its handler may take: the transaction is cancelled when it goes on. With a longer limit none was seen either,
#   in as many seeds as there was time for. tests/actors/test_leases.py holds the fence by itself to what it is for.
# - Nobody renews what it holds. Others take it over and handle it in vain: the inbox drops what came twice.

SABOTAGES: tuple[Sabotage, ...] = (
    acknowledged_before_the_commit,
    inbox_off,
    retries_burn_in_outages,
    lost_groups_begin_at_the_end,
    acknowledged_before_the_letter,
    outbox_overtaken,
    rows_deleted_before_redis_has_them,
    keys_not_halted,
    positions_run_ahead,
    publishes_are_believed,
)

QUEUE_SABOTAGES: tuple[Sabotage, ...] = (
    acknowledged_before_the_commit,
    jobs_leave_the_list_when_they_are_taken,
    nobody_returns_jobs,
    nobody_looks_what_it_holds,
)
"""Those that are for work queues, or for them, too."""
