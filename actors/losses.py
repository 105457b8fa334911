"""The loss detector: entries that somebody trimmed or deleted before a group was given them.

Redis itself keeps the evidence until the group reads on: while the first entry of a stream is one that a group has not
been given, what was added and neither given to it nor still there is lost, and exactly so many. The evidence is written
down in PostgreSQL before anything is done that could wipe it out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio
from attrs import evolve, frozen

from ..runtime.telemetry import get_logger
from .handling import entry_order
from .lag import LagRepair
from .stream_view import GroupView, StreamView, id_after, observe

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis
    from .store import Store

__all__ = ["Loss", "LossDetector", "loss_of"]

log = get_logger(__name__)

ADVICE: Final = (
    "somebody trims this stream (XADD MAXLEN, XTRIM, XDEL, or a lossy_cap): publish those events again from where they"
    " came from; their event ids make what was handled no second effect"
)
"""What stands in the log beside a loss."""


@frozen(kw_only=True)
class Loss:
    """Entries of one stream that one group will never be given.

    Attributes:
        group: the consumer group.
        stream: the stream's key; the partition's, where there are several.
        after_id: the last entry that the group was given: what is lost is younger.
        before_id: what is lost is older than this: the first entry that is there, or whatever comes next.
        entries: how many; None where Redis cannot tell.
        counted_from: how many entries the group had been given, or had missed before, when this was found; -1 where
            Redis cannot tell. It tells a loss that has grown from another one at the same place.
    """

    group: str
    stream: str
    after_id: str
    before_id: str
    entries: int | None
    counted_from: int = -1


def loss_of(view: StreamView, group: GroupView, *, left: int | None = None) -> Loss | None:
    """What the group has lost by this view, or None.

    Args:
        view: the stream.
        group: one of its groups.
        left: how many entries are left for the group, where they were counted. Without it only a loss at the beginning
            of the stream is seen, which is where trimming takes from.
    """
    added, read = view.entries_added, group.entries_read
    if left is None and group.next_id in (None, view.first_id) and _is_behind(view, group):
        left = 0 if group.next_id is None else view.length
    if left is not None and added is not None and read is not None:
        entries = added - read - left
        return _loss(view, group, entries, read) if entries > 0 else None
    return _loss(view, group, None, -1) if group.vanished else None


def _is_behind(view: StreamView, group: GroupView) -> bool:
    return entry_order(group.last_delivered_id) < entry_order(view.last_id)


def _loss(view: StreamView, group: GroupView, entries: int | None, counted_from: int) -> Loss:
    before = group.next_id or id_after(view.last_id)
    if group.next_id not in (None, view.first_id):
        before = id_after(view.max_deleted_id)  # from the midst of the stream, where only deleting takes from
    return Loss(
        group=group.name,
        stream=view.key,
        after_id=group.last_delivered_id,
        before_id=before,
        entries=entries,
        counted_from=counted_from,
    )


class LossDetector:
    """Looks at streams, writes down what was lost, and mends what Redis says of lags.

    Args:
        client: gives the link to Redis.
        store: where losses are written down.
    """

    def __init__(self, client: Callable[[], AnyRedis], store: Store) -> None:
        self._client = client
        self._store = store
        self._repair = LagRepair()
        self._expected: dict[str, dict[str, str]] = {}
        self._told: dict[tuple[str, str], Loss] = {}

    @property
    def found(self) -> list[Loss]:
        """The last loss of each group and partition that this process has met with, and written down."""
        return list(self._told.values())

    async def look(self, stream: str) -> StreamView:
        """The stream as it is now; its losses are written down, and lags that Redis has lost count of are mended.

        Call it before anything that wipes evidence out: before a group reads on after a pause, and before trimming.
        Cancellation: nothing is half done; what was found and not written down is found again.

        Raises:
            redis.exceptions.RedisError: as the link says.
            PostgresUnavailable: a loss was found, and cannot be written down now; the evidence is left as it is.
        """
        client = self._client()
        view = await observe(client, stream, trio.current_time(), self._expected.get(stream))
        groups = []
        for group in view.groups:
            left = await self._repair.count(client, view, group)
            loss = loss_of(view, group, left=left)
            if loss is not None:
                await self._write(loss)
            groups.append(await self._repair.mend(client, view, group, left))
        self._expected[stream] = {group.name: group.next_id for group in view.groups if group.next_id is not None}
        return evolve(view, groups=tuple(groups))

    async def look_anew(self, stream: str) -> StreamView:
        """As `look`, and counting what is left for groups whatever was counted a moment ago: entries were deleted."""
        self._repair.forget(stream)
        return await self.look(stream)

    async def _write(self, loss: Loss) -> None:
        place = (loss.group, loss.stream)
        if self._told.get(place) == loss:
            return
        async with self._store.transaction() as transaction:
            is_news = await self._store.losses.add(transaction, loss)
            known = await self._store.deletions.explain(transaction, loss)
        self._told[place] = loss
        if is_news and known.entries >= (loss.entries or 1):
            log.warning(
                "entries deleted unread",
                stream=loss.stream,
                group=loss.group,
                entries=known.entries,
                by=known.by,
                after=loss.after_id,
                before=loss.before_id,
            )
        elif is_news:
            log.error(
                "events lost",
                stream=loss.stream,
                group=loss.group,
                entries=loss.entries if loss.entries is not None else "unknown",
                deleted_on_purpose=known.entries,
                after=loss.after_id,
                before=loss.before_id,
                advice=ADVICE,
            )
