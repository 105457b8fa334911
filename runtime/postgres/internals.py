"""The names of psycopg which are not public and which the trio link cannot do without; only this module knows them.

psycopg separates the protocol (generators that say when they would block) from the waiting, but does not
document the seam. Each function here wraps one such name and says why.
`tests/runtime/postgres/test_postgres_internals.py` holds that they exist and behave: it is the gate for an upgrade of
psycopg.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, TypeVar

import psycopg
from psycopg import errors, generators, pq, waiting
from psycopg.abc import AdaptContext, ConnDict, PQGen, PQGenConn
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import conninfo_attempts, conninfo_to_dict, make_conninfo, timeout_from_conninfo

__all__ = [
    "READ",
    "WRITE",
    "ConnDict",
    "PQGen",
    "PQGenConn",
    "WaitTimeout",
    "cancel_steps",
    "connect_steps",
    "conninfo_attempts",
    "conninfo_to_dict",
    "copy_end_steps",
    "copy_out_steps",
    "forget_prepared",
    "handlers",
    "in_pipeline",
    "in_two_phase",
    "make_conninfo",
    "notify_steps",
    "ready",
    "result_steps",
    "set_adapters",
    "set_autocommit_state",
    "set_handlers",
    "set_lock",
    "sync_pipeline",
    "timeout_from_conninfo",
]

_Handlers: TypeAlias = tuple[tuple[Callable[..., Any], ...], tuple[Callable[..., Any], ...]]

_C = TypeVar("_C", bound="psycopg.AsyncConnection[Any]")

READ = int(waiting.Wait.R)
WRITE = int(waiting.Wait.W)

# What ``wait(timeout=…)`` must raise for ``notifies(timeout=…)`` to end as it should.
WaitTimeout: type[psycopg.OperationalError] = errors._WaitTimeout


class _Lock(Protocol):
    async def acquire(self) -> Any: ...
    def release(self) -> None: ...


def _ready_by_poll(fd: int, want: int) -> int:
    poll = select.poll()
    poll.register(fd, (select.POLLIN if want & READ else 0) | (select.POLLOUT if want & WRITE else 0))
    ready = 0
    for _, events in poll.poll(0):
        # An error or a hang-up is there to be read, and told by the next attempt to write.
        ready |= READ if events & ~select.POLLOUT else 0
        ready |= WRITE if events & ~select.POLLIN else 0
    return ready & want


ready: Callable[[int, int], int] = getattr(waiting, "_ready", _ready_by_poll)
"""Which of what is wanted the socket is ready for right now, by one system call.

psycopg's own poll in C where there is one (3.3.9): a `select.poll` object made in Python for each call costs a third of
the throughput of a pipelined ``executemany``, and even a function around it is to be felt.
"""


def connect_steps(kind: type[_C], conninfo: str) -> PQGenConn[_C]:
    """The steps of one attempt to connect; psycopg's ``connect()`` runs them on asyncio."""
    return kind._connect_gen(conninfo)


def cancel_steps(connection: psycopg.AsyncConnection[Any]) -> PQGenConn[None] | None:
    """The steps of a cancel request (libpq 17's: encrypted, not blocking); ``None``: there is nothing to cancel."""
    return connection._cancel_gen() if connection._should_cancel() else None


def result_steps(pgconn: pq.abc.PGconn) -> PQGen[list[pq.abc.PGresult]]:
    """The steps that read the results of what has been sent; needed to drain an abandoned statement."""
    steps: PQGen[list[pq.abc.PGresult]] = generators.fetch_many(pgconn)
    return steps


def copy_end_steps(pgconn: pq.abc.PGconn, error: bytes) -> PQGen[pq.abc.PGresult]:
    """The steps that end an abandoned COPY FROM STDIN with an error."""
    return generators.copy_end(pgconn, error)


def copy_out_steps(pgconn: pq.abc.PGconn) -> PQGen[memoryview | pq.abc.PGresult]:
    """The steps that read one block of an abandoned COPY TO STDOUT."""
    return generators.copy_from(pgconn)


def set_lock(connection: psycopg.AsyncConnection[Any], lock: _Lock) -> None:
    """Replace the `asyncio.Lock` of the connection, which works on trio only while nobody has to wait for it."""
    connection.lock = lock  # type: ignore[assignment]


def set_autocommit_state(connection: psycopg.AsyncConnection[Any], value: bool) -> None:
    """What ``connect(autocommit=…)`` does; the public setter is asynchronous, for a state that is only local."""
    connection._autocommit = value


def set_adapters(connection: psycopg.AsyncConnection[Any], context: AdaptContext) -> None:
    """What ``connect(context=…)`` does; there is no public setter."""
    connection._adapters = AdaptersMap(context.adapters)


def in_pipeline(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Whether psycopg thinks itself in a pipeline; libpq's ``pipeline_status`` may say otherwise already."""
    return connection._pipeline is not None


def in_two_phase(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Whether psycopg thinks itself between ``tpc_begin()`` and the end of that transaction: nobody else can tell."""
    return connection._tpc is not None


def handlers(connection: psycopg.AsyncConnection[Any]) -> _Handlers:
    """The handlers of notices and of notifications; there is no public way to look at them."""
    return tuple(connection._notice_handlers), tuple(connection._notify_handlers)


def set_handlers(connection: psycopg.AsyncConnection[Any], wanted: _Handlers) -> None:
    """Have these handlers of notices and of notifications, and no others; the public way needs to know the others."""
    connection._notice_handlers[:], connection._notify_handlers[:] = wanted


async def sync_pipeline(connection: psycopg.AsyncConnection[Any]) -> None:
    """Collect the results of what is in the pipeline, if the connection is in one; raises the first error among them.

    ``Pipeline.sync()`` is public, the pipeline that a connection is in is not.
    """
    if connection._pipeline is not None:
        await connection._pipeline.sync()


def notify_steps(pgconn: pq.abc.PGconn) -> PQGen[list[pq.PGnotify]]:
    """The steps that wait until the server says something, and hand notifications to the connection's handlers."""
    return generators.notifies(pgconn)


def forget_prepared(connection: psycopg.AsyncConnection[Any]) -> None:
    """Let psycopg prepare its statements anew. What the server still has of them is closed by and by.

    A statement that psycopg prepares within a pipeline is remembered before the server has answered, and not
    forgotten when the pipeline is aborted before it: its next execution fails with "prepared statement does not
    exist" (psycopg 3.3.9, ``PrepareManager.maybe_add_to_cache``; asyncio too).
    Nor is one forgotten whose table was altered, or that the server has lost.
    """
    prepared = connection._prepared
    names = list(prepared._names.values())
    prepared.clear()
    if psycopg.capabilities.has_send_close_prepared():
        # One by one, which is no error where there is nothing to close: psycopg's DEALLOCATE ALL is sent after the
        # next statement, and would hit what that one prepared.
        prepared._to_flush.clear()
        prepared._to_flush.extend(names)
