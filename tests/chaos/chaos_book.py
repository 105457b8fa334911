"""What a fault run sees: every call with its outcome, its latency without our own loop's lag, and every violation."""

from __future__ import annotations

import enum
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import redis.exceptions
import trio
from attrs import define, field, frozen

from penstock.runtime.redis import NotSent, OutcomeUnknown, RedisStalled, RedisUnavailable, classify
from penstock.runtime.testing import tasks_waiting

__all__ = ["Book", "Channel", "Fate", "Outcome", "open_sockets", "running_tasks"]

_HARD_LIMIT = 20.0
"""Seconds beyond a call's limit after which it is cancelled: it hangs."""

_TICK = 0.01


class Fate(enum.Enum):
    """What the caller may conclude from how a call ended."""

    DONE = "done"
    NOT_RUN = "not run"
    UNKNOWN = "unknown"


@frozen
class Outcome:
    """How one call ended; `value` is its result when it is DONE."""

    fate: Fate
    value: Any = None
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.fate is Fate.DONE


@define(eq=False)
class Book:
    """Everything that a run counts. All of it is the one event loop's: no locks.

    Attributes:
        calls: how many calls ended, by kind of work.
        fates: the same by fate.
        errors: by kind of error.
        faults: by kind of fault.
        worst: the longest call, seconds without our own lag, by kind of work.
        notes: what was counted beside: losses that the topology permits, gaps, duplicates …
        violations: what must never happen.
    """

    seed: int
    calls: Counter[str] = field(factory=Counter)
    fates: Counter[str] = field(factory=Counter)
    errors: Counter[str] = field(factory=Counter)
    faults: Counter[str] = field(factory=Counter)
    worst: dict[str, float] = field(factory=dict)
    notes: Counter[str] = field(factory=Counter)
    violations: list[str] = field(factory=list)
    lag: float = 0.0
    started: float = field(factory=time.monotonic)
    recent: list[str] = field(factory=list)

    def rng(self, name: str) -> random.Random:
        """A source of randomness of one's own, so that one task's draws do not move another's."""
        return random.Random(f"{self.seed}/{name}")

    def wrong(self, text: str) -> None:
        """Note a violation; from any thread."""
        if len(self.violations) < 200:
            last = "; ".join(self.recent[-3:])
            self.violations.append(f"{self.time:7.2f} s: {text} [last faults: {last}]")

    def fault(self, kind: str) -> None:
        """Note a fault."""
        self.faults[kind] += 1
        self.mark(kind)

    def mark(self, text: str) -> None:
        """Note something that a violation may have to do with."""
        self.recent.append(f"{self.time:.2f} s {text}")

    @property
    def time(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    async def measure_lag(self) -> None:
        """Sum up how late our own event loop is; runs as long as the run."""
        while True:
            due = trio.current_time() + _TICK
            await trio.sleep_until(due)
            self.lag += trio.current_time() - due

    async def call(
        self, work: str, limit: float, command: Callable[[], Awaitable[Any]], *, cancel_after: float | None = None
    ) -> Outcome:
        """Run a command, see how it ends, and that it ends within `limit` seconds.

        With `cancel_after` the call is cancelled then, and must end at once.
        """
        begin, lag = trio.current_time(), self.lag
        allowed = limit if cancel_after is None else min(limit, cancel_after + 1.0)
        hard = trio.move_on_after(allowed + _HARD_LIMIT)
        patience = trio.move_on_after(limit + 2 * _HARD_LIMIT if cancel_after is None else cancel_after)
        outcome = Outcome(Fate.UNKNOWN)
        with hard, patience:
            outcome = await self._run(work, command)
        if hard.cancelled_caught:
            self.wrong(f"{work} hung: not over after {allowed + _HARD_LIMIT:.1f} s\n{_places()}")
        took = trio.current_time() - begin - (self.lag - lag)
        if took > allowed and not hard.cancelled_caught:
            self.wrong(f"{work} took {took:.2f} s, allowed are {allowed:.2f} s (ended: {outcome.error!r})")
        if patience.cancelled_caught:
            self.errors["cancelled by us"] += 1
        self.worst[work] = max(self.worst.get(work, 0.0), took)
        self.calls[work] += 1
        self.fates[outcome.fate.value] += 1
        return outcome

    async def _run(self, work: str, command: Callable[[], Awaitable[Any]]) -> Outcome:
        try:
            return Outcome(Fate.DONE, await command())
        except redis.exceptions.RedisError as error:
            self.errors[f"{type(error).__name__} ({classify(error).name})"] += 1
            return Outcome(_fate_in_redis(error), error=error)
        except psycopg.Error as error:
            self.errors[f"{type(error).__name__}"] += 1
            return Outcome(Fate.UNKNOWN, error=error)
        except Exception as error:  # noqa: BLE001  # what nobody promised is what this program looks for
            self.errors[type(error).__name__] += 1
            self.wrong(f"{work} raised {error!r}, which is no error of the link")
            return Outcome(Fate.UNKNOWN, error=error)

    def report(self) -> str:
        """All of it, for people."""
        lines = [f"calls {sum(self.calls.values())} ({_counts(self.fates)}), own lag {self.lag:.2f} s in all"]
        lines += [f"faults {sum(self.faults.values())}: {_counts(self.faults)}"]
        lines += [f"errors {sum(self.errors.values())}: {_counts(self.errors)}"]
        lines += [f"calls by work: {_counts(self.calls)}"]
        worst = sorted(self.worst.items(), key=lambda item: -item[1])
        lines += ["longest, without our own lag: " + ", ".join(f"{work} {took:.2f} s" for work, took in worst)]
        lines += [f"beside: {_counts(self.notes) or 'nothing'}"]
        lines += [f"VIOLATION {text}" for text in self.violations]
        return "\n".join(lines)


@define(eq=False)
class Channel:
    """The ledger of a channel that one task publishes to: how each number went out, and what the subscriber got.

    Attributes:
        strict: whether nothing may be missing without a `Gap`. Between the nodes of a cluster, messages may.
        log: the numbers, and None for a `Gap`.
    """

    name: str
    strict: bool
    sent: dict[int, Fate] = field(factory=dict)
    log: list[int | None] = field(factory=list)

    def faults(self) -> list[str]:
        """What is wrong with the log."""
        numbers = [number for number in self.log if number is not None]
        found = [f"{number} came {times} times" for number, times in Counter(numbers).items() if times > 1]
        if not self.strict:
            return found
        last = None
        for number in self.log:
            if number is None:
                last = None
            elif self.sent.get(number) is Fate.DONE:  # one of unknown outcome may come late, from a socket that thaws
                found += self._between(last, number)
                last = number
        return found

    def _between(self, last: int | None, number: int) -> list[str]:
        if last is None:
            return []
        if number < last:
            return [f"{number} came after {last}"]
        missing = [each for each in range(last + 1, number) if self.sent.get(each) is Fate.DONE]
        return [f"{missing} are missing between {last} and {number}, without a Gap"] if missing else []


def _fate_in_redis(error: redis.exceptions.RedisError) -> Fate:
    if isinstance(error, NotSent):
        return Fate.NOT_RUN
    if isinstance(error, (OutcomeUnknown, RedisStalled, RedisUnavailable)):
        return Fate.UNKNOWN
    # A reply of the server: it refused. What the link says by itself has no reply's text, and promises nothing.
    return Fate.NOT_RUN if getattr(error, "reply_text", None) is not None else Fate.UNKNOWN


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counter.most_common())


def _places() -> str:
    return "\n".join(f"    {line}" for line in tasks_waiting()[:80])


def open_sockets() -> int:
    """Sockets that this process has open."""
    found = 0
    for entry in os.scandir("/proc/self/fd"):
        try:
            found += os.readlink(entry.path).startswith("socket:")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return found


def running_tasks() -> list[str]:
    """The names of all tasks of this run, trio's own too."""
    root = trio.lowlevel.current_root_task()
    tasks, names = [root] if root is not None else [], []
    while tasks:
        task = tasks.pop()
        names.append(task.name)
        for nursery in task.child_nurseries:
            tasks.extend(nursery.child_tasks)
    return names
