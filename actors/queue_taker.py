"""The taker: takes jobs out of a queue's list for this process, no more than its workers have room for.

Taking is moving: a job that is taken stands in the list of its consumer, until it is finished. So nothing is lost if
the process dies, or the connection breaks while the answer is on its way: at every start, after a broken connection,
and now and then the taker reads what its consumer holds, and takes up what it does not know of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import redis.exceptions
import trio

from ..runtime.redis import Kind, classify
from ..runtime.telemetry import get_logger
from .backlog import Backlog
from .handling import Entry
from .queue import Job, job_of
from .queue_lists import QueueLists, are_moving
from .reading_on import Patience, read_on

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis
    from ..runtime.supervision import Child
    from .queue import Queue

__all__ = ["QueueBacklog", "Taker"]

log = get_logger(__name__)

AT_ONCE: Final = 100
"""Jobs that one take moves at the most."""

UNFINISHED: Final = 1_000
"""Jobs that may be done and still wait to be taken off the list, before no more are taken."""


class QueueBacklog(Backlog):
    """The jobs that this process has taken. What is done takes no room, though it is still to be taken off the list."""

    @property
    def room(self) -> int:
        """Jobs that may be taken now."""
        unfinished = len(self._done) + len(self._in_acknowledgement)
        return max(0, self.capacity - len(self._known) + unfinished) if unfinished < UNFINISHED else 0

    def done(self, entries: Sequence[Entry]) -> None:
        """See `Backlog.done`."""
        super().done(entries)
        self._make_room()

    def position(self, finishing: Iterable[Entry]) -> str | None:
        """None: what is taken is gone from where it was, and nobody begins anew at a place."""
        return None

    def elements(self, ids: Sequence[str]) -> list[bytes]:
        """What jobs look like in the list."""
        known = (self._known.get(each) for each in ids)
        return [job.element for job in known if isinstance(job, Job)]


class Taker:
    """The body of the actor ``taker`` of one queue.

    Args:
        client: the link, asked for at each start of the actor.
        queue: the declared queue.
        consumer: who takes; stable over restarts, or what it held would wait until it is returned.
        backlog: where jobs go, and whose room is its credit.
        trouble: told of every error of Redis, so that the gate can be shut at once.
        patience: seconds for which a connection that breaks is no trouble yet: another node may be taking over.
    """

    def __init__(
        self,
        client: Callable[[], AnyRedis],
        queue: Queue,
        consumer: str,
        backlog: QueueBacklog,
        trouble: Callable[[Exception], None],
        *,
        patience: float = 0.0,
    ) -> None:
        self._client = client
        self._queue = queue
        self._consumer = consumer
        self._backlog = backlog
        self._trouble = trouble
        self._patience = Patience(patience)

    async def __call__(self, child: Child) -> None:
        """Take until cancelled. What was taken and is not finished stays in its list, and is taken up at the start.

        Raises:
            redis.exceptions.RedisError: what the link or the server said; the gate has been told.
        """
        child.note(self._consumer)
        try:
            client = self._client()
            async with client.dedicated(key=QueueLists(client, self._queue.name).waiting) as connection:
                child.started()
                lists = QueueLists(connection, self._queue.name)
                await read_on(
                    child,
                    self._backlog,
                    self._patience,
                    read=partial(self._take, lists),
                    look_back=partial(self._look_back, lists),
                    bear=self._bear,
                )
        except redis.exceptions.RedisError as error:
            self._trouble(error)
            raise

    async def _take(self, lists: QueueLists) -> None:
        taken = await lists.take(self._consumer, min(AT_ONCE, self._backlog.room))
        self._add(taken.returned, redelivered=True)
        self._add(taken.fresh)
        if taken.returned or taken.fresh:
            return
        element = await lists.wait(self._consumer, self._queue.block)
        if element is not None:
            self._add([element])

    async def _look_back(self, lists: QueueLists) -> None:
        # What was here when we asked is none of it, also if it is finished while the answer is on its way.
        known = self._backlog.known()
        found = self._add(await lists.held(self._consumer), redelivered=True, without=known)
        if found:
            log.info("took up what it held", queue=self._queue.name, consumer=self._consumer, jobs=found)

    def _add(
        self, elements: Iterable[bytes], *, redelivered: bool = False, without: frozenset[str] = frozenset()
    ) -> int:
        jobs = [job_of(self._queue, each, self._consumer, redelivered=redelivered) for each in elements]
        return self._backlog.add(list({job.id: job for job in jobs if job.id not in without}.values()))

    async def _bear(self, error: redis.exceptions.ResponseError) -> None:
        """What a server says that goes on serving us; raises what it does not."""
        kind = classify(error).kind
        if kind is Kind.NORMAL:
            return  # woken by CLIENT UNBLOCK: go on
        if kind is not Kind.DEGRADE and not are_moving(error):
            raise error
        # Full, it lets nobody wait at a list; but it lets us take what is there, which makes room.
        await trio.sleep(self._queue.block)
