"""Deleting single entries (XDEL) so that nobody loses one unawares.

Whether a group still wants an entry, and the deletion itself, are one script: nothing comes in between. What is deleted
is written down with who did it, so that the loss detector and the ledger do not have to wonder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import psycopg
import redis.exceptions
import trio
from attrs import evolve, frozen

from ..runtime.telemetry import get_logger
from .deletion_table import Deletion
from .entry_functions import ENTRY_FUNCTIONS
from .entry_view import decoded
from .group_making import text_of
from .pending import fields_of
from .stream_view import asked

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis
    from .event import Envelope
    from .losses import LossDetector
    from .store import Store
    from .system import Stream

__all__ = ["AmbiguousEntry", "Deletions", "EntriesWanted", "Judged", "Wanted"]

log = get_logger(__name__)

DELETE_WITHIN: Final = 5.0
"""Seconds that a deletion may take in one partition; it is not broken off in the midst."""


@frozen
class Wanted:
    """A group that is not done with an entry.

    Attributes:
        group: its name.
        consumer: who has the entry and has not acknowledged it; None: the group was not given it yet.
    """

    group: str
    consumer: str | None


@frozen(kw_only=True)
class Judged:
    """An entry that somebody wants to delete.

    Attributes:
        key: the key of its stream, or of the partition.
        entry_id: its id.
        exists: whether it was there.
        event: what it carries, or carried; None if it is no event.
        wanted: who is not done with it.
        deleted: whether it was deleted.
    """

    key: str
    entry_id: str
    exists: bool
    event: Envelope | None = None
    wanted: tuple[Wanted, ...] = ()
    deleted: bool = False


class EntriesWanted(Exception):
    """Entries are not deleted, for groups are not done with them; the text says which and who.

    Attributes:
        entries: all that was asked for, with what was deleted before one of them turned out to be wanted.
    """

    def __init__(self, entries: Sequence[Judged]) -> None:
        super().__init__("; ".join(_complaint(each) for each in entries if each.wanted and not each.deleted))
        self.entries = tuple(entries)


class AmbiguousEntry(Exception):
    """An id stands in several partitions."""


class Deletions:
    """See the module.

    Args:
        client: gives the link to Redis.
        store: where deletions are written down.
        losses: is told to look at what groups lost by them.
    """

    def __init__(self, client: Callable[[], AnyRedis], store: Store, losses: LossDetector) -> None:
        self._client = client
        self._store = store
        self._losses = losses

    async def judge(self, stream: Stream, keys: Sequence[str], ids: Sequence[str]) -> list[Judged]:
        """Look for entries in these partitions of a stream, and who wants them; one for each id, in order.

        Raises:
            AmbiguousEntry: one is in several of them; what is meant must be said by the partition's key.
            redis.exceptions.RedisError: as the link says.
        """
        found: dict[str, Judged] = {}
        look = self._client().register_script(_DELETE)
        for key in keys:
            for each in _judged(stream, key, ids, await asked(look, key, _words(stream, ids, "look"))):
                known = found.get(each.entry_id)
                if known is not None and known.exists and each.exists:
                    raise AmbiguousEntry(
                        f"{each.entry_id} stands in {known.key} and in {each.key}: name one of them as the stream"
                    )
                if known is None or each.exists:
                    found[each.entry_id] = each
        return [found[each] for each in ids]

    async def delete(
        self, stream: Stream, keys: Sequence[str], ids: Sequence[str], *, by: str, unread: bool = False
    ) -> list[Judged]:
        """Delete entries, all or, if a group is not done with one of them, none.

        Blocks for some round trips; a deletion that has begun is not broken off by a cancellation.

        Args:
            stream: the declared stream; a group that it declares wants all that it was not given, also before it is
                made.
            keys: of the partitions in which the entries are looked for.
            ids: of the entries; those that are not there are none the worse.
            by: who does it, for the record.
            unread: delete also what groups are not done with: they lose it.

        Raises:
            EntriesWanted: they are not done with one, and `unread` is not given.
            AmbiguousEntry: as `judge`.
            redis.exceptions.RedisError, PostgresUnavailable: as the links say; ask again, to know what was deleted.
        """
        judged = await self.judge(stream, keys, ids)
        if not unread and any(each.wanted for each in judged):
            raise EntriesWanted(judged)
        for key in dict.fromkeys(each.key for each in judged if each.exists):
            there = [each for each in judged if each.key == key and each.exists]
            try:
                with trio.fail_after(DELETE_WITHIN, shield=True):
                    done = {each.entry_id: each for each in await self._delete(stream, key, there, by, unread=unread)}
            except EntriesWanted as refused:  # a group was made, or set back, a moment ago
                changed = {each.entry_id: each for each in refused.entries}
                raise EntriesWanted([changed.get(each.entry_id, each) for each in judged]) from None
            judged = [done.get(each.entry_id, each) for each in judged]
            if any(wanted.consumer is None for each in done.values() for wanted in each.wanted):
                await self._note_losses(key)
        return judged

    async def _delete(
        self, stream: Stream, key: str, there: Sequence[Judged], by: str, *, unread: bool
    ) -> list[Judged]:
        ids = [each.entry_id for each in there]
        script = self._client().register_script(_DELETE)
        async with self._store.transaction() as transaction:
            # First, so that a database that does not take it is no reason for a deletion without a record.
            await self._store.deletions.add(transaction, [_record(each, by) for each in there])
            # Asked again where its answer was lost: what is not there any more has been deleted.
            found = _judged(
                stream, key, ids, await asked(script, key, _words(stream, ids, "unread" if unread else "read"))
            )
            done = [
                now if now.exists else evolve(before, deleted=True) for before, now in zip(there, found, strict=True)
            ]
            if not all(each.deleted for each in done):
                raise EntriesWanted(done)
            for each in done:
                wanted = [f"{one.group} ({one.consumer or 'not given it'})" for one in each.wanted]
                log.warning("entry deleted", stream=key, entry=each.entry_id, by=by, wanted_by=wanted)
            await self._store.deletions.add(transaction, [_record(each, by) for each in done])
        return done

    async def _note_losses(self, key: str) -> None:
        """Have written down what groups lost, and their lags mended, before they read on."""
        try:
            await self._losses.look_anew(key)
        except (redis.exceptions.RedisError, psycopg.Error) as error:
            log.debug("losses not noted yet", stream=key, error=str(error))


def _judged(stream: Stream, key: str, ids: Sequence[str], reply: Any) -> list[Judged]:
    deleted, rows = reply
    found = []
    for entry_id, (exists, flat, wanted) in zip(ids, rows, strict=True):
        event = decoded(stream, key, entry_id, fields_of(flat))[0] if exists else None
        groups = [text_of(word) for word in wanted[::2]]
        consumers = [text_of(word) or None for word in wanted[1::2]]
        found.append(
            Judged(
                key=key,
                entry_id=entry_id,
                exists=bool(exists),
                event=event,
                wanted=tuple(map(Wanted, groups, consumers)),
                deleted=bool(deleted and exists),
            )
        )
    return found


def _words(stream: Stream, ids: Sequence[str], how: str) -> list[str | int]:
    return [how, len(stream.groups), *stream.groups, *ids]


def _record(judged: Judged, by: str) -> Deletion:
    return Deletion(
        stream=judged.key,
        entry_id=judged.entry_id,
        event_id=None if judged.event is None else judged.event.event_id,
        event_type=None if judged.event is None else judged.event.event_type,
        unread_by=tuple(each.group for each in judged.wanted if each.consumer is None),
        pending_by=tuple(each.group for each in judged.wanted if each.consumer is not None),
        deleted_by=by,
    )


def _complaint(judged: Judged) -> str:
    told = [
        f"{each.group} was not given it yet"
        if each.consumer is None
        else f"{each.group} has not acknowledged it ({each.consumer} has it)"
        for each in judged.wanted
    ]
    return f"{judged.entry_id}: {', '.join(told)}"


# KEYS[1]: the stream. ARGV: `look` (delete nothing), `read` (only if nobody wants one of them) or `unread`; the number
# of declared groups, and their names; the ids. Returns whether they were deleted, and for each whether it was there,
# its fields, and pairs of a group that is not done with it and the consumer that has it ('': it was not given it).
_DELETE: Final = (
    ENTRY_FUNCTIONS
    + """
