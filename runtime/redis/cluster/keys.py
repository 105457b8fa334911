"""Where the keys of a command are. Pure; a test holds the table to the servers' own (`COMMAND`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from redis.exceptions import DataError

from ..errors import CommandRefused
from ..routing import command_name
from ..slots import slot_of

__all__ = ["Positions", "common_slot", "full_name", "keys_of", "slot_of_argument"]


class Positions(NamedTuple):
    """Keys at fixed places, as COMMAND INFO says it: counted over all words of the command, which is word 0.

    `last` below 0 counts from the end. `first` 0 means: no keys.
    """

    first: int
    last: int
    step: int

    def of(self, words: Sequence[Any]) -> Sequence[Any]:
        """The keys among the words."""
        if not self.first:
            return ()
        last = self.last if self.last >= 0 else len(words) + self.last
        return words[self.first : last + 1 : self.step]


def full_name(name: str, args: Sequence[Any]) -> str:
    """The command in capitals, with its sub-command if it is of a kind that has one ("XGROUP CREATE")."""
    if name in _CONTAINERS and len(args) > 1 and isinstance(args[1], (str, bytes)):
        return f"{name} {command_name(args[1:2])}"
    return name


def keys_of(name: str, args: Sequence[Any]) -> Sequence[Any] | None:
    """The keys of a command; empty if it has none; None if the command is not in the table.

    Args:
        name: `full_name` of it.
        args: the command as it was given to `execute_command`: a first word like "XGROUP CREATE" counts as two.

    Raises redis.exceptions.DataError where the words make no command of that name (numkeys is no number, say).
    """
    if name in _FIRST:
        return args[1:2]
    if name in _KEYLESS:
        return ()
    words = [*args[0].split(), *args[1:]] if " " in name else args
    positions = _FIXED.get(name)
    if positions is not None:
        return positions.of(words)
    rule = _RULES.get(name)
    if rule is None:
        return () if name.partition(" ")[0] in _CONTAINERS else None
    try:
        return rule(words)
    except (ValueError, TypeError, IndexError):
        raise DataError(f"{name}: cannot tell which of its words are keys; is the command complete?") from None


def common_slot(name: str, keys: Iterable[Any]) -> int:
    """The slot that all keys are in.

    Raises CommandRefused that names the keys' slots if they are in several.
    """
    slots = [(slot_of_argument(key), key) for key in keys]
    first = slots[0][0]
    if all(slot == first for slot, _ in slots):
        return first
    shown = ", ".join(f"{_shown(key)} is in slot {slot}" for slot, key in slots[:_MOST_SHOWN])
    more = f" and {len(slots) - _MOST_SHOWN} more" if len(slots) > _MOST_SHOWN else ""
    raise CommandRefused(
        f"{name} with keys of several slots: {shown}{more}. "
        "Give keys that belong together one hash tag: {tag}:a and {tag}:b are in one slot"
    )


def slot_of_argument(key: Any) -> int:
    """The slot of a key as it is given to a command: bytes, str, int or float, memoryview."""
    if isinstance(key, (str, bytes)):
        return slot_of(key)
    return slot_of(bytes(key) if isinstance(key, (memoryview, bytearray)) else str(key))


_MOST_SHOWN: Final = 4


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _shown(key: Any) -> str:
    text = key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _numkeys_at(place: int, *others: int) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """The number of keys stands at `place`, the keys after it; further keys stand at `others`."""

    def rule(words: Sequence[Any]) -> Sequence[Any]:
        count = int(words[place])
        keys = [*(words[other] for other in others), *words[place + 1 : place + 1 + count]]
        if count < 0 or len(keys) != count + len(others):
            raise ValueError(count)
        return keys

    return rule


def _msetex(words: Sequence[Any]) -> Sequence[Any]:
    return words[2 : 2 + 2 * int(words[1]) : 2]


def _streams(words: Sequence[Any], start: int) -> Sequence[Any]:
    for place in range(start, len(words)):
        if isinstance(words[place], (str, bytes)) and command_name(words[place : place + 1]) == "STREAMS":
            keys_and_ids = words[place + 1 :]
            return keys_and_ids[: len(keys_and_ids) // 2]
    raise ValueError(words)


def _xread(words: Sequence[Any]) -> Sequence[Any]:
    return _streams(words, 1)


def _xreadgroup(words: Sequence[Any]) -> Sequence[Any]:
    return _streams(words, 4)  # after GROUP group consumer, either of which may be called "STREAMS"


def _with_store(words: Sequence[Any], start: int, options: frozenset[str]) -> Sequence[Any]:
    """The key, and those that follow one of the options (SORT … STORE, GEORADIUS … STOREDIST)."""
    keys = [words[1]]
    for place in range(start, len(words) - 1):
        if isinstance(words[place], (str, bytes)) and command_name(words[place : place + 1]) in options:
            keys.append(words[place + 1])
    return keys


def _sort(words: Sequence[Any]) -> Sequence[Any]:
    return _with_store(words, 2, frozenset({"STORE"}))


def _georadius(words: Sequence[Any]) -> Sequence[Any]:
    return _with_store(words, 6, frozenset({"STORE", "STOREDIST"}))


def _georadius_by_member(words: Sequence[Any]) -> Sequence[Any]:
    return _with_store(words, 5, frozenset({"STORE", "STOREDIST"}))


def _migrate(words: Sequence[Any]) -> Sequence[Any]:
    if words[3] not in ("", b""):
        return words[3:4]
    for place in range(6, len(words)):
        if isinstance(words[place], (str, bytes)) and command_name(words[place : place + 1]) == "KEYS":
            return words[place + 1 :]
    return ()


_RULES: Final[dict[str, Callable[[Sequence[Any]], Sequence[Any]]]] = {
    **dict.fromkeys(("EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO", "FCALL", "FCALL_RO"), _numkeys_at(2)),
    **dict.fromkeys(("ZUNION", "ZINTER", "ZDIFF", "SINTERCARD", "ZINTERCARD", "LMPOP", "ZMPOP"), _numkeys_at(1)),
    **dict.fromkeys(("SUNIONCARD", "SDIFFCARD"), _numkeys_at(1)),
    **dict.fromkeys(("BLMPOP", "BZMPOP"), _numkeys_at(2)),
    **dict.fromkeys(("ZUNIONSTORE", "ZINTERSTORE", "ZDIFFSTORE"), _numkeys_at(2, 1)),
    "MSETEX": _msetex,
    "XREAD": _xread,
    "XREADGROUP": _xreadgroup,
    "SORT": _sort,
    "GEORADIUS": _georadius,
    "GEORADIUSBYMEMBER": _georadius_by_member,
    "MIGRATE": _migrate,
}

_FIRST: Final = _words(
    """
    APPEND BITCOUNT BITFIELD BITFIELD_RO BITPOS CLUSTERSCAN DECR DECRBY DELEX DELIFEQ DIGEST DUMP EXPIRE EXPIREAT
    EXPIRETIME GEOADD GEODIST GEOHASH GEOPOS GEORADIUSBYMEMBER_RO GEORADIUS_RO GEOSEARCH GET GETBIT GETDEL GETEX
    GETRANGE GETSET HDEL HEXISTS HEXPIRE HEXPIREAT HEXPIRETIME HGET HGETALL HGETDEL HGETEX HINCRBY HINCRBYFLOAT
    HKEYS HLEN HMGET HMSET HPERSIST HPEXPIRE HPEXPIREAT HPEXPIRETIME HPTTL HRANDFIELD HSCAN HSET HSETEX HSETNX
    HSTRLEN HTTL HVALS INCR INCRBY INCRBYFLOAT LINDEX LINSERT LLEN LPOP LPOS LPUSH LPUSHX LRANGE LREM LSET LTRIM
    MOVE PERSIST PEXPIRE PEXPIREAT PEXPIRETIME PFADD PSETEX PTTL RESTORE RESTORE-ASKING RPOP RPUSH RPUSHX SADD SCARD
    SET SETBIT SETEX SETNX SETRANGE SISMEMBER SMEMBERS SMISMEMBER SORT_RO SPOP SPUBLISH SRANDMEMBER SREM SSCAN
    STRLEN SUBSTR TTL TYPE XACK XACKDEL XADD XAUTOCLAIM XCFGSET XCLAIM XDEL XDELEX XLEN XNACK XPENDING XRANGE
    XREVRANGE XSETID XTRIM ZADD ZCARD ZCOUNT ZINCRBY ZLEXCOUNT ZMSCORE ZPOPMAX ZPOPMIN ZRANDMEMBER ZRANGE
    ZRANGEBYLEX ZRANGEBYSCORE ZRANK ZREM ZREMRANGEBYLEX ZREMRANGEBYRANK ZREMRANGEBYSCORE ZREVRANGE ZREVRANGEBYLEX
    ZREVRANGEBYSCORE ZREVRANK ZSCAN ZSCORE
    """
)
"""The first argument is the one key."""

_FIXED: Final[dict[str, Positions]] = {
    **dict.fromkeys(
        _words("""
        DEL EXISTS MGET PFCOUNT PFMERGE SDIFF SDIFFSTORE SINTER SINTERSTORE SSUBSCRIBE SUNION SUNIONSTORE SUNSUBSCRIBE
        TOUCH UNLINK WATCH
        """),
        Positions(1, -1, 1),
    ),
    **dict.fromkeys(
        _words("""
        BLMOVE BRPOPLPUSH COPY GEOSEARCHSTORE LCS LMOVE RENAME RENAMENX RPOPLPUSH SMOVE ZRANGESTORE
        """),
        Positions(1, 2, 1),
    ),
    **dict.fromkeys(("BLPOP", "BRPOP", "BZPOPMAX", "BZPOPMIN"), Positions(1, -2, 1)),
    **dict.fromkeys(("MSET", "MSETNX"), Positions(1, -1, 2)),
    "BITOP": Positions(2, -1, 1),
    "PFDEBUG": Positions(2, 2, 1),
    "DEBUG OBJECT": Positions(2, 2, 1),
    "MEMORY USAGE": Positions(2, 2, 1),
    **{f"OBJECT {what}": Positions(2, 2, 1) for what in ("ENCODING", "FREQ", "IDLETIME", "REFCOUNT")},
    **{
        f"XGROUP {what}": Positions(2, 2, 1) for what in ("CREATE", "CREATECONSUMER", "DELCONSUMER", "DESTROY", "SETID")
    },
    **{f"XINFO {what}": Positions(2, 2, 1) for what in ("CONSUMERS", "GROUPS", "STREAM")},
}

_CONTAINERS: Final = _words(
    """
    ACL CLIENT CLUSTER COMMAND COMMANDLOG CONFIG DEBUG FUNCTION HOTKEYS LATENCY MEMORY MODULE OBJECT PUBSUB SCRIPT
    SLOWLOG XGROUP XINFO
    """
)
"""Commands that have sub-commands. Those of them that are not in the tables have no keys."""

_KEYLESS: Final = _words(
    """
    ASKING AUTH BGREWRITEAOF BGSAVE DBSIZE DISCARD ECHO EXEC FAILOVER FLUSHALL FLUSHDB HELLO INFO KEYS LASTSAVE LOLWUT
    MONITOR MULTI PFSELFTEST PING PSUBSCRIBE PSYNC PUBLISH PUNSUBSCRIBE QUIT RANDOMKEY READONLY READWRITE REPLCONF
    REPLICAOF RESET ROLE SAVE SCAN SELECT SHUTDOWN SLAVEOF SUBSCRIBE SWAPDB SYNC TIME UNSUBSCRIBE UNWATCH WAIT WAITAOF
    """
)
