"""The commands of a server as data: how many words each takes, when it is refused, where its keys are.

It is Valkey 9.1's own answer to COMMAND; a test compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attrs import frozen

__all__ = ["COMMANDS", "CONTAINERS", "TRUSTED", "Command", "UnsupportedCommand", "keys_of", "name_of"]


class UnsupportedCommand(AssertionError):
    """A test used a command that the in-process Redis does not vouch for. Run that test on a real server."""


@frozen
class Command:
    """One command.

    Attributes:
        name: as written, in small letters: "xadd", "xgroup create".
        arity: number of words, the name's included; negative: at least so many.
        first, last, step: where the keys are among the words; 0 when they are nowhere fixed.
        flags: one letter for each property of `COMMAND INFO`, see `_TABLE`.
    """

    name: str
    arity: int
    first: int
    last: int
    step: int
    flags: str

    def takes(self, words: int) -> bool:
        """Whether it may have so many words, the name's included."""
        return words == self.arity if self.arity >= 0 else words >= -self.arity

    @property
    def writes(self) -> bool:
        return "w" in self.flags

    @property
    def grows(self) -> bool:
        """Whether it is refused when memory is short."""
        return "m" in self.flags

    @property
    def runs_scripts(self) -> bool:
        return self.name in _SCRIPTS


