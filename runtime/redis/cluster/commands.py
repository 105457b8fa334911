"""`ClusterCommands`: redis-py's command methods where a cluster makes them differ from a single server's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

import trio
from redis.exceptions import RedisError

from .. import _compat
from ..commands import Commands
from .keys import slot_of_argument
from .placement import Placement, arrivals_in
from .topology import Address

__all__ = ["ClusterCommands"]


class ClusterCommands(_compat.AsyncClusterManagementCommands, Commands):  # type: ignore[misc]  # so in redis-py, too
    """The command methods of a cluster: a subclass brings `execute_command` and `_owners`.

    Those with several keys that redis-py's cluster client splits by slot (`delete`, `exists`, `touch`, `unlink`,
    `mget_nonatomic`, `mset_nonatomic`) are split here as well: each slot's share is one step, the whole is not.
    """

    @abstractmethod
    async def _owners(self) -> tuple[Address | None, ...]:
        """The present owner of each slot, freshly read."""

    async def delete(self, *names: Any) -> int:
        """Delete keys, of any slots; returns how many there were."""
        return await self._sum_by_slot("DEL", names)

    async def exists(self, *names: Any) -> int:
        """How many of the keys there are, of any slots."""
        return await self._sum_by_slot("EXISTS", names)

    async def touch(self, *args: Any) -> int:
        """Note a use of keys, of any slots; returns how many there are."""
        return await self._sum_by_slot("TOUCH", args)

    async def unlink(self, *names: Any) -> int:
        """Delete keys, of any slots, and free the memory later; returns how many there were."""
        return await self._sum_by_slot("UNLINK", names)

    async def mget_nonatomic(self, keys: Any, *args: Any) -> list[Any]:
        """The values of keys of any slots, in their order; None for a key that is absent."""
        wanted = [*([keys] if isinstance(keys, (str, bytes)) else keys), *args]
        shares = [[*share] for share in _by_slot(wanted, key=lambda key: key).values()]
        found = await self._run_shares([("MGET", *share) for share in shares])
        values = {key: value for share, got in zip(shares, found, strict=True) for key, value in zip(share, got)}  # noqa: B905
        return [values[key] for key in wanted]

    async def mset_nonatomic(self, mapping: Mapping[Any, Any]) -> list[bool]:
        """Set keys of any slots; returns the result of each slot's share."""
        shares = _by_slot(mapping.items(), key=lambda pair: pair[0]).values()
        return await self._run_shares([("MSET", *(word for pair in share for word in pair)) for share in shares])

    async def scan_iter(  # type: ignore[override]
        self, match: Any = None, count: int | None = None, _type: str | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """All keys of all masters, one master after the other.

        As SCAN promises for one node: a key that is there from the beginning to the end comes at least once, also when
        its slot moves meanwhile; for masters that have gained slots are gone through again, until no more have.

        Raises NotSent or OutcomeUnknown when a master is lost on the way: begin again then.
        """
        placement = Placement(await self._owners())
        masters: Sequence[Address] = list(dict.fromkeys(owner for owner in placement.owners if owner is not None))
        while masters:
            for address in masters:
                cursor: Any = 0
                while True:
                    cursor, found = await self.scan(
                        cursor=cursor, match=match, count=count, _type=_type, target=address, **kwargs
                    )
                    for key in found:
                        yield key
                    if not int(cursor):
                        break
            before, placement = placement, await self._placement()
            masters = placement.gained_since(before)

    async def cluster_delslots(self, *slots: Any) -> list[bool]:  # type: ignore[override]
        """Take slots from their owners."""
        return [await self.execute_command("CLUSTER DELSLOTS", slot) for slot in slots]

    async def _placement(self) -> Placement:
        # In this order: a migration that ends in between is seen by its new owner, or as under way.
        views = await self.execute_command("CLUSTER NODES", target="masters")
        return Placement(await self._owners(), frozenset(arrivals_in(views)))

    async def _sum_by_slot(self, command: str, keys: Sequence[Any]) -> int:
        shares = _by_slot(keys, key=lambda key: key).values()
        return sum(await self._run_shares([(command, *share) for share in shares]))

    async def _run_shares(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Run commands at the same time; their results in order. Raises the first error of that order."""
        if len(commands) == 1:
            return [await self.execute_command(*commands[0])]
        results: list[Any] = [None] * len(commands)

        async def run(number: int, command: tuple[Any, ...]) -> None:
            try:
                results[number] = await self.execute_command(*command)
            except RedisError as error:
                results[number] = error

        async with trio.open_nursery() as nursery:
            for number, command in enumerate(commands):
                nursery.start_soon(run, number, command)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results


def _by_slot(items: Iterable[Any], *, key: Any) -> dict[int, list[Any]]:
    shares: dict[int, list[Any]] = {}
    for item in items:
        shares.setdefault(slot_of_argument(key(item)), []).append(item)
    return shares
