"""Replay: a range of a stream again, into a stream beside it or to one of its groups alone.

An order is a row in PostgreSQL. The actor ``replays`` of one process at a time works it off: what comes of some entries
is written in one transaction together with how far it is, so that each entry is replayed exactly once, whatever
happens in between. Into a stream they go by the outbox; to a group, as rows that are handled like retries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

import psycopg
import redis.exceptions
import trio
from attrs import evolve

from ..runtime.redis import Kind, RedisUnavailable, classify
from ..runtime.telemetry import get_logger
from .event import Envelope, Origin, SkippedEntry, UndecodableEntry
from .handling import entry_order
from .outbox_table import OutboxRow
from .replay_pace import Pace
from .replay_range import RangeEntry, count_range, read_range
from .replay_table import Replay, ReplayState
from .retry_table import RetryOrigin, RetryRow
from .stream_view import last_id_of

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis
    from ..runtime.supervision import Child
    from .store import Store, Transaction
    from .system import Stream, System

__all__ = ["ReplayRefused", "Replays"]

log = get_logger(__name__)

BATCH: Final = 200
"""Entries of one transaction at the most, and read of each partition at a time."""

WAITING: Final = 2_000
"""Rows that may wait at the target; then we wait. A relay or a group that is slow is not buried."""

CLAIM: Final = 30.0
"""Seconds after which an order whose process says nothing is taken over."""

LOOK: Final = 30.0
"""Seconds between two looks for orders that nobody told us of: given to a process that has died."""

REST: Final = 5.0
"""Seconds at the most between two signs of life."""

FULL_REST: Final = 0.5
"""Seconds between two looks at a target that has enough to do."""

LEAVE_WITHIN: Final = 1.0
"""Seconds for giving orders back when we leave."""

COUNT_WITHIN: Final = 5.0
"""Seconds that counting a range may take."""

_LASTING: Final = (Kind.CONFIG, Kind.DOWNGRADE, Kind.BUG)
"""Kinds of replies that another attempt would meet again."""


class ReplayRefused(ValueError):
    """The order makes no sense; the text says why."""


class _NotOursAnyMore(Exception):
    """It was cancelled, or another process has taken it over: nothing is committed."""


class Replays:
    """The desk at which replays are ordered, and the body of the actor that works them off.

    Args:
        system: whose streams.
        client: gives the link to Redis.
        store: where orders and their outcome stand.
    """

    def __init__(self, system: System, client: Callable[[], AnyRedis], store: Store) -> None:
        self._system = system
        self._client = client
        self._store = store
        self._worker = uuid4()
        self._news = trio.Event()
        self._paces: dict[UUID, Pace] = {}

    # The desk -------------------------------------------------------------------------------------------------------

    async def order(
        self,
        stream: str,
        from_id: str,
        to_id: str | None = None,
        *,
        group: str | None = None,
        into: str | None = None,
        rate: float | None = None,
        original_pace: bool = False,
        by: str = "",
        dry_run: bool = False,
    ) -> Replay:
        """Order a replay; returns it with the number of its entries. With `dry_run` it is only counted, and not stored.

        Args:
            stream: the declared stream's key.
            from_id: the first entry id.
            to_id: the last one; by default the last one of now.
            group: a group of the stream, which alone handles the events again, though it has handled them before.
            into: the stream into which copies go; by default ``STREAM:reprocess``. Their event ids are the same.
            rate: events a second at the most; by default as fast as they are taken.
            original_pace: with the pauses that lay between the entries, instead.
            by: who orders it, for people.

        Raises:
            ReplayRefused: it makes no sense; the text says why.
            KeyError: no stream of that key is declared.
            redis.exceptions.RedisError: as the link says.
            PostgresUnavailable: the database is away.
        """
        declared = self._system.streams[stream]
        client = self._client()
        if to_id is None:
            to_id = max([await last_id_of(client, key) for key in declared.keys], key=entry_order)
        replay = Replay(
            system=self._system.name,
            stream=stream,
            from_id=from_id,
            to_id=to_id,
            consumer_group=group,
            target_stream=None if group is not None else into or f"{stream}:reprocess",
            rate=rate,
            original_pace=original_pace,
            ordered_by=by,
        )
        _check(replay, declared, into)
        replay = evolve(replay, total=await count_range(client, declared.keys, from_id, to_id, COUNT_WITHIN))
        if not dry_run:
            async with self._store.transaction() as transaction:
                await self._store.replays.add(transaction, replay)
            log.info("replay ordered", **_facts(replay), by=by)
            self._wake()
        return replay

    async def get(self, replay_id: UUID) -> Replay | None:
        """The order of this id; raises `PostgresUnavailable`."""
        async with self._store.transaction() as transaction:
            return await self._store.replays.get(transaction, replay_id)

    async def recent(self, limit: int = 100) -> list[Replay]:
        """The last orders, newest first; raises `PostgresUnavailable`."""
        async with self._store.transaction() as transaction:
            return await self._store.replays.recent(transaction, self._system.name, limit)

    async def cancel(self, replay_id: UUID) -> bool:
        """Stop an order; what was replayed stays so. False if it is over, or there is none of this id.

        Raises:
            PostgresUnavailable: the database is away.
        """
        async with self._store.transaction() as transaction:
            done = await self._store.replays.finish(transaction, replay_id, ReplayState.CANCELLED, None)
        if done:
            log.info("replay cancelled", replay=str(replay_id))
            self._wake()
        return done

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()

    # The actor ------------------------------------------------------------------------------------------------------

    async def __call__(self, child: Child) -> None:
        """Work orders off, one after the other, for ever.

        Cancellation: between two transactions, or within one that is rolled back; the order is free for the next one.

        An outage of Redis is waited for.

        Raises:
            PostgresUnavailable: the order goes on when it is back.
        """
        child.started()
        try:
            while True:
                news = self._news
                replay = await self._claim()
                child.note("nothing to replay" if replay is None else _progress(replay))
                pause = LOOK if replay is None else await self._work(replay)
                with trio.move_on_after(pause):
                    await news.wait()
        finally:
            await self._release()

    async def _release(self) -> None:
        """Give back what we have, so that another process need not wait until we are thought dead."""
        with trio.move_on_after(LEAVE_WITHIN, shield=True):
            try:
                async with self._store.transaction() as transaction:
                    for replay_id in self._paces:
                        await self._store.replays.release(transaction, replay_id, self._worker)
            except psycopg.Error as error:
                log.debug("replays not given back", error=str(error))
        self._paces.clear()

    async def _claim(self) -> Replay | None:
        async with self._store.transaction() as transaction:
            return await self._store.replays.claim(transaction, self._system.name, self._worker, CLAIM)

    async def _work(self, replay: Replay) -> float:
        """One step of an order; seconds until the next one."""
        stream = self._system.streams.get(replay.stream)
        if stream is None:
            return await self._finish(replay, ReplayState.FAILED, f"the stream {replay.stream} is declared no more")
        if await self._waiting(replay, stream) >= WAITING:
            return FULL_REST
        try:
            read = await read_range(self._client(), stream.keys, replay.cursors, replay.from_id, replay.to_id, BATCH)
        except redis.exceptions.RedisError as error:
            if classify(error).kind in _LASTING and not isinstance(error, RedisUnavailable):
                return await self._finish(replay, ReplayState.FAILED, str(error))
            log.debug("range not read, trying again", replay=str(replay.id), error=str(error))
            return REST
        if not read:
            return await self._finish(replay, ReplayState.DONE)
        pace = self._paces.setdefault(replay.id, Pace.of(replay))
        due = pace.due(read, trio.current_time())[:BATCH]
        if due and await self._replay(replay, stream, due):
            pace.passed(due, trio.current_time())
        return min(REST, pace.wait(read[len(due) :], trio.current_time()))

    async def _waiting(self, replay: Replay, stream: Stream) -> int:
        """How many rows wait where the entries go."""
        group = replay.consumer_group
        if group is None:
            return sum(each.count for each in await self._store.outbox.waiting() if each.stream == replay.target_stream)
        async with self._store.transaction() as transaction:
            return sum([await self._store.retries.count(transaction, group, key) for key in stream.keys])

    async def _replay(self, replay: Replay, stream: Stream, due: Sequence[RangeEntry]) -> bool:
        cursors = {**replay.cursors, **{entry.key: entry.id for entry in due}}
        try:
            async with self._store.transaction() as transaction:
                await self._write(transaction, replay, stream, due)
                if not await self._store.replays.advance(transaction, replay, self._worker, cursors, len(due)):
                    raise _NotOursAnyMore
        except _NotOursAnyMore:
            self._paces.pop(replay.id, None)
            return False
        return True

    async def _write(self, transaction: Transaction, replay: Replay, stream: Stream, due: Sequence[RangeEntry]) -> None:
        decoded = [(entry, *_decode(stream, entry)) for entry in due]
        events = [(entry, fields, event) for entry, fields, event, is_event in decoded if is_event]
        if replay.consumer_group is None:
            rows = [_copy(replay, *event) for event in events]
            await self._store.outbox.add(transaction, rows)
        else:
            group = replay.consumer_group
            again = [_again(group, *event) for event in events]
            await self._store.retries.add(transaction, await self._once(transaction, replay, again))

    async def _once(self, transaction: Transaction, replay: Replay, rows: Sequence[RetryRow]) -> list[RetryRow]:
        """Without those whose event was handled since the order, or is about to be: it may stand there twice."""
        assert replay.ordered_at is not None  # noqa: S101 - the table has set it
        ids = {row.event_id for row in rows if row.event_id is not None}
        group = replay.consumer_group or ""
        seen: set[UUID | None] = set(await self._store.retries.replayed(transaction, group, ids, replay.ordered_at))
        left = []
        for row in rows:
            if row.event_id is None or row.event_id not in seen:
                left.append(row)
                seen.add(row.event_id)
        return left

    async def _finish(self, replay: Replay, state: ReplayState, error: str | None = None) -> float:
        async with self._store.transaction() as transaction:
            await self._store.replays.finish(transaction, replay.id, state, error)
        self._paces.pop(replay.id, None)
        (log.info if error is None else log.error)(
            f"replay {state.value}", **_facts(replay), replayed=replay.replayed, **({"error": error} if error else {})
        )
        return 0.0


def _check(replay: Replay, stream: Stream, into: str | None) -> None:
    group, target = replay.consumer_group, replay.target_stream
    if group is not None and into is not None:
        raise ReplayRefused("either into a stream or to a group, not both")
    if group is not None and group not in stream.groups:
        known = ", ".join(sorted(stream.groups)) or "none"
        raise ReplayRefused(f"the stream {stream.key} has no group {group!r}; its groups are: {known}")
    if target in (stream.key, *stream.keys):
        raise ReplayRefused(f"a replay of {stream.key} into itself would never end; replay to a group, or into another")
    if entry_order(replay.from_id) > entry_order(replay.to_id):
        raise ReplayRefused(f"the range is empty: {replay.from_id} comes after {replay.to_id}")
    if replay.rate is not None and not 0 < replay.rate < math.inf:
        raise ReplayRefused("rate must be above 0")
    if replay.rate is not None and replay.original_pace:
        raise ReplayRefused("either a rate or the original pace, not both")


def _progress(replay: Replay) -> str:
    return f"{replay.stream}: {replay.replayed} of {'?' if replay.total is None else replay.total}"


def _facts(replay: Replay) -> dict[str, Any]:
    return {
        "replay": str(replay.id),
        "stream": replay.stream,
        "to": replay.target_stream or replay.consumer_group,
        "from_id": replay.from_id,
        "to_id": replay.to_id,
        "entries": replay.total,
    }


# Entries -------------------------------------------------------------------------------------------------------------


def _decode(stream: Stream, entry: RangeEntry) -> tuple[dict[str, str], Envelope | None, bool]:
    """The fields as text, the event where they are one, and whether it is to be replayed at all."""
    fields = {_text(name): _text(value) for name, value in entry.fields.items()}
    try:
        return fields, stream.decode(fields, Origin(entry.key, entry.id)), True
    except SkippedEntry:
        return fields, None, False
    except UndecodableEntry:
        return fields, None, True  # whoever reads it will say so


def _copy(replay: Replay, entry: RangeEntry, fields: Mapping[str, str], event: Envelope | None) -> OutboxRow:
    """The row of a copy: the original's fields, and S4's two."""
    event_id = event.event_id if event is not None else Origin(entry.key, entry.id).event_id
    copied = {"eventId": str(event_id), **fields} if event is not None else dict(fields)
    return OutboxRow(
        stream=replay.target_stream or "",
        event_id=event_id,
        fields={**copied, "reprocessed": "true", "originalRecordId": entry.id},
        key=event.key if event is not None else None,
        kind="replay",
        created_by=f"replay {replay.id}",
    )


def _again(group: str, entry: RangeEntry, fields: Mapping[str, str], event: Envelope | None) -> RetryRow:
    return RetryRow(
        consumer_group=group,
        stream=entry.key,
        entry_id=entry.id,
        fields=fields,
        origin=RetryOrigin.REPLAY,
        event_id=event.event_id if event is not None else None,
        event_type=event.event_type if event is not None else None,
        event_key=event.key if event is not None else None,
        forced=True,
    )


def _text(value: bytes) -> str:
    return value.decode(errors="surrogateescape")
