"""The actor that works off the orders to replay dead letters, at their rates, and clears what is settled from mirrors.

An order is a row, and so are its letters: whoever runs next goes on where the last one stopped. A letter is moved in
one transaction, which takes its row, makes the row or the entry that will be tried, and counts it; so it is moved once,
however many processes there are. One process at a time works on an order, for its rate is that of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

import psycopg
import redis.exceptions
import trio
from attrs import frozen

from ..runtime import redis as redis_link
from ..runtime.postgres import Fault, classify
from ..runtime.telemetry import get_logger
from .dead_letter import unpack_fields
from .outbox_table import OutboxRow
from .retry_table import RetryOrigin, RetryRow

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis
    from ..runtime.supervision import Child, Gate
    from .letters import LetterDesk
    from .store import Store, Transaction
    from .system import System

__all__ = ["LetterOrders"]

log = get_logger(__name__)

LOOK: Final = 5.0
"""Seconds between two looks for orders that another process was given, or left behind."""

STEP: Final = 0.25
"""Seconds' worth of letters that are moved at once."""

AGAIN: Final = 1.0
"""Seconds before the next attempt where the database is away or busy."""

SET_ASIDE: Final = 60.0
"""Seconds for which an order rests that cannot be worked off: somebody must mend that, and the others go on."""

MOST_AT_ONCE: Final = 200
"""Letters in one transaction at the most."""

LEFT_BEHIND: Final = 15.0
"""Seconds without work, after which an order is another process's: more than a slow step and its wait take."""

MIRRORED: Final = 500
"""Entries that are removed from mirrors at once."""

REDIS_WITHIN: Final = 3.0
"""Seconds that Redis has for a removal, while rows are locked."""

# Whoever works at one letter in 100 s says nothing for 100 s: it is not left behind for that.
_RUNNING: Final = """
select id, rate from penstock_dead_letter_order where system = %(system)s and state = 'running' and (
    worker is null or worker = %(worker)s or worked_at < now() - make_interval(secs => %(left_behind)s + 1 / rate)
) order by ordered_at
"""

_TAKE_ORDER: Final = """
select target, ordered_by from penstock_dead_letter_order where id = %(order)s and state = 'running' and (
    worker is null or worker = %(worker)s or worked_at < now() - make_interval(secs => %(left_behind)s + 1 / rate)
) for update skip locked
"""

_TAKE_LETTERS: Final = """
select id, stream, entry_id, event_id, event_type, event_key, consumer_group, fields, raw from penstock_dead_letter
where order_id = %s and status = 'replaying' and moved_at is null order by id limit %s for update
"""

_MOVED: Final = """
with moved as (
    update penstock_dead_letter set moved_at = now(), replays = replays + 1,
        status = case when %(publish)s then 'replayed' else status end,
        settled_at = case when %(publish)s then now() end, settled_by = case when %(publish)s then %(by)s::text end
    where id = any(%(ids)s) returning id
), told as (
    insert into penstock_dead_letter_audit (letter_id, action, by, order_id)
    select id, case when %(publish)s then 'replayed' else 'moved' end, %(by)s, %(order)s from moved
)
update penstock_dead_letter_order set moved = moved + (select count(*) from moved), worker = %(worker)s,
    worked_at = now(), state = case when %(last)s then 'done' else state end,
    finished_at = case when %(last)s then now() end
where id = %(order)s
"""

_TAKE_SHOWN: Final = """
select id, mirror, mirror_id from penstock_dead_letter
where mirror_id is not null and status in ('replayed', 'discarded') and not coalesce(mirror = any(%s), false)
order by id limit %s for update skip locked
"""


@frozen
class _Letter:
    id: int
    stream: str
    entry_id: str
    event_id: UUID | None
    event_type: str | None
    event_key: str | None
    group: str
    fields: dict[str, str]


