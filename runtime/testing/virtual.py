"""Runs in virtual time: an hour of sleep takes no time, and the same seed gives the same run."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable
from functools import partial, wraps
from typing import ParamSpec, TypeVar, TypeVarTuple

import trio
from trio.testing import MockClock

from .scheduler import seed_scheduler
from .waiting import Overdue, within
from .watchdog import Watchdog

__all__ = ["DAY", "run_virtual", "virtual_time"]

DAY = 24 * 3600.0
"""Seconds."""

T = TypeVar("T")
P = ParamSpec("P")
PosArgT = TypeVarTuple("PosArgT")


def run_virtual(
    async_fn: Callable[[*PosArgT], Awaitable[T]],
    *args: *PosArgT,
    seed: int | None = None,
    limit: float = 30 * DAY,
    watchdog: float = 60.0,
) -> T:
    """``trio.run(async_fn, *args)`` in virtual time; the clock begins at 0 and jumps when all tasks wait.

    Only for programs that wait for nothing outside: to threads, sockets and processes the clock does not listen, and
    their time-outs fire at once (trio#456).

    Args:
        seed: of the scheduler; see `seed_scheduler`. Default: another one each time. The error of a failed run has it
            as a note. A tree has a seed of its own, ``Tree(seed=)``.
        limit: seconds of virtual time that the run may take. Default 30 days: longer than any outage that is tried
            out, and over at once when everybody waits for nothing.
        watchdog: seconds of real time that the run may take; see `Watchdog`. Default 60: half of what pytest-timeout
            is often given, so that this comes first and tells more.

    Returns:
        What `async_fn` returned.

    Raises:
        Overdue: it took longer than `limit` or `watchdog`; the text shows where each task was.
        BaseException: whatever `async_fn` raised, bare.
    """
    chosen = random.SystemRandom().getrandbits(32) if seed is None else seed
    seed_scheduler(chosen)

    async def main() -> T:
        with within(limit, "the run"), dog.run_scope():
            return await async_fn(*args)
        raise dog.overdue()

    try:
        with Watchdog(watchdog) as dog:
            return trio.run(main, clock=MockClock(autojump_threshold=0))
    except BaseException as error:
        error.add_note(f"in virtual time with seed {chosen}")
        raise


def virtual_time(
    seeds: int | Iterable[int] = 1, *, limit: float = 30 * DAY, watchdog: float = 60.0
) -> Callable[[Callable[P, Awaitable[None]]], Callable[P, None]]:
    """Decorator: make an async test an ordinary one, which runs it in virtual time under each of several seeds.

    For any test runner; pytest needs no plugin for it, and gives fixtures as to any test (async ones of pytest-trio
    excepted). They are made once for all seeds.

        @virtual_time(seeds=20)
        async def test_the_actor_survives_a_day_of_outage() -> None: …

    A failure does not end the row, unless it is an `Overdue`: the first error is raised at the end, with all seeds that
    failed in its notes.

    Args:
        seeds: how many (0, 1, 2, …), or which: ``seeds=[7]`` repeats a failure.
        limit: as for `run_virtual`, for each seed.
        watchdog: likewise.

    Raises:
        ValueError: there is no seed, so nothing would be tested.
    """
    if callable(seeds):
        raise TypeError("virtual_time makes the decorator: write @virtual_time(), with brackets")
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen:
        raise ValueError(f"seeds must be a number of 1 or more, or some seeds, not {seeds!r}")

    def decorate(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
        @wraps(test)
        def under_each_seed(*args: P.args, **kwargs: P.kwargs) -> None:
            failed: dict[int, Exception] = {}
            for seed in chosen:
                try:
                    run_virtual(partial(test, *args, **kwargs), seed=seed, limit=limit, watchdog=watchdog)
                except Exception as error:  # noqa: BLE001 - the first is raised below
                    failed[seed] = error
                    if isinstance(error, Overdue):
                        break  # it has cost its whole limit, and the other seeds may, too
            if failed:
                first = next(iter(failed.values()))
                first.add_note(f"{len(failed)} of {len(chosen)} seeds failed: {', '.join(map(str, failed))}")
                raise first

        return under_each_seed

    return decorate
