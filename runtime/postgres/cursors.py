"""psycopg's five cursors, with a clean-up that holds under trio's level-triggered cancellation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import psycopg
import trio
from psycopg.copy import AsyncCopy, AsyncQueuedLibpqWriter, AsyncWriter
from psycopg.rows import Row

from .interruption import Interruption, hurried

if TYPE_CHECKING:
    from psycopg.abc import Params, Query

    from .driving import DrivenConnection

__all__ = ["ClientCursor", "Cursor", "RawCursor", "RawServerCursor", "ServerCursor", "cursor_class"]


class Cursor(psycopg.AsyncCursor[Row]):
    """`psycopg.AsyncCursor` on trio; what differs is only what a cancellation leaves behind."""

    async def executemany(self, query: Query, params_seq: Iterable[Params], *, returning: bool = False) -> None:
        """Run *query* once for each of the parameters, pipelined.

        Cancellation: the statements not yet done are cancelled on the server. On an autocommit connection they
        are one implicit transaction up to where the pipeline was synchronised: open a `transaction()` to be sure.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        # The pipeline that it opens has to be left in order, also in a cancelled scope.
        with Interruption.CANCEL.rules():
            await super().executemany(query, params_seq, returning=returning)

    async def stream(
        self, query: Query, params: Params | None = None, *, binary: bool | None = None, size: int = 1
    ) -> AsyncGenerator[Row]:
        """Iterate over the rows as they come. Leave it early with `contextlib.aclosing`.

        Cancellation, and leaving early: the query is cancelled on the server, and what was under way is drained.
        Within a transaction this fails the transaction, as any cancelled query does.

        Raises:
            psycopg.OperationalError: also when the connection was closed on this side meanwhile, by its pool, say.
        """
        rows = cast("AsyncGenerator[Row]", super().stream(query, params, binary=binary, size=size))
        try:
            async for row in rows:
                yield row
            if self.connection.closed:  # which psycopg takes for the end of the rows
                raise psycopg.OperationalError("the connection was closed in the middle of stream()")
        finally:
            with hurried():
                await rows.aclose()
            await cast("DrivenConnection[Any]", self.connection).settle()

    @asynccontextmanager
    async def copy(
        self, statement: Query, params: Params | None = None, *, writer: AsyncWriter | None = None
    ) -> AsyncIterator[AsyncCopy]:
        """Start a COPY and leave it in order.

        Left with an exception or in a cancelled scope, a COPY FROM STDIN fails and writes nothing. A COPY TO STDOUT
        left before its end is cancelled on the server, which fails the transaction it is in.

        Cancellation: a cancellation while the end of the COPY is awaited cancels it on the server.

        Raises:
            TypeError: *writer* is an `AsyncQueuedLibpqWriter`, which is an asyncio task.
        """
        if isinstance(writer, AsyncQueuedLibpqWriter):
            raise TypeError(
                "AsyncQueuedLibpqWriter runs a task of asyncio: leave `writer` out, or write one of your own"
            )
        connection = cast("DrivenConnection[Any]", self.connection)
        manager = super().copy(statement, params, writer=writer)
        copy = await manager.__aenter__()
        try:
            connection.copying = True
            try:
                yield copy
            finally:
                connection.copying = False
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException as error:
            with hurried():
                await manager.__aexit__(type(error), error, error.__traceback__)
            raise
        else:
            with Interruption.CANCEL.rules():
                await manager.__aexit__(None, None, None)
        finally:
            await connection.settle()


class ServerCursor(psycopg.AsyncServerCursor[Row], Cursor[Row]):
    """`psycopg.AsyncServerCursor` on trio: closing it reaches the server also in a cancelled scope."""

    async def close(self) -> None:
        with Interruption.FINISH.rules():
            await super().close()


class RawCursor(Cursor[Row], psycopg.AsyncRawCursor[Row]):
    """`psycopg.AsyncRawCursor` on trio: PostgreSQL's own placeholders (``$1``)."""


class ClientCursor(Cursor[Row], psycopg.AsyncClientCursor[Row]):
    """`psycopg.AsyncClientCursor` on trio: parameters are merged into the statement here (``mogrify``)."""


class RawServerCursor(ServerCursor[Row], psycopg.AsyncRawServerCursor[Row]):
    """`psycopg.AsyncRawServerCursor` on trio."""


_OURS: dict[type[Any], type[Any]] = {
    psycopg.AsyncCursor: Cursor,
    psycopg.AsyncRawCursor: RawCursor,
    psycopg.AsyncClientCursor: ClientCursor,
    psycopg.AsyncServerCursor: ServerCursor,
    psycopg.AsyncRawServerCursor: RawServerCursor,
}


def cursor_class(wanted: type[Any]) -> type[Any]:
    """The class to use where *wanted* is asked for: ours for psycopg's own, and one made from ours as it is.

    Raises:
        TypeError: it is made from psycopg's: on trio a cancellation could leave its connection stuck.
    """
    ours = _OURS.get(wanted, wanted)
    if not issubclass(ours, Cursor):
        raise TypeError(
            f"{wanted.__module__}.{wanted.__qualname__} cannot be used on trio: make it a subclass of"
            " penstock.runtime.postgres.Cursor (RawCursor, ClientCursor, ServerCursor …) instead of psycopg's"
        )
    return ours
