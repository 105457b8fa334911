"""`Discovery`: reads the topology from whichever node answers, one reading at a time, shared by all who wait."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from math import inf
from typing import Final

import redis.exceptions
import trio
from attrs import define, field

from .. import _compat
from ..errors import NotSent, RedisClosed, RedisUnavailable
from ..replies import classify
from ..retry import may_resend
from ..slots import SLOTS
from ..wire import STREAM_ERRORS, Wire, describe
from .options import ClusterOptions
from .topology import Address, Topology, parse_slots

__all__ = ["Discovery"]

CALM: Final = 1.0
"""Seconds between readings that nobody waits for: a slot migration brings thousands of MOVED."""
GAP: Final = 0.1
"""Seconds between readings that somebody waits for."""
STAGGER: Final = 0.25
"""Seconds that a node has to answer before the next one is asked as well."""
PATIENCE: Final = 2.0
"""Seconds that a node has to answer at all (or `connect_timeout`, if that is less)."""
LIMIT: Final = 10.0
"""Seconds that one reading may take."""
SUSPECT_FOR: Final = 15.0
"""Seconds after its last trouble for which a node is asked last."""
REMEMBERED: Final = 64
"""Nodes that are remembered after they have left the topology."""


@define(eq=False)
class _Reading:
    """One reading of the topology, shared by all who wait for it."""

    done: trio.Event = field(factory=trio.Event)
    failure: RedisUnavailable | None = None


class Discovery:
    """Keeps the topology. `run` must be running while it is used.

    Every reading opens connections of its own, so that a broken or silent link never hides the topology; nodes that
    had trouble lately are asked last.

    Args:
        options: nodes to begin with, and times.
        open_wire: connects to a node and greets it; raises RedisUnavailable.
        on_topology: called after each successful reading, in its tick.
        on_failure: called when a reading that somebody waited for has found no node, in its tick.
        rng: chooses which node is asked first.

    Attributes:
        topology: the last one that was read, with what MOVED taught since; None before the first.
        readings: how many have succeeded.
        since: `trio.current_time()` of the last success.
    """

    def __init__(
        self,
        options: ClusterOptions,
        open_wire: Callable[[Address], Awaitable[Wire]],
        *,
        on_topology: Callable[[Topology], None],
        on_failure: Callable[[RedisUnavailable], None],
        rng: random.Random,
    ) -> None:
        self._options = options
        self._open_wire = open_wire
        self._on_topology = on_topology
        self._on_failure = on_failure
        self._rng = rng
        self._known: dict[Address, None] = {}
        self._suspects: dict[Address, float] = {}
        self._hint: Address | None = None
        self._moves: dict[int, Address] | None = None  # what MOVED taught during the reading that is under way
        self._next = _Reading()
        self._waiters = 0
        self._due = inf
        self._last = -inf
        self._woken = trio.Event()
        self._closed = False
        self.topology: Topology | None = None
        self.readings = 0
        self.since = -inf

    async def current(self) -> Topology:
        """The topology that there is, or the first one. Raises NotSent when no node answers."""
        if self.topology is None:
            await self.refresh()
            assert self.topology is not None  # noqa: S101
        return self.topology

    async def refresh(self) -> None:
        """Wait for a reading that began after this call. Raises NotSent when no node answers."""
        if self._closed:
            await trio.lowlevel.checkpoint()
            raise RedisClosed(self._options.address, "the client is closed")
        reading = self._next
        self._waiters += 1
        self._make_due(self._last + GAP)
        await reading.done.wait()
        failure = reading.failure
        if failure is not None:
            kind = RedisClosed if isinstance(failure, RedisClosed) else NotSent
            raise kind(failure.address, failure.reason) from (failure.__cause__ or failure)

    def refresh_soon(self, hint: Address | None = None) -> None:
        """Ask for a reading in the background, not more often than each `CALM` seconds.

        Args:
            hint: the node that knows best, if somebody said so.
        """
        if hint is not None:
            self._hint = hint
        self._make_due(self._last + CALM)

    def refresh_if_older(self, age: float) -> None:
        """Ask for a reading in the background if the last one is `age` seconds old."""
        if trio.current_time() - self._last >= age:
            self.refresh_soon()

    def suspect(self, address: Address) -> None:
        """Note trouble with a node: it is asked last for a while, and watched while it owns slots."""
        self._suspects.pop(address, None)
        self._suspects[address] = trio.current_time()

    def is_suspect(self, address: Address) -> bool:
        """Whether there was trouble with the node lately."""
        return trio.current_time() - self._suspects.get(address, -inf) < SUSPECT_FOR

    def clear(self, address: Address) -> None:
        """Note that a node is well."""
        self._suspects.pop(address, None)

    def moved(self, slot: int, owner: Address) -> bool:
        """Note what a MOVED says; returns whether it was news. A reading follows in the background."""
        if self._moves is not None:
            self._moves[slot] = owner
        news = self.topology is not None and self.topology.move(slot, owner)
        self.refresh_soon(owner)
        return news

    async def run(self) -> None:
        """Read the topology when it is called for, and each `refresh_every` seconds. Never raises."""
        reading = self._next
        try:
            while True:
                await self._wait_until_due()
                reading, self._next = self._next, _Reading()
                waiters, self._waiters = self._waiters, 0
                await self._read_into(reading, waiters)
                reading.done.set()
        finally:
            self._closed = True
            for each in (reading, self._next):
                if not each.done.is_set():
                    each.failure = RedisClosed(self._options.address, "the client is closed")
                    each.done.set()

    def _make_due(self, when: float) -> None:
        if when < self._due:
            self._due = when
            self._woken.set()

    async def _wait_until_due(self) -> None:
        while trio.current_time() < self._due:
            self._woken = trio.Event()
            with trio.move_on_at(self._due):
                await self._woken.wait()
        await trio.sleep_until(self._last + GAP)
        self._due = inf

    async def _read_into(self, reading: _Reading, waiters: int) -> None:
        self._moves = {}
        try:
            topology = await self._ask_around()
        except RedisUnavailable as failure:
            reading.failure = failure
            if waiters or self._waiters:
                self._on_failure(failure)
        else:
            for slot, owner in self._moves.items():
                topology.move(slot, owner)
            self._remember(topology)
            self.topology = topology
            self.readings += 1
            self.since = trio.current_time()
            self._on_topology(topology)
        finally:
            self._moves = None
            self._last = trio.current_time()
            self._plan()

    def _plan(self) -> None:
        """When the next reading is due though nobody asks for one: soon while a master is in trouble."""
        if self.topology is None:
            return  # nobody has used the client successfully yet
        troubled = any(self.is_suspect(address) for address in self.topology.masters)
        self._make_due(self._last + (CALM if troubled else self._options.refresh_every))

    async def _ask_around(self) -> Topology:
        """Ask node after node, the next one when the last does not answer soon; the first whole answer counts.

        An answer that is older than what is known (see `Topology.epoch`), or leaves slots unserved, counts only if
        there is no better one. Raises RedisUnavailable.
        """
        found: list[Topology] = []
        failures: dict[Address, RedisUnavailable] = {}
        with trio.move_on_after(LIMIT):
            async with trio.open_nursery() as nursery:

                async def ask(address: Address, answered: trio.Event) -> None:
                    try:
                        found.append(await self._ask(address))
                        self.clear(address)
                        if found[-1].served == SLOTS and not self._is_behind(found[-1]):
                            nursery.cancel_scope.cancel()
                    except RedisUnavailable as failure:
                        self.suspect(address)
                        failures[address] = failure
                    answered.set()

                for address in self._candidates():
                    answered = trio.Event()
                    nursery.start_soon(ask, address, answered)
                    with trio.move_on_after(STAGGER) as scope:
                        await answered.wait()
                    if scope.cancelled_caught:
                        self.suspect(address)
        if found:
            return max(found, key=lambda topology: (-1 if topology.epoch is None else topology.epoch, topology.served))
        raise self._nobody(failures)

    def _is_behind(self, topology: Topology) -> bool:
        known = None if self.topology is None else self.topology.epoch
        return known is not None and topology.epoch is not None and topology.epoch < known

    async def _ask(self, address: Address) -> Topology:
        """One node's topology. Raises RedisUnavailable."""
        where = self._options.for_node(address).address
        wire: Wire | None = None
        try:
            with trio.fail_after(min(PATIENCE, self._options.connect_timeout)):
                wire = await self._open_wire(address)
                await wire.send(_QUESTION)
                reply = await wire.receive()
                if isinstance(reply, Exception):
                    raise reply
                info = await wire.receive()
            topology = parse_slots(reply, address, info)
        except RedisUnavailable:
            raise
        except trio.TooSlowError as error:
            raise RedisUnavailable(where, "no answer to CLUSTER SLOTS") from error
        except (EOFError, ValueError, redis.exceptions.RedisError, *STREAM_ERRORS) as error:
            advice = _ADVICE if classify(error).name == "no-cluster" else ""
            raise RedisUnavailable(where, f"{describe(error)}{advice}") from error
        finally:
            if wire is not None:
                await wire.aclose()
        if not topology.served:
            raise RedisUnavailable(where, "this node knows of no slots: it has left the cluster, or is not in it yet")
        return topology

    def _candidates(self) -> list[Address]:
        """Whom to ask, in which order."""
        known = list(self.topology.nodes) if self.topology is not None else []
        self._rng.shuffle(known)
        seeds = list(self._options.nodes)
        self._rng.shuffle(seeds)
        hint, self._hint = self._hint, None
        first = [hint] if hint is not None else []
        everyone = dict.fromkeys([*first, *known, *seeds, *reversed(self._known)])
        return sorted(everyone, key=self._last_trouble)

    def _last_trouble(self, address: Address) -> float:
        return self._suspects[address] if self.is_suspect(address) else -inf

    def _remember(self, topology: Topology) -> None:
        for address in topology.nodes:
            self._known.pop(address, None)
            self._known[address] = None
        while len(self._known) > max(REMEMBERED, len(topology.nodes)):
            del self._known[next(iter(self._known))]
        for address in [each for each in self._suspects if not self.is_suspect(each)]:
            del self._suspects[address]

    def _nobody(self, failures: dict[Address, RedisUnavailable]) -> RedisUnavailable:
        reasons = "; ".join(_alike(failures)) or f"no answer within {LIMIT:g} s"
        error = RedisUnavailable(self._options.address, f"no node of the cluster answers: {reasons}")
        # What a person must mend (credentials, a certificate) says more than a node that is away.
        telling = min(failures.values(), key=_may_pass, default=None)
        error.__cause__ = telling.__cause__ if telling is not None else trio.TooSlowError()
        return error


def _alike(failures: Mapping[Address, RedisUnavailable]) -> Iterator[str]:
    """Each reason once, with the nodes that gave it: four reasons, and four nodes for each, at the most."""
    nodes: dict[str, list[str]] = {}
    for address, failure in failures.items():
        nodes.setdefault(failure.reason, []).append(str(address))
    for reason, alike in list(nodes.items())[:4]:
        names = ", ".join([*alike[:4], *(["…"] if len(alike) > 4 else [])])
        yield f"{names}: {reason}" if len(alike) == 1 else f"{len(alike)} nodes ({names}): {reason}"


def _may_pass(failure: RedisUnavailable) -> bool:
    unsent = NotSent(failure.address, failure.reason)
    unsent.__cause__ = failure.__cause__
    return may_resend(unsent, reads=True)


_ADVICE: Final = " (a single server, not a cluster: begin the URL with redis:// or rediss://)"
_QUESTION: Final = _compat.pack_command(("CLUSTER", "SLOTS")) + _compat.pack_command(("CLUSTER", "INFO"))
