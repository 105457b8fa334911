"""Streams without groups: what fakeredis does differently from a real server."""

from __future__ import annotations

import bisect
from typing import Any, Final

from ._fakeredis import OK, Int, SimpleError, StreamEntryKey, messages, signature
from .redis_encoding import NULL_ARRAY
from .redis_groups import GROUP_COMMANDS, GroupCommands, describe_group
from .redis_stream_options import parse_bound, parse_id

__all__ = ["STREAM_COMMANDS", "StreamCommands"]

_BELOW: Final = "ERR The ID specified in XSETID is smaller than {}"
_NOT_IN_VALKEY: Final = (b"idmp", b"iids", b"pids")


class StreamCommands(GroupCommands):
    """The commands, for a session."""

    def xinfo_stream(self, key: Any, *words: bytes) -> dict[bytes, Any]:
        """fakeredis answers with a list where RESP3 has a map, and with fields that Valkey does not have."""
        limit = _read_full(words) if words else None
        stream = self._stream(key)
        if stream is None:
            raise SimpleError(messages.NO_KEY_MSG)
        flat = iter(stream.stream_info(False, False))
        info = {name: value for name, value in zip(flat, flat, strict=True) if not name.startswith(_NOT_IN_VALKEY)}
        if limit is not None:
            for name in (b"first-entry", b"last-entry"):
                del info[name]
            info[b"entries"] = [stream.format_record(each) for each in stream._ids[: limit or None]]
            info[b"groups"] = [describe_group(name, group, limit) for name, group in sorted(stream._groups.items())]
        return info

    def xrange(self, key: Any, start: bytes, end: bytes, *words: bytes) -> Any:
        return self._entries(key, start, end, words, backwards=False)

    def xrevrange(self, key: Any, end: bytes, start: bytes, *words: bytes) -> Any:
        return self._entries(key, start, end, words, backwards=True)

    def xdel(self, key: Any, *ids: bytes) -> int:
        stream = self._stream(key)
        if stream is None:
            return 0
        parsed = [parse_id(word) for word in ids]
        gone: int = stream.delete([each.encode() for each in parsed])
        if gone:
            key.updated()
        return gone

    def xsetid(self, key: Any, word: bytes, *options: bytes) -> Any:
        last, added, deleted = parse_id(word), None, None
        if len(options) % 2:
            raise SimpleError("ERR syntax error")
        for option, value in zip(options[::2], options[1::2], strict=True):
            if option.upper() == b"ENTRIESADDED":
                added = Int.decode(value)
                if added < 0:
                    raise SimpleError("ERR entries_added must be positive")
            elif option.upper() == b"MAXDELETEDID":
                deleted = parse_id(value)
                if last < deleted:
                    raise SimpleError(
                        "ERR The ID specified in XSETID is smaller than the provided max_deleted_entry_id"
                    )
            else:
                raise SimpleError("ERR syntax error")
        stream = self._stream(key)
        if stream is None:
            raise SimpleError(messages.NO_KEY_MSG)
        if last < stream.max_deleted_id:
            raise SimpleError(_BELOW.format("current max_deleted_entry_id"))
        if len(stream):
            if last < stream._ids[-1]:
                raise SimpleError(_BELOW.format("the target stream top item"))
            if added is not None and added < len(stream):
                raise SimpleError("ERR The entries_added specified in XSETID is smaller than the target stream length")
        stream._last_id = last
        if added is not None:
            stream._entries_added = added
        if deleted is not None and deleted != StreamEntryKey(0, 0):
            stream._max_deleted_id = deleted
        key.updated()
        return OK

    def _entries(self, key: Any, start: bytes, end: bytes, words: tuple[bytes, ...], *, backwards: bool) -> Any:
        low, high = parse_bound(start, is_start=True), parse_bound(end, is_start=False)
        limit = -1
        for index in range(0, len(words), 2):
            if words[index].upper() != b"COUNT" or index + 1 == len(words):
                raise SimpleError("ERR syntax error")
            limit = max(0, Int.decode(words[index + 1]))
        stream = self._stream(key)
        if stream is None:
            return []
        if limit == 0:
            return NULL_ARRAY
        first, last = bisect.bisect_left(stream._ids, low), bisect.bisect_right(stream._ids, high)
        if limit > 0 and backwards:
            first = max(first, last - limit)
        elif limit > 0:
            last = min(last, first + limit)
        ids = stream._ids[first:last]
        return [stream.format_record(each) for each in (reversed(ids) if backwards else ids)]


def _read_full(words: tuple[bytes, ...]) -> int:
    """The limit of XINFO STREAM FULL; 0 for none."""
    if words[0].upper() != b"FULL" or len(words) not in (1, 3):
        raise SimpleError("ERR syntax error")
    if len(words) == 1:
        return 10
    if words[1].upper() != b"COUNT":
        raise SimpleError("ERR syntax error")
    count: int = Int.decode(words[2])
    return 10 if count < 0 else count


STREAM_COMMANDS: Final = GROUP_COMMANDS | {
    name: signature(name, name.replace(" ", "_"), keys=1)
    for name in ("xrange", "xrevrange", "xdel", "xsetid", "xinfo stream")
}
"""How fakeredis is to call them."""