# flags first last step = name:arity …
# w: writes; r: reads; m: refused when memory is short; l: answered while loading; t: answered by a replica without its
# master; a: answered before the login; b: answered while a script runs; s: not for scripts
_TABLE: Final = """
    - 0 0 0 = asking:1 memory|doctor:2 memory|stats:2 pfselftest:1 ping:-1 wait:3 waitaof:4
    bs 0 0 0 = function|kill:2 function|stats:2 script|kill:2
    l 0 0 0 = memory|malloc-stats:2 memory|purge:2
    lt 0 0 0 = acl|help:2 client|help:2 cluster|help:2 cluster|info:2 cluster|myid:2 cluster|myshardid:2
        cluster|nodes:2 cluster|shards:2 cluster|slot-stats:-4 cluster|slots:2 commandlog|get:4
        commandlog|help:2 commandlog|len:3 commandlog|reset:3 command|count:2 command|docs:-2 command|getkeys:-3
        command|getkeysandflags:-3 command|help:2 command|info:-2 command|list:-2 config|help:2 echo:2
        function|help:2 info:-1 lastsave:1 latency|help:2 memory|help:2 module|help:2 object|help:2 publish:3
        pubsub|channels:-2 pubsub|help:2 pubsub|numpat:2 pubsub|numsub:-2 pubsub|shardchannels:-2
        pubsub|shardnumsub:-2 readonly:1 readwrite:1 script|help:2 slowlog|get:-2 slowlog|help:2 slowlog|len:2
        slowlog|reset:2 time:1 xgroup|help:2 xinfo|help:2
    lt 1 1 1 = spublish:3
    ltabs 0 0 0 = auth:-2 hello:-1 quit:-1 reset:1
    ltb 0 0 0 = select:2
    ltbs 0 0 0 = client|caching:3 client|capa:-3 client|getname:2 client|getredir:2 client|id:2
        client|no-evict:3 client|no-touch:3 client|reply:3 client|setinfo:4 client|setname:3 discard:1 multi:1
        replconf:-1 shutdown:-1 unwatch:1
    ltbs 1 -1 1 = watch:-2
    lts 0 0 0 = acl|cat:-2 acl|deluser:-3 acl|dryrun:-4 acl|genpass:-2 acl|getuser:3 acl|list:2 acl|load:2
        acl|log:-2 acl|save:2 acl|setuser:-3 acl|users:2 acl|whoami:2 client|import-source:3 client|info:2
        client|kill:-3 client|list:-2 client|pause:-3 client|tracking:-3 client|trackinginfo:2 client|unblock:-3
        client|unpause:2 config|get:-3 config|resetstat:2 config|rewrite:2 config|set:-4 debug:-2 exec:1
        latency|doctor:2 latency|graph:3 latency|histogram:-2 latency|history:3 latency|latest:2
        latency|reset:-2 monitor:1 psubscribe:-2 punsubscribe:-1 role:1 subscribe:-2 unsubscribe:-1
    lts 1 -1 1 = ssubscribe:-2 sunsubscribe:-1
    r 0 0 0 = dbsize:1 keys:2 lolwut:-1 randomkey:1 scan:-2 sintercard:-3 xread:-4 zdiff:-3 zinter:-3
        zintercard:-3 zunion:-3
    r 1 -1 1 = exists:-2 mget:-2 pfcount:-2 sdiff:-2 sinter:-2 sunion:-2 touch:-2
    r 1 1 1 = bitcount:-2 bitfield_ro:-2 bitpos:-3 clusterscan:-2 dump:2 expiretime:2 geodist:-4 geohash:-2
        geopos:-2 georadius_ro:-6 georadiusbymember_ro:-5 geosearch:-7 get:2 getbit:3 getrange:4 hexists:3
        hexpiretime:-5 hget:3 hgetall:2 hkeys:2 hlen:2 hmget:-3 hpexpiretime:-5 hpttl:-5 hrandfield:-2 hscan:-3
        hstrlen:3 httl:-5 hvals:2 lindex:3 llen:2 lpos:-3 lrange:4 pexpiretime:2 pttl:2 scard:2 sismember:3
        smembers:2 smismember:-3 sort_ro:-2 srandmember:-2 sscan:-3 strlen:2 substr:4 ttl:2 type:2 xlen:2
        xpending:-3 xrange:-4 xrevrange:-4 zcard:2 zcount:4 zlexcount:4 zmscore:-3 zrandmember:-2 zrange:-4
        zrangebylex:-4 zrangebyscore:-4 zrank:-3 zrevrange:-4 zrevrangebylex:-4 zrevrangebyscore:-4 zrevrank:-3
        zscan:-3 zscore:3
    r 1 2 1 = lcs:-3
    r 2 2 1 = memory|usage:-3 object|encoding:3 object|freq:3 object|idletime:3 object|refcount:3
        xinfo|consumers:4 xinfo|groups:3 xinfo|stream:-3
    rts 0 0 0 = eval_ro:-3 evalsha_ro:-3 fcall_ro:-3
    s 0 0 0 = bgrewriteaof:1 bgsave:-1 function|dump:2 function|list:-2 module|list:2 module|load:-3
        module|loadex:-3 module|unload:3 psync:-3 save:1 script|debug:-3 sync:1
    t 0 0 0 = cluster|addslots:-3 cluster|addslotsrange:-4 cluster|bumpepoch:2 cluster|cancelslotmigrations:2
        cluster|count-failure-reports:3 cluster|countkeysinslot:3 cluster|delslots:-3 cluster|delslotsrange:-4
        cluster|failover:-2 cluster|flushslots:2 cluster|forget:3 cluster|getkeysinslot:4
        cluster|getslotmigrations:2 cluster|keyslot:3 cluster|links:2 cluster|meet:-4 cluster|migrateslots:-4
        cluster|replicas:3 cluster|replicate:-3 cluster|saveconfig:2 cluster|set-config-epoch:3
        cluster|setslot:-4 cluster|slaves:3 cluster|syncslots:-3
    ts 0 0 0 = cluster|reset:-2 eval:-3 evalsha:-3 failover:-1 fcall:-3 replicaof:3 script|exists:-3
        script|flush:-2 script|load:3 script|show:3 slaveof:3
    w 0 0 0 = blmpop:-5 bzmpop:-5 cluster|flushslot:-3 flushall:-1 flushdb:-1 lmpop:-4 swapdb:3 xreadgroup:-7
        zmpop:-4
    w 1 -2 1 = blpop:-3 brpop:-3 bzpopmax:-3 bzpopmin:-3
    w 1 -1 1 = del:-2 unlink:-2
    w 1 1 1 = delifeq:3 expire:-3 expireat:-3 getdel:2 getex:-2 hdel:-3 hexpire:-6 hexpireat:-6 hgetdel:-5
        hgetex:-5 hpersist:-5 hpexpire:-6 hpexpireat:-6 lpop:-2 lrem:4 ltrim:4 move:3 persist:2 pexpire:-3
        pexpireat:-3 rpop:-2 spop:-2 srem:-3 xack:-4 xautoclaim:-6 xclaim:-6 xdel:-3 xtrim:-4 zpopmax:-2
        zpopmin:-2 zrem:-3 zremrangebylex:4 zremrangebyrank:4 zremrangebyscore:4
    w 1 2 1 = rename:3 renamenx:3 smove:4
    w 2 2 1 = xgroup|delconsumer:5 xgroup|destroy:4 xgroup|setid:-5
    w 3 3 1 = migrate:-6
    wm 0 0 0 = msetex:-4
    wm 1 -1 1 = pfmerge:-2 sdiffstore:-3 sinterstore:-3 sunionstore:-3
    wm 1 -1 2 = mset:-3 msetnx:-3
    wm 1 1 1 = append:3 bitfield:-2 decr:2 decrby:3 geoadd:-5 georadius:-6 georadiusbymember:-5 getset:3
        hincrby:4 hincrbyfloat:4 hmset:-4 hset:-4 hsetex:-6 hsetnx:4 incr:2 incrby:3 incrbyfloat:3 linsert:5
        lpush:-3 lpushx:-3 lset:4 pfadd:-2 psetex:4 restore-asking:-4 restore:-4 rpush:-3 rpushx:-3 sadd:-3
        set:-3 setbit:4 setex:4 setnx:3 setrange:4 sort:-2 xadd:-5 xsetid:-3 zadd:-4 zdiffstore:-4 zincrby:4
        zinterstore:-4 zunionstore:-4
    wm 1 2 1 = blmove:6 brpoplpush:4 copy:-3 geosearchstore:-8 lmove:5 rpoplpush:3 zrangestore:-5
    wm 2 -1 1 = bitop:-4
    wm 2 2 1 = pfdebug:3 xgroup|create:-5 xgroup|createconsumer:5
    wms 0 0 0 = function|load:-3 function|restore:-3
    ws 0 0 0 = function|delete:3 function|flush:-2
"""


