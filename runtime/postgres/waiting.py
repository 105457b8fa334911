"""Waiting for a socket on trio, the way psycopg's generators want it."""

from __future__ import annotations

import select
import sys
from typing import TypeVar

import psycopg
import trio

from . import internals
from .internals import READ, WRITE, PQGenConn

_R = TypeVar("_R")


async def wait_ready(fd: int, want: int) -> int:
    """Wait until *fd* is ready for something of *want* (`READ`, `WRITE` or both) and return what it is ready for.

    A checkpoint. Cancellation leaves nothing behind.

    Raises:
        psycopg.OperationalError: this process closed the socket meanwhile.
    """
    try:
        if want == READ:
            await trio.lowlevel.wait_readable(fd)
        elif want == WRITE:
            await trio.lowlevel.wait_writable(fd)
        else:
            return await _wait_either(fd, want)
    except (trio.ClosedResourceError, OSError) as error:
        raise psycopg.OperationalError("the connection was closed while a statement waited for it") from error
    return want


async def drive_connecting(steps: PQGenConn[_R]) -> _R:
    """Run the steps of a connect or a cancel request, whose socket may change from step to step.

    Cancellation closes the half-made connection.
    """
    try:
        fd, want = next(steps)
        while True:
            fd, want = steps.send(await wait_ready(fd, want))
    except StopIteration as end:
        result: _R = end.value
        return result
    finally:
        steps.close()


if sys.platform == "linux":

    async def _wait_either(fd: int, want: int) -> int:
        # One epoll object is readable as soon as the socket is either: one task and no nursery. A nursery with two
        # tasks for each wait held a pipelined executemany at a tenth of its throughput.
        with select.epoll(1) as both:
            both.register(fd, select.EPOLLIN | select.EPOLLOUT)
            await trio.lowlevel.wait_readable(both.fileno())
        return internals.ready(fd, want)

else:

    async def _wait_either(fd: int, want: int) -> int:
        async with trio.open_nursery() as nursery:

            async def first(wait: object) -> None:
                await wait(fd)  # type: ignore[operator]
                nursery.cancel_scope.cancel()

            nursery.start_soon(first, trio.lowlevel.wait_readable)
            nursery.start_soon(first, trio.lowlevel.wait_writable)
        return internals.ready(fd, want)
