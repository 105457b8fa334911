"""Steps outside of a handler's transaction that are not repeated with it; see `Context.once`."""

from __future__ import annotations

import inspect
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
"""Seconds that a note of what became of a step may take once somebody wants to cancel it."""


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
        self._of: dict[UUID, set[str]] = {}

    async def once(self, event_id: UUID, name: str, call: Callable[[], Awaitable[object]], *, again: bool) -> bool:
        """See `Context.once`."""
        _check(name, call)
        step = Step(self._group, event_id, name, self._stream)
        taken = self._of.setdefault(event_id, set())
        if name in taken:
            raise ValueError(f"the handler has a step {name!r} of this event already; each needs a name of its own")
        taken.add(name)
        try:
            return await self._do(step, call, again=again)
        except BaseException:
            taken.discard(name)  # a handler may try again what was not done, or was broken off
            raise

    async def _do(self, step: Step, call: Callable[[], Awaitable[object]], *, again: bool) -> bool:
        state = await self._table.begin(step)
        if state is StepState.DONE:
            return False
        if state is StepState.BEGUN and not again:
            raise Permanent(
                f"whether {step.name!r} was done is not known: whoever began it was gone before its end. Find out; set "
                "the state of its row in penstock_step to 'done', or delete the row; then replay this letter"
            )
        try:
            made: object = call()
            if inspect.isawaitable(made):
                await made
        except Exception:
            if state is StepState.NEW:
                await _noted(self._table.withdraw, step)
            raise
        await _noted(self._table.end, step)
        if not inspect.isawaitable(made):
            # Only now, for it was done.
            raise TypeError(f"the step {step.name!r} was done, but by no async function: give it lambda: send(message)")
        return True

    async def clear(self, transaction: Transaction, but: frozenset[UUID]) -> None:
        """Forget them with the transaction, for their events are handled with it; all `but` those that failed in it."""
        handled = [event_id for event_id in self._of if event_id not in but]
        if handled:
            await self._table.clear(transaction, self._group, handled)


def _check(name: object, call: object) -> None:
    """Refuse what cannot be a step, before it is begun."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"a step's name is a non-empty string without NUL, not {name!r}")
    if not callable(call):
        if inspect.iscoroutine(call):
            call.close()
        raise TypeError(f"the step {name!r} is given as a function: once({name!r}, lambda: send(message))")


async def _noted(note: Callable[[Step], Awaitable[None]], step: Step) -> None:
    """Note what became of a step, whoever wants to cancel that: from then on it has `NOTED_WITHIN`."""
    failed: Exception | None = None
    noting = trio.CancelScope(shield=True)

    async def hurry() -> None:
        try:
            await trio.sleep_forever()
        finally:
            noting.deadline = trio.current_time() + NOTED_WITHIN

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hurry)
        with noting:
            try:
                await note(step)
            except Exception as error:  # noqa: BLE001 - passed on below, not as a group
                failed = error
        nursery.cancel_scope.cancel(reason="it is noted")
    if failed is not None:
        raise failed