def _read_table() -> dict[str, Command]:
    found: dict[str, Command] = {}
    rows = _TABLE.replace("\n        ", " ").strip().splitlines()
    for row in rows:
        head, _, entries = row.partition("=")
        flags, first, last, step = head.split()
        for entry in entries.split():
            name, _, arity = entry.replace("|", " ").rpartition(":")
            found[name] = Command(name, int(arity), int(first), int(last), int(step), flags)
    return found


_SCRIPTS: Final = frozenset({"eval", "evalsha", "eval_ro", "evalsha_ro", "fcall", "fcall_ro"})
COMMANDS: Final = _read_table()
"""By name."""
CONTAINERS: Final = frozenset(name.split()[0] for name in COMMANDS if " " in name)
"""Words that are a command only together with the next one."""

_TRUSTED_WORDS: Final = """
    hello auth ping echo time select reset quit info role wait swapdb
    del unlink exists type rename renamenx copy move touch keys scan randomkey dbsize flushall flushdb sort sort_ro
    expire pexpire expireat pexpireat expiretime pexpiretime persist ttl pttl
    get set setnx setex psetex getdel getex getset append strlen incr incrby incrbyfloat decr decrby
    mget mset msetnx setrange getrange substr setbit getbit bitcount bitop
    hset hsetnx hmset hget hmget hgetall hdel hexists hincrby hincrbyfloat hkeys hvals hlen hstrlen hscan
    lpush rpush lpushx rpushx lpop rpop lrange llen lindex lset linsert lrem lpos ltrim
    lmove rpoplpush lmpop blpop brpop blmove brpoplpush blmpop
    sadd srem smembers sismember smismember scard spop sscan smove
    sinter sunion sdiff sinterstore sunionstore sdiffstore sintercard
    zadd zrem zscore zmscore zincrby zcard zcount zrank zrevrank zscan
    zrange zrevrange zrangebyscore zrevrangebyscore zrangebylex zrevrangebylex zlexcount zrangestore
    zremrangebyscore zremrangebyrank zremrangebylex zpopmin zpopmax bzpopmin bzpopmax zmpop bzmpop
    zunion zinter zdiff zunionstore zinterstore zdiffstore zintercard
    xadd xlen xrange xrevrange xread xreadgroup xack xdel xtrim xpending xclaim xautoclaim xsetid
    multi exec discard watch unwatch eval evalsha eval_ro evalsha_ro
    publish spublish subscribe psubscribe ssubscribe unsubscribe punsubscribe sunsubscribe
"""
TRUSTED: Final = frozenset(_TRUSTED_WORDS.split()) | {
    *("client id", "client getname", "client setname", "client setinfo", "client info", "client list"),
    *("client unblock", "client kill", "client pause", "client unpause", "config get"),
    *("pubsub channels", "pubsub numsub", "pubsub numpat", "pubsub shardchannels", "pubsub shardnumsub"),
    *("xgroup create", "xgroup setid", "xgroup destroy", "xgroup createconsumer", "xgroup delconsumer"),
    *("xinfo stream", "xinfo groups", "xinfo consumers"),
    *("script load", "script exists", "script flush"),
    *("cluster info", "cluster nodes", "cluster slots", "cluster shards", "cluster myid", "cluster keyslot"),
    *("cluster countkeysinslot", "cluster getkeysinslot", "asking", "readonly", "readwrite"),
}
"""Commands whose replies were compared with a real server's. The rest is refused (UnsupportedCommand)."""

# Word that holds the number of keys; the keys follow.
_KEY_COUNTS: Final = {
    **dict.fromkeys(_SCRIPTS, 2),
    **dict.fromkeys(("lmpop", "zmpop", "sintercard", "zinter", "zunion", "zdiff", "zintercard"), 1),
    **dict.fromkeys(("blmpop", "bzmpop", "zinterstore", "zunionstore", "zdiffstore"), 2),
}


def name_of(words: Sequence[bytes]) -> str:
    """The command's name in small letters; of a container ("xgroup") with its second word."""
    first = words[0].decode("utf-8", "replace").lower()
    if first in CONTAINERS and len(words) > 1:
        return f"{first} {words[1].decode('utf-8', 'replace').lower()}"
    return first


def keys_of(command: Command, words: Sequence[bytes]) -> list[bytes]:
    """The keys (and shard channels) among the words. What is no valid command may give any list."""
    found: list[bytes] = []
    if command.first:
        last = command.last if command.last >= 0 else len(words) + command.last
        found += words[command.first : last + 1 : command.step]
    if command.name in _KEY_COUNTS:
        place = _KEY_COUNTS[command.name]
        count = int(words[place]) if words[place].isdigit() else 0
        found += words[place + 1 : place + 1 + count]
    elif command.name in ("xread", "xreadgroup"):
        upper = [word.upper() for word in words]
        if b"STREAMS" in upper[1:]:
            names = words[upper.index(b"STREAMS", 4 if command.name == "xreadgroup" else 1) + 1 :]
            found += names[: len(names) // 2]
    return found
