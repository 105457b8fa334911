"""What commands answer: tables that hold for every server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
from attrs import frozen
from redis import exceptions

from penstock.runtime.redis import Redis
from penstock.runtime.redis.replies import reply_text

if TYPE_CHECKING:
    from conftest import Server
    from trio.testing import MockClock


@frozen
class Error:
    """An error line; with `...` at its end, only its beginning."""

    text: str

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Error):
            return NotImplemented
        return other.text.startswith(self.text[:-3]) if self.text.endswith("...") else other.text == self.text


@frozen
class Since72:
    """What Redis 7.2 and Valkey answer, and what older servers did."""

    new: Any
    old: Any


@frozen
class Either:
    """Valkey's answer, and Redis'."""

    valkey: Any
    redis: Any


OK: Final = True
GROUP: Final = [
    ("XADD s 1-0 n 1", b"1-0"),
    ("XADD s 2-0 n 2", b"2-0"),
    ("XADD s 3-0 n 3", b"3-0"),
    ("XGROUP CREATE s g 0", OK),
]


def entry(number: int) -> tuple[bytes, dict[bytes, bytes]]:
    return b"%d-0" % number, {b"n": b"%d" % number}


TABLES: Final[dict[str, list[tuple[str, Any]]]] = {
    "strings": [
        ("SET k v", OK),
        ("SET k w NX", None),
        ("GETSET k w", b"v"),
        ("GETEX k PERSIST", b"w"),
        ("APPEND k xyz", 4),
        ("SETRANGE k 6 end", 9),
        ("GETRANGE k 0 -1", b"wxyz\0\0end"),
        ("INCR k", Error("ERR value is not an integer or out of range")),
        ("INCRBY n 5", 5),
        ("INCRBYFLOAT n 0.1", 5.1),
        ("MGET k absent n", [b"wxyz\0\0end", None, b"5.1"]),
        ("SETEX k 0 v", Error("ERR invalid expire time in 'setex' command")),
        ("GETDEL n", b"5.1"),
        ("SETBIT b 7 1", 0),
        ("BITCOUNT b", 1),
        ("LPUSH k x", Error("WRONGTYPE Operation against a key holding the wrong kind of value")),
    ],
    "keys": [
        ("SET a 1", OK),
        ("EXPIRE a 100 XX", False),
        ("EXPIRE a 100 NX", True),
        ("EXPIRE a 50 GT", False),
        ("EXPIRE a 50 LT", True),
        ("PERSIST a", True),
        ("TTL a", -1),
        ("TTL absent", -2),
        ("COPY a b", True),
        ("COPY a b", False),
        ("COPY a b REPLACE", True),
        ("RENAMENX a b", False),
        ("RENAME absent b", Error("ERR no such key")),
        ("TOUCH a b absent", 2),
        ("EXISTS a a absent", 2),
        ("TYPE a", b"string"),
        ("DBSIZE", 2),
        ("MOVE a 1", True),
        ("RANDOMKEY", b"b"),
        ("FLUSHDB", True),
        ("RPUSH l 3 1 2", 3),
        ("SORT l DESC", [b"3", b"2", b"1"]),
        ("SORT l LIMIT 0 1 STORE m", 1),
    ],
    "hashes, lists, sets": [
        ("HSET h a 1 b 2", 2),
        ("HGETALL h", {b"a": b"1", b"b": b"2"}),
        ("HINCRBY h a 2", 3),
        ("HINCRBYFLOAT h b 0.5", 2.5),
        ("HMGET h a absent", [b"3", None]),
        ("HSTRLEN h b", 3),
        ("RPUSH l 1 2 3", 3),
        ("LPOS l 2", 1),
        ("LINSERT l BEFORE 2 x", 4),
        ("LSET l 9 y", Error("ERR index out of range")),
        ("LPOP l 2", [b"1", b"x"]),
        ("LPOP absent 2", None),
        ("LMPOP 2 absent l LEFT COUNT 9", [b"l", [b"2", b"3"]]),
        ("EXISTS l", 0),
        ("BLPOP absent 0.01", None),
        ("BLMPOP 0.01 1 absent LEFT", None),
        ("BLMOVE absent l LEFT RIGHT 0.01", None),
        ("SADD u a b", 2),
        ("SMISMEMBER u a x", [1, 0]),
        ("SINTERCARD 2 u u LIMIT 1", 1),
        ("SMOVE u v a", True),
        ("SMEMBERS v", {b"a"}),
    ],
    "sorted sets": [
        ("ZADD z 1 a 2.5 b", 2),
        ("ZADD z GT CH 0.5 a", 0),
        ("ZINCRBY z 1.5 a", 2.5),
        ("ZSCORE z a", 2.5),
        ("ZADD z NX XX 1 a", Error("ERR XX and NX options at the same time are not compatible")),
        ("ZRANGE z (1 +inf BYSCORE LIMIT 0 1", [b"a"]),
        ("ZRANGESTORE y z 0 0", 1),
        ("ZMSCORE z a absent", [2.5, None]),
        ("ZMPOP 1 z MIN", [b"z", [[b"a", 2.5]]]),
        ("ZINTERCARD 2 z z", 1),
        ("BZPOPMIN absent 0.01", None),
    ],
    "adding and trimming": [
        ("XADD s 1-* n 1", b"1-0"),
        ("XADD s 1-* n 1", b"1-1"),
        ("XADD s 007-0 n 7", b"7-0"),
        ("XADD s 7-0 n 7", Error("ERR The ID specified in XADD is equal or smaller than the target stream top item")),
        ("XADD s 0-0 n 7", Error("ERR The ID specified in XADD must be greater than 0-0")),
        ("XADD s x n 7", Error("ERR Invalid stream ID specified as stream command argument")),
        ("XADD s * odd", Error("ERR wrong number of arguments for 'xadd' command")),
        ("XADD absent NOMKSTREAM 1-0 n 1", None),
        ("XRANGE s (1-0 + COUNT 1", [(b"1-1", {b"n": b"1"})]),
        ("XRANGE s 1 1", [(b"1-0", {b"n": b"1"}), (b"1-1", {b"n": b"1"})]),
        ("XRANGE s - + COUNT 0", None),
        ("XDEL s 1-1 9-9", 1),
        ("XTRIM s MAXLEN 1 LIMIT 5", Error("ERR syntax error, LIMIT cannot be used without the special ~ option")),
        ("XTRIM s MINID ~ 7", 0),
        ("XTRIM s MINID 7", 1),
        ("XTRIM s MAXLEN 0", 1),
        ("XLEN s", 0),
        ("EXISTS s", 1),
        ("XADD s 3-0 n 3", Error("ERR The ID specified in XADD is equal or smaller than the target stream top item")),
        ("XSETID s 20-0", b"OK"),
        ("XADD s 19-0 n 3", Error("ERR The ID specified in XADD is equal or smaller than the target stream top item")),
        ("XSETID absent 1-0", Error("ERR no such key")),
    ],
    "groups": [
        *GROUP,
        ("XGROUP CREATE s g 0", Error("BUSYGROUP Consumer Group name already exists")),
        (
            "XGROUP CREATE absent g 0",
            Error("ERR The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to use..."),
        ),
        ("XGROUP CREATECONSUMER s g c", 1),
        ("XGROUP CREATECONSUMER s g c", 0),
        ("XREADGROUP GROUP g c COUNT 2 STREAMS s >", [[b"s", [entry(1), entry(2)]]]),
        ("XREADGROUP GROUP g c COUNT 1 STREAMS s 0", [[b"s", [entry(1)]]]),
        ("XREADGROUP GROUP g d STREAMS s 0", [[b"s", []]]),
        (
            "XREADGROUP GROUP g c STREAMS absent >",
            Error("NOGROUP No such key 'absent' or consumer group 'g' in XREADGROUP with GROUP option"),
        ),
        ("XREADGROUP GROUP g c STREAMS s $", Error("ERR The $ ID is meaningless in the context of XREADGROUP...")),
        ("XREAD STREAMS s >", Error("ERR The > ID can be specified only when calling XREADGROUP...")),
        ("XREADGROUP GROUP g c STREAMS s", Error("ERR wrong number of arguments for 'xreadgroup' command")),
        ("XPENDING s g", {"pending": 2, "min": b"1-0", "max": b"2-0", "consumers": [{"name": b"c", "pending": 2}]}),
        ("XPENDING s other", Error("NOGROUP No such key 's' or consumer group 'other'")),
        ("XACK s g 1-0 9-0", 1),
        ("XACK absent g 1-0", 0),
        ("XACK s absent 1-0", 0),
        ("XGROUP DELCONSUMER s g c", 1),
        ("XGROUP DELCONSUMER s absent c", Error("NOGROUP No such consumer group 'absent' for key name 's'")),
        ("XGROUP SETID s g 0 ENTRIESREAD 0", OK),
        ("XGROUP DESTROY s g", 1),
        ("XGROUP DESTROY s g", 0),
        ("XGROUP NO-SUCH s g", Error("ERR unknown subcommand 'NO-SUCH'. Try XGROUP HELP.")),
    ],
    "an acknowledgement asks for no owner; history and NOACK": [
        *GROUP,
        ("XREADGROUP GROUP g c NOACK COUNT 1 STREAMS s >", [[b"s", [entry(1)]]]),
        ("XPENDING s g", {"pending": 0, "min": None, "max": None, "consumers": []}),
        ("XREADGROUP GROUP g c COUNT 1 STREAMS s >", [[b"s", [entry(2)]]]),
        ("XACK s g 2-0", 1),
        ("XREADGROUP GROUP g c STREAMS s >", [[b"s", [entry(3)]]]),
        ("XDEL s 3-0", 1),
        ("XREADGROUP GROUP g c STREAMS s 0", [[b"s", [(b"3-0", {})]]]),
        ("XAUTOCLAIM s g d 0 0", [b"0-0", [], [b"3-0"]]),
        ("XPENDING s g", {"pending": 0, "min": None, "max": None, "consumers": []}),
    ],
    "claiming": [
        *GROUP,
        ("XREADGROUP GROUP g c STREAMS s >", [[b"s", [entry(1), entry(2), entry(3)]]]),
        ("XCLAIM s g d 1000000 1-0", []),
        ("XCLAIM s g d 0 2-0 1-0", [entry(2), entry(1)]),
        ("XCLAIM s g d 0 1-0 NO-SUCH", Error("ERR Unrecognized XCLAIM option 'NO-SUCH'")),
        ("XCLAIM s absent d 0 1-0", Error("NOGROUP No such key 's' or consumer group 'absent'")),
        ("XAUTOCLAIM s g e 0 - COUNT 1", [b"2-0", [entry(1)], []]),
        ("XAUTOCLAIM s g e 0 (1-0 COUNT 1", [b"3-0", [entry(2)], []]),
        ("XAUTOCLAIM s g e 0 0 COUNT 0", Error("ERR COUNT must be > 0")),
        ("XAUTOCLAIM s g e 1000000 0", [b"0-0", [], []]),
    ],
    "scripts": [
        ("EVAL return\u00a01 0", 1),
        ("EVAL return\u00a0{1,'two',false,{3}} 0", [1, b"two", None, [3]]),
        ("EVAL return\u00a0redis.error_reply('MINE\u00a0it\u00a0is') 0", Error("MINE it is...")),
        ("EVAL return\u00a0redis.call('INCRBY',KEYS[1],ARGV[1]) 1 n 3", 3),
        ("EVAL return\u00a0redis.call('XADD',KEYS[1],'*','odd') 1 s", Error("ERR ...")),
        ("EVAL return\u00a0redis.sha1hex('a') 0", b"86f7e437faa5a7fce15d1ddcb9eaeaea377667b8"),
        ("EVAL return 1", Error("ERR Number of keys can't be greater than number of args")),
        ("EVALSHA 0000000000000000000000000000000000000000 0", Error("NOSCRIPT No matching script...")),
        ("SCRIPT LOAD return\u00a01", "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"),
        ("SCRIPT EXISTS e0e1f9fabfc9d4800c877a703b823ac0578ff8db 0", [True, False]),
        ("EVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 0", 1),
        (
            "EVAL_RO return\u00a0redis.call('SET','k','v') 0",
            Error("ERR Write commands are not allowed from read-only..."),
        ),
    ],
    "errors": [
        ("NO-SUCH a b", Error("ERR unknown command 'NO-SUCH', with args beginning with: 'a' 'b' ")),
        ("GET", Error("ERR wrong number of arguments for 'get' command")),
        ("XGROUP CREATE s", Error("ERR wrong number of arguments for 'xgroup|create' command")),
        ("SET k v NX XX", Error("ERR syntax error")),
        ("CLUSTER INFO", Error("ERR This instance has cluster support disabled")),
        (
            "XACKDEL s g IDS 1 1-0",
            Error("ERR unknown command 'XACKDEL', with args beginning with: 's' 'g' 'IDS' '1' ..."),
        ),
        ("PUBLISH c m", 0),
        ("ECHO x", b"x"),
    ],
}


@pytest.mark.parametrize("name", TABLES)
async def test_the_answers_of(name: str, redis: Redis, server: Server, clock: MockClock | None) -> None:
    for line, expected in TABLES[name]:
        words = [word.replace("\u00a0", " ") for word in line.split(" ")]
        # redis-py finds the way to read a reply by the command's full name.
        containers = {"XGROUP", "XINFO", "SCRIPT", "CLUSTER", "CLIENT"}
        full = [" ".join(words[:2]), *words[2:]] if words[0] in containers else words
        try:
            reply = await redis.execute_command(*full)
        except exceptions.RedisError as error:
            reply = Error(reply_text(error))
        assert _same(reply, _expected(expected, server)), f"{line}: {reply!r}"


def _expected(expected: Any, server: Server) -> Any:
    if isinstance(expected, Since72):
        return expected.new if server.version >= (7, 2) else expected.old
    if isinstance(expected, Either):
        return expected.valkey if server.is_valkey else expected.redis
    return expected


def _same(reply: Any, expected: Any) -> bool:
    if isinstance(expected, Error) or isinstance(reply, Error):
        return bool(expected == reply)
    if isinstance(expected, (list, tuple)) and isinstance(reply, (list, tuple)):
        return len(reply) == len(expected) and all(map(_same, reply, expected))
    if isinstance(expected, float):
        return float(reply) == expected
    return bool(reply == expected)
