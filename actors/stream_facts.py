"""All that Redis itself says of a stream: XINFO STREAM, GROUPS and CONSUMERS, and MEMORY USAGE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import redis.exceptions
from attrs import frozen

from ..runtime.redis import Kind, classify
from .group_making import text_of
from .pending import fields_of
from .pending_view import ConsumerView, consumer_of

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis
    from .stream_view import StreamView

__all__ = ["EntryFacts", "GroupFacts", "StreamFacts", "facts_of"]

_REFUSALS = (Kind.CONFIG, Kind.DOWNGRADE, Kind.BUG)


@frozen(kw_only=True)
class EntryFacts:
    """The first or the last entry of a stream.

    Attributes:
        entry_id: its id.
        fields: as they are, with what is not UTF-8 replaced.
    """

    entry_id: str
    fields: Mapping[str, str]


@frozen(kw_only=True)
class GroupFacts:
    """A group.

    Attributes:
        name: its name.
        last_delivered_id: the last entry that it was given.
        entries_read: how many it was given, or were gone before it came; None where Redis does not say.
        lag: entries that it was not given yet; None where nobody can tell.
        pending: entries that it was given and has not acknowledged.
        consumers: who has them, and who has none.
    """

    name: str
    last_delivered_id: str
    entries_read: int | None
    lag: int | None
    pending: int
    consumers: tuple[ConsumerView, ...]


@frozen(kw_only=True)
class StreamFacts:
    """A stream, or a partition of one.

    Attributes:
        key: its key.
        exists: whether there is such a key.
        length: entries in it.
        radix_tree_keys: nodes' keys of the tree that holds the entries, many to a node.
        radix_tree_nodes: its nodes.
        last_generated_id: the last id given out.
        max_deleted_id: the greatest id that was deleted; None where Redis does not say (before 7.0).
        entries_added: how many it was ever given; likewise.
        first: the oldest entry; None in an empty stream.
        last: the youngest; likewise.
        memory: bytes that it takes, as MEMORY USAGE estimates it; None where that may not be asked.
        groups: its groups.
    """

    key: str
    exists: bool
    length: int = 0
    radix_tree_keys: int = 0
    radix_tree_nodes: int = 0
    last_generated_id: str = "0-0"
    max_deleted_id: str | None = None
    entries_added: int | None = None
    first: EntryFacts | None = None
    last: EntryFacts | None = None
    memory: int | None = None
    groups: tuple[GroupFacts, ...] = ()


async def facts_of(client: AnyRedis, view: StreamView) -> StreamFacts:
    """What Redis says of a stream, a round trip for each group.

    Args:
        client: the link.
        view: the stream as it was just looked at; it has the lags right where Redis has lost count.

    Raises:
        redis.exceptions.RedisError: as the link says.
    """
    try:
        info: Mapping[str, Any] = await client.xinfo_stream(view.key)
        groups: Sequence[Mapping[str, Any]] = await client.xinfo_groups(view.key)
    except redis.exceptions.ResponseError as error:
        if "no such key" not in str(error).lower():
            raise
        return StreamFacts(key=view.key, exists=False)
    lags = {group.name: group.lag for group in view.groups}
    return StreamFacts(
        key=view.key,
        exists=True,
        length=int(info["length"]),
        radix_tree_keys=int(info["radix-tree-keys"]),
        radix_tree_nodes=int(info["radix-tree-nodes"]),
        last_generated_id=text_of(info["last-generated-id"]),
        max_deleted_id=_text(info.get("max-deleted-entry-id")),
        entries_added=info.get("entries-added"),
        first=_entry(info.get("first-entry")),
        last=_entry(info.get("last-entry")),
        memory=await _memory(client, view.key),
        groups=tuple([await _group(client, view.key, each, lags) for each in groups]),
    )


async def _group(client: AnyRedis, key: str, found: Mapping[str, Any], lags: Mapping[str, int | None]) -> GroupFacts:
    name = text_of(found["name"])
    consumers: list[Any] = await client.xinfo_consumers(key, name)
    return GroupFacts(
        name=name,
        last_delivered_id=text_of(found["last-delivered-id"]),
        entries_read=found.get("entries-read"),
        lag=lags.get(name, found.get("lag")),
        pending=int(found["pending"]),
        consumers=tuple(consumer_of(key, each) for each in consumers),
    )


async def _memory(client: AnyRedis, key: str) -> int | None:
    try:
        used: int | None = await client.memory_usage(key)
    except redis.exceptions.ResponseError as error:
        if classify(error).kind not in _REFUSALS:
            raise
        return None
    return used


def _entry(found: Any) -> EntryFacts | None:
    if not found:
        return None
    entry_id, fields = found
    pairs = fields if isinstance(fields, Mapping) else fields_of(fields)
    readable = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in pairs.items()}
    return EntryFacts(entry_id=text_of(entry_id), fields=readable)


def _text(value: bytes | str | None) -> str | None:
    return None if value is None else text_of(value)
