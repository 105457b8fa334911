"""How a child ended, told from what came out of its body.

Trio wraps and hides errors on their way out: every nursery wraps them in a group, and a ``finally`` that awaits in a
cancelled scope replaces the real error by `trio.Cancelled`. Here they are unwrapped once, and nothing is lost.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator

import trio
from attrs import frozen

__all__ = ["ErrorInfo", "Outcome", "outcome_of"]

# Control flow, not errors: what a `Cancelled` may carry as its context in correct code.
_HARMLESS = (trio.WouldBlock, trio.EndOfChannel, trio.TooSlowError, StopAsyncIteration, StopIteration)

# These end the process, whatever a supervisor thinks of them.
_FATAL = (KeyboardInterrupt, SystemExit, MemoryError, GeneratorExit)

_TRACEBACK_LIMIT = 16_000
_MESSAGE_LIMIT = 2_000


@frozen
class ErrorInfo:
    """An error as text, so that keeping it keeps no frame alive.

    Attributes:
        type: the qualified name of its class.
        message: its text, at most 2,000 characters.
        traceback: as Python prints it, at most the last 16,000 characters. Of an error whose class says
            ``tells_all = True``, because its text tells more than any stack of ours: what follows its first line.
    """

    type: str
    message: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> ErrorInfo:
        """Take down `error`; an error whose own ``__str__`` raises is named by its type."""
        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        try:
            message = str(error)
        except Exception:  # noqa: BLE001 - a broken __str__ must not break the supervisor
            message = "(its text cannot be shown)"
        if getattr(kind, "tells_all", False):
            message, _, text = message.partition("\n")
        else:
            text = "".join(traceback.format_exception(error))
        return cls(name, message[:_MESSAGE_LIMIT], text[-_TRACEBACK_LIMIT:])

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


@frozen
class Outcome:
    """The end of one incarnation of a child.

    Attributes:
        error: what it raised, unwrapped: the one leaf of its exception groups, or a group when there were several;
            None when it returned or was cancelled cleanly.
        fatal: the error must end the process (`KeyboardInterrupt`, `SystemExit`, …); never restarted.
    """

    error: BaseException | None = None
    fatal: bool = False


def outcome_of(raised: BaseException | None) -> Outcome:
    """What `raised` (what came out of a child's body, or None) means, with groups unwrapped and masks lifted."""
    if raised is None:
        return Outcome()
    leaves = list(dict.fromkeys(_leaves(raised)))
    for leaf in leaves:
        if isinstance(leaf, _FATAL):
            return Outcome(leaf, fatal=True)
    if not leaves:
        return Outcome()
    if len(leaves) == 1:
        return Outcome(leaves[0])
    return Outcome(BaseExceptionGroup(f"{len(leaves)} errors", leaves))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _leaves(member)
    elif isinstance(error, trio.Cancelled):
        yield from _behind(error)
    else:
        yield error


def _behind(cancelled: trio.Cancelled) -> Iterator[BaseException]:
    """The error that was on its way out when a clean-up was cancelled: the context of the `Cancelled`."""
    hidden = cancelled.__context__
    if hidden is not None and not isinstance(hidden, _HARMLESS):
        yield from _leaves(hidden)
