"""`Router`: brings a command to the node that owns its slot, wherever that is by now."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import redis.exceptions
import trio

from .. import _compat
from ..errors import NotSent, RedisUnavailable
from .discovery import Discovery
from .nodes import ASKING, Node, Nodes
from .options import ClusterOptions
from .steps import Nature, Step, step_after, target_of
from .topology import Address, Topology

__all__ = ["Attempt", "Router", "error_of"]

Attempt = Callable[[Node, bool], Awaitable[Any]]
"""One try on a node, with ASKING or without. Returns the reply, raises what the connection raises."""

_NONE: Final[frozenset[int]] = frozenset()
PAUSE_BASE, PAUSE_CAP = 0.1, 0.5
"""Seconds: ceilings of the first pause between attempts and of every pause."""


def error_of(reply: Any) -> Exception | None:
    """The reply's error, if it is one."""
    return reply if isinstance(reply, Exception) else None


class Router:
    """Topology and nodes together, and the loop that every command is in.

    Args:
        options: of the cluster.
        nodes: the connections.
        discovery: the topology.
        rng: jitter, and the choice among nodes that are equally good.

    Attributes:
        moved: MOVED replies that were followed.
        asked: ASK replies that were followed.
        repeated: attempts that were made again, redirections aside.
    """

    def __init__(self, options: ClusterOptions, nodes: Nodes, discovery: Discovery, rng: random.Random) -> None:
        self.options = options
        self.nodes = nodes
        self.discovery = discovery
        self._rng = rng
        self.moved = 0
        self.asked = 0
        self.repeated = 0

    def pick(self, topology: Topology, slot: int | None) -> Address:
        """The owner of a slot; without a slot any master, one without trouble if there is one. Raises NotSent."""
        if slot is None:
            well = [address for address in topology.masters if not self.discovery.is_suspect(address)]
            return self._rng.choice(well or topology.masters)
        address = topology.owner(slot)
        if address is None:
            cause = _compat.reply_error(f"CLUSTERDOWN Hash slot not served ({slot})")
            raise NotSent(self.options.address, f"not sent: no node serves slot {slot}") from cause
        return address

    def node(self, address: Address) -> Node:
        """A node that is asked by name: it stays in service for a while though it may own no slot."""
        node = self.nodes[address]
        if self.discovery.topology is None or not self.discovery.topology.owns_slots(address):
            node.used_at = trio.current_time()
        return node

    async def call(self, nature: Nature, args: Sequence[Any], raw: frozenset[int] = _NONE) -> Any:
        """One command that does not block, for the owner of its slot, or for any master. Returns its reply as it is.

        Raises NotSent, OutcomeUnknown, redis.exceptions.DataError.
        """
        payload = _compat.pack_command(tuple(args))
        start, slot = trio.current_time(), nature.slot
        topology = self.discovery.topology
        address: Address | None = None
        if topology is not None and slot is not None and (address := topology.owner(slot)) is not None:
            # The way of nearly all commands, without the loop.
            try:
                node = self.nodes[address]
                node.keyed = True
                reply = await node.call(payload, 1, raw)
            except RedisUnavailable as trouble:
                reply = trouble
            if not isinstance(reply, Exception):
                return reply
            failure: tuple[Address | None, Exception] | None = (address, reply)
        else:
            failure = None
        attempt = self.burst(payload, 1, raw, keyed=slot is not None)
        return await self.run(nature, attempt, until=start + self.options.retry_for, failure=failure)

    def burst(self, payload: bytes, count: int, raw: frozenset[int], *, keyed: bool) -> Attempt:
        """Tries of a burst on the shared connections; the reply is a list if there are several commands in it."""

        async def attempt(node: Node, asking: bool) -> Any:
            node.keyed = node.keyed or keyed
            if not asking:
                return await node.call(payload, count, raw)
            # One burst, so that nobody's command comes between ASKING and its command.
            _, *replies = await node.call(ASKING + payload, count + 1, frozenset(each + 1 for each in raw))
            return replies if count > 1 else replies[0]

        return attempt

    async def call_each(self, addresses: Sequence[Address], args: Sequence[Any]) -> list[Any]:
        """One command on several nodes at the same time, once each; replies in order, trouble as the error."""
        payload = _compat.pack_command(tuple(args))
        replies: list[Any] = [None] * len(addresses)

        async def call(place: int, address: Address) -> None:
            try:
                replies[place] = await self.node(address).call(payload, 1, _NONE)
            except RedisUnavailable as trouble:
                replies[place] = trouble

        async with trio.open_nursery() as nursery:
            for place, address in enumerate(addresses):
                nursery.start_soon(call, place, address)
        return replies

    async def run(
        self,
        nature: Nature,
        attempt: Attempt,
        *,
        until: float,
        find: Callable[[Any], Exception | None] = error_of,
        survives: Callable[[], Awaitable[bool]] | None = None,
        failure: tuple[Address | None, Exception] | None = None,
    ) -> Any:
        """Try until there is a result: a reply, or an error that no other attempt can mend.

        Redirections are followed at once; the rest is tried again until the time is over, where that does no harm.

        Args:
            nature: where the command goes, and whether it may run twice.
            attempt: one try on a node.
            until: no attempt begins after this time, redirections aside.
            find: the error in a reply, if that means that nothing has run.
            survives: whether the key of a blocked read is still there, which tells a migration from a deletion.
            failure: how an attempt that was made already ended: on which node, with what error.

        Returns the reply, which may be an error that is final. Raises RedisUnavailable.
        """
        hops = tries = 0
        target: Address | None = None
        asking = False
        while True:
            address, reply = failure if failure is not None else await self._try(nature, attempt, target, asking)
            error = reply if failure is not None or isinstance(reply, RedisUnavailable) else find(reply)
            if error is None:
                return reply
            failure, target, asking = None, None, False
            step = step_after(error, nature)
            if step in (Step.MOVED, Step.ASK):
                hops += 1
                target = self._redirect(step, error, address, hops)
                if target is not None:
                    asking = step is Step.ASK
                    continue
                hops, step = 0, Step.REFRESH
            if step is Step.VERIFY:
                step = Step.PAUSE if survives is not None and await survives() else Step.GIVE_UP
            if step is Step.GIVE_UP or not await self._pause(step, address, tries, until):
                if isinstance(reply, RedisUnavailable):
                    await trio.lowlevel.checkpoint()  # whoever tries again on NotSent must stay cancellable
                    raise reply
                return reply
            tries += 1
            self.repeated += 1

    async def _try(
        self, nature: Nature, attempt: Attempt, target: Address | None, asking: bool
    ) -> tuple[Address | None, Any]:
        """One attempt, on `target` or the node that is right for the command: which node that was, and the reply.

        What the connection raises is the reply, too.
        """
        try:
            if target is None:
                target = self.pick(self.discovery.topology or await self.discovery.current(), nature.slot)
            return target, await attempt(self.nodes[target], asking)
        except RedisUnavailable as trouble:
            return target, trouble

    def _redirect(self, step: Step, error: Exception, asked: Address | None, hops: int) -> Address | None:
        """Note a redirection and return its target; None when it leads nowhere, or there were too many."""
        assert isinstance(error, redis.exceptions.AskError)  # noqa: S101
        target = None if asked is None else target_of(error, asked)
        if target is None or hops > self.options.max_redirects:
            return None
        if step is Step.ASK:
            self.asked += 1
            self.nodes[target].used_at = trio.current_time()
        else:
            self.moved += 1
            self.discovery.moved(int(error.slot_id), target)
        return target

    async def _pause(self, step: Step, address: Address | None, tries: int, until: float) -> bool:
        """Wait before the next attempt, with a fresh topology where that may help; False when the time is over."""
        if trio.current_time() >= until:
            if step is Step.REFRESH:
                self.discovery.refresh_soon()
            return False
        with trio.move_on_at(until) as scope:
            if step is Step.REFRESH:
                if address is not None:
                    self.discovery.suspect(address)
                await self._refresh()
            if tries or step is Step.PAUSE:
                ceiling = min(PAUSE_CAP, PAUSE_BASE * 2.0 ** min(tries, 16))
                await trio.sleep(ceiling * (0.5 + 0.5 * self._rng.random()))
        return not scope.cancelled_caught

    async def _refresh(self) -> None:
        """Read the topology; the next attempt says what is wrong if that fails."""
        try:
            await self.discovery.refresh()
        except RedisUnavailable:
            await trio.lowlevel.checkpoint()