local key, how, count = KEYS[1], ARGV[1], tonumber(ARGV[2])
local groups, delivered = {}, {}
if redis.call('EXISTS', key) == 1 then
    for _, row in ipairs(redis.call('XINFO', 'GROUPS', key)) do
        local facts = {}
        for i = 1, #row, 2 do facts[row[i]] = row[i + 1] end
        groups[#groups + 1] = facts['name']
        delivered[facts['name']] = facts['last-delivered-id']
    end
end
for i = 3, 2 + count do
    if not delivered[ARGV[i]] then groups[#groups + 1] = ARGV[i] end
end

local rows, there, is_wanted = {}, {}, false
for i = 3 + count, #ARGV do
    local id, wanted, fields = ARGV[i], {}, {}
    local found = redis.call('XRANGE', key, id, id)[1]
    if found then
        there[#there + 1] = id
        fields = found[2]
        for _, group in ipairs(groups) do
            local holder = nil
            if not delivered[group] or before(delivered[group], id) then
                holder = ''
            else
                local row = redis.call('XPENDING', key, group, id, id, 1)[1]
                holder = row and row[2]
            end
            if holder then
                wanted[#wanted + 1] = group
                wanted[#wanted + 1] = holder
                is_wanted = true
            end
        end
    end
    rows[#rows + 1] = {found and 1 or 0, fields, wanted}
end

local deletes = #there > 0 and (how == 'unread' or (how == 'read' and not is_wanted))
if deletes then redis.call('XDEL', key, unpack(there)) end
return {deletes and 1 or 0, rows}
"""
)
