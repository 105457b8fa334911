"""Deterministic simulation: several processes in one run of trio, frozen and killed between any two steps.

A *process* here is a group of tasks. Like a real one it may be frozen (SIGSTOP: none of its tasks goes on, and what
they wait for comes meanwhile) and killed (``kill -9``: none of them ever goes on, not even for a clean-up). What a step
of a task was is counted, so that a fault can be ordered for "after 217 more steps": at every await point there is.

Made for `run_virtual`: the same seed gives the same run, which `Simulation.trace` proves.
"""

from __future__ import annotations

import random
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import trio
import trio.lowlevel

__all__ = ["ProcessDied", "SimulatedProcess", "Simulation", "current_process", "outside"]

T = TypeVar("T")

Act = Callable[["SimulatedProcess", str], None]

_PROCESS: ContextVar[SimulatedProcess | None] = ContextVar("simulated process", default=None)


def current_process() -> SimulatedProcess | None:
    """The process that the current task belongs to; None outside of all."""
    return _PROCESS.get()


@contextmanager
def outside() -> Iterator[None]:
    """While the block runs, tasks that are started belong to no process: to a server, say, that was connected to.

    It must hold no await: until it is left, the current task itself belongs to none.
    """
    token = _PROCESS.set(None)
    try:
        yield
    finally:
        _PROCESS.reset(token)


class ProcessDied(Exception):
    """The process was killed, or ended, before it answered."""


class SimulatedProcess:
    """A process; made by `Simulation.start`.

    Attributes:
        name: for the story.
        killed: whether it was killed.
        was_frozen: whether it was ever frozen: its time limits may have passed meanwhile.
        error: what its main function raised; None while it runs, and when it ended well.
        ended: set when it was killed or is over.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.killed = False
        self.was_frozen = False
        self.error: BaseException | None = None
        self.ended = trio.Event()
        self._frozen = False
        self._held: list[trio.lowlevel.Task] = []
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._at_kill: list[Callable[[], None]] = []
        self._context: Any = None

    @property
    def is_frozen(self) -> bool:
        """Whether its tasks stand still, and will go on."""
        return self._frozen and not self.killed

    @property
    def is_running(self) -> bool:
        """Whether it was neither frozen nor killed, nor is over."""
        return not (self._frozen or self.killed or self.ended.is_set())

    def freeze(self) -> None:
        """SIGSTOP: from the next step on none of its tasks goes on, until `thaw`."""
        self._frozen = self.was_frozen = True

    def thaw(self) -> None:
        """SIGCONT: its tasks go on with whatever has come meanwhile."""
        if not self.killed:
            self._frozen = False
            self._release()

    def kill(self) -> None:
        """SIGKILL: from the next step on none of its tasks goes on. What it was connected to is told (`at_kill`)."""
        if self.killed or self.ended.is_set():
            return
        self.killed = True
        self.ended.set()
        for call in self._at_kill:
            call()

    def at_kill(self, call: Callable[[], None]) -> None:
        """Call this when it is killed: close its connections, roll back its transactions."""
        self._at_kill.append(call)

    def owns(self, task: trio.lowlevel.Task) -> bool:
        """Whether a task is one of its."""
        return task.context.get(_PROCESS) is self

    async def call(self, async_fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Let the process run ``async_fn(*args)``, as a request would; blocks until it has answered.

        Cancelled, the request goes on in the process, and its answer goes nowhere.

        Raises:
            ProcessDied: it is gone, or went before it answered.
            Exception: what `async_fn` raised.
        """
        if self._nursery is None or self.ended.is_set():
            raise ProcessDied(self.name)
        answer: list[T] = []
        failure: list[Exception] = []
        answered = trio.Event()

        async def serve() -> None:
            try:
                answer.append(await async_fn(*args))
            except Exception as error:  # noqa: BLE001 - it is the caller's
                failure.append(error)
            answered.set()

        self._context.copy().run(self._nursery.start_soon, serve)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_then, self.ended, nursery.cancel_scope)
            await answered.wait()
            nursery.cancel_scope.cancel(reason="answered")
        if failure:
            raise failure[0]
        if not answer:
            raise ProcessDied(self.name)
        return answer[0]

    async def _main(self, run: Callable[[], Awaitable[None]]) -> None:
        _PROCESS.set(self)
        self._context = copy_context()
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    try:
                        await run()
                    except Exception as error:  # noqa: BLE001 - how it ended is for the test to judge
                        self.error = error
                    finally:
                        self._nursery = None  # what is asked from here on comes too late
                    nursery.cancel_scope.cancel(reason="the process has ended")
        finally:
            self.ended.set()

    def _release(self) -> None:
        held, self._held = self._held, []
        _runner().runq.extend(held)

    def _unwind(self) -> None:
        """Let a killed one leave the run, so that the run can end."""
        self._frozen = False
        self._scope.cancel(reason="the simulation is over")

    def __repr__(self) -> str:
        state = "killed" if self.killed else "frozen" if self._frozen else "over" if self.ended.is_set() else "running"
        return f"<process {self.name}: {state}>"


