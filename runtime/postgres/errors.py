"""The link's own errors, and what any error means for the one who met it."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg

from .faults import FAULTS, MISUSES, REJECTIONS, SLOWNESS, Fault

__all__ = [
    "FAULTS",
    "REJECTIONS",
    "Fault",
    "PoolTimeout",
    "PostgresRejected",
    "PostgresUnavailable",
    "classify",
    "connect_failure",
    "first_line",
    "is_fatal",
    "lost_what_was_prepared",
]


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
        if lost_what_was_prepared(error):
            return Fault.RETRY
        if state == "08P01" and error.diag.severity_nonlocalized == "ERROR":
            return Fault.BUG  # a pooler's own trouble is fatal; this is a statement with too few parameters, say
        return FAULTS.get(state) or FAULTS.get(state[:2]) or Fault.BUG
    if isinstance(error, psycopg.OperationalError):
        if MISUSES.search(str(error)):
            return Fault.BUG
        if SLOWNESS.search(str(error)):
            return Fault.RETRY
        # libpq's own: the connection is lost, closed, or was never made.
        return Fault.CONFIG if REJECTIONS.search(str(error)) else Fault.OUTAGE
    if isinstance(error, psycopg.DataError):
        return Fault.EVENT  # a value that cannot be sent at all, such as text with a NUL
    return Fault.BUG


def lost_what_was_prepared(error: psycopg.Error) -> bool:
    """Whether it fails only because a statement was prepared earlier: prepared anew it is done, or fails by itself.

    psycopg goes on executing such a statement by its name, and would until the connection ends.
    """
    if error.sqlstate == "0A000":  # shared with all that is not supported; messages are translated, this is not
        return error.diag.source_function == "RevalidateCachedQuery"
    return error.sqlstate == "26000" and "_pg3_" in str(error)


def is_fatal(error: psycopg.Error) -> bool:
    """Whether the server said by it that it ends the connection."""
    return error.diag.severity_nonlocalized in ("FATAL", "PANIC")


def connect_failure(error: psycopg.Error, address: str) -> PostgresUnavailable | PostgresRejected:
    """What a failed attempt to connect means, with the address instead of psycopg's several lines."""
    kind = PostgresRejected if classify(error) is Fault.CONFIG else PostgresUnavailable
    return kind(first_line(error), address=address)


def first_line(error: BaseException) -> str:
    """The message of *error* without the details on further lines."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
