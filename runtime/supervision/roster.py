"""The children of one core: in order, by id, and by what is yet to be done about them.

A core may have ten thousand children and must not look at all of them at each event. So whoever is not as it should be
stands in a queue, sorted by the order of the siblings; `Roster.place` keeps the queues true after every change.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from .messages import Status
from .spec import ChildSpec
from .state import ChildState

__all__ = ["Queue", "Roster"]

_SPARE = 64
"""So many entries of those that have left a queue may lie about in its heap before it is made anew."""


class Queue:
    """A set of children whose first one, by their order, is at hand.

    Args:
        backwards: whether "first" is the one that stands last among its siblings.
    """

    def __init__(self, *, backwards: bool = False) -> None:
        self._sign = -1 if backwards else 1
        self._members: set[ChildState] = set()
        # Entries of children that have left the set stay until they come up.
        self._heap: list[tuple[int, ChildState]] = []

    def put(self, child: ChildState, belongs: bool) -> None:
        """Have `child` in the set, or not."""
        if not belongs:
            self._members.discard(child)
        elif child not in self._members:
            self._members.add(child)
            if len(self._heap) > 2 * len(self._members) + _SPARE:
                self.rebuild()
            else:
                heapq.heappush(self._heap, (self._sign * child.order, child))

    def first(self) -> ChildState | None:
        """The first one, or None."""
        while self._heap:
            number, child = self._heap[0]
            if child in self._members and number == self._sign * child.order:
                return child
            heapq.heappop(self._heap)
        return None

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, child: ChildState) -> bool:
        return child in self._members

    def rebuild(self) -> None:
        """Sort anew, after the order itself has changed."""
        self._heap = [(self._sign * child.order, child) for child in self._members]
        heapq.heapify(self._heap)


class Roster:
    """The children.

    Attributes:
        unwanted: those that are up, and should not be; the last comes first.
        recalled: those of these whose gate was shut. They stand in `unwanted` no more.
        withdrawing: those of the leaving that were recalled.
        leaving: those that were told to stop, and are not stuck; the last comes first.
        due: those that are down, should be up, and whose time has come.
        returning: those of these who come back from a pause, and take turns. They stand in `due` no more.
        awaited: those that are not up, and will be: nobody of a group may start before them.
        up: those that work or are about to; the last comes first.
        alive: how many have a task.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, ChildState] = {}
        self._next_order = 0
        self.unwanted = Queue(backwards=True)
        self.recalled = Queue(backwards=True)
        self.leaving = Queue(backwards=True)
        self.withdrawing = Queue()
        self.due = Queue()
        self.returning = Queue()
        self.awaited = Queue()
        self.up = Queue(backwards=True)
        self._queues = (
            self.unwanted,
            self.recalled,
            self.leaving,
            self.withdrawing,
            self.due,
            self.returning,
            self.awaited,
            self.up,
        )
        self.alive = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, name: str) -> bool:
        return name in self._by_id

    def __getitem__(self, name: str) -> ChildState:
        return self._by_id[name]

    def __iter__(self) -> Iterator[ChildState]:
        """In start order."""
        return iter(self._by_id.values())

    def __reversed__(self) -> Iterator[ChildState]:
        """In stop order."""
        return reversed(self._by_id.values())

    def get(self, name: str) -> ChildState | None:
        """The child of that id, or None."""
        return self._by_id.get(name)

    def append(self, spec: ChildSpec) -> ChildState:
        """Take in a child, behind all others."""
        child = self._by_id[spec.id] = ChildState(spec, self._next_order)
        self._next_order += 1
        return child

    def remove(self, child: ChildState) -> None:
        """Let a child go; its task must be gone."""
        child.gone = True
        del self._by_id[child.spec.id]
        for queue in self._queues:
            queue.put(child, False)

    def reorder(self, names: Iterable[str]) -> None:
        """Let the children named stand in this order, and the others behind them, as they stood."""
        first = [self._by_id[name] for name in names]
        chosen = set(first)
        ordered = first + [child for child in self if child not in chosen]
        self._by_id = {child.spec.id: child for child in ordered}
        for number, child in enumerate(ordered):
            child.order = number
        self._next_order = len(ordered)
        for queue in self._queues:
            queue.rebuild()

    def place(self, child: ChildState, *, wanted: bool, held: bool, now: float) -> None:
        """Bring the queues up to date after a change of `child`; to be called after each one."""
        if child.gone:
            return
        is_up, is_recalled = child.is_up, child.recalled is not None
        leaves = child.status is Status.STOPPING and not child.stuck
        may_start = child.status is Status.DOWN and wanted and child.begun and now >= child.not_before
        self.up.put(child, is_up)
        self.unwanted.put(child, is_up and not wanted and not is_recalled)
        self.recalled.put(child, is_up and is_recalled)
        self.leaving.put(child, leaves)
        self.withdrawing.put(child, leaves and is_recalled)
        self.due.put(child, may_start and not child.waited)
        self.returning.put(child, may_start and child.waited)
        self.awaited.put(child, child.status is not Status.RUNNING and child.begun and child.goal and not held)
