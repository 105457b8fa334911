"""Whether what the owner of a stream has acknowledged counts, on a Redis Cluster where a replica may have its place.

A master that stood still for longer than `cluster-node-timeout` may have been replaced, and does not know: when it goes
on, it acknowledges what it is sent until the others tell it, and then throws it away. Nothing in its answer shows that.
So an answer counts by itself only within `SILENT_FOR` seconds of an earlier one that counted, for in so short a time
nobody is replaced. After a longer silence the other masters are asked: so many of them that one is among those without
whose votes no replica is elected. Who votes has seen the owner fail, and says so for twice the time-out, or until it
knows of the successor.

What this cannot see: a master that answers us and was cut off from its replicas and from the others. It takes writes
for as long as `cluster-node-timeout` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import redis.exceptions
import trio
from attrs import define, field, frozen

from ..runtime.redis import RedisCluster
from ..runtime.redis.cluster import Address
from ..runtime.redis.slots import slot_of
from ..runtime.telemetry import get_logger
from .cluster_view import NodeAccount, read_account

__all__ = ["Claim", "Ownership", "Written"]

log = get_logger(__name__)

SILENT_FOR: Final = 0.5
"""Seconds in which no master is replaced: less than any `cluster-node-timeout` in use, and an election."""

CONFIRMED_WITHIN: Final = 1.0
"""Seconds in which the others must have heard of an owner: after a slot has moved, news takes its time."""

ASK_AGAIN: Final = 0.1
"""Seconds between two questions to the others."""


Written = tuple[str, Mapping[str, str]]
"""An entry's id, as it was acknowledged, and its fields."""


@frozen
class Claim:
    """Who has a stream, as far as we knew before we wrote to it.

    Attributes:
        owner: the node.
        sent_at: `trio.current_time()` of then.
    """

    owner: Address
    sent_at: float


@define(eq=False)
class Ownership:
    """See the module. One for each who writes.

    Args:
        client: the link, asked for at each use.
    """

    client: Callable[[], RedisCluster]
    _counted: dict[str, Claim] = field(factory=dict, init=False)

    async def claims(self, streams: Iterable[str]) -> dict[str, Claim]:
        """To be taken before a write to these streams.

        Raises:
            redis.exceptions.RedisError: no node of the cluster answers.
        """
        client = self.client()
        return {
            stream: Claim(await client.node_for_slot(slot_of(stream)), trio.current_time())
            for stream in dict.fromkeys(streams)
        }

    async def doubts(self, claims: Mapping[str, Claim], written: Mapping[str, Sequence[Written]]) -> dict[str, str]:
        """After the writes were acknowledged: the streams where that does not count, and why.

        Asks nobody where the owner has not been silent. Else it takes a round trip to other masters, and
        `CONFIRMED_WITHIN` seconds at the most. Raises nothing for Redis.
        """
        try:
            client = self.client()
        except RuntimeError as error:
            return dict.fromkeys(written, str(error))  # the process stops, and nobody can be asked any more
        found: dict[str, str] = {}
        for stream, entries in written.items():
            claim = claims[stream]
            beyond_doubt = self._is_beyond_doubt(client, stream, claim)
            if not beyond_doubt and (why := await self._doubt(client, stream, claim.owner, entries)):
                log.warning("an acknowledgement is not believed", stream=stream, why=why)
                found[stream] = why
                self._counted.pop(stream, None)
                client.refresh_soon()
            else:
                self._counted[stream] = claim
        return found

    def _is_beyond_doubt(self, client: RedisCluster, stream: str, claim: Claim) -> bool:
        """Whether the node that has answered was known to be the owner so shortly before that it must be still."""
        before = self._counted.get(stream)
        heard = before.sent_at if before is not None and before.owner == claim.owner else -math.inf
        topology = client.topology
        return (
            trio.current_time() - heard <= SILENT_FOR
            and topology is not None
            and topology.owner(slot_of(stream)) == claim.owner
        )

    async def _doubt(self, client: RedisCluster, stream: str, claimed: Address, written: Sequence[Written]) -> str:
        """Why the others do not confirm what was written; empty if they do."""
        why = f"no other master answers within {CONFIRMED_WITHIN:g} s"
        with trio.move_on_after(CONFIRMED_WITHIN):
            while True:
                try:
                    owner = await client.node_for_slot(slot_of(stream))
                    why = await self._ask_others(client, stream, owner)
                    if not why:
                        # It went elsewhere meanwhile: either may have acknowledged it, and where it is now it must be.
                        return "" if owner == claimed else await self._look_for(client, stream, owner, written)
                except redis.exceptions.RedisError as error:
                    why = str(error)
                await trio.sleep(ASK_AGAIN)
        return why

    async def _look_for(self, client: RedisCluster, stream: str, owner: Address, written: Sequence[Written]) -> str:
        burst = client.pipeline(transaction=False)
        for entry_id, _ in written:
            burst.xrange(stream, entry_id, entry_id)
        found = await burst.execute()
        for (entry_id, fields), entries in zip(written, found, strict=True):
            expected = {name.encode(): text.encode() for name, text in fields.items()}
            if not entries or dict(entries[0][1]) != expected:
                return f"{entry_id} is not in {stream}, which {owner} has by now"
        return ""

    async def _ask_others(self, client: RedisCluster, stream: str, owner: Address) -> str:
        masters = await client.masters()
        others = [address for address in masters if address != owner]
        needed = min(len(others), max(1, (len(masters) - 1) // 2))
        accounts: list[NodeAccount] = []

        async def ask(address: Address) -> None:
            burst = client.node(*address).pipeline(transaction=False)
            for question in ("INFO", "NODES", "SLOTS"):
                burst.execute_command("CLUSTER", question)
            try:
                accounts.append(read_account(address.host, *await burst.execute()))
            except (redis.exceptions.RedisError, ValueError, IndexError) as error:
                log.debug("does not say who has the stream", node=str(address), error=str(error))
            if len(accounts) >= needed:
                nursery.cancel_scope.cancel(reason="enough masters have answered")

        async with trio.open_nursery() as nursery:
            for address in others:
                nursery.start_soon(ask, address)
        if len(accounts) < needed:
            return f"{len(accounts)} of the {needed} other masters that are needed say that {owner} has {stream}"
        return next((why for account in accounts if (why := _objection(account, stream, owner))), "")


def _objection(account: NodeAccount, stream: str, owner: Address) -> str:
    """What in this account keeps `owner` from being the owner for good; empty if nothing does."""
    slot = slot_of(stream)
    named = next((node for node in account.nodes if node.owns(slot)), None)
    if named is None or named.address != str(owner):
        return f"{owner} acknowledged it, but {named.address if named else 'no node'} has {stream} by now"
    if account.gives_up(named.id):
        return f"{owner} was given up by the others, and its replica may have taken over"
    return ""
