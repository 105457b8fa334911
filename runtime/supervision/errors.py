"""The errors of supervision, each with what to do about it in its text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .brief import brief

if TYPE_CHECKING:
    from .handle import ChildHandle
    from .spec import ChildSpec

__all__ = [
    "AlreadyPresent",
    "AlreadyStarted",
    "ChildIsStuck",
    "Escalated",
    "GateCycle",
    "HeldTooLong",
    "Ignore",
    "InvalidSpec",
    "IsAPool",
    "NotFound",
    "NotRunning",
    "PoolFull",
    "RestartLimitExceeded",
    "Shutdown",
    "Stalled",
    "StartFailed",
    "StartTimeout",
    "StillRestarting",
    "StillRunning",
    "SupervisionError",
    "UnknownGate",
]


class SupervisionError(Exception):
    """Base of all errors that supervision raises."""


# What a specification, or a tree, is refused for. -------------------------------------------------------------------


class InvalidSpec(SupervisionError, ValueError):
    """A specification that cannot work; the text names the field and the value."""


class UnknownGate(SupervisionError, LookupError):
    """A child requires, or somebody asks for, a gate that was never added."""


class GateCycle(InvalidSpec):
    """Gates that need each other in a circle: none of them could ever open. The text names the circle."""


# What a body may raise to say something. ----------------------------------------------------------------------------


class Shutdown(SupervisionError):
    """Raised by a child to bow out: a normal end, with a word about it (OTP: exit reason ``{shutdown, Info}``).

    A permanent child is started again, a transient or temporary one is over; nobody counts it as a crash report.

    Attributes:
        info: the word; its text is shortened where it is shown, and may be anything.
    """

    def __init__(self, info: object = None) -> None:
        super().__init__("" if info is None else info if isinstance(info, str) else brief(info))
        self.info = info


class Ignore(SupervisionError):
    """Raised by a child before it is ready, or by a builder: there is nothing to run here (OTP: ``ignore``)."""


# How children and supervisors fail. ---------------------------------------------------------------------------------


class StartFailed(SupervisionError):
    """A child could not be started; the cause is chained.

    Of a supervisor that is starting: as in OTP a failing first start is not retried; the children started before it
    are stopped in reverse order, and the supervisor's own start fails. Of ``start_child`` and ``restart_child``: the
    answer to the caller; the tree stays up.

    Attributes:
        spec: the specification of the child that could not be started, where it was asked for by a call.
    """

    spec: ChildSpec | None = None


class StartTimeout(SupervisionError):
    """A child was not ready within its `start_within`."""


class Stalled(SupervisionError):
    """A child that promised progress made none within its `progress_within`."""


class HeldTooLong(SupervisionError):
    """A gate held a child for longer than its `hold_within`: the supervisor stopped all its children and gave up."""


class RestartLimitExceeded(SupervisionError):
    """More restarts than the intensity allows: the supervisor stopped all its children and gave up.

    Unlike OTP, where this ends with reason ``shutdown``, it is a typed crash: a parent never takes it for a normal end.
    """


class Escalated(SupervisionError):
    """A child crashed with an error that its policy escalates; the error is the cause."""


# What a call on a running supervisor is refused for. ----------------------------------------------------------------


class NotRunning(SupervisionError):
    """The supervisor does not run (yet, or any more), or is stopping: it takes no calls."""


class NotFound(SupervisionError, LookupError):
    """The supervisor has no such child."""


class AlreadyStarted(SupervisionError):
    """A child of that id runs already, or somebody else holds the name.

    Attributes:
        handle: who does.
    """

    def __init__(self, text: str, handle: ChildHandle | object = None) -> None:
        super().__init__(text)
        self.handle = handle


class AlreadyPresent(SupervisionError):
    """The specification of that id is there, and stopped or being restarted: restart it, or delete it first."""


class StillRunning(SupervisionError):
    """The child runs: terminate it first."""


class StillRestarting(SupervisionError):
    """The child is being restarted, or held, and will come up by itself: terminate it first."""


class IsAPool(SupervisionError):
    """A pool's children have no ids of their own making: use the handle, and ``terminate_child`` alone."""


class PoolFull(SupervisionError):
    """The pool has as many children as it may."""


class ChildIsStuck(SupervisionError):
    """The child was cancelled and has not left within its limit; it is reported, and leaves when it can."""
