"""The table of steps: what handlers have begun and done outside of their transactions; see `Context.once`.

A step is noted in transactions of its own, before and after, so that it is known whatever becomes of the handler's. The
transaction that handles the event takes its steps out, for from then on the inbox knows.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Protocol, cast
from uuid import UUID

from attrs import frozen

if TYPE_CHECKING:
    from ..runtime.postgres import Connection, Pool
    from .store import Transaction

__all__ = ["PostgresSteps", "Step", "StepState", "StepTable"]


class StepState(enum.Enum):
    """How far a step had come when it was begun."""

    NEW = "new"
    BEGUN = "begun"  # and nobody has noted its end: its process died, say, or it was cancelled
    DONE = "done"


@frozen
class Step:
    """What is done once for an event in a group.

    Attributes:
        group: the consumer group.
        event_id: the event.
        name: of the step, among those of the event.
        stream: the declared stream's key, for retention.
    """

    group: str
    event_id: UUID
    name: str
    stream: str


class StepTable(Protocol):
    """See the module. All but `clear` are transactions of their own, and raise what a connection of the pool does."""

    async def begin(self, step: Step) -> StepState:
        """Note that a step is begun, if it was not before; how far it had come."""
        ...

    async def end(self, step: Step) -> None:
        """Note that a step is done."""
        ...

    async def withdraw(self, step: Step) -> None:
        """Note that a step has failed, and nothing has happened."""
        ...

    async def clear(self, transaction: Transaction, group: str, event_ids: Collection[UUID]) -> None:
        """Forget the steps of events, with the transaction. Errors are those of any statement of it."""
        ...


_BEGIN = """
insert into penstock_step (consumer_group, event_id, name, stream, state)
values (%(group)s, %(event_id)s, %(name)s, %(stream)s, 'begun')
on conflict (consumer_group, event_id, name) do nothing
"""

_STATE = (
    "select state from penstock_step where consumer_group = %(group)s and event_id = %(event_id)s and name = %(name)s"
)

_END = """
update penstock_step set state = 'done', updated_at = now()
where consumer_group = %(group)s and event_id = %(event_id)s and name = %(name)s
"""

_WITHDRAW = """
delete from penstock_step
where consumer_group = %(group)s and event_id = %(event_id)s and name = %(name)s and state = 'begun'
"""

_CLEAR = "delete from penstock_step where consumer_group = %s and event_id = any(%s)"


class PostgresSteps:
    """`StepTable` on PostgreSQL; takes a connection of `pool` for each note."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def begin(self, step: Step) -> StepState:
        """See `StepTable.begin`."""
        values = _values(step)
        async with self._pool.connection() as connection:
            if (await connection.execute(_BEGIN, values)).rowcount:
                return StepState.NEW
            row = await (await connection.execute(_STATE, values)).fetchone()
            # Withdrawn in between: by another process, which has the event in hand as well.
            return StepState.BEGUN if row is None else StepState(row[0])

    async def end(self, step: Step) -> None:
        """See `StepTable.end`."""
        await self._execute(_END, step)

    async def withdraw(self, step: Step) -> None:
        """See `StepTable.withdraw`."""
        await self._execute(_WITHDRAW, step)

    async def clear(self, transaction: Transaction, group: str, event_ids: Collection[UUID]) -> None:
        """See `StepTable.clear`."""
        connection = cast("Connection[Any]", transaction.connection)
        await connection.execute(_CLEAR, (group, list(event_ids)))

    async def _execute(self, statement: str, step: Step) -> None:
        async with self._pool.connection() as connection:
            await connection.execute(statement, _values(step))


def _values(step: Step) -> dict[str, Any]:
    return {"group": step.group, "event_id": step.event_id, "name": step.name, "stream": step.stream}
