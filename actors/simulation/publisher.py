"""A publisher of a simulated story: publishes events and puts in jobs, insists, and notes what it was told."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Final

import redis.exceptions
import trio
from attrs import evolve

from ...runtime.redis import NotSent
from ...runtime.testing.simulation import ProcessDied
from ..producer import Published, PublishFailed
from .ledger import Accepted
from .scenario import Publication

if TYPE_CHECKING:
    from .world import Node, World

__all__ = ["Publisher"]

PATIENCE: Final = 20.0
"""Seconds that a publisher waits for an answer."""


class Publisher:
    """One that does not publish its next events before it knows of the last.

    Args:
        world: where.
        name: among the publishers.
    """

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name
        self._chance = random.Random(f"publisher {world.seed} {name}")  # noqa: S311 - no secret
        self._number = count()

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Publish all of them, in their order."""
        chance, waiting = self._chance, list(publications)
        while waiting:
            size, first = chance.choice([1, 1, 1, 2, 5]), [self._made_now(waiting.pop(0))]
            while waiting and len(first) < size and waiting[0].stream == first[0].stream:
                first.append(self._made_now(waiting.pop(0)))
            await self._insist(first)
            if chance.random() < 0.5:
                await trio.sleep(chance.choice([0.001, 0.03, 0.3, 2.0, 8.0]))
            if chance.random() < 0.1:
                await self._insist(self._once_more(first))  # the same events: one effect

    def _once_more(self, first: Sequence[Publication]) -> Sequence[Publication]:
        """As whoever does not know of the first time would: a job may look different, and is known by its id alone."""
        if first[0].stream in self._world.system.queues and self._chance.random() < 0.5:
            return [self._made_now(each) for each in first]
        return first

    def _made_now(self, publication: Publication) -> Publication:
        return evolve(publication, envelope=evolve(publication.envelope, timestamp=self._world.wall()))

    async def _insist(self, wanted: Sequence[Publication]) -> None:
        """Publish until all are accepted, or given up; what comes later must wait, for the sake of its order."""
        world, chance, node = self._world, self._chance, None
        left = list(wanted)
        # Without an outbox there is more reason to insist.
        gives_up = 0.02 if wanted[0].stream in world.system.queues else 0.1
        for attempt in count():
            node = node if node is not None and node.is_running and chance.random() < 0.9 else self._somebody()
            results = await self._ask(node, left) if node is not None else None
            left = self._note(node, left, results)
            if not left:
                return
            if chance.random() < gives_up or (world.calm and attempt > 100):
                world.ledger.refused.update(each.envelope.event_id for each in left)
                return
            await trio.sleep(chance.choice([0.05, 0.5, 1.0, 3.0]))

    def _somebody(self) -> Node | None:
        return self._chance.choice(self._world.running) if self._world.running else None

    def _lineage(self, node: Node) -> str:
        """What is in order among itself: what one publisher publishes through one life of one process."""
        return f"{self._name} through {node.name}/{node.life}"

    async def _ask(self, node: Node, left: Sequence[Publication]) -> Sequence[Published | PublishFailed] | None:
        """The results; None if nobody knows them: no answer, or a process that is no more."""
        assert node.process is not None  # noqa: S101
        assert node.deployment is not None  # noqa: S101
        ledger, lineage = self._world.ledger, self._lineage(node)
        for event_id in (each.envelope.event_id for each in left):
            accepted = ledger.accepted.get(event_id)
            if accepted is not None and accepted.lineage != lineage:
                # Published once more, elsewhere, where nobody knows what waits there: it may overtake that.
                ledger.accepted[event_id] = evolve(accepted, lineage=str(event_id))
        with trio.move_on_after(PATIENCE):
            try:
                if left[0].stream in self._world.system.queues:
                    return await node.process.call(self._enqueue, node, left)
                envelopes = [each.envelope for each in left]
                return await node.process.call(node.deployment.publish, left[0].stream, envelopes)
            except ProcessDied:
                return None
        return None

    async def _enqueue(self, node: Node, jobs: Sequence[Publication]) -> list[Published | PublishFailed]:
        """Put jobs in, one after the other; a queue has no outbox, and its errors say what is sure."""
        assert node.deployment is not None  # noqa: S101
        results: list[Published | PublishFailed] = []
        for job in jobs:
            event_id = job.envelope.event_id
            try:
                await node.deployment.enqueue(job.stream, job.envelope)
            except redis.exceptions.RedisError as error:
                unknown = not isinstance(error, NotSent)
                results.append(PublishFailed(event_id, str(error), outcome_unknown=unknown))
            else:
                results.append(Published(event_id, None))
        return results

    def _note(
        self, node: Node | None, left: Sequence[Publication], results: Sequence[Published | PublishFailed] | None
    ) -> list[Publication]:
        """Enter the results; what is still to be published."""
        ledger = self._world.ledger
        if results is None:
            if node is not None:
                ledger.doubtful.update(each.envelope.event_id for each in left)
            return list(left)
        rest = []
        for each, result in zip(left, results, strict=True):
            event_id = each.envelope.event_id
            if isinstance(result, Published):
                lineage = self._lineage(node) if node is not None else self._name
                if event_id in ledger.doubtful and len(left) > 1:
                    # It may have been added before what was accepted meanwhile: it has no place among the others.
                    lineage = str(event_id)
                ledger.accepted.setdefault(event_id, Accepted(each.stream, lineage, next(self._number)))
            else:
                if result.outcome_unknown:
                    ledger.doubtful.add(event_id)
                rest.append(each)
        return rest
