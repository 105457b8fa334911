"""What is seen of work queues from inside of the simulated servers: what comes into their lists, and leaves them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from attrs import frozen

from ..queue import job_of

if TYPE_CHECKING:
    from ...runtime.testing.redis_engine import Data
    from ..queue import Job, Queue

__all__ = ["JobLists"]

_LISTS: Final = ("waiting", "returned", "taken:")


@frozen
class JobLists:
    """See the module.

    Attributes:
        queues: those that some process takes from, by name.
    """

    queues: Mapping[str, Queue]

    def put_in(self, key: bytes, elements: Sequence[bytes]) -> Iterator[Job]:
        """The jobs that an LPUSH has added; none where the list is no queue's."""
        queue = self._queue_of(key)
        if queue is not None:
            for element in elements:
                yield job_of(queue, element, "", redelivered=False)

    def taken_off(self, key: bytes, element: bytes) -> Job | None:
        """The job that an LREM has removed; None where the list is no queue's."""
        queue = self._queue_of(key)
        return None if queue is None else job_of(queue, element, "", redelivered=False)

    def left(self, servers: Iterable[Data]) -> str | None:
        """Which list holds what; None if all are empty."""
        for data in servers:
            for key, item in data.databases[0].items():
                if self._queue_of(key) is not None and item.value:
                    return f"{key.decode()} holds {len(item.value)}"
        return None

    def _queue_of(self, key: bytes) -> Queue | None:
        """The queue that has this list."""
        name, end, rest = key.decode(errors="replace").removeprefix("{").partition("}:")
        return self.queues.get(name) if end and rest.startswith(_LISTS) else None
