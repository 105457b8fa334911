"""Streams and their groups as Redis has them at one moment, and what is read out of that.

A stream is looked at by one script, so that its length, its counters and those of its groups belong together: only
then do they prove that something is lost, or that a lag is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import redis.exceptions
import trio
from attrs import evolve, frozen

from ..runtime.redis import OutcomeUnknown
from .entry_functions import ENTRY_FUNCTIONS
from .handling import entry_order

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis
    from ..runtime.redis.script import Script

__all__ = ["GroupView", "StreamView", "asked", "id_after", "last_id_of", "observe"]

ATTEMPTS: Final = 3
"""How often a look is taken whose connection broke under it: a slot that moves closes some."""

_LARGEST: Final = 2**64 - 1


@frozen(kw_only=True)
class GroupView:
    """A consumer group as Redis saw it last.

    Attributes:
        name: its name.
        lag: entries that it has not been given yet; None where nobody can tell.
        pending: entries given and not acknowledged.
        consumers: how many consumers it has.
        last_delivered_id: the last entry that it was given.
        entries_read: how many entries of the stream were given to it, or were gone before it came; None where Redis
            cannot tell (before 7.0, and for some groups that began in mid-stream).
        next_id: the first entry that it has not been given; None if there is none.
        vanished: the entry that was its `next_id` before is gone, and was never given to it.
        lag_reported: what Redis itself calls its lag.
    """

    name: str
    lag: int | None
    pending: int
    consumers: int
    last_delivered_id: str
    entries_read: int | None = None
    next_id: str | None = None
    vanished: bool = False
    lag_reported: int | None = None


@frozen(kw_only=True)
class StreamView:
    """A stream as Redis saw it last.

    Attributes:
        key: its key; of a stream with several partitions, the partition's.
        length: entries in it.
        last_id: the last id given out; ``0-0`` while there is no such stream.
        observed_at: `trio.current_time()` of the observation.
        groups: its groups.
        first_id: the oldest entry; None in an empty stream.
        entries_added: how many entries it was ever given; None before Redis 7.0.
        max_deleted_id: the greatest id that was deleted (not trimmed); ``0-0`` if none was.
    """

    key: str
    length: int
    last_id: str
    observed_at: float
    groups: tuple[GroupView, ...] = ()
    first_id: str | None = None
    entries_added: int | None = None
    max_deleted_id: str = "0-0"


def id_after(entry_id: str) -> str:
    """The least id that is greater."""
    milliseconds, sequence = entry_order(entry_id)
    return f"{milliseconds}-{sequence + 1}" if sequence < _LARGEST else f"{milliseconds + 1}-0"


async def observe(client: AnyRedis, stream: str, now: float, expected: Mapping[str, str] | None = None) -> StreamView:
    """What Redis knows of a stream and its groups; a stream that does not exist yet is an empty one.

    Args:
        client: the link.
        stream: its key.
        now: `trio.current_time()`.
        expected: by group, the `GroupView.next_id` of an earlier look; see `GroupView.vanished`.

    Raises:
        redis.exceptions.RedisError: as the link says.
    """
    arguments = [word for pair in (expected or {}).items() for word in pair]
    reply = await asked(client.register_script(_LOOK), stream, arguments)
    if not reply:
        return StreamView(key=stream, length=0, last_id="0-0", observed_at=now)
    info, first_id, groups = reply
    facts = _pairs(info)
    view = StreamView(
        key=stream,
        length=int(facts["length"]),
        last_id=_text(facts["last-generated-id"]),
        observed_at=now,
        first_id=_text(first_id) or None,
        entries_added=_number(facts.get("entries-added")),
        max_deleted_id=_text(facts.get("max-deleted-entry-id") or "0-0"),
    )
    return _with_groups(view, groups)


async def asked(look: Script, stream: str, arguments: Sequence[str | int]) -> Any:
    """What a script says that may run twice: the link repeats none of which it cannot know whether it has run."""
    for _ in range(ATTEMPTS - 1):
        try:
            return await look([stream], arguments)
        except OutcomeUnknown:
            await trio.lowlevel.checkpoint()
    return await look([stream], arguments)


async def last_id_of(client: AnyRedis, stream: str) -> str:
    """The last id that a stream has given out; ``0-0`` while there is none.

    Raises:
        redis.exceptions.RedisError: as the link says; being only a question, it is asked again where the link does so.
    """
    try:
        info: Mapping[str, Any] = await client.xinfo_stream(stream)
    except redis.exceptions.ResponseError as error:
        if "no such key" not in str(error).lower():
            raise
        return "0-0"
    return _text(info["last-generated-id"])


def _with_groups(view: StreamView, replies: Sequence[Any]) -> StreamView:
    return evolve(view, groups=tuple(_group(view, *reply) for reply in replies))


def _group(view: StreamView, reply: Any, next_id: Any, vanished: Any) -> GroupView:
    facts = _pairs(reply)
    delivered, following = _text(facts["last-delivered-id"]), _text(next_id) or None
    reported = _number(facts.get("lag"))
    return GroupView(
        name=_text(facts["name"]),
        lag=_lag(view, following, reported),
        pending=int(facts["pending"]),
        consumers=int(facts["consumers"]),
        last_delivered_id=delivered,
        entries_read=_number(facts.get("entries-read")),
        next_id=following,
        vanished=bool(int(vanished)),
        lag_reported=reported,
    )


def _lag(view: StreamView, next_id: str | None, reported: int | None) -> int | None:
    """What is certain by looking at the stream, whatever the counters say; else what Redis says, if that can be."""
    if next_id is None:
        return 0
    if next_id == view.first_id:
        return view.length
    # Something is left, and something before it is in the stream too.
    return reported if reported is not None and 0 < reported < view.length else None


def _pairs(flat: Any) -> dict[str, Any]:
    return {_text(name): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _number(value: Any) -> int | None:
    # A script sees a nil in a reply as false, and hands it on as nil.
    return None if value is None else int(value)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


# KEYS[1]: the stream. ARGV: pairs of a group and the entry that it was to be given next when it was looked at before.
# Returns nothing for a stream that does not exist; else XINFO STREAM without its entries, the first id, and for each
# group its XINFO, the next id, and whether the expected entry is gone without having been given to it.
_LOOK: Final = (
    ENTRY_FUNCTIONS
    + """
local key = KEYS[1]
if redis.call('EXISTS', key) == 0 then return {} end

local expected = {}
for i = 1, #ARGV, 2 do expected[ARGV[i]] = ARGV[i + 1] end

local info = {}
local reply = redis.call('XINFO', 'STREAM', key)
for i = 1, #reply, 2 do
    if reply[i] ~= 'first-entry' and reply[i] ~= 'last-entry' then
        info[#info + 1] = reply[i]
        info[#info + 1] = reply[i + 1]
    end
end

local groups = {}
for _, group in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    local facts = {}
    for i = 1, #group, 2 do facts[group[i]] = group[i + 1] end
    local delivered = facts['last-delivered-id']
    local awaited = expected[facts['name']]
    local vanished = 0
    if awaited and before(delivered, awaited) and first(awaited, awaited) == '' then vanished = 1 end
    groups[#groups + 1] = {group, first('(' .. delivered, '+'), vanished}
end
return {info, first('-', '+'), groups}
"""
)
