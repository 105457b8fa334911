"""fakeredis, bent to Penstock's needs: a `Session` for each connection, in virtual time, with RESP3 on the wire.

fakeredis brings the data structures and the commands. Replaced here are its transport (bytes instead of a queue of
Python objects), its blocking reads (trio tasks instead of threads), its clock, and what it does differently from a real
server. What it does not do right is refused, loudly: see `TRUSTED`. Its socket is private, so its version is pinned.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import trio

try:
    import fakeredis._core._server
    import fakeredis._helpers
    import fakeredis._socket._base
    import fakeredis.commands_mixins.connection_mixin
    import fakeredis.commands_mixins.server_mixin
    import fakeredis.model._client_info
    import fakeredis.model._stream
    from fakeredis import _msgs
    from fakeredis._core import FakeServer
    from fakeredis._helpers import NoResponse, SimpleError, SimpleString
    from fakeredis._socket import FakeSocket
except ModuleNotFoundError as error:
    raise ImportError("the in-process Redis needs fakeredis with Lua: pip install 'penstock[test]'") from error

__all__ = ["EPOCH", "FakeServer", "Session", "SimpleError", "UnsupportedCommand", "make_engine", "virtual_time"]

EPOCH: Final = 1_767_225_600.0
"""Wall clock of the server when trio's clock reads 0: 2026-01-01T00:00:00Z, seconds."""

_TRUSTED_WORDS: Final = """
    hello ping echo time select
    del unlink exists type expire pexpire persist ttl pttl keys scan rename dbsize flushall flushdb
    get set setnx setex psetex getdel getset append strlen incr incrby incrbyfloat decr decrby mget mset
    hset hsetnx hget hmget hgetall hdel hexists hincrby hkeys hvals hlen hscan
    lpush rpush lpop rpop lrange llen lindex lrem ltrim lmove blpop brpop blmove
    sadd srem smembers sismember smismember scard spop sscan
    zadd zrem zscore zmscore zrange zrevrange zrangebyscore zrank zcard zcount zincrby zpopmin zpopmax
    zremrangebyscore zremrangebyrank
    xadd xlen xrange xrevrange xread xreadgroup xack xdel xtrim xpending xclaim xautoclaim
    multi exec discard eval evalsha publish
"""
TRUSTED: Final = frozenset(_TRUSTED_WORDS.split()) | {
    *("client id", "client getname", "client info", "client unblock"),
    *("xgroup create", "xgroup setid", "xgroup destroy", "xgroup createconsumer", "xgroup delconsumer"),
    *("xinfo stream", "xinfo groups", "xinfo consumers"),
    *("script load", "script exists", "script flush"),
}
"""Commands whose replies were compared with a real server's. The rest is refused (UnsupportedCommand)."""

ABSENT: Final = frozenset({"xackdel", "xdelex", "xnack", "xcfgset"})
"""Commands of newer Redis that Valkey does not have: answered as an unknown command, so that probing works."""

_INFO: Final = """\
# Server
redis_version:7.2.4
server_name:valkey
valkey_version:9.1.2
server_mode:standalone
# Memory
maxmemory:0
maxmemory_policy:noeviction
# Persistence
loading:0
# Replication
role:master
connected_slaves:0
# Cluster
cluster_enabled:0
"""
_NO_CLUSTER: Final = "ERR This instance has cluster support disabled"
_FIXED_CONFIG: Final = {"maxmemory": "0", "maxmemory-policy": "noeviction", "appendonly": "no"}


_NOT_IN_VALKEY: Final = (b"idmp", b"iids", b"pids")


class UnsupportedCommand(AssertionError):
    """A test used a command that the in-process Redis does not vouch for. Run that test on a real server."""


class _VirtualTime:
    """Takes the place of the module `time` inside fakeredis: wall clock = EPOCH + trio's clock."""

    def time(self) -> float:
        # A microsecond more: fakeredis truncates to milliseconds, and x.1 s is not a whole number of them in binary.
        return EPOCH + trio.current_time() + 1e-6

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


_CLOCK_USERS: Final[Sequence[Any]] = (
    fakeredis._core._server,
    fakeredis._helpers,
    fakeredis._socket._base,
    fakeredis.commands_mixins.connection_mixin,
    fakeredis.commands_mixins.server_mixin,
    fakeredis.model._client_info,
    fakeredis.model._stream,
)


