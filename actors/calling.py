"""How handlers are called within a transaction: which of them, in which order, with what, and for how long."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import trio
from attrs import field, frozen

from .failures import HandlerExit
from .handling import Context, Delivery
from .sorting import Handle, key_of

if TYPE_CHECKING:
    from .system import Handler

__all__ = ["Call", "call_handlers", "kept_in", "plan"]

MakeContext = Callable[["Delivery[object] | None"], Context]


@frozen
class Call:
    """One call of a handler.

    Attributes:
        handler: it.
        handles: what it is called with; for a single handler one.
    """

    handler: Handler
    handles: list[Handle] = field(factory=list)


def plan(fresh: Sequence[Handle], *, ordered: bool) -> list[Call]:
    """The calls for events, in order. Pure.

    Single handlers are called in the order of the events, and then each batch handler once, with all that is its own.
    With `ordered`, a batch handler is called before whatever else comes later under one of its keys.
    """
    calls: list[Call] = []
    open_batches: dict[str, Call] = {}
    for handle in fresh:
        name = handle.handler.event_type.name
        if ordered:
            _close(calls, open_batches, key_of(handle), but=name)
        if handle.handler.batch:
            open_batches.setdefault(name, Call(handle.handler)).handles.append(handle)
        else:
            calls.append(Call(handle.handler, [handle]))
    return calls + list(open_batches.values())


def _close(calls: list[Call], open_batches: dict[str, Call], key: str | None, *, but: str) -> None:
    """End the batches in which `key` stands, for another handler is next under it."""
    if key is None:
        return
    for name, call in list(open_batches.items()):
        if name != but and any(key_of(handle) == key for handle in call.handles):
            calls.append(open_batches.pop(name))


async def call_handlers(
    calls: Sequence[Call], make_context: MakeContext, blame: Callable[[Handle, Exception], None]
) -> dict[str, Exception]:
    """Make the calls, one after the other; what handlers said of single events by `Context.fail`, by entry id.

    `blame` is told of an event whose handler raises, if it was called for that one alone.

    Raises:
        Exception: whatever a handler raises; `HandlerExit` in place of what ends a process.
        trio.TooSlowError: a call took longer than its handler may.
    """
    failures: dict[str, Exception] = {}
    for call in calls:
        deliveries = [_delivery(handle) for handle in call.handles]
        context = make_context(None if call.handler.batch else deliveries[0])
        try:
            await _call_in_time(call.handler, deliveries, context)
        except Exception as error:
            if len(call.handles) == 1:
                blame(call.handles[0], error)
            raise
        if not context.failures:
            continue
        strangers = context.failures.keys() - {delivery.entry_id for delivery in deliveries}
        if strangers:
            told = ", ".join(sorted(strangers))
            raise ValueError(f"{call.handler.name} called context.fail for {told}, which it was not given in this call")
        failures.update(context.failures)
    return failures


async def _call_in_time(handler: Handler, deliveries: Sequence[Delivery[object]], context: Context) -> None:
    if handler.timeout is None:
        await _call(handler, deliveries, context)
        return
    with trio.fail_after(handler.timeout):
        await _call(handler, deliveries, context)
        # Whoever held the processor beyond the limit has exceeded it, too.
        await trio.lowlevel.checkpoint()


async def _call(handler: Handler, deliveries: Sequence[Delivery[object]], context: Context) -> None:
    await kept_in(handler.name, handler.call(deliveries if handler.batch else deliveries[0].event, context))


async def kept_in(name: str, call: Awaitable[None]) -> None:
    """Await a call of the user's, of the handler `name`, so that it cannot end the process.

    Raises:
        Exception: whatever it raises; `HandlerExit` in place of what would end the process.
    """
    try:
        await call
    except Exception:
        raise
    except BaseException as error:
        if _is_ours(error):
            raise
        raise HandlerExit(f"{name} raised {type(error).__name__}") from error


def _is_ours(error: BaseException) -> bool:
    """Whether it is a cancellation, or the user at the keyboard: not for a handler to raise, nor for us to hide."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_ours, error.exceptions))
    return isinstance(error, trio.Cancelled | KeyboardInterrupt)


def _delivery(handle: Handle) -> Delivery[object]:
    row = handle.entry.retry
    return Delivery(
        event=handle.event,
        envelope=handle.envelope,
        entry_id=handle.entry.id,
        attempt=handle.entry.attempts + 1,
        order=row.id if row is not None and row.forced else None,
    )
