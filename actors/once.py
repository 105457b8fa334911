"""Steps outside of a handler's transaction that are not repeated with it; see `Context.once`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final
from uuid import UUID

import trio

from .handling import Permanent
from .step_table import Step, StepState

if TYPE_CHECKING:
    from .step_table import StepTable
    from .store import Transaction

__all__ = ["Steps"]


NOTED_WITHIN: Final = 2.0
"""Seconds that a note of what is done may take, whoever wants to cancel it."""


class Steps:
    """The steps of the handlers that are called within one transaction.

    Args:
        table: where they are noted.
        group: the consumer group.
        stream: the declared stream's key.
    """

    def __init__(self, table: StepTable, group: str, stream: str) -> None:
        self._table = table
        self._group = group
        self._stream = stream
        self._of: dict[UUID, None] = {}

    async def once(self, event_id: UUID, name: str, call: Callable[[], Awaitable[object]], *, again: bool) -> bool:
        """See `Context.once`."""
        step = Step(self._group, event_id, name, self._stream)
        self._of[event_id] = None
        state = await self._table.begin(step)
        if state is StepState.DONE:
            return False
        if state is StepState.BEGUN and not again:
            raise Permanent(f"whether {name!r} was done is not known: whoever began it was gone before its end")
        try:
            await call()
        except Exception:
            if state is StepState.NEW:
                await self._table.withdraw(step)
            raise
        # It is done: that is noted also for who is cancelled in this moment.
        with trio.CancelScope(shield=True, deadline=trio.current_time() + NOTED_WITHIN):
            await self._table.end(step)
            return True
        raise trio.TooSlowError

    async def clear(self, transaction: Transaction, but: frozenset[UUID]) -> None:
        """Forget them with the transaction, for their events are handled with it; all `but` those that failed in it."""
        handled = [event_id for event_id in self._of if event_id not in but]
        if handled:
            await self._table.clear(transaction, self._group, handled)
