"""One question to the server, from scratch: can it do our work now?"""

from __future__ import annotations

import psycopg
import trio
from attrs import frozen

from .connection import Connection
from .errors import Fault, PostgresUnavailable, classify, first_line
from .interruption import Interruption
from .options import PostgresOptions

_QUESTION = "select pg_is_in_recovery(), current_setting('default_transaction_read_only'), version()"


@frozen(kw_only=True)
class ProbeResult:
    """A server that takes connections and writes.

    Attributes:
        version: What ``version()`` says, such as ``PostgreSQL 18.0 on …``.
        seconds: How long connecting and asking took.
    """

    version: str
    seconds: float


async def probe(options: PostgresOptions, limit: float = 5.0) -> ProbeResult:
    """Connect afresh and ask whether the server can write; all of it within *limit* seconds.

    A pooled connection would not do: it may be alive while no new one is let in, or lead to a server that is no
    longer the primary.

    Cancellation gives up and closes.

    Raises:
        PostgresUnavailable: away, silent for *limit*, a standby, or read-only by default.
        PostgresRejected: it refuses user, password, database or TLS.
    """
    started = trio.current_time()
    with trio.move_on_after(limit):
        in_recovery, read_only, version = await _ask(options)
        if in_recovery:
            raise PostgresUnavailable("it is a standby (in recovery) and cannot write", address=options.address)
        if read_only != "off":
            raise PostgresUnavailable("default_transaction_read_only is on", address=options.address)
        return ProbeResult(version=version, seconds=trio.current_time() - started)
    raise PostgresUnavailable(f"no answer within {limit:g} s", address=options.address)


async def _ask(options: PostgresOptions) -> tuple[bool, str, str]:
    connection = await Connection.open(options)
    try:
        # The connection is thrown away: nothing is to be gained by a long farewell.
        with Interruption.ABANDON.rules():
            row = await (await connection.execute(_QUESTION)).fetchone()
        assert row is not None  # noqa: S101 - a select without FROM has one row
        return bool(row[0]), str(row[1]), str(row[2])
    except psycopg.Error as error:
        if classify(error) is Fault.OUTAGE:
            raise PostgresUnavailable(first_line(error), address=options.address) from error
        raise
    finally:
        connection.abandon()
