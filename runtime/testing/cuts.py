"""Cuts: something happens to a task at every point at which it gives way, one point a run.

Between two of its steps a task waits, and meanwhile anything may happen: it is cancelled, its call fails, a gate shuts.
Tests try some of these moments; this tries all that a scenario has.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import trio
import trio.lowlevel
from attrs import frozen

from .virtual import run_virtual
from .waiting import place_of

__all__ = ["Cut", "CutPoint", "cut_everywhere"]

Where = str | trio.lowlevel.Task
"""The tasks to cut: those whose name has this in it (a child's task is named for its path), or this one."""

_RAISE_OUT = getattr(trio.lowlevel.Task, "_attempt_abort", None)
"""How trio itself raises a KeyboardInterrupt out of a wait. Private, so it may be gone one day."""

Act = Callable[[trio.lowlevel.Task], object]
"""Does what the cut is for, to this task."""


@frozen(kw_only=True)
class CutPoint:
    """One point at which a task gave way.

    Attributes:
        number: 1, 2, 3 … in the order of the run.
        task: the name of the task.
        moment: ``before`` one of its steps (what it waited for has come, and it is about to go on) or ``after`` it (it
            waits again, or has ended).
        place: where it waits, innermost frame first.
    """

    number: int
    task: str
    moment: str
    place: str

    def __str__(self) -> str:
        return f"cut point {self.number}, {self.moment} a step of {self.task}, at {self.place}"


class Cut:
    """The cut of one run of a scenario, which says by one of three blocks what it is to do, and to whom.

    The block's points are numbered as they come; at the point whose number is due, it acts, once. Whether the scenario
    was cut, and where, is in `point`.

    Attributes:
        point: where it acted; None as long as it has not.
    """

    def __init__(self, due: int = 1) -> None:
        self.point: CutPoint | None = None
        self.seen = 0
        self._due = due
        self._used = False

    @contextmanager
    def calling(self, function: Callable[[], object], at: Where) -> Iterator[None]:
        """Call `function` (it must not block) before and after each step of the tasks `at`.

        ``with cut.calling(lambda: gate.shut("cut"), at="listener"): …`` shuts a gate at every step.
        """

        with self._armed(_Steps(self, at, lambda task: function())):
            yield

    @contextmanager
    def cancelling(self, scope: trio.CancelScope, at: Where) -> Iterator[None]:
        """Cancel `scope` before and after each step of the tasks `at`: at the beginning of each wait, and within it."""
        with self.calling(lambda: scope.cancel(reason="cut"), at):
            yield

    @contextmanager
    def raising(self, error: Callable[[], BaseException], at: Where) -> Iterator[None]:
        """Raise `error` out of each wait of the tasks `at`, as if what was awaited had failed without effect.

        The wait is called off as for a cancel, and the error comes out of it in place of `trio.Cancelled`. Waits that
        cannot be called off (shielded checkpoints, threads) do not count.

        Args:
            error: makes the error: a class, or a function without arguments.
            at: the tasks.

        Raises:
            NotImplementedError: this version of trio does not allow it.
        """
        raise_out = _RAISE_OUT
        if raise_out is None:
            raise NotImplementedError(f"in trio {trio.__version__} an error cannot be raised out of a wait")

        def fail() -> NoReturn:
            raise error()

        with self._armed(_Waits(self, at, lambda task: raise_out(task, fail))):
            yield

    @contextmanager
    def _armed(self, steps: _Steps) -> Iterator[None]:
        if self._used:
            raise RuntimeError("a cut acts once; a scenario has one block of its cut")
        self._used = True
        trio.lowlevel.add_instrument(steps)
        try:
            yield
        finally:
            steps.remove()

    def _reached(self, task: trio.lowlevel.Task, moment: str, act: Act) -> None:
        self.seen += 1
        if self.seen == self._due:
            self.point = CutPoint(number=self.seen, task=task.name, moment=moment, place=place_of(task))
            act(task)


class _Steps(trio.abc.Instrument):
    """Watches the steps of the chosen tasks. What the act raises is kept: trio drops an instrument that raises."""

    def __init__(self, cut: Cut, at: Where, act: Act) -> None:
        self._cut, self._at, self._act = cut, at, act
        self._failed: BaseException | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._reached(task, "before")

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._reached(task, "after")

    def _reached(self, task: trio.lowlevel.Task, moment: str) -> None:
        chosen = self._at in task.name if isinstance(self._at, str) else task is self._at
        if not chosen or self._failed is not None:
            return
        try:
            self._cut._reached(task, moment, self._act)
        except BaseException as error:  # noqa: BLE001 - raised by `remove`
            self._failed = error

    def remove(self) -> None:
        trio.lowlevel.remove_instrument(self)
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed


class _Waits(_Steps):
    """Only the waits that can be called off."""

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        pass  # What it waited for has come.

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task._abort_func is not None:
            super().after_task_step(task)


def cut_everywhere(
    scenario: Callable[[Cut], Awaitable[object]],
    *,
    seed: int = 0,
    first: int = 1,
    every: int = 1,
    most: int = 10_000,
    limit: float = 3600.0,
    watchdog: float = 60.0,
) -> tuple[CutPoint, ...]:
    """Run `scenario` again and again, cut at its first point, at its second, … and at last not at all.

        async def scenario(cut: Cut) -> None:
            store = Store()
            with trio.CancelScope() as scope, cut.cancelling(scope, at=trio.lowlevel.current_task()):
                await store.save("7")
            assert store.is_whole()

        def test_a_save_may_be_cancelled_anywhere() -> None:
            cut_everywhere(scenario)

    The scenario builds all that it needs anew, enters one block of its cut around what is to be cut, and asserts
    afterwards. Each run is one of `run_virtual`, under the same seed, so that the n-th point is the same in all. It
    ends when a run was over before the due point came; that run was undisturbed.

    Args:
        scenario: gets the `Cut` of its run.
        seed: of the scheduler; other seeds have other points.
        first: the point to begin with, to repeat a failure.
        every: from there on, cut at each so-manieth point only: 3 is a third of the points, in a third of the time.
        most: points after which the scenario is taken for endless.
        limit: seconds of virtual time that each run may take.
        watchdog: seconds of real time that each run may take.

    Returns:
        The points, in order: one for each run but the last.

    Raises:
        AssertionError: the scenario has no point at all (no task of that name?), or more than `most`.
        Overdue: a run took longer than `limit` or `watchdog`.
        BaseException: whatever the scenario raised, bare, with the seed and the point as notes.
    """
    points: list[CutPoint] = []
    for due in range(first, first + most, every):
        cut = Cut(due)
        try:
            run_virtual(scenario, cut, seed=seed, limit=limit, watchdog=watchdog)
        except BaseException as error:
            error.add_note(str(cut.point) if cut.point is not None else f"not cut; {cut.seen} points were seen")
            raise
        if cut.point is None:
            break
        points.append(cut.point)
    else:
        raise AssertionError(f"the scenario has more than {most} points; the last was {points[-1]}")
    if not points:
        raise AssertionError(f"the scenario was not cut: it has {cut.seen} points, and {first} was due")
    return tuple(points)
