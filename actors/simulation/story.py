"""One seed, from the first event to the balance; the same seed tells the same story."""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio
from attrs import frozen

from ...runtime.supervision import ErrorInfo
from ...runtime.testing.redis import InProcessRedis
from ...runtime.testing.redis_cluster import InProcessCluster
from ...runtime.testing.simulation import SimulatedProcess, Simulation
from ...runtime.testing.virtual import run_virtual
from .. import event
from ..system import System
from .balance import balance
from .faults import draw
from .publisher import Publisher
from .scenario import Scenario
from .world import World

__all__ = ["Outcome", "tell_story"]

LONGEST: Final = 6 * 3600.0
"""Seconds of virtual time for one story; one that is stuck is over then."""

CHAOS_WITHIN: Final = 120.0
"""Seconds after which nothing further goes wrong, whatever was still to come."""

QUIET_WITHIN: Final = 300.0
"""Seconds, after the last fault has passed and the last event got further, within which all must have come to its end:
and as many more as a handler may take, or its event waits for another attempt, by its own declaration."""

STOPPED_WITHIN: Final = 60.0

STEPS: Final = 150_000
"""Steps of all tasks in one story: an ordinary one has some thousands, one that waits for its time-outs some ten."""


@frozen(kw_only=True)
class Outcome:
    """What a seed came to.

    Attributes:
        seed: of the story.
        violations: the promises that were broken; empty if all were kept.
        story: what happened, line by line.
        trace: a hash of every step; equal for equal seeds.
        events: how many events and jobs were accepted.
        faults: how many faults there were.
        steps: how many steps the tasks of the processes made.
        seconds: how long it took in virtual time.
        ends: how many ends of each kind the events came to.
    """

    seed: int
    violations: tuple[str, ...]
    story: tuple[str, ...]
    trace: str
    events: int
    faults: int
    steps: int
    seconds: float
    ends: dict[str, int]


def tell_story(scenario: Scenario, seed: int, *, watchdog: float = 300.0) -> Outcome:
    """Run one seed to its end; blocks the thread.

    Args:
        scenario: what is simulated.
        seed: of everything that is drawn.
        watchdog: seconds of real time that it may take.

    Raises:
        Overdue: it took longer than `watchdog`, or was stuck.
        Exception: the simulation itself is broken; a broken promise is in the outcome.
    """
    with _repeatable(seed), _silence(), _uncollected():
        return run_virtual(_run, scenario, seed, seed=seed, limit=LONGEST, watchdog=watchdog)


async def _run(scenario: Scenario, seed: int) -> Outcome:
    chance = random.Random(f"place {seed}")  # noqa: S311 - no secret
    on_cluster = chance.random() < scenario.on_cluster
    place = InProcessCluster(replicas=1) if on_cluster else InProcessRedis()
    async with place as redis, Simulation(seed) as simulation:
        story = _Story(World.of(seed, scenario, redis, simulation))
        with simulation.at_most(STEPS) as limit:
            await story.tell()
        if limit.cancelled_caught:
            story.give_up(f"it goes on and on: {STEPS} steps were not enough")
        return story.outcome()


