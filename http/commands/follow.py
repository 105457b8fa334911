"""Following a stream of events of a running system: what ``penstock tail`` and ``penstock tree --follow`` share."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from ...runtime.output import duration, notice
from .remote import Refused, Remote, Sent, Unreachable

__all__ = ["follow", "until_interrupted"]

PATIENCE = 30.0
"""Seconds for which a connection that was lost is tried again: the time of a restart."""

PAUSE = 1.0
"""Seconds between two attempts."""


def follow(
    remote: Remote,
    path: str,
    position: str = "",
    ended: Callable[[], str] = lambda: "the stream of events has ended",
) -> Iterator[Sent]:
    """The events at `path`, for ever: a connection that is lost is made again, behind the last event that came.

    What becomes of the connection stands on standard error, once, not at each attempt.

    Args:
        remote: the running system.
        path: of the stream.
        position: the id of the event to begin behind; by default where `path` says.
        ended: what to say when the stream ends.

    Raises:
        CommandError: there never was a connection; or it could not be made again within `PATIENCE`; or the server
            refuses for good.
    """
    lost_at: float | None = None  # None: there was no connection yet
    told = ""
    while True:
        opened = False
        try:
            with remote.events(path, position) as events:
                opened, told = True, ""
                if lost_at is not None:
                    notice(f"penstock: connected again after {duration(time.monotonic() - lost_at)}")
                for event in events:
                    position = event.id or position
                    yield event
            reason = ended()
        except (Unreachable, Refused) as error:
            temporary = isinstance(error, Unreachable) or error.status == 503
            if not opened and (not temporary or lost_at is None or time.monotonic() - lost_at > PATIENCE):
                raise
            reason = str(error)
        if opened:
            lost_at = time.monotonic()
        if reason != told:
            told = reason
            notice(f"penstock: {reason}; connecting again")
        time.sleep(PAUSE)


@contextmanager
def until_interrupted() -> Iterator[None]:
    """Ctrl-C is how one ends what goes on for ever: no failure."""
    try:
        yield
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            click.echo(err=True)  # the terminal has put ^C on a line of its own, and leaves the cursor there
