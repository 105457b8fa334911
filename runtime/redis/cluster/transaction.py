"""`run_transaction`: read under WATCH, decide and write, on the node that owns the keys' slot by then."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import redis.exceptions
import trio

from .. import _compat
from .. import transaction as single
from ..errors import CommandRefused, OutcomeUnknown, RedisStalled
from ..retry import Retry
from ..transaction import Transaction
from .keys import common_slot
from .nodes import Node, NodeConnection
from .router import Router
from .steps import Nature

__all__ = ["run_transaction"]


class _Final(Exception):
    """Carries an error past the router: no other attempt may follow it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Witness(Retry):
    """Sees the errors of the transaction's own connection, and leaves the next attempt to the router."""

    error: BaseException | None = None

    def wait_after(self, error: BaseException, now: float) -> float | None:
        self.error = error
        return None


async def run_transaction(
    router: Router,
    lend: Callable[[Node], AbstractAsyncContextManager[NodeConnection]],
    function: Callable[[Transaction], Any],
    watches: Sequence[Any],
    *,
    attempts: int,
) -> tuple[Any, list[Any]]:
    """The function's value, and EXEC's results. As `Redis.transaction`, wherever the slot is.

    During a migration it waits until the keys have arrived: nothing is watched on two nodes at once.

    Raises CommandRefused for keys of several slots, redis.exceptions.WatchError (outrun in every attempt), and as
    `execute_command` and a pipeline do.
    """
    slot = common_slot("WATCH", watches)
    written_before_exec = False

    async def observed(transaction: Transaction) -> Any:
        nonlocal written_before_exec
        try:
            value = function(transaction)
            return await value if inspect.isawaitable(value) else value
        finally:
            written_before_exec = transaction.wrote

    async def attempt(node: Node, asking: bool) -> Any:
        nonlocal written_before_exec
        if asking:
            return _compat.reply_error("TRYAGAIN the watched keys are being migrated")
        written_before_exec = False
        witness = _Witness(0.0, reads=True, random=lambda: 0.5)
        async with lend(node) as connection:
            try:
                return await single.run_transaction(
                    connection, observed, watches, attempts=attempts, retry=lambda _, __: witness
                )
            except redis.exceptions.RedisError as error:
                # What the function did elsewhere is not ours to repeat, nor what it wrote before EXEC.
                if error is not witness.error or written_before_exec:
                    raise _Final(error) from error
                if isinstance(error, (OutcomeUnknown, RedisStalled)) and not witness.reads:
                    raise _Final(error) from error  # EXEC was under way
                if isinstance(error, redis.exceptions.AskError) and int(error.slot_id) != slot:
                    refusal = f"a transaction on slot {slot} with a key of slot {error.slot_id}: give them one hash tag"
                    raise _Final(CommandRefused(refusal)) from error
                return error

    until = trio.current_time() + router.options.retry_for
    try:
        result = await router.run(Nature(slot, reads=True), attempt, until=until)
    except _Final as final:
        raise final.error from final.error.__cause__
    if isinstance(result, Exception):
        raise result
    value, results = result
    return value, results