class _Story:
    def __init__(self, world: World) -> None:
        self._world = world
        self._chance = world.chance
        self._faults = 0
        self._left = world.chance.randint(*world.scenario.faults)
        self._faults_over = trio.Event()

    async def tell(self) -> None:
        """Everything that happens."""
        world = self._world
        for _ in range(world.scenario.processes or self._chance.choice([1, 2, 2, 3])):
            world.add_node()
        self._arm()
        async with trio.open_nursery() as nursery:
            self._publish(nursery)
            with trio.move_on_after(CHAOS_WITHIN):
                await self._faults_over.wait()
            self._calm()
        await self._quiet()
        self._look_at_trees()
        await self._stop()
        self._look_for_leaks()

    def _publish(self, nursery: trio.Nursery) -> None:
        world = self._world
        publications = list(world.scenario.publications(self._chance, world.system))
        publishers = self._chance.choice([1, 2, 3])
        for number in range(publishers):
            publisher = Publisher(world, f"publisher{number + 1}")
            nursery.start_soon(publisher.publish, publications[number::publishers])

    # Faults ---------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        if not self._left:
            self._faults_over.set()
            return
        # Short and long pauses alike: many faults at once are what nobody thinks of.
        mean = self._chance.choice([10, 100, 100, 400])
        self._world.simulation.after(1 + int(self._chance.expovariate(1 / mean)), self._strike)

    def _strike(self, process: SimulatedProcess, task: str) -> None:
        node = next(each for each in self._world.nodes if each.process is process or process.name.startswith(each.name))
        self._faults += 1
        self._left -= 1
        what = draw(self._world, node)
        self._world.tell(f"after a step of {node.name}, {task}: {what}")
        self._arm()

    def give_up(self, why: str) -> None:
        """It was not told to its end."""
        self._world.ledger.broken(why)

    # The end --------------------------------------------------------------------------------------------------------

    def _calm(self) -> None:
        """Nothing further goes wrong, and whatever went wrong passes."""
        world = self._world
        world.calm = True
        world.simulation.disarm()
        for server in world.servers:
            server.heal()
        world.restore_database()
        world.outside.clear()
        world.store.server.commit_losses.clear()
        world.store.forget_errors()
        for node in world.nodes:
            node.line.is_down = node.is_partitioned = False
            if node.process is not None:
                node.process.thaw()
        world.tell("nothing goes wrong any more")

    async def _quiet(self) -> None:
        world = self._world
        within = QUIET_WITHIN + _longest_of(world.system)
        progress, until = world.ledger.progress, trio.current_time() + within
        while (what := self._unfinished()) is not None:
            if trio.current_time() >= until:
                world.ledger.broken(f"nothing has come of anything for {within:g} s: {what}")
                break
            await trio.sleep(0.5)
            if world.ledger.progress != progress:
                progress, until = world.ledger.progress, trio.current_time() + within
        else:
            world.tell("all is quiet")
            world.simulation.check()
        balance(world.ledger)

    def _unfinished(self) -> str | None:
        down = [node.name for node in self._world.nodes if not node.is_running and not node.gone]
        if down:
            return f"{', '.join(down)} not running"
        if self._world.replays:
            return "dead letters are being replayed"
        return self._world.ledger.unfinished()

    def _look_at_trees(self) -> None:
        """An outage is no crash: no child may have been restarted for one."""
        world = self._world
        for process in world.simulation.processes:
            if process.error is not None and not process.was_frozen:
                world.ledger.broken(f"{process.name} ended with {process.error!r}")
        for node in world.running:
            assert node.deployment is not None  # noqa: S101 - it runs
            for view in node.deployment.tree.snapshot().root.walk():
                if view.restarts and not (_is_late(view.last_error) and node.process and node.process.was_frozen):
                    world.ledger.broken(f"{node.name}: {view.path} was restarted: {view.last_error}")

    async def _stop(self) -> None:
        world, running = self._world, self._world.running
        for node in running:
            assert node.deployment is not None  # noqa: S101 - it runs
            node.gone = True
            node.deployment.tree.stop("the story is over")
        with trio.move_on_after(STOPPED_WITHIN):
            for node in running:
                assert node.process is not None  # noqa: S101 - it runs
                await node.process.ended.wait()
            return
        names = ", ".join(node.name for node in running if node.is_running)
        world.ledger.broken(f"{names} did not stop within {STOPPED_WITHIN:g} s")

    def _look_for_leaks(self) -> None:
        """What the living leave behind when all of them have stopped."""
        world = self._world
        left = [work for work in world.store.server.open if not work.is_lost]
        if left:
            world.ledger.broken(f"{len(left)} transactions are open, and nobody runs")
        if (what := world.ledger.unfinished(unread=False)) is not None:
            world.ledger.broken(f"the stop has left: {what}")

    def outcome(self) -> Outcome:
        """What it came to."""
        world = self._world
        return Outcome(
            seed=world.seed,
            violations=tuple(world.ledger.violations),
            story=tuple(world.simulation.story),
            trace=world.simulation.trace,
            events=len(world.ledger.accepted),
            faults=self._faults,
            steps=world.simulation.steps,
            seconds=trio.current_time(),
            ends=world.ledger.ends(),
        )


def _longest_of(system: System) -> float:
    """Seconds that an attempt, and the pause before it, may take at the most, where a declaration says so."""
    streams = [*system.streams.values(), *(queue.stream for queue in system.queues.values())]
    groups = [group for stream in streams for group in stream.groups.values()]
    handlers = [handler for group in groups for handler in group.handlers.values()]
    policies = [*(group.retry for group in groups), *(handler.retry for handler in handlers)]
    pause = max((policy.maximum for policy in policies if policy is not None), default=0.0)
    return pause + max((handler.timeout or 0.0 for handler in handlers), default=0.0)


def _is_late(error: ErrorInfo | None) -> bool:
    """Whether somebody's time was over: so it may be, when a process goes on after it stood still."""
    return error is not None and any(name in str(error) for name in ("Stalled", "StartTimeout"))


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Event ids that are made meanwhile come from the seed."""
    chance = random.Random(f"ids {seed}")  # noqa: S311 - no secret
    before = event._entropy, event._clock
    ticks = iter(range(1_767_225_600_000_000_000, 1 << 62, 1_000_000))
    event._entropy, event._clock = chance.randbytes, lambda: next(ticks)
    try:
        yield
    finally:
        event._entropy, event._clock = before


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for garbage, which would be a quarter of the work: a story makes little, and it goes at its end."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@contextmanager
def _silence() -> Iterator[None]:
    """No log: faults are what is wanted, and to render thousands of warnings takes longer than all else."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
