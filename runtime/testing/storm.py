"""A restart storm: a tree through so much virtual time, and what became of each child."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import trio
from attrs import define, field, frozen

from ..supervision import LifecycleEvent, LifecycleKind, Subscription, Tree
from .trees import running

__all__ = ["ChildTally", "Storm", "restart_storm"]

_BUFFER = 1_000_000
"""Far more than any tree says before the counting task has its turn; the count would notice."""


@frozen(kw_only=True)
class ChildTally:
    """What happened to one child.

    Attributes:
        events: how often each kind of lifecycle event was about it.
        longest_silence: the longest time between two of its starts, in seconds; 0.0 when it was started once.
    """

    events: Mapping[LifecycleKind, int]
    longest_silence: float

    @property
    def starts(self) -> int:
        """How often its body began."""
        return self.events[LifecycleKind.CHILD_STARTING]

    @property
    def crashes(self) -> int:
        """How often it raised, was late, or stalled."""
        return self.events[LifecycleKind.CHILD_CRASHED]

    @property
    def restarts(self) -> int:
        """How many restarts were entered in the budget for it."""
        return self.events[LifecycleKind.CHILD_BACKOFF]

    @property
    def holds(self) -> int:
        """How often it was held by a gate."""
        return self.events[LifecycleKind.CHILD_HELD]


@frozen(kw_only=True)
class Storm:
    """What a `restart_storm` saw; ``storm["app/worker"]`` is the tally of that child.

    Attributes:
        seconds: how long it took, from the start of the tree to its end.
        events: how many lifecycle events there were.
        children: the tallies, by path.
    """

    seconds: float
    events: int
    children: Mapping[str, ChildTally]

    def __getitem__(self, path: str) -> ChildTally:
        return self.children[path]


@define
class _Count:
    """The count of one child, as it goes on."""

    events: Counter[LifecycleKind] = field(factory=Counter)
    started_at: float | None = None
    longest_silence: float = 0.0

    def enter(self, event: LifecycleEvent, now: float) -> None:
        self.events[event.kind] += 1
        if event.kind is LifecycleKind.CHILD_STARTING:
            if self.started_at is not None:
                self.longest_silence = max(self.longest_silence, now - self.started_at)
            self.started_at = now


async def restart_storm(tree: Tree, seconds: float) -> Storm:
    """Run `tree` for so many seconds after it was ready, stop it, and tell what happened to each child.

    Counted from the stream of lifecycle events, as they come, so that a day of storm needs no more memory than an hour.
    Gates may be turned meanwhile by other tasks. Blocks until the tree is gone. Cancelled, it stops the tree.

    Raises:
        Exception: what ended the tree by itself (`RestartLimitExceeded`, …).
        RuntimeError: an event was missed, so the counts would be wrong; or the tree was over before it was ready.
    """
    counts: dict[str, _Count] = {}
    began = trio.current_time()
    with tree.subscribe(_BUFFER) as events:
        first = tree.journal.sequence + 1
        async with running(tree), trio.open_nursery() as nursery:
            nursery.start_soon(_count, events, counts, first)
            await trio.sleep(seconds)
            tree.stop("the storm is over")
    children = {
        path: ChildTally(events=count.events, longest_silence=count.longest_silence) for path, count in counts.items()
    }
    return Storm(seconds=trio.current_time() - began, events=tree.journal.sequence - first + 1, children=children)


async def _count(events: Subscription, counts: dict[str, _Count], expected: int) -> None:
    async for first in events:
        for event in (first, *events.drain()):
            if event.sequence != expected:
                raise RuntimeError(f"lifecycle events {expected} to {event.sequence - 1} were missed")
            expected += 1
            if event.kind.value.startswith("child_"):
                counts.setdefault(event.path, _Count()).enter(event, trio.current_time())
