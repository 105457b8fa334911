"""The lifecycle events of the tree for the clients of ``/api/v1/tree/events``: each once, in order, nothing hidden.

The numbers of a journal have no gaps. Whatever is missing, be it that the client was away for too long or that it reads
too slowly, therefore shows as a jump from one number to the next, and is told as a ``gap``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from ..runtime.supervision import Journal, LifecycleEvent
from .replies import dump
from .sse import Event
from .views import event_json

__all__ = ["lifecycle_events"]

BUFFER = 10_000
"""Events that wait for a client that is slow, or for its turn: a pool of thousands is held in one moment."""

FORGOTTEN = "the journal keeps only the last ones"
TOO_SLOW = "the client reads too slowly"
STARTED_ANEW = "the system was started anew"


async def lifecycle_events(journal: Journal, after: str) -> AsyncGenerator[Event, None]:
    """What `journal` still has behind the event `after`, then each event as it happens; ends with the tree.

    `after` is the id of an event, its sequence alone, or ``$`` for the last one that there is. An id is
    ``sequence-milliseconds``, for the numbers begin anew with each run of the system: an id of another run is known by
    its time, and what this run has is then told from its beginning.
    """
    with journal.subscribe(BUFFER) as news:
        kept, seen = list(journal.recent), _seen(journal, after)
        if seen is None:
            seen = 0
            yield _gap(None, STARTED_ANEW)
        for event in kept:
            if event.sequence > seen:
                for each in _shown(event, seen, FORGOTTEN):
                    yield each
                seen = event.sequence
        async for event in news:
            for each in _shown(event, seen, TOO_SLOW):
                yield each
            seen = event.sequence


def _seen(journal: Journal, after: str) -> int | None:
    """The sequence of the event `after`; None if it is none of this journal's."""
    if after == "$":
        return journal.sequence
    number, _, milliseconds = after.partition("-")
    sequence = int(number)
    if sequence > journal.sequence:
        return None
    # One that is no longer kept cannot be checked; then there is a gap in any case.
    event = next((each for each in journal.recent if each.sequence == sequence), None)
    if event is not None and milliseconds and int(milliseconds) != _milliseconds(event):
        return None
    return sequence


def _shown(event: LifecycleEvent, seen: int, why: str) -> list[Event]:
    """The event, and before it what is missing between it and the one `seen` last."""
    missed = event.sequence - seen - 1
    shown = Event(dump(event_json(event)), name="lifecycle", id=f"{event.sequence}-{_milliseconds(event)}")
    return [_gap(missed, why), shown] if missed else [shown]


def _gap(missed: int | None, why: str) -> Event:
    return Event(dump({"missed": missed, "reason": why}), name="gap")


def _milliseconds(event: LifecycleEvent) -> int:
    return int(event.time.timestamp() * 1000)
