"""Random commands, from templates; and replies with what may differ between two servers taken out."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any, Final

import hiredis

__all__ = ["TEMPLATES", "comparable", "random_command"]

# A word in lower case stands for what _WORDS makes of it; [] is left out half of the time, (|) is one of.
TEMPLATES: Final[dict[str, str]] = {
    "streams": """
        XADD s id field value
        XADD s id field value field value
        XADD s [NOMKSTREAM] (MAXLEN|MAXLEN =) small id field value
        XADD s [NOMKSTREAM] (MINID|MINID =) id id field value
        XADD s MAXLEN ~ small [LIMIT small] id field value
        XADD s ms-* field value
        XADD s id field
        XLEN s
        XRANGE s from to [COUNT small]
        XREVRANGE s to from [COUNT small]
        XDEL s id id
        XTRIM s (MAXLEN|MAXLEN =|MAXLEN ~) small
        XTRIM s (MINID|MINID =|MINID ~) id
        XTRIM s MAXLEN ~ small LIMIT small
        XTRIM s (MAXLEN|MINID|MAXLEN x)
        XTRIM s MAXLEN small LIMIT small
        XGROUP CREATE s g start [MKSTREAM] [ENTRIESREAD small]
        XGROUP SETID s g start [ENTRIESREAD small]
        XGROUP DESTROY s g
        XGROUP CREATECONSUMER s g c
        XGROUP DELCONSUMER s g c
        XREADGROUP GROUP g c [COUNT small] [NOACK] STREAMS s >
        XREADGROUP GROUP g c [COUNT small] STREAMS s >
        XREADGROUP GROUP g c [COUNT small] [NOACK] STREAMS s id
        XREADGROUP GROUP g c [COUNT small] STREAMS s s > >
        XREADGROUP GROUP g c [COUNT small] BLOCK 1 STREAMS s >
        XREADGROUP GROUP g c STREAMS s (>|0|$|+|-)
        XREADGROUP GROUP g c [COUNT small] STREAMS s s > 0
        XREAD [COUNT small] STREAMS s id
        XREAD [COUNT small] STREAMS s s id id
        XREAD [COUNT small] BLOCK 1 STREAMS s (id|$|+)
        XREAD STREAMS s (+|$|-|>)
        XACK s g id id
        XPENDING s g
        XPENDING s g from to small [c]
        XPENDING s g IDLE 100000 from to small
        XCLAIM s g c 0 id id
        XCLAIM s g c (0|1000000) id [IDLE (0|50000000)] [RETRYCOUNT small] [FORCE] [JUSTID]
        XCLAIM s g c 0 id LASTID id
        XAUTOCLAIM s g c (0|1000000) from [COUNT small] [JUSTID]
        XINFO STREAM s
        XINFO STREAM s FULL [COUNT small]
        XINFO GROUPS s
        XINFO CONSUMERS s g
        XSETID s id [ENTRIESADDED small] [MAXDELETEDID id]
        DEL s
        TYPE s
        COPY s s
        RENAME s s
        SET s value
    """,
    "strings": """
        SET k v
        SET k v [(NX|XX)] [GET] [(EX 1000|PX 1000000|KEEPTTL)]
        GET k
        GETSET k v
        GETDEL k
        GETEX k [(EX 1000|PX 1000000|PERSIST)]
        APPEND k v
        STRLEN k
        SETNX k v
        SETEX k int v
        PSETEX k 1000000 v
        SETRANGE k int v
        GETRANGE k int int
        SUBSTR k int int
        INCR k
        DECR k
        INCRBY k int
        DECRBY k int
        INCRBYFLOAT k float
        MGET k k k
        MSET k v k v
        MSETNX k v k v
        SETBIT k offset (0|1)
        GETBIT k offset
        BITCOUNT k [int int]
        BITCOUNT k int int (BYTE|BIT)
        BITOP (AND|OR|XOR) k k k
        BITOP NOT k k
    """,
    "keys": """
        DEL k k
        UNLINK k
        EXISTS k k
        TOUCH k k
        TYPE any
        EXPIRE any 1000 [(NX|XX|GT|LT)]
        PEXPIRE any 2000000 [(NX|XX|GT|LT)]
        EXPIRE any int
        PERSIST any
        TTL any
        RENAME any any
        RENAMENX any any
        COPY any any [REPLACE]
        DBSIZE
        MOVE any 1
        SELECT 0
        SELECT 99
        KEYS *
        PING
        PING v
        ECHO v
        SWAPDB 0 1
        SORT any [LIMIT 0 small] [(ASC|DESC)] ALPHA
        SORT l ALPHA STORE l
        SORT any
        SET k v
        LPUSH l v v
        HSET h f v
        SADD u m m
        ZADD z float m
        XADD s ms-* field value
        GET any
        LLEN any
        HGETALL any
        SCARD any
        SORT_RO any ALPHA
        RANDOMKEY x
        NO-SUCH-COMMAND k v
        XGROUP NO-SUCH k
        GET
        SET k
    """,
    "hashes": """
        HSET h f v
        EXISTS h
        HSET h f v f v
        HSETNX h f v
        HMSET h f v f v
        HGET h f
        HMGET h f f
        HGETALL h
        HDEL h f f
        HEXISTS h f
        HLEN h
        HSTRLEN h f
        HKEYS h
        HVALS h
        HINCRBY h f int
        HINCRBYFLOAT h f float
    """,
    "lists": """
        LPUSH l v v
        EXISTS l l
        TYPE l
        RPUSH l v v
        LPUSHX l v
        RPUSHX l v v
        LPOP l [small]
        RPOP l [small]
        LLEN l
        LRANGE l int int
        LINDEX l int
        LSET l int v
        LREM l int v
        LTRIM l int int
        LINSERT l (BEFORE|AFTER) v v
        LPOS l v [RANK int] [COUNT small] [MAXLEN small]
        LMOVE l l (LEFT|RIGHT) (LEFT|RIGHT)
        RPOPLPUSH l l
        BLPOP l l 0.001
        BRPOP l 0.001
        BLMOVE l l (LEFT|RIGHT) (LEFT|RIGHT) 0.001
        BRPOPLPUSH l l 0.001
        LMPOP 2 l l (LEFT|RIGHT) [COUNT small]
        BLMPOP 0.001 2 l l (LEFT|RIGHT) [COUNT small]
    """,
    "sets": """
        SADD u m m
        EXISTS u
        SREM u m m
        SMEMBERS u
        SISMEMBER u m
        SMISMEMBER u m m
        SCARD u
        SMOVE u u m
        SINTER u u
        SUNION u u
        SDIFF u u
        SINTERSTORE u u u
        SUNIONSTORE u u u
        SDIFFSTORE u u u
        SINTERCARD 2 u u [LIMIT small]
    """,
    "sorted sets": """
        ZADD z [(NX|XX)] [CH] float m float m
        ZADD z (GT|LT) float m
        ZADD z [(NX|XX|GT|LT)] INCR float m
        ZADD z NX GT float m
        ZREM z m m
        ZSCORE z m
        ZMSCORE z m m
        ZINCRBY z float m
        ZCARD z
        ZCOUNT z low high
        ZRANK z m [WITHSCORE]
        ZREVRANK z m
        ZRANGE z int int [WITHSCORES]
        ZRANGE z int int REV [WITHSCORES]
        ZRANGE z low high BYSCORE [LIMIT 0 small] [WITHSCORES]
        ZRANGE z high low BYSCORE REV [LIMIT 0 small]
        ZREVRANGE z int int [WITHSCORES]
        ZRANGEBYSCORE z low high [WITHSCORES] [LIMIT 0 small]
        ZREVRANGEBYSCORE z high low [WITHSCORES]
        ZRANGEBYLEX y lexlow lexhigh [LIMIT 0 small]
        ZREVRANGEBYLEX y lexhigh lexlow
        ZADD y 0 m 0 m
        ZLEXCOUNT y lexlow lexhigh
        ZREMRANGEBYRANK z int int
        ZREMRANGEBYSCORE z low high
        ZREMRANGEBYLEX y lexlow lexhigh
        ZRANGESTORE z z int int
        ZPOPMIN z [small]
        ZPOPMAX z [small]
        BZPOPMIN z z 0.001
        BZPOPMAX z 0.001
        ZMPOP 2 z z (MIN|MAX) [COUNT small]
        BZMPOP 0.001 2 z z (MIN|MAX) [COUNT small]
        ZUNION 2 z z [WITHSCORES]
        ZINTER 2 z z [AGGREGATE (SUM|MIN|MAX)] [WITHSCORES]
        ZDIFF 2 z z [WITHSCORES]
        ZUNIONSTORE z 2 z z [WEIGHTS 2 3]
        ZINTERSTORE z 2 z z
        ZDIFFSTORE z 2 z z
        ZINTERCARD 2 z z [LIMIT small]
    """,
    "transactions and scripts": """
        MULTI
        EXEC
        DISCARD
        WATCH k
        UNWATCH
        SET k v
        INCR k
        LPUSH k v
        GET k
        BLPOP l 0.001
        NO-SUCH-COMMAND
        GET
        XADD s id field value
        XREADGROUP GROUP g c BLOCK 1 STREAMS s >
        ~EVAL return\u00a01 0
        ~EVAL return\u00a0redis.call('GET',KEYS[1]) 1 k
        ~EVAL return\u00a0redis.call('SET',KEYS[1],ARGV[1]) 1 k v
        ~EVAL return\u00a0redis.call('INCR',KEYS[1]) 1 k
        ~EVAL return\u00a0redis.pcall('INCR',KEYS[1]) 1 k
        ~EVAL return\u00a0{1,'a',false,true,nil,3} 0
        ~EVAL return\u00a0{1.7,{2,{3}},redis.status_reply('FINE')} 0
        ~EVAL return\u00a0redis.error_reply('MINE\u00a0it\u00a0is') 0
        ~EVAL return\u00a0redis.call('HGETALL',KEYS[1]) 1 h
        ~EVAL return\u00a0redis.call('XRANGE',KEYS[1],'-','+') 1 s
        ~EVAL return\u00a0redis.call('ZADD',KEYS[1],'1.5','m') 1 z
        ~EVAL return\u00a0redis.call('ZSCORE',KEYS[1],'m') 1 z
        ~EVAL return\u00a0redis.sha1hex('a') 0
        ~EVAL return\u00a0cjson.encode({1,2,'x'}) 0
        ~EVAL return\u00a0cjson.decode('{"a":[1,2]}')['a'][2] 0
        ~EVAL return\u00a0tostring(redis.call('EXISTS',KEYS[1])==1) 1 k
        ~EVAL return 1 k
        ~EVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 0
        EVAL_RO return\u00a0redis.call('GET',KEYS[1]) 1 k
        EVAL_RO return\u00a0redis.call('SET',KEYS[1],'x') 1 k
        SCRIPT EXISTS e0e1f9fabfc9d4800c877a703b823ac0578ff8db x
        SCRIPT LOAD return\u00a01
        SCRIPT FLUSH
    """,
}

_WORDS: Final[dict[str, Callable[[random.Random], str]]] = {
    "s": lambda r: r.choice(["s1", "s1", "s1", "s2", "s2", "k1"]),
    "g": lambda r: r.choice(["g1", "g1", "g2", "g3"]),
    "c": lambda r: r.choice(["c1", "c2", "c3"]),
    "id": lambda r: r.choice([f"{r.randint(1, 30)}-{r.randint(0, 2)}", f"{r.randint(1, 30)}", "0-1", "0", "07-0", "x"]),
    "ms-*": lambda r: f"{r.randint(1, 40)}-*",
    "from": lambda r: r.choice(["-", "0", f"{r.randint(1, 20)}", f"({r.randint(1, 20)}-0", f"{r.randint(1, 20)}-1"]),
    "to": lambda r: r.choice(["+", f"{r.randint(5, 30)}", f"({r.randint(5, 30)}-1", f"{r.randint(5, 30)}-0"]),
    "start": lambda r: r.choice(["0", "$", f"{r.randint(1, 20)}-0", "0-0"]),
    "small": lambda r: str(r.choice([1, 1, 2, 3, 5, 10, 0, 100])),
    "int": lambda r: str(r.choice([0, 1, 2, 3, 5, -1, -2, -3, 10, -100, 100])),
    "offset": lambda r: str(r.choice([0, 1, 7, 8, 15, 100])),
    "float": lambda r: r.choice(["0", "1", "2.5", "-1.25", "0.1", "3.14159", "1e3", "10", "100.001"]),
    "low": lambda r: r.choice(["-inf", "0", "1", "(1", "2.5", "-2"]),
    "high": lambda r: r.choice(["+inf", "3", "(3", "10", "2.5", "inf"]),
    "lexlow": lambda r: r.choice(["-", "[a", "(a", "[m1"]),
    "lexhigh": lambda r: r.choice(["+", "[m3", "(m2", "[z"]),
    "field": lambda r: r.choice(["a", "b", "field"]),
    "value": lambda r: r.choice(["1", "x", "value", "", "{}"]),
    "v": lambda r: r.choice(["1", "2", "10", "a", "value", "b", "3.5", "", "-7"]),
    "k": lambda r: r.choice(["k1", "k1", "k2", "k3", "l1"]),
    "h": lambda r: r.choice(["h1", "h1", "h2", "k1"]),
    "f": lambda r: r.choice(["f1", "f2", "f3", "f4"]),
    "l": lambda r: r.choice(["l1", "l1", "l2", "l3", "k1"]),
    "u": lambda r: r.choice(["u1", "u1", "u2", "u3", "k1"]),
    "z": lambda r: r.choice(["z1", "z1", "z2", "z3", "k1"]),
    "y": lambda r: r.choice(["y1", "y2"]),
    "m": lambda r: r.choice(["m1", "m2", "m3", "m4", "5", "a"]),
    "any": lambda r: r.choice(["k1", "k2", "l1", "h1", "u1", "z1", "s1", "absent"]),
}


def random_command(rng: random.Random, family: str) -> list[str]:
    """One command of a family, as words."""
    lines = [line.strip() for line in TEMPLATES[family].strip().splitlines()]
    line = _choose(rng.choice(lines).removeprefix("~"), rng)
    return [_word(each, rng) for each in line.split(" ") if each]


def _choose(line: str, rng: random.Random) -> str:
    """Settle the options and alternatives, the innermost first."""
    if "EVAL" in line:
        return line
    while match := re.search(r"\[([^\[\]()]*)\]|(?<![\w'])\(([^\[\]()]*\|[^\[\]()]*)\)", line):
        optional, alternatives = match.groups()
        if alternatives is not None:
            chosen = rng.choice(alternatives.split("|"))
        else:
            chosen = optional if rng.random() < 0.5 else ""
        line = line[: match.start()] + chosen + line[match.end() :]
    return line


def _word(word: str, rng: random.Random) -> str:
    return _WORDS[word](rng) if word in _WORDS else word.replace("\u00a0", " ")


_UNORDERED: Final = frozenset({"SMEMBERS", "SUNION", "SINTER", "SDIFF", "KEYS", "HKEYS", "HVALS"})
_TIMES: Final = frozenset({b"idle", b"inactive", b"seen-time", b"active-time", b"radix-tree-keys", b"radix-tree-nodes"})


def comparable(words: list[str], reply: Any) -> Any:
    """A raw reply without what two runs of one real server may differ in: idle times, the order of sets, and the place
    in a script."""
    name = words[0].upper()
    reply = _plain(reply)
    if name in _UNORDERED and isinstance(reply, list):
        return sorted(reply, key=repr)
    if name == "HGETALL" and isinstance(reply, list):
        return sorted(zip(reply[::2], reply[1::2], strict=True))
    if name == "XINFO":
        return _without_times(reply)
    if name == "XPENDING" and isinstance(reply, list) and len(words) > 3:
        return [[entry[0], entry[1], entry[3]] for entry in reply]
    if name in ("TTL", "PTTL") and isinstance(reply, int) and reply > 0:
        return "a while"
    return reply


def _plain(reply: Any) -> Any:
    if isinstance(reply, hiredis.ReplyError):
        return "error", str(reply).split(" script: ")[0]
    if isinstance(reply, (list, tuple)):
        return [_plain(each) for each in reply]
    if isinstance(reply, dict):
        return {key: _plain(value) for key, value in sorted(reply.items())}
    if isinstance(reply, set):
        return sorted(reply)
    return reply


def _without_times(reply: Any) -> Any:
    if isinstance(reply, list) and reply and isinstance(reply[0], bytes) and len(reply) % 2 == 0:
        reply = dict(sorted(zip(reply[::2], reply[1::2], strict=True)))
    if isinstance(reply, dict):
        return {
            key: [[*each[:-2], each[-1]] for each in value] if _is_pending(key, value) else _without_times(value)
            for key, value in reply.items()
            if key not in _TIMES
        }
    return [_without_times(each) for each in reply] if isinstance(reply, list) else reply


def _is_pending(key: Any, value: Any) -> bool:
    """Whether these are the pending entries of XINFO STREAM FULL, which end with a time and a count."""
    return key == b"pending" and isinstance(value, list)
