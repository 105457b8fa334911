"""The rights of our user in Redis: each command that is needed is asked in a form that changes nothing.

Rights are looked at before all else, so an error of another kind says that it may. That needs no right to ``ACL``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import redis.exceptions
from attrs import frozen

from ..runtime.redis import RedisUnavailable
from .findings import Finding, Severity
from .probes import probe_key

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis
    from .channels import Channel
    from .system import System

__all__ = ["Needs", "access_findings"]


@frozen(kw_only=True)
class Needs:
    """What is used in Redis.

    Attributes:
        keys: the streams' keys; without the rights to these nothing can be done.
        mirrors: keys of the streams that show dead letters; without the rights to these they do not.
        queues: names of the work queues; without the rights to these nothing can be done either.
        channels: the broadcast channels; without the rights to one it is silent, and nothing else is.
    """

    keys: Sequence[str] = ()
    mirrors: Sequence[str] = ()
    queues: Sequence[str] = ()
    channels: Sequence[Channel] = ()

    @classmethod
    def of(cls, system: System) -> Needs:
        """What a declared system uses."""
        streams = system.streams.values()
        return cls(
            keys=[key for stream in streams for key in stream.keys],
            mirrors=[stream.mirror_key for stream in streams if stream.mirror and stream.groups],
            queues=list(system.queues),
            channels=list(system.channels.values()),
        )


async def access_findings(client: AnyRedis, needs: Needs, where: str) -> list[Finding]:
    """Whether our user may do what has to be done; a command that is refused for another reason may.

    To a channel that has handlers it listens for a moment; so a message that is sent then is counted once more.

    Args:
        client: the link.
        needs: what has to be done.
        where: the server's address.

    Raises:
        RedisUnavailable: the link is lost.
    """
    denied = await _denied_on(client, needs.keys, _questions)
    untaken = await _denied_on(client, needs.queues, _questions_of_queue)
    for name in needs.queues:
        for command in await _denied_moves(client, name):
            untaken.setdefault(command, []).append(name)
    hidden = await _denied_on(client, needs.mirrors, _questions_of_mirror)
    silent = await _silent(client, needs.channels)

    def finding(severity: Severity, found: str, mend: str) -> Finding:
        return Finding(name="access", where=where, severity=severity, found=found, mend=mend)

    found = []
    if denied:
        mend = _right(denied, _stream_patterns, "+@stream +@scripting")
        found.append(finding(Severity.REFUSE, _told(denied), mend))
    if untaken:
        # Without EVAL nobody knows whether LPUSH is allowed.
        lacking = untaken | {"LPUSH": untaken["EVAL"]} if "EVAL" in untaken else untaken
        mend = _right(lacking, lambda name: (f"{{{name}}}:*",), "+@list +@sortedset +@scripting +time")
        found.append(finding(Severity.REFUSE, f"{_told(untaken)} (work queues)", mend))
    if hidden:
        told = f"{_told(hidden)}, so dead letters are not shown there, and what is to show them stays in the outbox"
        mend = f"{_right(hidden, lambda key: (key,), '+@stream')}, or declare the stream with mirror=False"
        found.append(finding(Severity.WARN, told, mend))
    if silent:
        told = f"{_told(silent)}, so these broadcast channels are silent in this process"
        rules = " ".join([*(f"&{name}" for name in _places(silent)), "+@pubsub"])
        found.append(finding(Severity.WARN, told, f"ACL SETUSER … {rules} (or {_commands(silent)})"))
    return found or [finding(Severity.GOOD, "its user has all rights needed", "")]


_Denied = Mapping[str, Sequence[str]]
"""By command, what our user may not run it on."""


def _told(denied: _Denied) -> str:
    return f"our user may not run {', '.join(denied)} on {', '.join(_places(denied))}"


def _right(denied: _Denied, patterns: Callable[[str], Sequence[str]], categories: str) -> str:
    keys = dict.fromkeys(pattern for name in _places(denied) for pattern in patterns(name))
    return f"ACL SETUSER … {' '.join(f'~{key}' for key in keys)} {categories} (or {_commands(denied)})"


def _commands(denied: _Denied) -> str:
    return " ".join(f"+{command.lower().replace(' ', '|')}" for command in denied)


def _places(denied: _Denied) -> list[str]:
    return sorted({name for names in denied.values() for name in names})


def _stream_patterns(key: str) -> tuple[str, ...]:
    """The stream, and what stands beside it: the key that is probed, those of conditions."""
    probe = probe_key(key)
    return key, f"{probe.removesuffix('penstock-probe')}*" if probe.endswith("}:penstock-probe") else probe


# Streams and queues --------------------------------------------------------------------------------------------------

_GROUP: Final = "penstock-probe"
"""A group that never exists: what is asked of it changes nothing."""

_Question = tuple[str, tuple[str, ...]]


def _questions(key: str) -> Sequence[_Question]:
    """Each command that is used on a stream, in a form that changes nothing; rights are looked at before all else."""
    return (
        ("XADD", (probe_key(key), "NOMKSTREAM", "*", "probe", "1")),
        ("XADD", (key, "no-id", "probe", "1")),
        ("XREADGROUP", ("GROUP", _GROUP, "probe", "COUNT", "1", "STREAMS", key, ">")),
        ("XREAD", ("COUNT", "1", "STREAMS", key, "$")),
        ("XRANGE", (key, "-", "+", "COUNT", "1")),
        ("XACK", (key, _GROUP, "0-1")),
        ("XPENDING", (key, _GROUP)),
        ("XCLAIM", (key, _GROUP, "probe", "0", "0-1")),
        ("XINFO", ("STREAM", key)),
        ("XINFO", ("GROUPS", key)),
        ("XINFO", ("CONSUMERS", key, _GROUP)),
        ("XGROUP", ("CREATE", key, _GROUP, "no-id")),
        ("XGROUP", ("SETID", key, _GROUP, "0")),
        ("XGROUP", ("DELCONSUMER", key, _GROUP, "probe")),
        ("XTRIM", (key, "MINID", "0")),
        ("XLEN", (key,)),
        ("EVAL", ("return redis.call('XLEN', KEYS[1])", "1", key)),
        ("EVALSHA", ("0" * 40, "1", key)),
    )


def _questions_of_mirror(key: str) -> Sequence[_Question]:
    return ("XADD", (key, "no-id", "probe", "1")), ("XDEL", (key, "0-0"))


def _questions_of_queue(name: str) -> Sequence[_Question]:
    """All but BLMOVE and LPUSH; see `_denied_moves`."""
    lists, consumers = f"{{{name}}}:penstock-probe", f"{{{name}}}:consumers"
    return (
        ("LMOVE", (lists, lists, "RIGHT", "LEFT")),
        ("LREM", (lists, "1", "probe")),
        ("LRANGE", (lists, "0", "0")),
        ("LINDEX", (lists, "0")),
        ("LLEN", (lists,)),
        ("ZADD", (consumers, "XX", "0", "penstock-probe")),
        ("ZREM", (consumers, "penstock-probe")),
        ("ZRANGE", (consumers, "0", "0")),
        ("ZRANGEBYSCORE", (consumers, "0", "0")),
        ("ZSCORE", (consumers, "penstock-probe")),
        ("TIME", ()),
        ("EVAL", ("return redis.call('LLEN', KEYS[1])", "1", lists)),
        ("EVALSHA", ("0" * 40, "1", lists)),
    )


async def _denied_on(
    client: AnyRedis, names: Sequence[str], ask: Callable[[str], Sequence[_Question]]
) -> dict[str, list[str]]:
    denied: dict[str, list[str]] = {}
    for name in names:
        for command in await _denied(client, ask(name)):
            denied.setdefault(command, []).append(name)
    return denied


async def _denied(client: AnyRedis, questions: Sequence[_Question]) -> list[str]:
    pipeline = client.pipeline(transaction=False)
    for command, words in questions:
        pipeline.execute_command(command, *words)
    replies = await pipeline.execute(raise_on_error=False)
    denied = []
    for (command, words), reply in zip(questions, replies, strict=True):
        if isinstance(reply, RedisUnavailable):
            raise reply
        if _is_denial(reply):
            denied.append(f"{command} {words[0]}" if command in ("XINFO", "XGROUP") else command)
    return list(dict.fromkeys(denied))


async def _denied_moves(client: AnyRedis, name: str) -> list[str]:
    """Those of BLMOVE and LPUSH that our user may not run on a queue: no pipeline takes the one, and a script that may
    not write has to ask for the other."""
    waiting, denied = f"{{{name}}}:waiting", []
    try:
        await client.execute_command("BLMOVE", waiting, f"{{{name}}}:taken:penstock-probe", "NOWHERE", "LEFT", 1)
    except redis.exceptions.ResponseError as error:
        if _is_denial(error):
            denied.append("BLMOVE")
    if await _is_denied_in_script(client, "LPUSH", keys=[waiting]):
        denied.append("LPUSH")
    return denied


_IN_SCRIPT: Final = """#!lua flags=no-writes
local words = {}
for _, word in ipairs(KEYS) do words[#words + 1] = word end
for _, word in ipairs(ARGV) do words[#words + 1] = word end
local reply = redis.pcall(unpack(words, 1, #words))
return reply['err']
"""


async def _is_denied_in_script(
    client: AnyRedis, command: str, *, keys: Sequence[str] = (), words: Sequence[str] = ()
) -> bool:
    """Whether a command that changes something is refused for want of a right, in a script that may change nothing.

    A server before Redis 7 does not know such scripts, and one whose user may run none says so of streams: no then.
    """
    script = _IN_SCRIPT.replace("local words = {}", f"local words = {{'{command}'}}")
    try:
        reply = await client.execute_command("EVAL", script, len(keys), *keys, *words, "penstock-probe")
    except redis.exceptions.ResponseError:
        return False
    text = reply.decode() if isinstance(reply, bytes) else str(reply)
    return "ACL failure" in text or "The user executing the script" in text


def _is_denial(reply: Any) -> bool:
    return isinstance(reply, redis.exceptions.NoPermissionError) or str(reply).startswith("NOPERM")


# Channels ------------------------------------------------------------------------------------------------------------


async def _silent(client: AnyRedis, channels: Sequence[Channel]) -> dict[str, list[str]]:
    """By command, the channels on which our user may not run it. Which ones are sent to behind a pattern, is not known.

    One that only listens to a channel may be all that we are.
    """
    silent: dict[str, list[str]] = {}
    for channel in channels:
        is_heard = bool(channel.handlers or channel.gap_handlers)
        if is_heard and not await _may_listen(client, channel):
            silent.setdefault("PSUBSCRIBE" if channel.pattern else "SUBSCRIBE", []).append(channel.name)
        if not is_heard and not channel.pattern and await _is_denied_in_script(client, "PUBLISH", words=[channel.name]):
            silent.setdefault("PUBLISH", []).append(channel.name)
    return silent


async def _may_listen(client: AnyRedis, channel: Channel) -> bool:
    async with client.pubsub() as pubsub:
        try:
            await (pubsub.psubscribe if channel.pattern else pubsub.subscribe)(channel.name)
        except redis.exceptions.ResponseError as error:
            if not _is_denial(error):
                raise
            return False
    return True
