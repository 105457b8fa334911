"""Many seeds: told one after the other, or by several processes at a time, and what they came to in sum."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice

from attrs import define, field

from .story import Outcome

__all__ = ["Report", "run_seeds"]

AHEAD = 4
"""Chunks for each process that are ordered in advance."""

CHUNK = 5
"""Seeds that a process tells before it answers."""


@define
class Report:
    """What many seeds came to.

    Attributes:
        seeds: how many.
        failed: the outcomes in which something was broken, by seed.
        events: accepted events.
        faults: faults.
        steps: steps of tasks.
        seconds: virtual time.
        ends: how many ends of each kind the events came to, over all groups.
    """

    seeds: int = 0
    failed: list[Outcome] = field(factory=list)
    events: int = 0
    faults: int = 0
    steps: int = 0
    seconds: float = 0.0
    ends: Counter[str] = field(factory=Counter)

    def add(self, outcome: Outcome) -> None:
        """Count an outcome."""
        self.seeds += 1
        self.events += outcome.events
        self.faults += outcome.faults
        self.steps += outcome.steps
        self.seconds += outcome.seconds
        self.ends.update(outcome.ends)
        if outcome.violations:
            self.failed.append(outcome)
            self.failed.sort(key=lambda each: each.seed)


def run_seeds(tell: Callable[[int], Outcome], seeds: Iterable[int], jobs: int = 1) -> Iterator[Outcome]:
    """The outcomes of `seeds`, as they come.

    With several `jobs`, as many processes of the operating system tell them; `tell` must be picklable then, and the
    order is none. Abandoned, the iterator ends them.
    """
    if jobs == 1:
        yield from map(tell, seeds)
        return
    # Fresh interpreters: nothing of what this one has done to trio and fakeredis is in them.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        left, running = iter(seeds), set[Future[list[Outcome]]]()
        try:
            while True:
                while len(running) < AHEAD * jobs and (chunk := list(islice(left, CHUNK))):
                    running.add(pool.submit(_tell_all, tell, chunk))
                if not running:
                    return
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for each in finished:
                    yield from each.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _tell_all(tell: Callable[[int], Outcome], seeds: Sequence[int]) -> list[Outcome]:
    return [tell(seed) for seed in seeds]
