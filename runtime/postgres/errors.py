"""What an error of PostgreSQL means for the one who met it: data, not code."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import psycopg


class PostgresUnavailable(psycopg.OperationalError):
    """The server cannot do work now: away, starting, stopping, full, frozen or read-only. Wait; nothing else helps.

    Attributes:
        address: Which server, without secrets.
    """

    def __init__(self, message: str, *, address: str) -> None:
        super().__init__(f"PostgreSQL at {address} is unavailable: {message}")
        self.address = address


class PostgresRejected(psycopg.OperationalError):
    """The server or libpq refuses what the settings say (user, password, database, TLS). Waiting does not help.

    Attributes:
        address: Which server, without secrets.
    """

    def __init__(self, message: str, *, address: str) -> None:
        super().__init__(f"PostgreSQL refuses {address} (check user, password, database and TLS): {message}")
        self.address = address


class PoolTimeout(psycopg.OperationalError):
    """No connection of the pool became free in time. The server may be well: the pool is too small or held too long."""


class Fault(enum.Enum):
    """Whose fault an error is, and so what to do. In order: the first of a group's faults explains the others."""

    OUTAGE = "outage"
    """The server's: shut the gate, wait, do it again; it costs the event nothing."""

    CONFIG = "config"
    """The settings': fail loudly, for neither waiting nor another event helps."""

    RETRY = "retry"
    """Nobody's: a conflict with others; do it again a little later."""

    EVENT = "event"
    """The data's: the same event will fail again."""

    BUG = "bug"
    """Anything else: a wrong statement, a missing table, an error that is not PostgreSQL's."""


# By SQLSTATE (PostgreSQL's Appendix A): the five characters first, then the class, its first two.
FAULTS: Mapping[str, Fault] = MappingProxyType(
    {
        "08": Fault.OUTAGE,  # connection exception; poolers also report their own trouble as 08P01
        "53": Fault.OUTAGE,  # insufficient resources: disk full, out of memory, too many connections
        "57P01": Fault.OUTAGE,  # admin shutdown (also one backend terminated by hand)
        "57P02": Fault.OUTAGE,  # crash shutdown
        "57P03": Fault.OUTAGE,  # cannot connect now: starting up, shutting down, in recovery
        "58030": Fault.OUTAGE,  # I/O error of the server
        "28": Fault.CONFIG,  # invalid authorization: unknown role, wrong password, no line in pg_hba.conf
        "3D000": Fault.CONFIG,  # no such database
        "42501": Fault.CONFIG,  # insufficient privilege
        "57P04": Fault.CONFIG,  # the database was dropped
        "F0": Fault.CONFIG,  # the server's configuration file
        "25006": Fault.RETRY,  # read-only transaction; on a standby the connection makes an outage of it
        "25P03": Fault.RETRY,  # idle in transaction for too long
        "25P04": Fault.RETRY,  # transaction timeout
        "40": Fault.RETRY,  # serialization failure, deadlock
        "55006": Fault.RETRY,  # object in use
        "55P03": Fault.RETRY,  # lock not available in time
        "57014": Fault.RETRY,  # cancelled: statement timeout, or by an administrator
        "57P05": Fault.RETRY,  # idle session timeout: this connection, not the server
        "72000": Fault.RETRY,  # snapshot too old
        "22": Fault.EVENT,  # data exception: out of range, malformed, too long
        "23": Fault.EVENT,  # integrity constraint
        "44000": Fault.EVENT,  # WITH CHECK OPTION
        "54000": Fault.EVENT,  # a value exceeds a limit of the program (an index row, say)
    }
)

# libpq gives no SQLSTATE for an error while connecting, only text. These, in the words of server and libpq, are
# the settings' fault. Whatever is not listed (also: the same in another language) counts as an outage: to wait
# for a server with translated messages does less harm than to give it up.
REJECTIONS = re.compile(
    r"""
      authentication\ failed\ for\ user
    | no\ password\ supplied
    | pg_hba\.conf
    | role\ "[^"]*"\ (does\ not\ exist | is\ not\ permitted\ to\ log\ in)
    | database\ "[^"]*"\ does\ not\ exist
    | permission\ denied\ for\ database
    | server\ does\ not\ support\ SSL
    | certificate\ verify\ failed
    | (root\ )?certificate\ file\ "[^"]*"\ does\ not\ exist
    | could\ not\ (load|read)\ (private\ key|certificate|root\ certificate)\ file
    | server\ certificate\ for\ "[^"]*"
    | (invalid|unrecognized)\ .*(value|parameter|option)
    """,
    re.VERBOSE,
)


def classify(error: BaseException) -> Fault:
    """Whose fault *error* is.

    Looks into groups (the gravest fault counts, in the order of `Fault`) and, for an error that is not
    psycopg's, along its explicit causes (``raise … from error``).
    """
    if isinstance(error, BaseExceptionGroup):
        faults = {classify(member) for member in error.exceptions}
        return next(fault for fault in Fault if fault in faults)
    for link in _causes(error):
        if isinstance(link, psycopg.Error):
            return _classify_psycopg(link)
    return Fault.BUG


def _causes(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


def _classify_psycopg(error: psycopg.Error) -> Fault:
    if isinstance(error, PostgresUnavailable):
        return Fault.OUTAGE
    if isinstance(error, PostgresRejected):
        return Fault.CONFIG
    if isinstance(error, PoolTimeout | psycopg.errors.PipelineAborted):
        return Fault.RETRY
    if (state := error.sqlstate) is not None:
        return FAULTS.get(state) or FAULTS.get(state[:2]) or Fault.BUG
    if isinstance(error, psycopg.OperationalError):
        # libpq's own: the connection is lost, closed, or was never made.
        return Fault.CONFIG if REJECTIONS.search(str(error)) else Fault.OUTAGE
    if isinstance(error, psycopg.DataError):
        return Fault.EVENT  # a value that cannot be sent at all, such as text with a NUL
    return Fault.BUG


def connect_failure(error: psycopg.Error, address: str) -> PostgresUnavailable | PostgresRejected:
    """What a failed attempt to connect means, with the address instead of psycopg's several lines."""
    kind = PostgresRejected if classify(error) is Fault.CONFIG else PostgresUnavailable
    return kind(first_line(error), address=address)


def first_line(error: BaseException) -> str:
    """The message of *error* without the details on further lines."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
