"""The keeper: sees to it that nothing stays with a consumer that does not work on it.

Every `reclaim_every` seconds (±20 %, so that not all processes look at once) it takes over what other consumers have
left alone for `reclaim_idle` seconds: their process has died, or is frozen. Every third of that time it lets Redis know
that what this process has read is being worked on; what was taken from us nevertheless leaves the backlog. Consumers of
processes that are gone are removed, once they hold nothing. When the process stops, what it has read and not handled is
made fit to be taken over at once, and its own consumers go.

Somebody may order it to take over certain entries at once (`ClaimOrder`); they come into the backlog as those that it
finds by itself.

In an ordered group the entries go with the partition (see `ordered_reading`); the keeper takes over only what is left
of other consumers, of a time when the group was not ordered, say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import redis.exceptions

from ..runtime.telemetry import get_logger
from .claim_order import ClaimOrder, ClaimOutcome, ClaimResult
from .pending import PendingList, Taken
from .rounds import Chore, Rounds, is_missing
from .stopping import Stopping

if TYPE_CHECKING:
    from ..runtime.mailbox import Mailbox
    from ..runtime.redis import AnyRedis
    from ..runtime.supervision import Child, Gate
    from .backlog import Backlog
    from .settings import DeliverySettings

__all__ = ["Keeper"]

log = get_logger(__name__)


class Keeper:
    """The body of the actor ``keeper`` of one partition.

    Args:
        client: the link to Redis.
        stream: the partition's key.
        group: the group's name.
        prefix: how its consumers' names begin.
        consumers: the names of this process's own.
        backlog: what this process has read.
        settings: the times.
        orders: what somebody orders to be taken over.
        redis_gate: while it is shut, it waits.
        redis_trouble: told of every error of Redis.
        live_instances: the installations that are not known to be gone; None while nobody knows.
        chance: random numbers in [0, 1) for the jitter.
        owner: in an ordered group, the name of the consumer that owns the partition; None in others.
        stopping: whether the process stops.
    """

    def __init__(
        self,
        client: Callable[[], AnyRedis],
        stream: str,
        group: str,
        prefix: str,
        consumers: Sequence[str],
        backlog: Backlog,
        settings: DeliverySettings,
        *,
        orders: Mailbox[ClaimOrder],
        redis_gate: Gate,
        redis_trouble: Callable[[Exception], None],
        live_instances: Callable[[], Collection[str] | None],
        chance: Callable[[], float],
        owner: Callable[[], str] | None = None,
        stopping: Stopping | None = None,
    ) -> None:
        self._client = client
        self._stream = stream
        self._group = group
        self._prefix = prefix
        self._consumers = list(consumers)
        self._backlog = backlog
        self._settings = settings
        self._orders = orders
        self._redis_gate = redis_gate
        self._redis_trouble = redis_trouble
        self._live_instances = live_instances
        self._owner = owner
        self._rounds = Rounds(
            redis_gate=redis_gate,
            redis_trouble=redis_trouble,
            chance=chance,
            stopping=stopping or Stopping(),
            where={"stream": stream, "group": group},
        )

    async def __call__(self, child: Child) -> None:
        """Work until cancelled, or drained: then give back what is left over, within a few seconds."""
        chores: list[tuple[float, Chore]] = [(self._settings.reclaim_every, self._look_round)]
        if self._owner is not None:
            await self._rounds(child, chores, self._leave)
            return
        chores.append((self._settings.reclaim_idle / 3, self._renew))
        await self._rounds(child, chores, self._leave, beside=self._obey)

    def _pending(self) -> PendingList:
        return PendingList(self._client(), self._stream, self._group)

    # What others have left --------------------------------------------------------------------------------------------

    async def _look_round(self) -> None:
        pending = self._pending()
        await self._take_over(pending)
        await self._tidy(pending)

    async def _take_over(self, pending: PendingList) -> None:
        after: str | None = "-"
        found = 0
        while after is not None and self._backlog.room:
            known = self._backlog.known()
            stale = await pending.take_over(
                self._consumers[0] if self._owner is None else self._owner(),
                self._settings.reclaim_idle,
                after,
                self._backlog.room,
                # Also of a group that became ordered, or is not any more: nobody reads under the other names.
                spared=self._consumers if self._owner is None else [],
                spared_prefix="" if self._owner is None else f"{self._prefix}@",
            )
            found += self._backlog.add(entry for entry in stale.entries if entry.id not in known)
            after = stale.after
        if found:
            log.info("took over what others left", stream=self._stream, group=self._group, entries=found)

    async def _tidy(self, pending: PendingList) -> None:
        """Remove the consumers of processes that are gone: ours by their name, and nobody else's."""
        live = self._live_instances()
        if live is None:
            return
        gone = [name for name in await pending.consumers() if self._is_gone(name, live)]
        removed = await pending.remove(gone, self._settings.reclaim_idle)
        if removed:
            log.info("consumers removed", stream=self._stream, group=self._group, consumers=removed)

    def _is_gone(self, consumer: str, live: Collection[str]) -> bool:
        """Whether it was one of ours, of whatever process, and nobody reads under its name any more."""
        if consumer in self._consumers:
            return self._owner is not None
        if self._owner is None and re.fullmatch(rf"{re.escape(self._prefix)}@\d+", consumer):
            return True
        found = re.fullmatch(rf"{re.escape(self._prefix)}-\d+:(.+)", consumer)
        return found is not None and found[1] not in live

    # What somebody orders ---------------------------------------------------------------------------------------------

    async def _obey(self) -> None:
        async with self._orders.receive() as inbox:
            async for order in inbox:
                await self._redis_gate.wait_open()
                if order.reply.is_abandoned:
                    continue
                try:
                    order.reply.set(await self._claim(order))
                except redis.exceptions.RedisError as error:
                    if not is_missing(error):
                        self._redis_trouble(error)
                    order.reply.fail(error)

    async def _claim(self, order: ClaimOrder) -> list[ClaimResult]:
        """Take over what may be; one result for each entry of the order."""
        known = self._backlog.known()
        wanted = [each for each in order.ids if each not in known][: self._backlog.room]
        # Here and not with whoever asks: what Redis has given us comes into the backlog, or, if this actor is broken
        # off in between, to the listener, which reads its consumer's history when both start again.
        taken = await self._pending().claim(self._consumers[0], order.idle, wanted) if wanted else []
        self._backlog.add(each.entry for each in taken if each.entry is not None)
        results = {each.entry_id: self._result(each) for each in taken}
        claimed = [each.entry_id for each in results.values() if each.outcome is ClaimOutcome.CLAIMED]
        if claimed:
            log.info("claimed by order", stream=self._stream, group=self._group, entries=claimed, by=order.by)
        left_over = {each: ClaimOutcome.HERE if each in known else ClaimOutcome.NO_ROOM for each in order.ids}
        return [
            results.get(each) or ClaimResult(key=self._stream, entry_id=each, outcome=left_over[each])
            for each in order.ids
        ]

    def _result(self, taken: Taken) -> ClaimResult:
        if taken.consumer is None:
            return ClaimResult(key=self._stream, entry_id=taken.entry_id, outcome=ClaimOutcome.NOT_PENDING)
        outcome = ClaimOutcome.BUSY
        if taken.entry is not None:
            outcome = ClaimOutcome.GONE if taken.entry.fields is None else ClaimOutcome.CLAIMED
        return ClaimResult(
            key=self._stream, entry_id=taken.entry_id, outcome=outcome, consumer=taken.consumer, idle=taken.idle
        )

    # What we have -----------------------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        pending = self._pending()
        for consumer, entries in self._backlog.rest().items():
            lost = await pending.renew(consumer, [entry.id for entry in entries])
            gone = self._backlog.forget(lost)
            if gone:
                log.warning("others took over entries", stream=self._stream, group=self._group, entries=len(gone))

    async def _leave(self) -> None:
        pending = self._pending()
        if self._owner is not None:
            await pending.remove([self._owner()])
            return
        given = 0
        for consumer, entries in self._backlog.rest().items():
            ids = [entry.id for entry in entries if entry.fields is not None]
            given += await pending.give_back(consumer, ids, self._settings.reclaim_idle)
        removed = await pending.remove(self._consumers)
        log.info("left the group", stream=self._stream, group=self._group, given_back=given, removed=removed)
