"""Where commands without keys go: to any master, to all of them with one combined result, or nowhere by themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ..errors import CommandRefused

__all__ = ["combiner_of", "is_harmless_twice", "refusal_of", "slot_argument_of"]

Combine = Callable[[Sequence[Any]], Any]
"""From the results of all masters to one."""


def combiner_of(name: str) -> Combine | None:
    """For a command that all masters must run: how their results become one. None: any one master will do.

    Where that failed, they are made again, and nowhere else.
    """
    return _ALL_MASTERS.get(name)


def is_harmless_twice(name: str) -> bool:
    """Whether one master may run such a command twice: its second result is as good as its first."""
    return name not in _ONCE


def slot_argument_of(name: str, args: Sequence[Any]) -> int | None:
    """The slot that the command speaks about, if it names one by its number."""
    if name not in _ABOUT_A_SLOT:
        return None
    return int([*args[0].split(), *args[1:]][2])


def refusal_of(name: str) -> CommandRefused | None:
    """The error for a command that says something else on each node, so that the node must be named."""
    advice = _NEEDS_TARGET.get(name)
    if advice is None and name.partition(" ")[0] in _FOR_OPERATORS and name not in _HARMLESS:
        advice = "it is about one node"
    if advice is None:
        return None
    return CommandRefused(f"{name} in a cluster: {advice}; say which with `target=(host, port)`, or use cluster.node()")


def _all_true(results: Sequence[Any]) -> bool:
    return all(results)


def _concatenated(results: Sequence[Any]) -> list[Any]:
    return [each for result in results for each in result]


def _distinct(results: Sequence[Any]) -> list[Any]:
    return list(dict.fromkeys(_concatenated(results)))


def _first(results: Sequence[Any]) -> Any:
    return results[0]


def _everywhere(results: Sequence[Any]) -> list[bool]:
    """Which scripts *every* master has."""
    return [all(each) for each in zip(*results, strict=True)]


def _sum_by_channel(results: Sequence[Any]) -> list[tuple[Any, int]]:
    counts: dict[Any, int] = {}
    for result in results:
        for channel, count in result.items() if isinstance(result, Mapping) else result:
            counts[channel] = counts.get(channel, 0) + count
    return list(counts.items())


_ALL_MASTERS: Final[dict[str, Combine]] = {
    "DBSIZE": sum,
    "KEYS": _concatenated,
    "FLUSHALL": _all_true,
    "FLUSHDB": _all_true,
    "SCRIPT LOAD": _first,
    "SCRIPT EXISTS": _everywhere,
    "SCRIPT FLUSH": _all_true,
    "FUNCTION LOAD": _first,
    "FUNCTION DELETE": _all_true,
    "FUNCTION FLUSH": _all_true,
    "FUNCTION RESTORE": _all_true,
    "CONFIG SET": _all_true,
    "CONFIG RESETSTAT": _all_true,
    "CONFIG REWRITE": _all_true,
    "ACL SETUSER": _all_true,
    "ACL DELUSER": _first,
    "ACL LOAD": _all_true,
    "ACL SAVE": _all_true,
    "SLOWLOG RESET": _all_true,
    "LATENCY RESET": sum,
    "MEMORY PURGE": _all_true,
    "PUBSUB CHANNELS": _distinct,
    "PUBSUB NUMPAT": sum,
    "PUBSUB NUMSUB": _sum_by_channel,
    "PUBSUB SHARDCHANNELS": _distinct,
    "PUBSUB SHARDNUMSUB": _sum_by_channel,
    "CLIENT PAUSE": _all_true,
    "CLIENT UNPAUSE": _all_true,
}

_ONCE: Final = frozenset({"FUNCTION LOAD", "FUNCTION DELETE", "FUNCTION RESTORE", "ACL DELUSER"})
"""Done twice, they say that the library is there already, or that it or the user is not."""

_ABOUT_A_SLOT: Final = frozenset({"CLUSTER COUNTKEYSINSLOT", "CLUSTER GETKEYSINSLOT"})

_NEEDS_TARGET: Final[dict[str, str]] = {
    "SCAN": "a cursor belongs to one node (scan_iter() goes over all of them)",
    "MIGRATE": "it moves keys away from one node",
    "CLIENT KILL": "each node has clients of its own",
    "CLIENT LIST": "each node has clients of its own",
    "CLIENT UNBLOCK": "each node has clients of its own",
    "BGSAVE": "each node has a disk of its own",
    "BGREWRITEAOF": "each node has a disk of its own",
    "SAVE": "each node has a disk of its own",
    "REPLICAOF": "it changes one node",
    "SLAVEOF": "it changes one node",
    "SWAPDB": "a cluster has database 0 only",
}

_FOR_OPERATORS: Final = frozenset({"CLUSTER", "DEBUG", "FAILOVER", "MODULE", "SHUTDOWN"})

_HARMLESS: Final = frozenset(
    {
        "CLUSTER INFO",
        "CLUSTER NODES",
        "CLUSTER SLOTS",
        "CLUSTER SHARDS",
        "CLUSTER KEYSLOT",
        "CLUSTER REPLICAS",
        "CLUSTER SLAVES",
        "CLUSTER HELP",
        *_ABOUT_A_SLOT,
        "MODULE LIST",
        "MODULE HELP",
    }
)
