"""Whose fault a failed transaction is: the event's (or its handler's), or nobody's.

Told by how far the transaction had come, and not by the error alone: a handler may speak to a database of its own, and
what that one suffers is no outage of ours.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import psycopg
import redis.exceptions
import trio
from attrs import define, field

from ..runtime.postgres import Fault, classify
from ..runtime.redis import classify as classify_reply
from .event import InvalidEvent
from .handling import Permanent, Unavailable
from .lease_table import LeaseLost

if TYPE_CHECKING:
    from collections.abc import Collection

    from .channels import Notice
    from .store import Transaction

__all__ = ["Progress", "Stage", "away_of", "is_hopeless", "is_sure", "parts_of", "passes"]


class Stage(enum.Enum):
    """How far a transaction has come."""

    OPENING = "opening"  # a connection, the lease, the inbox: no handler was called yet
    HANDLING = "handling"  # in a handler
    CLOSING = "closing"  # the letters, the position, the commit


@define(eq=False)
class Progress:
    """The progress of one transaction.

    Attributes:
        stage: how far it has come.
        transaction: it, once it is open.
        failed: what entries failed of, by id, as far as that is known.
        notices: what its handlers want to have broadcast once it is committed, in order.
    """

    stage: Stage = Stage.OPENING
    transaction: Transaction | None = None
    failed: dict[str, Exception] = field(factory=dict)
    notices: list[Notice] = field(factory=list)

    def blames(
        self, error: BaseException, *, database_is_up: bool, redis_is_up: bool = True, gates: Collection[str] = ()
    ) -> bool:
        """Whether `error` is the fault of the event or its handler, and so counts as an attempt.

        Args:
            error: what ended the transaction, unwrapped.
            database_is_up: whether our own link to the database thinks so.
            redis_is_up: likewise, to Redis.
            gates: those of the group's own that it stands behind.
        """
        if (
            isinstance(error, LeaseLost)
            or away_of(error, gates) is not None
            or self.stage is Stage.OPENING
            or (self.transaction is not None and self.transaction.is_lost)
            or (met_redis(error) and not redis_is_up)
        ):
            return False
        if classify(error) is not Fault.OUTAGE:
            return True
        # On a connection that is alive, a handler tells of an outage of something else, unless our own link has just
        # said the same.
        return self.stage is Stage.HANDLING and database_is_up


def away_of(error: BaseException, gates: Collection[str]) -> Unavailable | None:
    """What says, in an error, that something behind one of the gates is away; None if nothing does."""
    return next((part for part in parts_of(error) if isinstance(part, Unavailable) and part.gate in gates), None)


def met_redis(error: BaseException) -> bool:
    """Whether a Redis that is away is all that it tells of; which one, it cannot say."""
    parts = parts_of(error)
    return all(isinstance(part, redis.exceptions.RedisError) and classify_reply(part).shuts_gate for part in parts)


def is_hopeless(error: BaseException) -> bool:
    """Whether the same event will fail again: its handler says so, it is invalid, or the database refuses its data."""
    parts = parts_of(error)
    return any(isinstance(part, Permanent | InvalidEvent) for part in parts) or classify(error) is Fault.EVENT


def is_sure(error: BaseException) -> bool:
    """Whether a handler that raised it would have done so without the others in its transaction.

    A conflict may be about their locks, and after a failed statement, which one of them hid, all that follow fail.
    """
    cause: BaseException | None = error
    while cause is not None:
        for part in parts_of(cause):
            if isinstance(part, psycopg.errors.InFailedSqlTransaction) or classify(part) is Fault.RETRY:
                return False
        cause = cause.__cause__ or cause.__context__
    return True


def parts_of(error: BaseException) -> list[BaseException]:
    """The errors that a group is made of, however deep; of any other error, itself."""
    if isinstance(error, BaseExceptionGroup):
        return [part for each in error.exceptions for part in parts_of(each)]
    return [error]


def passes(error: BaseException) -> bool:
    """Whether it says nothing about the server: a conflict, a lock, no free connection, our own limit of time."""
    return isinstance(error, trio.TooSlowError) or classify(error) is Fault.RETRY
