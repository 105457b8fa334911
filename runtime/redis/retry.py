"""Whether a command that failed may be sent again, and when.

Only what can do no harm: a command that provably did not run (never sent, or refused by a server that will soon take
it), and one that only reads. `Retry` decides; it knows no clock and no connection, and is tested as a table.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, TypeVar

import redis.exceptions
import trio
from attrs import define, field
from redis.commands import READ_COMMANDS

from .errors import NotSent, OutcomeUnknown, RedisClosed, RedisStalled
from .replies import REPLIES, Kind, classify, reply_text

__all__ = ["READS", "SCRIPTS", "Retry", "may_resend", "passes"]

T = TypeVar("T")

READS: Final[frozenset[str]] = (
    READ_COMMANDS | {"ECHO", "INFO", "PING", "TIME"} | {f"XINFO {what}" for what in ("STREAM", "GROUPS", "CONSUMERS")}
)
"""Commands that change nothing, so that twice is as good as once. Not XREADGROUP: it books what it reads."""

SCRIPTS: Final = frozenset({"EVAL", "EVALSHA", "FCALL"})
"""Commands whose error replies may be a script's."""

BASE, CAP = 0.02, 0.5
"""Seconds: ceilings of the first wait and of every wait. Connect attempts have their own, longer ones (`Backoff`)."""

_PASSING: Final = frozenset(row.name for row in REPLIES if row.kind is Kind.WAIT) | {
    "master-down",
    "read-only",
    "unblocked-failover",
}
"""Replies that say that nothing ran, and that another attempt may be lucky."""

_SENTENCES: Final = re.compile(
    r"LOADING \w+ is loading the dataset|BUSY \w+ is busy running a script|MASTERDOWN Link with MASTER is down|"
    r"READONLY You can't write against a read only|CLUSTERDOWN (The cluster is down|Hash slot not served)|"
    r"TRYAGAIN Multiple keys request during rehashing"
)
"""How Redis and Valkey themselves word them."""

_FOR_PEOPLE: Final = frozenset({Kind.CONFIG, Kind.BUG, Kind.DOWNGRADE})
"""What turned us away at the door will do so again."""


def passes(error: BaseException, *, scripted: bool = False) -> bool:
    """Whether the error is a server's reply that says: nothing ran, and it will pass by itself (LOADING, BUSY …).

    A script may answer with errors of its own making, after it has written. With `scripted` the code word is not
    enough: the reply must be the server's own sentence.
    """
    if not isinstance(error, redis.exceptions.RedisError) or isinstance(error, (NotSent, OutcomeUnknown)):
        return False
    if classify(error).name not in _PASSING:
        return False
    return not scripted or _SENTENCES.match(reply_text(error)) is not None


def may_resend(error: BaseException, *, reads: bool, scripted: bool = False) -> bool:
    """Whether to send a command again after this error, were there time.

    Args:
        error: what the attempt raised.
        reads: whether all that was sent only reads (`READS`).
        scripted: whether any of it runs a script (`SCRIPTS`).
    """
    if isinstance(error, RedisClosed):
        return False
    if isinstance(error, NotSent):
        return not _is_for_people(error)
    if isinstance(error, (OutcomeUnknown, RedisStalled)):
        return reads
    return passes(error, scripted=scripted)


@define
class Retry:
    """The attempts of one call: asked after each failure whether, and how soon, to try again.

    Attributes:
        until: no attempt begins after this time (of the clock whose `now` is given to `wait_after`).
        reads: whether the call only reads.
        random: numbers in [0, 1): full jitter, so that many callers do not come in step.
        scripted: whether the call runs a script.
        failures: how many there have been.
    """

    until: float
    reads: bool
    random: Callable[[], float]
    scripted: bool = False
    failures: int = field(default=0, init=False)

    def wait_after(self, error: BaseException, now: float) -> float | None:
        """Seconds to wait before the next attempt; None when this error is the call's result."""
        if now >= self.until or not may_resend(error, reads=self.reads, scripted=self.scripted):
            return None
        ceiling = min(CAP, BASE * 2.0 ** min(self.failures, 16))
        self.failures += 1
        return min(self.random() * ceiling, self.until - now)

    async def run(self, attempt: Callable[[], Awaitable[T]], failure: Exception | None = None) -> T:
        """Call `attempt` until it succeeds, or its error is final: that one is raised as it is.

        Waits between attempts, cancellably. `failure` is that of an attempt which was made already.
        """
        while True:
            if failure is None:
                try:
                    return await attempt()
                except redis.exceptions.RedisError as error:
                    failure = error
            wait = self.wait_after(failure, trio.current_time())
            if wait is None:
                raise failure
            failure = None
            await trio.sleep(wait)


def _is_for_people(error: BaseException) -> bool:
    if classify(error).kind in _FOR_PEOPLE:
        return True
    return any(isinstance(each, ssl.SSLCertVerificationError) for each in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
