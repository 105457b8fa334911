"""The arguments of stream commands, read as a real server reads them, with its complaints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attrs import define

from ._fakeredis import Int, SimpleError, StreamEntryKey, current_time

__all__ = [
    "ClaimOptions",
    "ReadOptions",
    "id_before",
    "parse_bound",
    "parse_id",
    "read_autoclaim",
    "read_claim",
    "read_entries_read",
    "read_pending",
    "read_read",
]

_INVALID_ID: Final = "ERR Invalid stream ID specified as stream command argument"
_SYNTAX: Final = "ERR syntax error"
_MAX: Final = StreamEntryKey(2**64 - 1, 2**64 - 1)
_UNBALANCED: Final = "ERR Unbalanced '{}' list of streams: for each stream key an ID, '+', or '$' must be specified."


@define
class ReadOptions:
    """The arguments of XREAD and XREADGROUP."""

    keys: Sequence[bytes] = ()
    ids: Sequence[bytes] = ()
    group: bytes | None = None
    consumer: bytes = b""
    count: int = 0
    block: float | None = None
    no_ack: bool = False


@define
class ClaimOptions:
    """The options of XCLAIM."""

    delivered: int | None = None
    retries: int | None = None
    force: bool = False
    just_id: bool = False
    last_id: StreamEntryKey | None = None

    def count_of(self, before: int) -> int:
        """The delivery count after the claim."""
        if self.retries is not None:
            return self.retries
        return before if self.just_id else before + 1


def parse_id(word: bytes, missing: int = 0) -> StreamEntryKey:
    """A complete id, or its milliseconds alone. Raises SimpleError."""
    time, dash, sequence = word.partition(b"-")
    if not time.isdigit() or (dash and not sequence.isdigit()):
        raise SimpleError(_INVALID_ID)
    found = StreamEntryKey(int(time), int(sequence) if dash else missing)
    if max(found) > _MAX.ts:
        raise SimpleError(_INVALID_ID)
    return found


def parse_bound(word: bytes, *, is_start: bool, exclusive: bool = True) -> StreamEntryKey:
    """The bound of a range: an id, "-", "+", or "(" and an id; as the first or the last id of the range."""
    if word == b"-":
        return StreamEntryKey(0, 0)
    if word == b"+":
        return _MAX
    if exclusive and word[:1] == b"(":
        bound = parse_id(word[1:], 0 if is_start else _MAX.seq)
        if is_start:
            if bound == _MAX:
                raise SimpleError("ERR invalid start ID for the interval")
            return _after(bound)
        if bound == (0, 0):
            raise SimpleError("ERR invalid end ID for the interval")
        return id_before(bound)
    return parse_id(word, 0 if is_start else _MAX.seq)


def _after(entry_id: StreamEntryKey) -> StreamEntryKey:
    if entry_id.seq < _MAX.seq:
        return StreamEntryKey(entry_id.ts, entry_id.seq + 1)
    return StreamEntryKey(entry_id.ts + 1, 0)


def id_before(entry_id: StreamEntryKey) -> StreamEntryKey:
    if entry_id.seq:
        return StreamEntryKey(entry_id.ts, entry_id.seq - 1)
    return StreamEntryKey(entry_id.ts - 1, _MAX.seq)


def read_read(name: str, words: Sequence[bytes]) -> ReadOptions:
    read, index = ReadOptions(), 0
    while index < len(words):
        option, more = words[index].upper(), len(words) - index - 1
        if option == b"BLOCK" and more:
            read.block = _milliseconds(words[index + 1])
            index += 1
        elif option == b"COUNT" and more:
            read.count = max(0, Int.decode(words[index + 1]))
            index += 1
        elif option == b"STREAMS" and more:
            rest = words[index + 1 :]
            if len(rest) % 2:
                raise SimpleError(_UNBALANCED.format(name))
            read.keys, read.ids = rest[: len(rest) // 2], rest[len(rest) // 2 :]
            break
        elif option == b"GROUP" and more >= 2:
            if name == "xread":
                raise SimpleError("ERR The GROUP option is only supported by XREADGROUP. You called XREAD instead.")
            read.group, read.consumer = words[index + 1], words[index + 2]
            index += 2
        elif option == b"NOACK":
            if name == "xread":
                raise SimpleError("ERR The NOACK option is only supported by XREADGROUP. You called XREAD instead.")
            read.no_ack = True
        else:
            raise SimpleError(_SYNTAX)
        index += 1
    if not read.keys:
        raise SimpleError(_SYNTAX)
    if name == "xreadgroup" and read.group is None:
        raise SimpleError("ERR Missing GROUP option for XREADGROUP")
    return read


def _milliseconds(word: bytes) -> float:
    value: int = Int.decode(word, "ERR timeout is not an integer or out of range")
    if value < 0:
        raise SimpleError("ERR timeout is negative")
    return value / 1000


def read_pending(
    words: Sequence[bytes],
) -> tuple[int, StreamEntryKey, StreamEntryKey, int, bytes | None] | None:
    """Least idle time, range, count and consumer; None for the summary."""
    if not words:
        return None
    idle = 0
    if words[0].upper() == b"IDLE":
        if len(words) < 5:
            raise SimpleError(_SYNTAX)
        idle = Int.decode(words[1])
        words = words[2:]
    if len(words) not in (3, 4):
        raise SimpleError(_SYNTAX)
    count: int = Int.decode(words[2])
    low = parse_bound(words[0], is_start=True)
    high = parse_bound(words[1], is_start=False)
    return idle, low, high, count, words[3] if len(words) == 4 else None


def read_claim(words: Sequence[bytes]) -> tuple[list[StreamEntryKey], ClaimOptions]:
    """The ids, which end at the first word that is none, and the options."""
    ids: list[StreamEntryKey] = []
    for word in words:
        try:
            ids.append(parse_id(word))
        except SimpleError:
            break
    rest, options, now = words[len(ids) :], ClaimOptions(), current_time()
    index = 0
    while index < len(rest):
        option, more = rest[index].upper(), len(rest) - index - 1
        if option == b"FORCE":
            options.force = True
        elif option == b"JUSTID":
            options.just_id = True
        elif option in (b"IDLE", b"TIME", b"RETRYCOUNT", b"LASTID") and more:
            index += 1
            _set_claim_option(options, option, rest[index], now)
        else:
            raise SimpleError(f"ERR Unrecognized XCLAIM option '{rest[index].decode('utf-8', 'replace')}'")
        index += 1
    return ids, options


def _set_claim_option(options: ClaimOptions, option: bytes, word: bytes, now: int) -> None:
    name = option.decode()
    if option == b"LASTID":
        options.last_id = parse_id(word)
        return
    value: int = Int.decode(word, f"ERR Invalid {name} option argument for XCLAIM")
    if option == b"IDLE":
        options.delivered = now - value
    elif option == b"TIME":
        options.delivered = value
    elif value < 0:
        raise SimpleError("ERR Invalid RETRYCOUNT option argument for XCLAIM")
    else:
        options.retries = value


def read_autoclaim(words: Sequence[bytes]) -> tuple[int, bool]:
    """Count, and whether only ids are wanted."""
    count, just_id, index = 100, False, 0
    while index < len(words):
        option = words[index].upper()
        if option == b"COUNT" and index + 1 < len(words):
            index += 1
            count = Int.decode(words[index], "ERR COUNT must be > 0")
            if count < 1:
                raise SimpleError("ERR COUNT must be > 0")
        elif option == b"JUSTID":
            just_id = True
        else:
            raise SimpleError(_SYNTAX)
        index += 1
    return count, just_id


def read_entries_read(word: bytes) -> int | None:
    value: int = Int.decode(word)
    if value < -1:
        raise SimpleError("ERR value for ENTRIESREAD must be positive or -1")
    return None if value == -1 else value
