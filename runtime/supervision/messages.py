"""What a supervisor's core and its shell say to each other: a closed set of events and actions.

Plain data, all of it: the core is tested by feeding it the one and reading the other.
"""

from __future__ import annotations

import enum

from attrs import frozen

from .events import Report
from .outcome import Outcome

__all__ = [
    "Action",
    "Begin",
    "CancelChild",
    "CheckProgress",
    "ChildEnded",
    "ChildReady",
    "ChildStuck",
    "DrainChild",
    "Event",
    "Finish",
    "GateTurned",
    "Grace",
    "Phase",
    "ProgressSeen",
    "Settled",
    "StartChild",
    "Status",
    "StopOrdered",
    "Stuck",
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
class GateTurned:
    """A gate was shut or opened; `settle` seconds must pass after the opening before anybody is started."""

    name: str
    is_open: bool
    cause: str = ""
    settle: float = 0.0


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


Event = Begin | ChildReady | ChildEnded | ChildStuck | GateTurned | ProgressSeen | StopOrdered | Tick


# Actions: what the shell does. -------------------------------------------------------------------------------------


@frozen
class StartChild:
    """Start this incarnation of the child."""

    id: str
    incarnation: int


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
class Finish:
    """All children are gone; the supervisor ends, with `error` if there is one."""

    error: BaseException | None = None


Action = StartChild | DrainChild | CancelChild | CheckProgress | Settled | Stuck | Finish | Report
