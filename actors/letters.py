"""The desk of dead letters: what people do with them. Look, find what died of the same error, note, discard, replay.

Everything that changes a letter is written into its history with who did it. Replays are orders: they are stored, and
worked off by the actor in `letter_orders.py`, at their rate, also after a restart.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import UUID, uuid4

import psycopg
import trio
from psycopg import AsyncCursor, sql
from psycopg.types.json import Jsonb

from .dead_letter import unpack_fields
from .letter_filter import LetterFilter
from .letter_view import (
    AUDIT_COLUMNS,
    LETTER_COLUMNS,
    ORDER_COLUMNS,
    LetterDetails,
    LetterGroup,
    LetterOrder,
    LetterPage,
    ReplayPreview,
    read_audit,
    read_group,
    read_letter,
    read_order,
)
from .outages import outages

if TYPE_CHECKING:
    from ..runtime.postgres import Connection, Pool
    from .system import System

__all__ = ["MOST", "RATE", "LetterDesk", "LetterFilter", "LetterNotFound", "LetterRefused", "OrderNotFound", "Target"]

Target = Literal["group", "stream"]

RATE: Final = 50.0
"""Letters a second that an order replays, unless it says otherwise: what broke under load is not broken again by it."""

MOST: Final = 5_000
"""Letters that one order takes at the most, unless it says otherwise; the oldest."""

DEADLOCKS: Final = 3
"""How often an order is tried again that lost a deadlock; each takes PostgreSQL a second to find."""

_INT8: Final = 2**63


class LetterNotFound(LookupError):
    """There is no such letter."""


class OrderNotFound(LookupError):
    """There is no such order."""


class LetterRefused(ValueError):
    """That cannot be done with the letter as it is; the text says why."""


# The texts are looked up for the examples alone: they are long, and a fault may have thousands of letters.
_GROUPS: Final = """
select found.fingerprint, found.reason, found.consumer_group, found.count, found.first, found.last, found.example,
    example.error_class, example.error_message, found.streams, found.event_types
from (
    select letter.fingerprint, letter.reason, letter.consumer_group, count(*) as count, min(letter.dead_at) as first,
        max(letter.dead_at) as last, max(letter.id) as example, array_agg(distinct letter.stream) as streams,
        coalesce(array_agg(distinct letter.event_type) filter (where letter.event_type is not null), '{{}}')
            as event_types
    from penstock_dead_letter letter where {where}
    group by letter.fingerprint, letter.reason, letter.consumer_group
    order by count(*) desc, max(letter.id) desc limit %(limit)s
) found join penstock_dead_letter example on example.id = found.example
order by found.count desc, found.example desc
"""

# What cannot be tried again: nothing is left of an entry that was trimmed, nobody handles what is not declared, and
# what is no event cannot be published.
_REPLAYABLE: Final = """
    letter.reason <> 'trimmed' and (%(target)s = 'group' or letter.event_id is not null)
    and (letter.stream, letter.consumer_group) in (select * from unnest(%(streams)s::text[], %(groups)s::text[]))
"""

_PREVIEW: Final = """
select count(*), count(*) filter (where letter.reason = 'trimmed'),
    count(*) filter (where letter.reason <> 'trimmed' and %(target)s = 'stream' and letter.event_id is null),
    count(*) filter (where {replayable})
from penstock_dead_letter letter where {where}
"""

# Letters that somebody has locked are waited for: one is locked for a moment while its mirror is written down, and
# would stay dead beside all others of the order. They are locked by age; see `LetterDesk._change` for other ways.
_ORDER: Final = """
with chosen as (
    select letter.id from penstock_dead_letter letter where {where} and letter.status = 'dead' and {replayable}
    order by letter.id limit %(limit)s for update
), marked as (
    update penstock_dead_letter letter set status = 'replaying', order_id = %(order)s, moved_at = null
    from chosen where letter.id = chosen.id returning letter.id
), told as (
    insert into penstock_dead_letter_audit (letter_id, action, by, order_id, note)
    select id, 'ordered', %(by)s, %(order)s, %(note)s from marked
)
insert into penstock_dead_letter_order as letter_order
    (id, system, target, rate, total, filter, note, ordered_by, state, finished_at)
select %(order)s, %(system)s, %(target)s, %(rate)s, count(*), %(filter)s, %(note)s, %(by)s,
    case when count(*) = 0 then 'done' else 'running' end, case when count(*) = 0 then now() end
