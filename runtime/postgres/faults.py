"""Whose fault each error of PostgreSQL is, and what to do about it: the table.

The table is data, printed by the command line and decided by in `classify`. Five characters are an error, two are its
class (PostgreSQL's Appendix A), which counts for those of its errors that have no row of their own.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from attrs import frozen

__all__ = ["ERRORS", "FAULTS", "MISUSES", "REJECTIONS", "SLOWNESS", "ErrorRow", "Fault"]


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


@frozen(kw_only=True)
class ErrorRow:
    """A row: which errors, what they mean, what to do.

    Attributes:
        states: SQLSTATEs, or classes of them; empty for errors that have none.
        text: How the error is known to people.
        meaning: When it happens.
        fault: Whose fault it is.
        action: What Penstock does, or you can do.
    """

    states: tuple[str, ...] = ()
    text: str
    meaning: str
    fault: Fault
    action: str

    @property
    def shuts_gate(self) -> bool:
        """Whether nothing that needs PostgreSQL is run until it has passed."""
        return self.fault is Fault.OUTAGE


_WAIT = "wait until a probe finds the server well, then do it again"
_AGAIN = "do the whole transaction again, a little later"
_DEAD = "a dead letter at once: the same data fail again"

ERRORS: Final[tuple[ErrorRow, ...]] = (
    ErrorRow(
        text="connection refused, host not found, no answer within connect_timeout",
        meaning="nobody listens there, or the network is cut",
        fault=Fault.OUTAGE,
        action=_WAIT,
    ),
    ErrorRow(
        text="server closed the connection unexpectedly",
        meaning="the server or its backend was killed, or the network is cut; nobody knows about a COMMIT under way",
        fault=Fault.OUTAGE,
        action=f"{_WAIT}; the pool trusts none of its connections any more",
    ),
    ErrorRow(
        text="no answer to a cancelled statement within cancel_grace",
        meaning="a frozen server, or a network that swallows everything",
        fault=Fault.OUTAGE,
        action="close the connection, let the monitor probe at once",
    ),
    ErrorRow(
        states=("08",),
        text="connection exception",
        meaning="the connection broke; poolers report their own trouble as 08P01",
        fault=Fault.OUTAGE,
        action=_WAIT,
    ),
    ErrorRow(
        states=("57P01", "57P02"),
        text="terminating connection due to administrator command / crash of another process",
        meaning="the server stops or restarts, or somebody ended this one backend",
        fault=Fault.OUTAGE,
        action=f"{_WAIT}; the pool trusts none of its connections any more",
    ),
    ErrorRow(
        states=("57P03",),
        text="the database system is starting up / shutting down / not accepting connections",
        meaning="the server is up and lets nobody in yet, or any more",
        fault=Fault.OUTAGE,
        action=_WAIT,
    ),
    ErrorRow(
        states=("53300",),
        text="sorry, too many clients already / remaining connection slots are reserved",
        meaning="max_connections, or the limit of the role or the database, is reached",
        fault=Fault.OUTAGE,
        action="wait; open connections stay; lower pool_size or raise max_connections",
    ),
    ErrorRow(
        states=("53",),
        text="disk full, out of memory",
        meaning="the server has run out of something",
        fault=Fault.OUTAGE,
        action="wait; open connections stay; make room",
    ),
    ErrorRow(
        states=("53400",),
        text="configuration limit exceeded",
        meaning="this statement needs more than a setting allows, temp_file_limit say",
        fault=Fault.CONFIG,
        action="raise the setting, or mend the statement",
    ),
    ErrorRow(
        states=("58030",),
        text="could not read / write / fsync file",
        meaning="the server's disk fails",
        fault=Fault.OUTAGE,
        action="wait; open connections stay; look at the disk",
    ),
    ErrorRow(
        states=("25006",),
        text="cannot execute … in a read-only transaction, on a standby or a server that is read-only by default",
        meaning="a failover left this connection at a server that must not write",
        fault=Fault.OUTAGE,
        action="wait; the pool trusts none of its connections; name all hosts and target_session_attrs=read-write",
    ),
    ErrorRow(
        states=("25006",),
        text="cannot execute … in a read-only transaction, elsewhere",
        meaning="the program opened the transaction read-only",
        fault=Fault.RETRY,
        action=_AGAIN,
    ),
    ErrorRow(
        states=("28",),
        text="password authentication failed, role does not exist, no pg_hba.conf entry",
        meaning="the server refuses the user",
        fault=Fault.CONFIG,
        action="correct user and password, or pg_hba.conf",
    ),
    ErrorRow(
        states=("3D000", "57P04"),
        text="database does not exist / was dropped",
        meaning="the settings name a database that is not there",
        fault=Fault.CONFIG,
        action="create it, or correct the settings",
    ),
    ErrorRow(
        states=("42501",),
        text="permission denied",
        meaning="the role lacks a privilege",
        fault=Fault.CONFIG,
        action="grant it",
    ),
    ErrorRow(
        states=("F0",),
        text="configuration file error",
        meaning="the server cannot use its own configuration",
        fault=Fault.CONFIG,
        action="mend the server's configuration",
    ),
    ErrorRow(
        text="certificate verify failed, server does not support SSL, invalid parameter",
        meaning="libpq refuses what the settings say",
        fault=Fault.CONFIG,
        action="correct sslmode, certificates and parameters of the URL",
    ),
    ErrorRow(
        states=("40",),
        text="could not serialize access, deadlock detected",
        meaning="a conflict with another transaction; this one was rolled back",
        fault=Fault.RETRY,
        action=_AGAIN,
    ),
    ErrorRow(
        states=("55P03",),
        text="canceling statement due to lock timeout, could not obtain lock",
        meaning="somebody else holds the lock",
        fault=Fault.RETRY,
        action=_AGAIN,
    ),
    ErrorRow(
        states=("55006",),
        text="object is in use",
        meaning="somebody else uses it",
        fault=Fault.RETRY,
        action=_AGAIN,
    ),
    ErrorRow(
        states=("57014",),
        text="canceling statement due to statement timeout / user request",
        meaning="it took longer than allowed, or somebody cancelled it",
        fault=Fault.RETRY,
        action=_AGAIN,
    ),
    ErrorRow(
        states=("57",),
        text="operator intervention",
        meaning="somebody interfered",
        fault=Fault.RETRY,
        action=_AGAIN,
    ),
    ErrorRow(
        states=("25P03", "25P04", "57P05"),
        text="terminating connection due to idle-in-transaction / transaction / idle-session timeout",
        meaning="this connection was slower than the server allows; the server is well",
        fault=Fault.RETRY,
        action=_AGAIN,
    ),
    ErrorRow(
        text="cached plan must not change result type, prepared statement _pg3_… does not exist (0A000, 26000)",
        meaning="a table changed under a statement that psycopg had prepared, or somebody discarded what was prepared",
        fault=Fault.RETRY,
        action=f"{_AGAIN}; the connection prepares its statements anew",
    ),
    ErrorRow(
        states=("72000",),
        text="snapshot too old",
        meaning="the transaction was open for too long",
        fault=Fault.RETRY,
        action=_AGAIN,
    ),
    ErrorRow(
        text="no connection of the pool became free (PoolTimeout); pipeline aborted (PipelineAborted)",
        meaning="connections are held too long, or there are too few; an earlier statement of the pipeline failed",
        fault=Fault.RETRY,
        action=_AGAIN,
    ),
    ErrorRow(
        states=("22",),
        text="invalid input syntax, out of range, division by zero",
        meaning="the data do not fit",
        fault=Fault.EVENT,
        action=_DEAD,
    ),
    ErrorRow(
        states=("23",),
        text="violates not-null / foreign key / unique / check / exclusion constraint",
        meaning="the data contradict the tables",
        fault=Fault.EVENT,
        action=_DEAD,
    ),
    ErrorRow(
        states=("44000",),
        text="new row violates check option for view",
        meaning="the data do not belong there",
        fault=Fault.EVENT,
        action=_DEAD,
    ),
    ErrorRow(
        states=("54000",),
        text="index row size exceeds maximum",
        meaning="a value is too large",
        fault=Fault.EVENT,
        action=_DEAD,
    ),
    ErrorRow(
        text="a value that cannot be sent, such as text with NUL (psycopg.DataError without SQLSTATE)",
        meaning="the data do not fit",
        fault=Fault.EVENT,
        action=_DEAD,
    ),
    ErrorRow(
        text="number of parameters must be between 0 and 65535, bind message supplies … parameters (08P01, not fatal)",
        meaning="libpq or the server refuses how it is used; the connection is well",
        fault=Fault.BUG,
        action="mend the program: one array for `= any(…)` or `unnest(…)` instead of a parameter for each value",
    ),
    ErrorRow(
        text="anything else: syntax error, missing table, RAISE of a function, an error that is not PostgreSQL's",
        meaning="the program is wrong",
        fault=Fault.BUG,
        action="mend the program; an event is retried, then it is a dead letter",
    ),
)
"""Every error has a row. Of the two rows of 25006 the connection decides, for the server tells it what it is."""

FAULTS: Final[Mapping[str, Fault]] = MappingProxyType({state: row.fault for row in ERRORS for state in row.states})
"""By SQLSTATE, or by its class. What is in neither way in it is `Fault.BUG`."""

# libpq gives no SQLSTATE for an error while connecting, only text. These, in the words of server and libpq, are
# the settings' fault. Whatever is not listed (also: the same in another language) counts as an outage: to wait
# for a server with translated messages does less harm than to give it up.
REJECTIONS: Final = re.compile(
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

SLOWNESS: Final = re.compile(r"terminating connection due to (idle-in-transaction|transaction|idle-session) timeout")
"""What libpq knows of 25P03, 25P04 and 57P05 when it finds them only on its next attempt to write."""

# What libpq refuses to do gives no SQLSTATE either, and costs no connection.
MISUSES: Final = re.compile(
    r"""
      number\ of\ parameters\ must\ be\ between
    | another\ command\ is\ already\ in\ progress
    | cannot\ queue\ commands\ during\ COPY
    | not\ allowed\ in\ pipeline\ mode
    | no\ COPY\ in\ progress
    """,
    re.VERBOSE,
)