async def _then(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel(reason="the process has ended")


class Simulation:
    """``async with Simulation(seed) as simulation:`` inside of a run in virtual time.

    When the block is left, whatever process is left is unwound: killed ones too. What they do then must have no effect
    any more; whoever connects them to something sees to that.

    Args:
        seed: of the order in which the steps of one moment are cut, beside the scheduler's own.

    Attributes:
        steps: how many steps the tasks of all processes have made.
        story: what happened, line by line; for whoever must understand a run.
        processes: all that were started, in order.

    Raises:
        NotImplementedError: this version of trio cannot be held still.
    """

    def __init__(self, seed: int) -> None:
        self.steps = 0
        self.story: list[str] = []
        self.processes: list[SimulatedProcess] = []
        self._chance = random.Random(f"turns {seed}")  # noqa: S311 - no secret
        self._digest = zlib.crc32(b"")
        self._log: list[str] = []  # what is not digested yet
        self._time = -1.0
        self._due = _NEVER
        self._act: Act | None = None
        self._last: trio.lowlevel.Task | None = None
        self._failed: BaseException | None = None
        self._over = False
        self._most = _NEVER
        self._limit = trio.CancelScope()
        self._nurseries: Any = None
        self._nursery: trio.Nursery | None = None

    @property
    def trace(self) -> str:
        """A hash of every step of every task so far, and of its time: equal in two runs if, very likely, they were."""
        self._digest_log()
        return f"{self._digest:08x}-{self.steps}"

    async def __aenter__(self) -> Self:
        runner = _runner()
        if not isinstance(getattr(runner, "runq", None), deque):
            raise NotImplementedError(f"the tasks of trio {trio.__version__} cannot be held still")
        runner.runq = _RunQueue(runner.runq, self)
        self._nurseries = trio.open_nursery()
        self._nursery = await self._nurseries.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._nursery is not None  # noqa: S101
        self._over = True
        for process in self.processes:
            process._unwind()
            process._release()
        self._nursery.cancel_scope.cancel(reason="the simulation is over")
        await self._nurseries.__aexit__(None, None, None)
        runner = _runner()
        runner.runq = deque(runner.runq)
        if error is None:
            self.check()

    def check(self) -> None:
        """Raise what an ordered act has raised, if one has: trio's loop cannot."""
        if self._failed is not None:
            raise self._failed

    def start(self, name: str, run: Callable[[], Awaitable[None]]) -> SimulatedProcess:
        """Start a process whose main function is `run`; returns at once."""
        assert self._nursery is not None  # noqa: S101
        process = SimulatedProcess(name)
        self.processes.append(process)
        self._nursery.start_soon(process._main, run, name=f"process {name}")
        return process

    def spawn(self, async_fn: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Start a task that belongs to no process, and ends with the simulation."""
        assert self._nursery is not None  # noqa: S101
        self._nursery.start_soon(async_fn, *args)

    def after(self, steps: int, act: Act) -> None:
        """Once, when the tasks of the processes have made so many more steps, call `act` with the last one's.

        The arguments are the process and the name of the task.

        It is called between two steps; it must not block. One order at a time: a second one replaces the first.
        """
        self._due, self._act = max(1, steps), act

    def at_most(self, steps: int) -> trio.CancelScope:
        """A scope, to be entered at once and once, that is cancelled when the processes have made so many steps in all.

        Real time says nothing about a run on a busy machine; this is the same on each.
        """
        self._most = steps
        return self._limit

    def disarm(self) -> None:
        """Take back what `after` ordered."""
        self._due, self._act = _NEVER, None

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call this after so many seconds, unless the simulation is over by then."""
        assert self._nursery is not None  # noqa: S101

        async def wait() -> None:
            await trio.sleep(seconds)
            call()

        self._nursery.start_soon(wait, name="later")

    def tell(self, line: str) -> None:
        """Add a line to the story, with the time and the step."""
        self.story.append(f"{trio.current_time():10.3f} s  step {self.steps:6}  {line}")

    def _turn(self, runnable: list[trio.lowlevel.Task]) -> tuple[list[trio.lowlevel.Task], list[trio.lowlevel.Task]]:
        """Which of the tasks that are ready go on now, and which later: those of a stopped process are put by."""
        if len(runnable) > 1:
            # What is ready at once comes in an order that depends on addresses.
            runnable.sort(key=_age)
        now, mine = [], []
        for task in runnable:
            process = task.context.get(_PROCESS)
            if process is None or self._over:
                now.append(task)
            elif process._frozen or process.killed:
                process._held.append(task)
            else:
                mine.append(task)
        later: list[trio.lowlevel.Task] = []
        if len(mine) > self._due:
            self._chance.shuffle(mine)
            mine, later = mine[: self._due], mine[self._due :]
        if mine:
            self._due -= len(mine)
            self.steps += len(mine)
            self._last = mine[-1]
            if self.steps > self._most:
                self._limit.cancel(reason=f"more than {self._most} steps")
            now += mine
        time, log = trio.current_time(), self._log
        if time != self._time:
            self._time = time
            log.append(repr(time))
        log += [task.name for task in now]
        if len(log) > _LOGGED:
            self._digest_log()
        return now, later

    def _digest_log(self) -> None:
        self._digest = zlib.crc32(",".join([*self._log, ""]).encode(), self._digest)
        self._log.clear()

    def _act_if_due(self) -> None:
        if self._due > 0 or self._act is None or self._last is None:
            return
        act, process = self._act, self._last.context.get(_PROCESS)
        assert process is not None  # noqa: S101 - only their steps are counted
        self.disarm()
        try:
            act(process, self._last.name)
        except BaseException as error:  # noqa: BLE001 - raised by `check`: trio would call it an internal error
            self._failed = self._failed or error


_NEVER: Final = 1 << 60

_LOGGED: Final = 1000
"""Steps that are digested at once: much cheaper than each by itself."""


class _RunQueue(deque[trio.lowlevel.Task]):
    """Trio's queue of the tasks that are ready. The loop lists it and clears it: so it is told who goes on."""

    def __init__(self, tasks: deque[trio.lowlevel.Task], simulation: Simulation) -> None:
        super().__init__(tasks)
        self._simulation = simulation

    def __iter__(self) -> Iterator[trio.lowlevel.Task]:
        """Those who go on now. The others, and whoever becomes ready by what is done here, are in the queue again."""
        self._simulation._act_if_due()
        ready = list(super().__iter__())
        super().clear()
        now, later = self._simulation._turn(ready)
        self.extend(later)
        return iter(now)

    def clear(self) -> None:
        """Nothing: it was emptied when it was listed."""


def _age(task: trio.lowlevel.Task) -> int:
    age: int = task._counter
    return age


def _runner() -> Any:
    """Trio's runner. Private, as `seed_scheduler` says of its neighbour."""
    return trio._core._run.GLOBAL_RUN_CONTEXT.runner
