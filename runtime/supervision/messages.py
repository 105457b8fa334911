"""What a supervisor's core and its shell say to each other: a closed set of events and actions.

Plain data, all of it: the core is tested by feeding it the one and reading the other.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from attrs import Factory, frozen

from .errors import SupervisionError
from .events import Report
from .outcome import Outcome
from .plan import Plan
from .spec import ChildSpec

__all__ = [
    "Action",
    "AddChild",
    "AdoptChild",
    "Answer",
    "Begin",
    "Call",
    "CancelChild",
    "CheckProgress",
    "ChildEnded",
    "ChildReady",
    "ChildResumed",
    "ChildStuck",
    "DeleteChild",
    "DrainChild",
    "Event",
    "Finish",
    "ForgetChild",
    "GateTurned",
    "Grace",
    "Phase",
    "ProgressSeen",
    "Refuse",
    "Reload",
    "RestartChild",
    "Settled",
    "StartChild",
    "Status",
    "StopOrdered",
    "Stuck",
    "TakeOver",
    "TerminateChild",
    "Tick",
]


class Phase(enum.Enum):
    """Where a supervisor is in its life."""

    NEW = "new"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    DONE = "done"


class Status(enum.Enum):
    """What a child's task is doing."""

    DOWN = "down"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


class Grace(enum.IntEnum):
    """How much time a stop leaves to the children; orders only ever tighten it."""

    DRAIN = 0
    """Drains, then cancels."""
    CANCEL = 1
    """No drains."""
    CUT = 2
    """No drains, and whoever takes its time over leaving is told to hurry (`Child.cut`)."""


# Events: what the core is told. ------------------------------------------------------------------------------------


@frozen
class Begin:
    """Start the children, in order."""


@frozen
class ChildReady:
    """A child said that it is ready."""

    id: str
    incarnation: int


@frozen
class ChildEnded:
    """A child's task is gone."""

    id: str
    incarnation: int
    outcome: Outcome


@frozen
class ChildStuck:
    """A child that is a supervisor says that some of its own children do not leave; all the others have left."""

    id: str
    incarnation: int


@frozen
class ChildResumed:
    """A child met an error in its work, which its policy lets it pass over."""

    id: str
    incarnation: int
    error: BaseException


@frozen
class GateTurned:
    """A gate was shut or opened; `settle` seconds must pass after the opening before anybody is started.

    `root` is the gate whose shutting is the cause, where that is another one, which this one requires. Of gates that
    turn together only the last `is_last`: nobody is started or stopped before all of them are known.
    """

    name: str
    is_open: bool
    cause: str = ""
    settle: float = 0.0
    root: str = ""
    is_last: bool = True


@frozen
class ProgressSeen:
    """The answer to `CheckProgress`: when the child last made progress."""

    id: str
    incarnation: int
    at: float


@frozen
class StopOrdered:
    """Stop all children and finish."""

    reason: str
    grace: Grace = Grace.DRAIN


@frozen
class Tick:
    """A deadline may have passed."""


# Calls: events that somebody waits for the answer to. The ticket is the shell's; the core hands it back, once. -------


@frozen
class AddChild:
    """Take in a child and start it; answered when it is up, held, or gone again.

    `args` are what its body gets beside its `Child`, in a pool.
    """

    ticket: object
    spec: ChildSpec
    args: tuple[Any, ...] = ()


@frozen
class TerminateChild:
    """Stop a child and keep its specification (a temporary one's is deleted); answered when it has left.

    With `incarnation`, only if that one, or the attempts to start it again, is what there is of the child now.
    """

    ticket: object
    id: str
    incarnation: int | None = None


@frozen
class RestartChild:
    """Start a stopped child; answered as `AddChild` is."""

    ticket: object
    id: str


@frozen
class DeleteChild:
    """Delete the specification of a stopped child."""

    ticket: object
    id: str


@frozen
class Reload:
    """Go over to another plan; answered with the `Changes`.

    A pool is given no plan, but the `flags` that are to change, by name, and perhaps another `template`.
    """

    ticket: object
    plan: Plan | None
    template: ChildSpec | None = None
    flags: Mapping[str, Any] = Factory(dict)


Call = AddChild | TerminateChild | RestartChild | DeleteChild | Reload

Event = (
    Begin | ChildReady | ChildEnded | ChildResumed | ChildStuck | GateTurned | ProgressSeen | StopOrdered | Tick | Call
)


# Actions: what the shell does. -------------------------------------------------------------------------------------


@frozen
class StartChild:
    """Start this incarnation of the child."""

    id: str
    incarnation: int
    spec: ChildSpec
    args: tuple[Any, ...] = ()


@frozen
class DrainChild:
    """Ask the child to finish what it has; the cancel comes later."""

    id: str
    incarnation: int


@frozen
class CancelChild:
    """Cancel the child; with `cut`, tell it to hurry. May be repeated with `cut` for one that was cancelled before."""

    id: str
    incarnation: int
    reason: str
    cut: bool = False


@frozen
class CheckProgress:
    """Tell the core, by `ProgressSeen`, when the child last made progress."""

    id: str
    incarnation: int


@frozen
class Settled:
    """All children are up, or held: the supervisor itself is ready."""


@frozen
class Stuck:
    """All children that can be stopped are stopped; the supervisor above need not wait for the rest."""


@frozen
class AdoptChild:
    """A call has brought a specification."""

    spec: ChildSpec


@frozen
class TakeOver:
    """A call has brought another plan, and to a pool perhaps another template; they hold from now on."""

    plan: Plan
    template: ChildSpec | None = None


@frozen
class ForgetChild:
    """A specification is gone for good, and with it what belonged to its child."""

    spec: ChildSpec


@frozen
class Answer:
    """The answer to a call: `value`, or the living incarnation of the child `id`."""

    ticket: object
    value: object = None
    id: str | None = None


@frozen
class Refuse:
    """The bad news to a call; `id` is the child that stands in the way, where it runs."""

    ticket: object
    error: SupervisionError
    id: str | None = None


@frozen
class Finish:
    """All children are gone; the supervisor ends, with `error` if there is one.

    `bowed_out` says that it ends because significant children have ended: normally, and by itself.
    """

    error: BaseException | None = None
    bowed_out: str | None = None


Action = (
    StartChild
    | DrainChild
    | CancelChild
    | CheckProgress
    | Settled
    | Stuck
    | AdoptChild
    | ForgetChild
    | TakeOver
    | Answer
    | Refuse
    | Finish
    | Report
)
