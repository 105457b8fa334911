"""`run_everywhere`: one command on all masters, whoever they are by the time that the last one has answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio

from ..errors import OutcomeUnknown, RedisStalled, RedisUnavailable
from .keyless import is_harmless_twice
from .nodes import Node
from .router import Router
from .steps import Nature
from .topology import Address

__all__ = ["run_everywhere"]


async def run_everywhere(router: Router, name: str, args: Sequence[Any]) -> list[Any]:
    """The replies of all masters, in their order.

    Where it failed it is made again, for `ClusterOptions.retry_for` seconds, if it does no harm there twice; not where
    it succeeded. `name` is the `full_name`.

    Raises NotSent, OutcomeUnknown, redis.exceptions.ResponseError (the first server's that refused it).
    """
    done: dict[Address, Any] = {}

    async def attempt(_: Node, __: bool) -> Any:
        masters = (await router.discovery.current()).masters
        missing = [address for address in masters if address not in done]
        replies = dict(zip(missing, await router.call_each(missing, args), strict=True))
        done.update({address: reply for address, reply in replies.items() if not isinstance(reply, Exception)})
        failures = [reply for reply in replies.values() if isinstance(reply, Exception)]
        # What is not to be made again, first.
        for failure in sorted(failures, key=lambda each: not isinstance(each, (OutcomeUnknown, RedisStalled))):
            if isinstance(failure, RedisUnavailable):
                raise failure
        return failures[0] if failures else [done[address] for address in masters]

    until = trio.current_time() + router.options.retry_for
    replies = await router.run(Nature(None, reads=is_harmless_twice(name)), attempt, until=until)
    if isinstance(replies, Exception):
        raise replies
    found: list[Any] = replies
    return found