@contextlib.contextmanager
def virtual_time() -> Iterator[None]:
    """fakeredis reads trio's clock meanwhile: entry ids, idle times and expiry are reproducible under MockClock.

    May be nested. It is process-wide: while it lasts, fakeredis is used inside trio only.
    """
    before = [module.time for module in _CLOCK_USERS]
    for module in _CLOCK_USERS:
        module.time = _VirtualTime()
    try:
        yield
    finally:
        for module, original in zip(_CLOCK_USERS, before, strict=True):
            module.time = original


def make_engine() -> FakeServer:
    """The data of one server. A Valkey: it has the streams of Redis 7.2, which is what Penstock relies on."""
    return FakeServer(version=(8, 0), server_type="valkey")


class Session(FakeSocket):
    """The server's side of one connection: bytes in by `sendall`, bytes out by `send`.

    Args:
        engine: the data.
        admit: called with each command's name before it runs; returns an error to answer instead, or raises to cut.
        done: called with the name after it ran; may raise to cut.
        send: takes the bytes of a reply.
        nursery: where blocked commands wait.
    """

    def __init__(
        self,
        engine: FakeServer,
        *,
        admit: Callable[[str], str | None],
        done: Callable[[str], None],
        send: Callable[[bytes], None],
        nursery: trio.Nursery,
    ) -> None:
        self._admit = admit
        self._done = done
        self._send = send
        self._nursery = nursery
        self._held: list[bytes] | None = None  # replies of the command that runs now: a cut after it drops them
        super().__init__(engine, 0, client_class=FakeSocket)

    def put_response(self, msg: Any) -> None:
        if self._held is None:
            self._send(_encode(msg))
        else:
            self._held.append(_encode(msg))

    def _decode_result(self, result: Any) -> Any:
        return result  # fakeredis would make redis-py's objects of it; here it is encoded for the wire

    def _process_command(self, fields: list[bytes]) -> None:
        name = _name_of(fields)
        refusal = self._admit(name)
        if refusal is not None:
            if self._transaction is not None:
                self._transaction_failed = True
            self.put_response(SimpleError(refusal))
            return
        self._held = []
        try:
            self._run(name, fields)
            self._done(name)
            self._send(b"".join(self._held))
        finally:
            self._held = None

    def _run(self, name: str, fields: list[bytes]) -> None:
        if name in _OWN:
            self.put_response(_OWN[name](fields))
            return
        super()._process_command(fields)
        if name == "xgroup destroy":  # fakeredis wakes nobody
            with self._server.lock:
                self._db.wake_all()

    def _name_to_func(self, cmd_name: str) -> tuple[Callable[[Any], Any] | None, Any]:
        """Look a command up, for a client or a script. What is not trusted ends the test, not just the command."""
        if cmd_name not in TRUSTED and cmd_name not in ABSENT:
            raise UnsupportedCommand(f"the in-process Redis does not vouch for {cmd_name.upper()}: use a real server")
        found: tuple[Callable[[Any], Any] | None, Any] = super()._name_to_func(cmd_name)
        return found

    def xreadgroup(self, group_const: bytes, group_name: bytes, consumer_name: bytes, *args: bytes) -> Any:
        """fakeredis never blocks when COUNT is given, and answers an absent key with another command's error."""
        words = [word.upper() for word in args]
        split = words.index(b"STREAMS") if b"STREAMS" in words else len(words)
        block: float | None = None
        if b"BLOCK" in words[:split]:
            position = words.index(b"BLOCK")
            block = int(args[position + 1]) / 1000
            args = args[:position] + args[position + 2 :]
            split -= 2
        keys = args[split + 1 : split + 1 + (len(args) - split - 1) // 2]

        def attempt(_: bool) -> Any:
            self._check_groups(keys, group_name)
            # dropped: fakeredis' own `first_pass`, which gives up the entries that it has just delivered
            return super(Session, self).xreadgroup(group_const, group_name, consumer_name, *args) or None

        return attempt(True) if block is None else self._blocking(block, attempt)

    def xinfo_stream(self, key: Any, *args: bytes) -> dict[bytes, Any]:
        """fakeredis answers with a list where RESP3 has a map, and with fields that Valkey does not have."""
        if args:
            raise UnsupportedCommand("the in-process Redis does not vouch for XINFO STREAM FULL: use a real server")
        flat = iter(super().xinfo_stream(key))
        return {name: value for name, value in zip(flat, flat, strict=True) if not name.startswith(_NOT_IN_VALKEY)}

    def _check_groups(self, keys: Sequence[bytes], group: bytes) -> None:
        for key in keys:
            item = self._db.get(key)
            if item is not None and not isinstance(item.value, fakeredis.model._stream.XStream):
                raise SimpleError(_msgs.WRONGTYPE_MSG)
            if item is None or not item.value.group_get(group):
                text = _msgs.XREADGROUP_KEY_OR_GROUP_NOT_FOUND_MSG
                raise SimpleError(text.format(key.decode(), group.decode()))

    def _blocking(
        self, timeout: float | None, func: Callable[[bool], Any], shape: Callable[[Any], Any] | None = None
    ) -> Any:
        """Answer now, or park the connection and answer from a task of its own."""
        result = func(True)
        if result is not None or self._in_transaction:
            return result if shape is None else shape(result)
        self._blocked = True
        self.pause()
        self._nursery.start_soon(self._answer_later, timeout, func, shape or (lambda reply: reply))
        return NoResponse()

    async def _answer_later(
        self, limit: float | None, func: Callable[[bool], Any], shape: Callable[[Any], Any]
    ) -> None:
        result: Any = None
        try:
            with trio.move_on_after(limit or float("inf")):
                result = await self._next_result(func)
        except SimpleError as error:
            reply: Any = error
        else:
            reply = shape(result)
        self._blocked = False
        self._unblock_reason = None
        self.put_response(reply)
        self.resume()

    async def _next_result(self, func: Callable[[bool], Any]) -> Any:
        """Try after each change of the data. None: CLIENT UNBLOCK. Raises SimpleError."""
        changed = trio.Event()
        database = self._db

        def note() -> None:
            changed.set()

        database.add_change_callback(note)
        try:
            while True:
                await changed.wait()
                changed = trio.Event()
                with self._server.lock:
                    if self._unblock_reason is not None:
                        self._take_unblock_reason()
                        return None
                    result = func(False)
                if result is not None:
                    return result
        finally:
            database.remove_change_callback(note)


def _name_of(fields: Sequence[bytes]) -> str:
    """The command as fakeredis spells it: "xadd", "xgroup create"."""
    words = [field.decode("ascii", "replace").lower() for field in fields[:2]]
    return " ".join(words) if words[0] in _CONTAINERS else words[0]


_CONTAINERS: Final = frozenset({"client", "xgroup", "xinfo", "script", "cluster", "config", "command", "acl"})


def _config(fields: Sequence[bytes]) -> Any:
    wanted = {field.decode().lower() for field in fields[2:]}
    if not wanted <= _FIXED_CONFIG.keys():
        raise UnsupportedCommand(f"the in-process Redis has no settings {sorted(wanted - _FIXED_CONFIG.keys())}")
    return {name.encode(): _FIXED_CONFIG[name].encode() for name in sorted(wanted)}


_OWN: Final[dict[str, Callable[[Sequence[bytes]], Any]]] = {
    "info": lambda _: _INFO.replace("\n", "\r\n").encode(),
    "cluster info": lambda _: SimpleError(_NO_CLUSTER),
    "config get": _config,
}
"""Answered here, with what a single server says."""


def _encode(value: Any) -> bytes:
    """One reply in RESP3."""
    if value is None:
        return b"_\r\n"
    if isinstance(value, SimpleString):
        return b"+%b\r\n" % value.value
    if isinstance(value, SimpleError):
        line = value.value.removeprefix("ERR ") if value.value.startswith("ERR BUSYGROUP") else value.value
        return b"-%b\r\n" % line.replace("\r", " ").replace("\n", " ").encode()
    if isinstance(value, bool):
        return b"#t\r\n" if value else b"#f\r\n"
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, float):
        return b",%b\r\n" % repr(value).encode()
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return b"$%d\r\n%b\r\n" % (len(value), value)
    if isinstance(value, dict):
        return b"%%%d\r\n" % len(value) + b"".join(_encode(part) for pair in value.items() for part in pair)
    return b"*%d\r\n" % len(value) + b"".join(_encode(part) for part in value)