from marked
returning {columns}
"""

_DISCARD: Final = """
with chosen as (
    select letter.id from penstock_dead_letter letter where {where} and letter.status = 'dead'
    order by letter.id limit %(limit)s for update
), marked as (
    update penstock_dead_letter letter set status = 'discarded', settled_at = now(), settled_by = %(by)s,
        note = coalesce(%(note)s, letter.note)
    from chosen where letter.id = chosen.id returning letter.id
)
insert into penstock_dead_letter_audit (letter_id, action, by, note)
select id, 'discarded', %(by)s, %(note)s from marked
"""

_NOTE: Final = """
with marked as (
    update penstock_dead_letter set note = %(note)s where id = %(id)s returning id
)
insert into penstock_dead_letter_audit (letter_id, action, by, note) select id, 'noted', %(by)s, %(note)s from marked
"""

_CANCEL: Final = """
with ended as (
    update penstock_dead_letter_order set state = 'cancelled', finished_at = now()
    where id = %(order)s and state = 'running' returning id
), marked as (
    update penstock_dead_letter letter set status = 'dead' from ended
    where letter.order_id = ended.id and letter.status = 'replaying' and letter.moved_at is null
    returning letter.id
)
insert into penstock_dead_letter_audit (letter_id, action, by, order_id)
select id, 'cancelled', %(by)s, %(order)s from marked
"""


class LetterDesk:
    """Every method is one transaction, and raises `PostgresUnavailable` while the database is away.

    Args:
        pool: where connections come from.
        system: what is declared here: only its groups' letters can be replayed.

    Attributes:
        news: set when something was ordered here; the actor that works orders off waits for it, and puts another.
    """

    def __init__(self, pool: Pool, system: System) -> None:
        self.news = trio.Event()
        self._pool = pool
        self._system = system

    # Looking --------------------------------------------------------------------------------------------------------

    async def letters(self, which: LetterFilter, *, limit: int = 100, before: int | None = None) -> LetterPage:
        """Letters, the one buried last first.

        Args:
            which: only these.
            limit: how many at the most, from 1.
            before: go on behind the letter with this id: `LetterPage.next` of the page before.
        """
        where, values = which.conditions(self._system)
        statement = sql.SQL(
            "select {columns} from penstock_dead_letter letter where {where}"
            " and (%(before)s::bigint is null or letter.id < %(before)s) order by letter.id desc limit %(limit)s"
        ).format(columns=LETTER_COLUMNS, where=where)
        async with self._connection() as connection:
            cursor = await connection.execute(statement, {**values, "before": before, "limit": limit + 1})
            found = [read_letter(row) for row in await cursor.fetchall()]
        return LetterPage(tuple(found[:limit]), found[limit - 1].id if len(found) > limit else None)

    async def groups(self, which: LetterFilter, *, limit: int = 100) -> list[LetterGroup]:
        """What died of the same error in the same group, the most frequent first."""
        where, values = which.conditions(self._system)
        async with self._connection() as connection:
            cursor = await connection.execute(sql.SQL(_GROUPS).format(where=where), {**values, "limit": limit})
            return [read_group(row) for row in await cursor.fetchall()]

    async def letter(self, number: int) -> LetterDetails:
        """One letter, with everything that is known of it.

        Raises:
            LetterNotFound: there is none with this id.
        """
        statement = sql.SQL(
            "select {columns}, letter.traceback, letter.fields, letter.raw from penstock_dead_letter letter"
            " where letter.id = %s"
        ).format(columns=LETTER_COLUMNS)
        async with self._connection() as connection:
            rows = await self._only(connection, statement, number)
            history = sql.SQL(
                "select {columns} from penstock_dead_letter_audit audit where audit.letter_id = %s order by audit.id"
            ).format(columns=AUDIT_COLUMNS)
            audit = [read_audit(row) for row in await (await connection.execute(history, (number,))).fetchall()]
        *row, traceback, fields, raw = rows
        exact = unpack_fields(raw) if raw is not None else fields
        return LetterDetails(read_letter(row), traceback, exact, tuple(audit))

    async def _only(self, connection: Connection[Any], statement: sql.Composed, number: int) -> Sequence[Any]:
        row = None
        if abs(number) < _INT8:
            row = await (await connection.execute(statement, (number,))).fetchone()
        if row is None:
            raise LetterNotFound(f"there is no dead letter with the id {number}")
        return tuple(row)

    # Changing -------------------------------------------------------------------------------------------------------

    async def note(self, number: int, text: str, *, by: str) -> None:
        """Write something on a letter, for whoever looks at it next.

        Raises:
            LetterNotFound: there is none with this id.
        """
        async with self._connection() as connection:
            values = {"id": number, "note": text, "by": by}
            done = abs(number) < _INT8 and (await connection.execute(_NOTE.encode(), values)).rowcount
        if not done:
            raise LetterNotFound(f"there is no dead letter with the id {number}")

    async def discard(self, which: LetterFilter, *, by: str, note: str | None = None, limit: int = MOST) -> int:
        """Settle letters that nobody wants to try again; how many there were. Those that are not dead stay as they are.

        Args:
            which: only these; the oldest first.
            by: who says so.
            note: why.
            limit: how many at the most.
        """
        where, values = which.conditions(self._system)
        given = {**values, "by": by, "note": note, "limit": limit}
        return (await self._change(sql.SQL(_DISCARD).format(where=where), given)).rowcount

    # Replays --------------------------------------------------------------------------------------------------------

    async def preview(self, which: LetterFilter, *, target: Target = "group", limit: int = MOST) -> ReplayPreview:
        """What `replay` would do."""
        where, values = which.conditions(self._system)
        statement = sql.SQL(_PREVIEW).format(where=where, replayable=sql.SQL(_REPLAYABLE))
        async with self._connection() as connection:
            cursor = await connection.execute(statement, {**values, **self._declared(target)})
            row = await cursor.fetchone()
        matching, trimmed, no_events, replayable = row or (0, 0, 0, 0)
        return ReplayPreview(
            letters=min(replayable, limit),
            matching=matching,
            trimmed=trimmed,
            no_events=no_events,
            undeclared=matching - trimmed - no_events - replayable,
        )

    async def replay(
        self,
        which: LetterFilter,
        *,
        by: str,
        target: Target = "group",
        rate: float = RATE,
        limit: int = MOST,
        note: str | None = None,
    ) -> LetterOrder:
        """Order that letters are tried again, with the same event ids; see `preview` for what is left out.

        Args:
            which: only these, and of them those that are dead; the oldest first.
            by: who orders it.
            target: ``group``: the group that gave the event up tries it again, with all its attempts. ``stream``: it is
                published again, for all groups; those that have handled it know it.
            rate: letters a second.
            limit: how many at the most.
            note: why, for the record.
        """
        where, values = which.conditions(self._system)
        statement = sql.SQL(_ORDER).format(where=where, replayable=sql.SQL(_REPLAYABLE), columns=ORDER_COLUMNS)
        given = {
            **values,
            **self._declared(target),
            "order": uuid4(),
            "system": self._system.name,
            "rate": rate,
            "limit": limit,
            "filter": Jsonb(which.told()),
            "by": by,
            "note": note,
        }
        row = await (await self._change(statement, given)).fetchone()
        assert row is not None  # noqa: S101 - an insert of one row
        self.news.set()
        return read_order((*row, 0, 0, 0))

    async def replay_one(
        self, number: int, *, by: str, target: Target = "group", note: str | None = None
    ) -> LetterOrder:
        """`replay` of one letter.

        Raises:
            LetterNotFound: there is none with this id.
            LetterRefused: it is not dead, or cannot be tried again.
        """
        which = LetterFilter(ids=(number,))
        letter = (await self.letter(number)).letter
        if letter.status != "dead":
            raise LetterRefused(f"the dead letter {number} is {letter.status} already")
        preview = await self.preview(which, target=target)
        if preview.refusal is not None:
            raise LetterRefused(f"the dead letter {number} cannot be replayed: {preview.refusal}")
        order = await self.replay(which, by=by, target=target, note=note)
        if not order.total:
            raise LetterRefused(f"somebody else has just replayed or discarded the dead letter {number}")
        return order

    async def order(self, number: UUID) -> LetterOrder:
        """An order, as far as it has come.

        Raises:
            OrderNotFound: there is none with this id.
        """
        found = await self._orders(sql.SQL("letter_order.id = %s"), (number,))
        if not found:
            raise OrderNotFound(f"there is no order {number}")
        return found[0]

    async def orders(self, *, limit: int = 20) -> list[LetterOrder]:
        """The last orders of this system, the newest first."""
        where = sql.SQL("letter_order.system = %s order by letter_order.ordered_at desc limit %s")
        return await self._orders(where, (self._system.name, limit))

    async def cancel(self, number: UUID, *, by: str) -> LetterOrder:
        """Stop an order: what it has not moved yet is dead as before. Nothing happens if it has ended.

        Raises:
            OrderNotFound: there is none with this id.
        """
        async with self._connection() as connection:
            await connection.execute(_CANCEL.encode(), {"order": number, "by": by})
        return await self.order(number)

    async def _orders(self, where: sql.Composable, values: tuple[Any, ...]) -> list[LetterOrder]:
        statement = sql.SQL(
            "select {columns}, outcome.replayed, outcome.dead, outcome.waiting"
            " from penstock_dead_letter_order letter_order cross join lateral ("
            "  select count(*) filter (where letter.status = 'replayed') as replayed,"
            "   count(*) filter (where letter.status = 'dead') as dead,"
            "   count(*) filter (where letter.status = 'replaying' and letter.moved_at is not null) as waiting"
            "  from penstock_dead_letter letter where letter.order_id = letter_order.id"
            " ) outcome where {where}"
        ).format(columns=ORDER_COLUMNS, where=where)
        async with self._connection() as connection:
            return [read_order(row) for row in await (await connection.execute(statement, values)).fetchall()]

    async def _change(self, statement: sql.Composed, given: Mapping[str, Any]) -> AsyncCursor[Any]:
        """Run a statement that locks letters; again, where it and a handler's transaction waited for each other."""
        again = DEADLOCKS
        while True:
            try:
                async with self._connection() as connection:
                    return await connection.execute(statement, given)
            except psycopg.errors.DeadlockDetected:
                if not again:
                    raise
                again -= 1

    def _declared(self, target: Target) -> dict[str, Any]:
        pairs = [
            (key, group) for stream in self._system.streams.values() for key in stream.keys for group in stream.groups
        ]
        if target == "group":  # a job is in no stream
            pairs += [(queue.name, queue.group.name) for queue in self._system.queues.values()]
        return {"target": target, "streams": [key for key, _ in pairs], "groups": [group for _, group in pairs]}

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection[Any]]:
        with outages(self._pool.options.address):
            async with self._pool.connection() as connection:
                yield connection
