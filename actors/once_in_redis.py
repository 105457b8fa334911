"""Commands for Redis that are run once for an event, however often its handler is called; see `Context.once_in_redis`.

One script sets a marker beside the keys and runs the commands: others see both or neither. The marker is not deleted
when the event is handled: a process that was frozen meanwhile, whose event another one has handled, may go on then, and
must find it. So it expires.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import redis.exceptions
from attrs import frozen

from ..runtime.redis import Kind, RedisUnavailable, classify
from ..runtime.redis.replies import reply_text
from ..runtime.redis.slots import hash_tag, slot_of
from .handling import Unavailable

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis
    from ..runtime.supervision import Gate
    from .handling import Delivery

__all__ = ["COMMANDS", "LONGEST", "RedisCommand", "RedisSteps", "marker_of", "unavailable_for"]

RedisCommand = Sequence[str | bytes | int | float]
"""A command's name, its key, and what else it takes."""

_BY_TYPE: Final = (
    "append bitfield decr decrby getset incr incrby incrbyfloat psetex set setbit setex setnx setrange",
    "del expire expireat getdel persist pexpire pexpireat unlink",
    "hdel hincrby hincrbyfloat hmset hset hsetnx",
    "linsert lpop lpush lpushx lrem lset ltrim rpop rpush rpushx",
    "sadd spop srem",
    "zadd zincrby zpopmax zpopmin zrem zremrangebylex zremrangebyrank zremrangebyscore",
    "geoadd pfadd xadd xdel xtrim",
)
COMMANDS: Final = frozenset(name for line in _BY_TYPE for name in line.split())
"""What may be run: commands that write, and whose only key is the first word after their name."""

LONGEST: Final = 4000
"""Words of one command at the most: Lua takes no more than some eight thousand."""

LASTING: Final = 1e10
"""Seconds that no marker is kept: some three centuries. What is much above it overflows in the server."""

_OF_THE_SERVER: Final = (Kind.WAIT, Kind.REROUTE, Kind.REDIRECT, Kind.DEGRADE)

_ONCE: Final = """
local begun = redis.call('GET', KEYS[1])
if begun then
    redis.call('PEXPIRE', KEYS[1], ARGV[1])
    if begun == 'done' then return 0 end
end
local before, place, number = tonumber(begun or 0), 2, 0
-- The marker first: what forbids writing forbids this one, too, and then nothing was done.
redis.call('SET', KEYS[1], 'done', 'PX', ARGV[1])
while place <= #ARGV do
    local length, words = tonumber(ARGV[place]), {}
    number = number + 1
    if number > before then
        for at = 1, length do words[at] = ARGV[place + at] end
        local reply = redis.pcall(unpack(words))
        if type(reply) == 'table' and reply['err'] then
            if number == 1 then
                redis.call('DEL', KEYS[1])
            else
                redis.call('SET', KEYS[1], number - 1, 'PX', ARGV[1])
            end
            return reply
        end
    end
    place = place + length + 1
end
return 1
"""
"""KEYS: the marker, and those of the commands. ARGV: milliseconds until the marker expires, then each command, its
length before it. The marker holds ``done``, or how many commands were run before the one that failed: when the event
comes again, it goes on with that one."""


@frozen
class RedisSteps:
    """What the handlers of a group do in Redis once for each event.

    Args:
        client: the link, asked for at each use.
        gates: all must be open.
        group: the consumer group.
    """

    client: Callable[[], AnyRedis]
    gates: tuple[Gate, ...]
    group: str

    async def once(
        self, delivery: Delivery[object], name: str, commands: Sequence[RedisCommand], expires: float
    ) -> bool:
        """See `Context.once_in_redis`."""
        keys, words = _read(name, commands, expires)
        event = str(delivery.envelope.event_id)
        if delivery.order is not None:
            event += f"/{delivery.order}"
        marker = marker_of(keys, f"{self.group}:{event}:{name}")
        for gate in self.gates:
            if not gate.is_open:
                raise Unavailable(gate.name, f"Redis is away: {gate.cause}")
        try:
            script = self.client().register_script(_ONCE)
            done = await script([marker, *keys], [max(1, round(1000 * expires)), *words])
        except redis.exceptions.RedisError as error:
            away = unavailable_for(error)
            if away is None:
                raise
            raise away from error
        return bool(done)


def unavailable_for(error: redis.exceptions.RedisError) -> Unavailable | None:
    """What an error of our own link means for a handler: that Redis is away. None if it is about the command.

    Raise it from the error: by its cause the gates are told.
    """
    row = classify(error)
    if not row.shuts_gate and row.kind not in _OF_THE_SERVER and not isinstance(error, RedisUnavailable):
        return None
    full = row.kind is Kind.DEGRADE and not row.shuts_gate
    return Unavailable("redis-memory" if full else "redis", reply_text(error))


def marker_of(keys: Sequence[str | bytes], name: str) -> str:
    """The key of the marker called `name`, in the slot of `keys`: ``{ranking}:penstock-once:NAME``.

    Raises:
        ValueError: they are in different slots, or no other key can be in theirs.
    """
    first = _text(keys[0])
    slots = {slot_of(key) for key in keys}
    if len(slots) > 1:
        told = ", ".join(repr(_text(key)) for key in dict.fromkeys(keys))
        raise ValueError(
            f"the keys {told} are in different slots of a Redis Cluster; give those that change together one hash tag, "
            f"as in '{{{hash_tag(first)}}}:…'"
        )
    marker = f"{{{hash_tag(first)}}}:penstock-once:{name}"
    if slot_of(marker) not in slots:
        raise ValueError(f"no marker can stand beside the key {first!r}; give it a hash tag, as in '{{name}}:…'")
    return marker


def _read(name: str, commands: Sequence[RedisCommand], expires: float) -> tuple[list[str | bytes], list[object]]:
    """The keys of commands, and all their words, the length of each command before it; raises ValueError."""
    if not name:
        raise ValueError("a step needs a name")
    if not 0 < expires < LASTING:
        raise ValueError(f"expires is a number of seconds above 0, and below {LASTING:g}, not {expires!r}")
    if not commands:
        raise ValueError(f"{name!r} has no commands")
    keys: list[str | bytes] = []
    words: list[object] = []
    for command in commands:
        keys.append(_key_of(command))
        words += [len(command), *command]
    return keys, words


def _key_of(command: RedisCommand) -> str | bytes:
    if isinstance(command, str | bytes) or len(command) < 2:
        raise ValueError(f"a command is its name, its key and what it takes, as ('INCR', 'orders'), not {command!r}")
    verb, key = _text(command[0]), command[1]
    if verb.lower() not in COMMANDS:
        raise ValueError(f"{verb} cannot be run once: only commands that write one key can, their first argument")
    if not isinstance(key, str | bytes):
        raise ValueError(f"{verb}: a key is a string, not {key!r}")
    if verb.lower() in ("del", "unlink") and len(command) > 2:
        raise ValueError(f"{verb} takes one key here; write a command for each")
    if len(command) > LONGEST:
        raise ValueError(f"{verb} {_text(key)}: {len(command)} words, more than {LONGEST}; write several commands")
    return key


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
