"""Consumer groups of the in-process Redis: reading, acknowledging, claiming and looking, as Valkey does it.

fakeredis keeps the streams (entries, nodes, trimming) and the tables of a group; what the commands do with them is
here, step for step after ``t_stream.c``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ._fakeredis import (
    OK,
    Int,
    PelEntry,
    SimpleError,
    StreamConsumerInfo,
    StreamEntryKey,
    XStream,
    current_time,
    messages,
    signature,
)
from .redis_encoding import NULL_ARRAY, Pairs
from .redis_stream_options import (
    ReadOptions,
    id_before,
    parse_bound,
    parse_id,
    read_autoclaim,
    read_claim,
    read_entries_read,
    read_pending,
    read_read,
)

__all__ = ["GROUP_COMMANDS", "GroupCommands", "describe_group"]

_NEVER: Final = -1
_SCANNED_PER_CLAIM: Final = 10
_NO_NEW_ID: Final = (
    "ERR The > ID can be specified only when calling XREADGROUP using the GROUP <group> <consumer> option."
)
_MEANINGLESS: Final = (
    "ERR The {0} ID is meaningless in the context of XREADGROUP: you want to read the history of this consumer by "
    "specifying a proper ID, or use the > ID to get new messages. The {0} ID would just return an empty result set."
)
_SYNTAX: Final = "ERR syntax error"


class GroupCommands:
    """The commands, for a session."""

    _db: Any
    _blocking: Any
    _script_resp: Any

    def xread(self, *words: bytes) -> Any:
        return self._read("xread", words)

    def xreadgroup(self, *words: bytes) -> Any:
        return self._read("xreadgroup", words)

    def xack(self, key: Any, group_name: bytes, *ids: bytes) -> int:
        group = self._group_of(key, group_name)
        if group is None:
            return 0
        return sum(group.pel.pop(each, None) is not None for each in [parse_id(word) for word in ids])

    def xpending(self, key: Any, group_name: bytes, *words: bytes) -> Any:
        options = read_pending(words)
        group = self._group_of(key, group_name)
        if group is None:
            raise SimpleError(_no_group(key.key, group_name))
        if options is None:
            return _pending_summary(group)
        min_idle, low, high, count, consumer = options
        if count <= 0 or (consumer is not None and consumer not in group.consumers):
            return []
        now, found = current_time(), []
        for entry_id in sorted(group.pel):
            entry = group.pel[entry_id]
            idle = max(0, now - entry.time_read)
            if low <= entry_id <= high and consumer in (None, entry.consumer_name) and idle >= min_idle:
                found.append([entry_id.encode(), entry.consumer_name, idle, entry.times_delivered])
        return found[:count]

    def xclaim(self, key: Any, group_name: bytes, consumer: bytes, min_idle: bytes, *words: bytes) -> Any:
        group = self._group_of(key, group_name)
        if group is None:
            raise SimpleError(_no_group(key.key, group_name))
        least = max(0, Int.decode(min_idle, "ERR Invalid min-idle-time argument for XCLAIM"))
        ids, options = read_claim(words)
        if options.last_id is not None and options.last_id > group.last_delivered_key:
            group.last_delivered_key = options.last_id
        now = current_time()
        owner = _consumer(group, consumer)
        owner.last_attempt = now
        claimed = []
        for entry_id in ids:
            entry = group.pel.get(entry_id)
            if entry_id not in key.value:
                group.pel.pop(entry_id, None)  # its entry is gone: so is the claim to it
                continue
            if entry is None:
                if not options.force:
                    continue
                entry = PelEntry(consumer, 0, 1)
            elif least and now - entry.time_read < least:
                continue
            delivered = now if options.delivered is None else min(options.delivered, now)
            group.pel[entry_id] = PelEntry(consumer, delivered, options.count_of(entry.times_delivered))
            owner.last_success = now
            claimed.append(entry_id.encode() if options.just_id else key.value.format_record(entry_id))
        return claimed

    def xautoclaim(
        self, key: Any, group_name: bytes, consumer: bytes, min_idle: bytes, start: bytes, *words: bytes
    ) -> Any:
        least = max(0, Int.decode(min_idle, "ERR Invalid min-idle-time argument for XAUTOCLAIM"))
        first = parse_bound(start, is_start=True)
        count, just_id = read_autoclaim(words)
        group = self._group_of(key, group_name)
        if group is None:
            raise SimpleError(_no_group(key.key, group_name))
        now = current_time()
        owner = _consumer(group, consumer)
        owner.last_attempt = now
        claimed: list[Any] = []
        deleted: list[bytes] = []
        scan = [entry_id for entry_id in sorted(group.pel) if entry_id >= first]
        attempts, index = count * _SCANNED_PER_CLAIM, 0
        while index < len(scan) and attempts and len(claimed) + len(deleted) < count:
            entry_id, attempts, index = scan[index], attempts - 1, index + 1
            entry = group.pel[entry_id]
            if entry_id not in key.value:
                del group.pel[entry_id]
                deleted.append(entry_id.encode())
                continue
            if least and now - entry.time_read < least:
                continue
            group.pel[entry_id] = PelEntry(consumer, now, entry.times_delivered + (not just_id))
            owner.last_success = now
            claimed.append(entry_id.encode() if just_id else key.value.format_record(entry_id))
        following = scan[index].encode() if index < len(scan) else b"0-0"
        return [following, claimed, deleted]

    def xgroup_createconsumer(self, key: Any, group_name: bytes, consumer: bytes) -> int:
        group = self._existing_group(key, group_name)
        is_new = consumer not in group.consumers
        _consumer(group, consumer)
        return int(is_new)

    def xgroup_delconsumer(self, key: Any, group_name: bytes, consumer: bytes) -> int:
        gone: int = self._existing_group(key, group_name).del_consumer(consumer)
        return gone

    def xgroup_setid(self, key: Any, group_name: bytes, start: bytes, *words: bytes) -> Any:
        read: int | None = None
        if words:
            if len(words) != 2 or words[0].upper() != b"ENTRIESREAD":
                raise SimpleError(_SYNTAX)
            read = read_entries_read(words[1])
        group = self._existing_group(key, group_name)
        last = key.value.last_id if start == b"$" else parse_bound(start, is_start=True, exclusive=False)
        group.set_id(last, read)
        return OK

    def xgroup_destroy(self, key: Any, group_name: bytes) -> int:
        stream = self._stream(key)
        if stream is None:
            raise SimpleError(messages.XGROUP_KEY_NOT_FOUND_MSG)
        gone: int = stream.group_delete(group_name)
        if gone:
            key.updated()  # wakes those who are blocked on it
        return gone

    def xinfo_groups(self, key: Any) -> Any:
        stream = self._stream(key)
        if stream is None:
            raise SimpleError(messages.NO_KEY_MSG)
        return [group.group_info(False) for _, group in sorted(stream._groups.items())]

    def xinfo_consumers(self, key: Any, group_name: bytes) -> Any:
        if self._stream(key) is None:
            raise SimpleError(messages.NO_KEY_MSG)
        group = self._existing_group(key, group_name)
        now, owned = current_time(), _owned(group)
        return [
            {
                b"name": name,
                b"pending": owned.get(name, 0),
                b"idle": max(0, now - consumer.last_attempt),
                b"inactive": _NEVER if consumer.last_success == _NEVER else max(0, now - consumer.last_success),
            }
            for name, consumer in sorted(group.consumers.items())
        ]

    def _read(self, name: str, words: Sequence[bytes]) -> Any:
        read = read_read(name, words)
        starts = [self._start(read, key, word) for key, word in zip(read.keys, read.ids, strict=True)]

        def attempt(first: bool) -> Any:
            if not first:
                for key, word in zip(read.keys, read.ids, strict=True):
                    self._check(read, key, word)
            return self._serve(read, starts) or None

        def shape(found: list[Any] | None) -> Any:
            return NULL_ARRAY if found is None else Pairs(found)

        return shape(attempt(True)) if read.block is None else self._blocking(read.block, attempt, shape)

    def _check(self, read: ReadOptions, key: bytes, word: bytes) -> XStream | None:
        """The stream, which must be one, and have the group if there is one. XREAD waits through a change of type."""
        item = self._db.get(key)
        if item is not None and not isinstance(item.value, XStream):
            raise SimpleError(messages.WRONGTYPE_MSG)
        if read.group is not None and (item is None or item.value.group_get(read.group) is None):
            text = messages.XREADGROUP_KEY_OR_GROUP_NOT_FOUND_MSG
            raise SimpleError(text.format(key.decode("utf-8", "replace"), read.group.decode("utf-8", "replace")))
        return None if item is None else item.value

    def _start(self, read: ReadOptions, key: bytes, word: bytes) -> StreamEntryKey | None:
        """The id after which to read; None: what the group has not delivered."""
        stream = self._check(read, key, word)
        if word in (b"$", b"+"):
            if read.group is not None:
                raise SimpleError(_MEANINGLESS.format(word.decode()))
            if stream is None:
                return StreamEntryKey(0, 0)
            if word == b"+" and len(stream):
                return id_before(stream.last_id)  # of the last id ever given, though its entry may be gone
            return stream.last_id if word == b"$" else StreamEntryKey(0, 0)
        if word == b">":
            if read.group is None:
                raise SimpleError(_NO_NEW_ID)
            return None
        return parse_id(word)

    def _serve(self, read: ReadOptions, starts: Sequence[StreamEntryKey | None]) -> list[Any]:
        found: list[Any] = []
        limit = read.count or None
        for key, start in zip(read.keys, starts, strict=True):
            item = self._db.get(key)
            stream: XStream | None = None if item is None or not isinstance(item.value, XStream) else item.value
            if read.group is not None and stream is not None:
                entries = _read_group(stream, read, start, limit)
                if entries or start is not None:
                    found.append([key, entries])
            elif stream is not None and start is not None:
                entries = [stream.format_record(each) for each in stream.stream_read(start, limit)]
                if entries:
                    found.append([key, entries])
        return found

    def _stream(self, key: Any) -> XStream | None:
        if key.value is not None and not isinstance(key.value, XStream):
            raise SimpleError(messages.WRONGTYPE_MSG)
        stream: XStream | None = key.value
        return stream

    def _group_of(self, key: Any, name: bytes) -> Any:
        stream = self._stream(key)
        return None if stream is None else stream.group_get(name)

    def _existing_group(self, key: Any, name: bytes) -> Any:
        if self._stream(key) is None:
            raise SimpleError(messages.XGROUP_KEY_NOT_FOUND_MSG)
        group = self._group_of(key, name)
        if group is None:
            shown, of = name.decode("utf-8", "replace"), key.key.decode("utf-8", "replace")
            raise SimpleError(f"NOGROUP No such consumer group '{shown}' for key name '{of}'")
        return group


def describe_group(name: bytes, group: Any, limit: int) -> dict[bytes, Any]:
    """A group in XINFO STREAM FULL, with so many pending entries (0: all)."""
    info = group.group_info(False)
    pending = sorted(group.pel.items())
    return {
        b"name": name,
        b"last-delivered-id": info[b"last-delivered-id"],
        b"entries-read": info[b"entries-read"],
        b"lag": info[b"lag"],
        b"pel-count": len(pending),
        b"pending": [
            [each.encode(), entry.consumer_name, entry.time_read, entry.times_delivered]
            for each, entry in pending[: limit or None]
        ],
        b"consumers": [
            {
                b"name": owner,
                b"seen-time": consumer.last_attempt,
                b"active-time": consumer.last_success,
                b"pel-count": len(mine),
                b"pending": [[each.encode(), entry.time_read, entry.times_delivered] for each, entry in mine][
                    : limit or None
                ],
            }
            for owner, consumer in sorted(group.consumers.items())
            for mine in [[(each, entry) for each, entry in pending if entry.consumer_name == owner]]
        ],
    }


def _no_group(key: bytes, group: bytes) -> str:
    shown, name = key.decode("utf-8", "replace"), group.decode("utf-8", "replace")
    return f"NOGROUP No such key '{shown}' or consumer group '{name}'"


def _consumer(group: Any, name: bytes) -> StreamConsumerInfo:
    """The consumer, made if it is new."""
    if name not in group.consumers:
        group.consumers[name] = StreamConsumerInfo(name)
        group.consumers[name].last_success = _NEVER
    found: StreamConsumerInfo = group.consumers[name]
    return found


def _owned(group: Any) -> dict[bytes, int]:
    """Number of pending entries of each consumer."""
    counts: dict[bytes, int] = {}
    for entry in group.pel.values():
        counts[entry.consumer_name] = counts.get(entry.consumer_name, 0) + 1
    return counts


def _pending_summary(group: Any) -> list[Any]:
    if not group.pel:
        return [0, None, None, NULL_ARRAY]
    counts = [[name, b"%d" % count] for name, count in sorted(_owned(group).items())]
    return [len(group.pel), min(group.pel).encode(), max(group.pel).encode(), counts]


def _read_group(stream: XStream, read: ReadOptions, start: StreamEntryKey | None, limit: int | None) -> list[Any]:
    """Deliver new entries, or give the consumer its pending ones after `start` once more."""
    now, group = current_time(), stream._groups[read.group or b""]
    consumer = _consumer(group, read.consumer)
    consumer.last_attempt = now
    if start is not None:
        mine = sorted(each for each, entry in group.pel.items() if entry.consumer_name == read.consumer)
        again = [each for each in mine if each > start][:limit]
        for each in again:
            entry = group.pel[each]
            group.pel[each] = PelEntry(read.consumer, now, entry.times_delivered + 1)
        return [stream.format_record(each) if each in stream else [each.encode(), NULL_ARRAY] for each in again]
    fresh = stream.stream_read(group.last_delivered_key, limit)
    for each in fresh:
        if not read.no_ack:
            group.pel[each] = PelEntry(read.consumer, now, 1)
        group._mark_delivered(each)
    if fresh:
        consumer.last_success = now
    return [stream.format_record(each) for each in fresh]


GROUP_COMMANDS: Final = {
    "xread": signature("xread", "xread"),
    "xreadgroup": signature("xreadgroup", "xreadgroup"),
    **{
        name: signature(name, name.replace(" ", "_"), keys=1)
        for name in (
            *("xack", "xpending", "xclaim", "xautoclaim", "xgroup createconsumer", "xgroup delconsumer"),
            *("xgroup setid", "xgroup destroy", "xinfo groups", "xinfo consumers"),
        )
    },
}
"""How fakeredis is to call them."""