class LetterOrders:
    """The body of the actor ``dead-letters``.

    Args:
        system: whose orders it works off.
        store: where letters, retries and the outbox are.
        desk: tells when something is ordered here.
        client: the link to Redis, for the mirrors.
        redis_gate: while it is shut, mirrors stay as they are.
        redis_trouble: told of every error of Redis.
    """

    def __init__(
        self,
        system: System,
        store: Store,
        desk: LetterDesk,
        client: Callable[[], AnyRedis],
        *,
        redis_gate: Gate,
        redis_trouble: Callable[[Exception], None],
    ) -> None:
        self._system = system
        self._store = store
        self._desk = desk
        self._client = client
        self._redis_gate = redis_gate
        self._redis_trouble = redis_trouble
        self._worker = str(uuid4())
        self._due: dict[UUID, float] = {}
        self._refused: dict[str, float] = {}

    async def __call__(self, child: Child) -> None:
        """Work until cancelled, at any moment: what is moved is counted, and the rest is as it was.

        An outage is waited for; the gate of the database holds this actor meanwhile.

        Raises:
            psycopg.Error: the database refuses what waiting does not mend.
        """
        child.started()
        clear_at = trio.current_time()
        while True:
            news = self._desk.news = trio.Event()
            try:
                left = await self._work()
                if trio.current_time() >= clear_at:
                    clear_at = trio.current_time() + (0.0 if await self._clear_mirrors() else LOOK)
            except psycopg.Error as error:
                if not _passes(error):
                    raise
                log.debug("database is away or busy, trying again", error=str(error))
                left, clear_at = AGAIN, trio.current_time() + AGAIN
            child.note(f"{len(self._due)} orders" if self._due else "no orders")
            with trio.move_on_after(max(0.0, min(left, clear_at - trio.current_time()))):
                await news.wait()

    # Orders ---------------------------------------------------------------------------------------------------------

    async def _work(self) -> float:
        """Move what is due of each order; the seconds until something is due again."""
        rates = await self._running()
        self._due = {number: self._due.get(number, 0.0) for number in rates}
        for number, rate in rates.items():
            if self._due[number] <= trio.current_time():
                self._due[number] = trio.current_time() + await self._step(number, rate)
        return min([LOOK, *(due - trio.current_time() for due in self._due.values())])

    async def _step(self, number: UUID, rate: float) -> float:
        """Move some letters of an order; the seconds until it is its turn again."""
        began = trio.current_time()
        try:
            moved = await self._move(number, max(1, min(MOST_AT_ONCE, int(rate * STEP))))
        except Exception as error:
            # Whatever it is (a letter that somebody wrote by hand, say), it must not stop the others.
            if isinstance(error, psycopg.Error) and _passes(error):
                raise
            log.error("replay of dead letters is stuck", order=str(number), error=str(error), next_in=SET_ASIDE)
            return SET_ASIDE
        return max(0.0, moved / rate - (trio.current_time() - began)) if moved else LOOK

    async def _running(self) -> dict[UUID, float]:
        async with self._store.transaction() as transaction:
            values = {"system": self._system.name, "worker": self._worker, "left_behind": LEFT_BEHIND}
            cursor = await transaction.connection.execute(_RUNNING, values)
            return dict(await cursor.fetchall())

    async def _move(self, number: UUID, limit: int) -> int:
        """Move the next letters of an order; how many there were."""
        async with self._store.transaction() as transaction:
            connection = transaction.connection
            mine = {"order": number, "worker": self._worker, "left_behind": LEFT_BEHIND}
            order = await (await connection.execute(_TAKE_ORDER, mine)).fetchone()
            if order is None:
                return 0  # somebody else is at it, or it was cancelled
            target, by = order
            # One more than is moved tells whether these are the last: who sees them all replayed sees the order done.
            rows = await (await connection.execute(_TAKE_LETTERS, (number, limit + 1))).fetchall()
            letters = [_letter(*row) for row in rows[:limit]]
            if target == "stream":
                await self._store.outbox.add(transaction, [_entry(self._system, letter, by) for letter in letters])
            else:
                await self._store.retries.add(transaction, [_row(letter) for letter in letters])
            facts = {
                **mine,
                "ids": [letter.id for letter in letters],
                "by": by,
                "publish": target == "stream",
                "last": len(rows) <= limit,
            }
            await connection.execute(_MOVED, facts)
        if facts["last"]:
            log.info("replay of dead letters done", order=str(number), target=target, by=by)
        return len(letters)

    # Mirrors --------------------------------------------------------------------------------------------------------

    async def _clear_mirrors(self) -> bool:
        """Remove the entries that show letters which are settled; whether there may be more."""
        if not self._redis_gate.is_open:
            return False
        try:
            async with self._store.transaction() as transaction:
                refused = [mirror for mirror, until in self._refused.items() if until > trio.current_time()]
                cursor = await transaction.connection.execute(_TAKE_SHOWN, (refused, MIRRORED))
                rows = await cursor.fetchall()
                if rows:
                    await self._forget(transaction, await self._remove(rows))
                return len(rows) == MIRRORED
        except redis.exceptions.RedisError as error:
            log.debug("mirrors not cleared", error=str(error))
            self._redis_trouble(error)
        except trio.TooSlowError:
            log.debug("mirrors not cleared", error="Redis did not answer in time")
        return False

    async def _remove(self, rows: Sequence[Any]) -> list[int]:
        """The ids of the letters that are shown no more. A mirror that refuses rests for a while; the others go on."""
        removed = [letter_id for letter_id, mirror, _ in rows if mirror is None]
        shown: dict[str, dict[str, int]] = {}
        for letter_id, mirror, mirror_id in rows:
            if mirror is not None:
                shown.setdefault(mirror, {})[mirror_id] = letter_id
        with trio.fail_after(REDIS_WITHIN):
            for mirror, ids in shown.items():
                try:
                    await self._client().xdel(mirror, *ids)
                except redis.exceptions.ResponseError as error:
                    if not _is_of_one_key(error):
                        raise
                    self._refused[mirror] = trio.current_time() + SET_ASIDE
                    log.warning("dead letters that are settled are still shown", mirror=mirror, error=str(error))
                else:
                    removed += ids.values()
        return removed

    async def _forget(self, transaction: Transaction, ids: list[int]) -> None:
        await transaction.connection.execute(
            "update penstock_dead_letter set mirror_id = null where id = any(%s)", (ids,)
        )


