"""Following a stream: its events as they come, of all its partitions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

import trio

from .event import Envelope, Origin, SkippedEntry, UndecodableEntry
from .handling import entry_order
from .stream_view import last_id_of

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis
    from .system import Stream

__all__ = ["tail"]

TAIL_EVERY: Final = 0.2
"""Seconds between two looks for news of a stream with several partitions."""

_Found = tuple[str, str, Mapping[bytes, bytes]]


async def tail(client: AnyRedis, stream: Stream, last_id: str) -> AsyncIterator[tuple[str, Envelope]]:
    """The events that come to a stream after `last_id` (``$``: from now on), for ever; entries that are none left out.

    Of a stream with several partitions `last_id` is meant in each of them: ids are times.

    Raises:
        redis.exceptions.RedisError: Redis is away.
    """
    if last_id == "$":
        # Once, and not at every read: what comes between two reads would be passed over.
        last_id = max([await last_id_of(client, key) for key in stream.keys], key=entry_order)
    read = _tail_one if stream.partitions == 1 else _tail_many
    async with aclosing(read(client, stream.keys, last_id)) as entries:
        async for key, entry_id, fields in entries:
            envelope = _decoded(stream, key, entry_id, fields)
            if envelope is not None:
                yield entry_id, envelope


async def _tail_one(client: AnyRedis, keys: Sequence[str], after: str) -> AsyncGenerator[_Found, None]:
    (key,) = keys
    async with client.dedicated(key=key) as connection:
        while True:
            reply = await connection.xread({key: after}, count=100, block=1000)
            for entry_id, fields in _entries(reply):
                after = entry_id
                yield key, entry_id, fields


async def _tail_many(client: AnyRedis, keys: Sequence[str], after: str) -> AsyncGenerator[_Found, None]:
    """Partitions may be on different nodes, where no single read waits for all of them: they are asked in turns, and
    what has come in one turn is in the order of the ids."""
    seen = dict.fromkeys(keys, after)
    while True:
        found = []
        for key in keys:
            for entry_id, fields in _entries(await client.xread({key: seen[key]}, count=100)):
                seen[key] = entry_id
                found.append((key, entry_id, fields))
        for each in sorted(found, key=lambda entry: entry_order(entry[1])):
            yield each
        if not found:
            await trio.sleep(TAIL_EVERY)


def _entries(reply: Any) -> Iterator[tuple[str, Mapping[bytes, bytes]]]:
    for _, entries in reply.items() if isinstance(reply, dict) else reply or ():
        for entry_id, fields in entries:
            yield entry_id.decode(), fields


def _decoded(stream: Stream, key: str, entry_id: str, fields: Mapping[bytes, bytes]) -> Envelope | None:
    try:
        readable = {name.decode(): value.decode() for name, value in fields.items()}
        return stream.decode(readable, Origin(key, entry_id))
    except (UndecodableEntry, SkippedEntry, UnicodeDecodeError):
        return None
