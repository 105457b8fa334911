"""What a cancellation may do to the step that a connection is taking."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import trio


class Interruption(enum.Enum):
    """How the steps of the current task answer a cancellation.

    trio's cancellation is level-triggered: in a cancelled scope each further wait raises again. psycopg's
    clean-up code waits, and was written for edge-triggered cancellation. So the clean-up is run under one of the
    two milder rules here (CANCEL, FINISH); all of them are bounded by the connection's grace.
    """

    AT_ONCE = "at once"
    """Do not start in a cancelled scope; cancel a running statement on the server. The rule for statements."""

    CANCEL = "cancel"
    """Start even in a cancelled scope, but cancel on the server what has to be waited for (end of a COPY, sync)."""

    FINISH = "finish"
    """Start, and see it through (BEGIN, COMMIT, ROLLBACK)."""

    ABANDON = "abandon"
    """Do not start in a cancelled scope; close the connection at once. For a question whose answer is late anyway."""

    @property
    def starts_anyway(self) -> bool:
        """Whether steps start although the scope is cancelled already: those of a clean-up do."""
        return self in (Interruption.CANCEL, Interruption.FINISH)

    @staticmethod
    def current() -> Interruption:
        return _current.get()

    @contextmanager
    def rules(self) -> Iterator[None]:
        """Within this block the rule holds for the current task, on whatever connection it uses."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


@contextmanager
def hurried(rule: Interruption = Interruption.FINISH) -> Iterator[None]:
    """Clean up in here: what starts is ended by *rule*, and gets no more than the connection's grace each wait.

    The scope is cancelled from its beginning, so that the first wait starts the grace at once, cancelled outside
    or not: clean-up after a plain exception is bounded just like clean-up after a cancellation.
    """
    with rule.rules(), trio.CancelScope() as hurry:
        hurry.cancel()
        yield


_current: ContextVar[Interruption] = ContextVar("penstock_postgres_interruption", default=Interruption.AT_ONCE)
