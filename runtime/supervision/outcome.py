"""How a child ended, told from what came out of its body.

Trio wraps and hides errors on their way out: every nursery wraps them in a group, and a ``finally`` that awaits in a
cancelled scope replaces the real error by `trio.Cancelled`. Here they are unwrapped once, and nothing is lost.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator

import trio
from attrs import field, frozen

from .brief import clipped
from .errors import SupervisionError

__all__ = ["ErrorInfo", "Outcome", "outcome_of", "text_of", "what_of"]

# Control flow, not errors: what a `Cancelled` may carry as its context in correct code.
_HARMLESS = (trio.WouldBlock, trio.EndOfChannel, trio.TooSlowError, StopAsyncIteration, StopIteration)

# These end the process, whatever a supervisor thinks of them.
_FATAL = (KeyboardInterrupt, SystemExit, MemoryError, GeneratorExit)

_TRACEBACK_LIMIT = 16_000
_MESSAGE_LIMIT = 2_000


@frozen
class ErrorInfo:
    """An error as text, so that keeping it keeps no frame alive. Equal to another of the same type and message.

    Attributes:
        type: the qualified name of its class.
        message: its text, at most 2,000 characters.
        traceback: as Python prints it, at most the last 16,000 characters. Of an error whose class says
            ``tells_all = True``, because its text tells more than any stack of ours: what follows its first line.
    """

    type: str
    message: str
    _trace: str | traceback.TracebackException = field(eq=False, repr=False)

    @classmethod
    def of(cls, error: BaseException) -> ErrorInfo:
        """Take down `error`; an error whose own ``__str__`` raises is named by its type."""
        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        message = _whole_text_of(error)
        if getattr(kind, "tells_all", False):
            message, _, text = message.partition("\n")
            return cls(name, message[:_MESSAGE_LIMIT], text[-_TRACEBACK_LIMIT:])
        # Nobody reads the traceback of the thousandth restart, and to print it takes longer than the restart.
        trace = _captured(error)
        lean = len(message) <= _MESSAGE_LIMIT and not _drags_along(error)
        return cls(name, message[:_MESSAGE_LIMIT], trace if lean else _printed(trace))

    @property
    def traceback(self) -> str:
        if not isinstance(self._trace, str):
            object.__setattr__(self, "_trace", _printed(self._trace))
        return self._trace  # type: ignore[return-value]

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


@frozen
class Outcome:
    """The end of one incarnation of a child.

    Attributes:
        error: what it raised, unwrapped: the one leaf of its exception groups, or a group when there were several;
            None when it returned or was cancelled cleanly.
        fatal: the error must end the process (`KeyboardInterrupt`, `SystemExit`, …); never restarted.
        unasked: it ended before an order to stop had reached it.
        info: the error as text, where it was taken down already.
        name_taken: its body was not run, for its name is somebody else's; the error says whose.
    """

    error: BaseException | None = None
    fatal: bool = False
    unasked: bool = False
    info: ErrorInfo | None = None
    name_taken: bool = False


def outcome_of(raised: BaseException | None) -> Outcome:
    """What `raised` (what came out of a child's body, or None) means, with groups unwrapped and masks lifted."""
    if raised is None:
        return Outcome()
    # By identity: the equality and the hash of an error are its author's.
    leaves = list({id(leaf): leaf for leaf in _leaves(raised)}.values())
    for leaf in leaves:
        if isinstance(leaf, _FATAL):
            return Outcome(leaf, fatal=True)
    if not leaves:
        return Outcome()
    if len(leaves) == 1:
        return Outcome(leaves[0])
    return Outcome(BaseExceptionGroup(f"{len(leaves)} errors", leaves))


def _leaves(raised: BaseException) -> Iterator[BaseException]:
    """The errors within groups, in order, and those behind a `Cancelled`; by a stack, for groups may be deep."""
    stack, seen = [raised], set()
    while stack:
        error = stack.pop()
        if id(error) in seen:
            continue  # `raise group.exceptions[0]` makes a circle of the error and the group that holds it
        seen.add(id(error))
        if isinstance(error, BaseExceptionGroup):
            stack.extend(reversed(error.exceptions))
        elif not isinstance(error, trio.Cancelled):
            yield error
        # What was on its way out when a clean-up was cancelled is the context of the `Cancelled`.
        elif error.__context__ is not None and not isinstance(error.__context__, _HARMLESS):
            stack.append(error.__context__)


def text_of(error: BaseException) -> str:
    """``str(error)``, at most 2,000 characters; also of an error whose own ``__str__`` raises."""
    return clipped(_whole_text_of(error), _MESSAGE_LIMIT)


def _whole_text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ must not break the supervisor
        return "(its text cannot be shown)"


def what_of(error: BaseException) -> str:
    """An error in a sentence: its text, behind its type where that is none of ours, which name themselves."""
    text = text_of(error)
    if isinstance(error, SupervisionError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _captured(error: BaseException) -> str | traceback.TracebackException:
    """The traceback as names and line numbers, without frames; the lines of code are looked up when it is printed."""
    try:
        return traceback.TracebackException.from_exception(error, lookup_lines=False, compact=True)
    except Exception as failed:  # noqa: BLE001 - groups in groups a thousand deep, notes that cannot be shown, …
        return f"(its traceback cannot be shown: {type(failed).__name__})"


def _drags_along(error: BaseException) -> bool:
    """Whether it has more to it than itself: other errors or notes, which would be kept whole until it is printed."""
    try:
        notes = getattr(error, "__notes__", None)
    except Exception:  # noqa: BLE001 - as above
        return True
    chained = error.__cause__ is not None or error.__context__ is not None
    return chained or notes is not None or isinstance(error, BaseExceptionGroup)


def _printed(trace: str | traceback.TracebackException) -> str:
    if isinstance(trace, str):
        return trace
    try:
        return "".join(trace.format())[-_TRACEBACK_LIMIT:]
    except Exception as failed:  # noqa: BLE001 - as above
        return f"(its traceback cannot be shown: {type(failed).__name__})"