def _is_of_one_key(error: redis.exceptions.ResponseError) -> bool:
    """Whether the refusal says something about this key, or our right to it, and nothing of the server."""
    row = redis_link.classify(error)
    return row.kind is redis_link.Kind.BUG or (row.kind is redis_link.Kind.CONFIG and not row.shuts_gate)


def _passes(error: psycopg.Error) -> bool:
    """Whether it is worth trying again."""
    return classify(error) in (Fault.OUTAGE, Fault.RETRY)


def _letter(
    number: int,
    stream: str,
    entry_id: str,
    event_id: UUID | None,
    event_type: str | None,
    event_key: str | None,
    group: str,
    fields: dict[str, str],
    raw: bytes | None,
) -> _Letter:
    exact = unpack_fields(raw) if raw is not None else fields
    return _Letter(number, stream, entry_id, event_id, event_type, event_key, group, exact)


def _row(letter: _Letter) -> RetryRow:
    return RetryRow(
        consumer_group=letter.group,
        stream=letter.stream,
        entry_id=letter.entry_id,
        fields=letter.fields,
        origin=RetryOrigin.LETTER,
        event_id=letter.event_id,
        event_type=letter.event_type,
        event_key=letter.event_key,
        letter_id=letter.id,
    )


def _entry(system: System, letter: _Letter, by: str) -> OutboxRow:
    declared = system.stream_of(letter.stream)
    return OutboxRow(
        stream=letter.stream if declared is None else declared.key,
        event_id=letter.event_id,
        fields=letter.fields,
        key=letter.event_key,
        kind="replay",
        created_by=by,
    )
