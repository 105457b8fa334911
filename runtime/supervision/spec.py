"""What a supervisor is told about a child: the child specification and its policies.

Source: Erlang/OTP ``supervisor`` (child specifications, restart types, strategies, intensity); backoff after Akka's
``restartWithBackoff``. Defaults state their reason beside them.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from attrs import field, frozen, validators

from .errors import InvalidSpec

if TYPE_CHECKING:
    from .child import Child

__all__ = ["Backoff", "Body", "ChildSpec", "Intensity", "Kind", "Restart", "Strategy"]

Body = Callable[["Child"], Awaitable[None]]
"""What a child runs: an async function of one argument, its `Child` handle.

It calls `Child.started` when it is ready for use, and then works until it returns (normal end), raises (crash) or is
cancelled (stop on order). It must let `trio.Cancelled` through.
"""


class Strategy(enum.Enum):
    """Which siblings a restartable death takes along."""

    ONE_FOR_ONE = "one_for_one"
    ONE_FOR_ALL = "one_for_all"
    REST_FOR_ONE = "rest_for_one"


class Restart(enum.Enum):
    """When a child that ended by itself is started again.

    ========== ================ ======= =========
    type       returned         crashed stopped by a sibling's group restart
    ========== ================ ======= =========
    PERMANENT  again            again   again
    TRANSIENT  spec kept        again   again
    TEMPORARY  spec deleted     deleted spec deleted
    ========== ================ ======= =========
    """

    PERMANENT = "permanent"
    TRANSIENT = "transient"
    TEMPORARY = "temporary"


class Kind(enum.Enum):
    """Worker or supervisor; only the views differ."""

    WORKER = "worker"
    SUPERVISOR = "supervisor"


def _limit(instance: object, attribute: Any, value: Any) -> None:
    """A limit in seconds: a number, 0 or more; `math.inf` is allowed and means *no limit*."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value < 0:
        raise InvalidSpec(f"{attribute.name} must be a number of seconds, 0 or more, not {value!r}")


def _finite(instance: object, attribute: Any, value: Any) -> None:
    _limit(instance, attribute, value)
    if value == math.inf:
        raise InvalidSpec(f"{attribute.name} must be finite: a child that waits for ever is never restarted")


def _positive(instance: object, attribute: Any, value: Any) -> None:
    _limit(instance, attribute, value)
    if value == 0 or value == math.inf:
        raise InvalidSpec(f"{attribute.name} must be a finite number of seconds above 0, not {value!r}")


def _instance_of(kind: type) -> Callable[[object, Any, Any], None]:
    def check(instance: object, attribute: Any, value: Any) -> None:
        if not isinstance(value, kind):
            raise InvalidSpec(f"{attribute.name} must be a {kind.__name__}, not {value!r}")

    return check


def _name(instance: object, attribute: Any, value: Any) -> None:
    if not isinstance(value, str) or not value or "/" in value or value.strip() != value:
        raise InvalidSpec(f"{attribute.name} must be a non-empty string without '/' or outer blanks, not {value!r}")


def _names(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        raise InvalidSpec(f"requires must be a collection of gate names, not the string {value!r}")
    return tuple(value)  # type: ignore[arg-type]


@frozen
class Intensity:
    """How many restarts a supervisor makes within a period before it gives up.

    One count per supervisor, not per child; a group restart counts once; every attempt counts, failed ones too.
    An attempt exactly `within` seconds old still counts.

    Attributes:
        restarts: how many restarts are allowed; 0 means that the first crash escalates. Default 5: with the default
            backoff a child that crashes at once is given up after about three seconds, which rides out a hiccup and
            does not hide a bug. (An outage does not burn it: children that name the gate are held instead.)
        within: the period in seconds. Default 30.
    """

    restarts: int = field(default=5)
    within: float = field(default=30.0, validator=_positive)

    @restarts.validator
    def _whole(self, attribute: Any, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InvalidSpec(f"intensity.restarts must be a whole number, 0 or more, not {value!r}")


@frozen
class Backoff:
    """How long a crashed child waits before its next start.

    The n-th restart in a row waits ``min(maximum, minimum * factor ** (n - 1))`` seconds, stretched by a random
    factor in ``[1, 1 + jitter)``. A child that was ready for `reset_after` seconds starts counting anew.

    Attributes:
        minimum: seconds before the first restart. Default 0.1: not felt by a user, and no hot loop.
        maximum: the cap in seconds. Default 10: the longest that anybody waits after the cause is gone.
        factor: growth from one restart to the next. Default 2.
        jitter: share of random stretch. Default 0.5, as suture has it.
        reset_after: seconds of life after which the count is forgotten. Default 60.
    """

    minimum: float = field(default=0.1, validator=_finite)
    maximum: float = field(default=10.0, validator=_finite)
    factor: float = field(default=2.0)
    jitter: float = field(default=0.5, validator=_finite)
    reset_after: float = field(default=60.0, validator=_limit)

    def __attrs_post_init__(self) -> None:
        if self.maximum < self.minimum:
            raise InvalidSpec(f"backoff.maximum {self.maximum} is below backoff.minimum {self.minimum}")
        if not 1 <= self.factor < math.inf:
            raise InvalidSpec(f"backoff.factor must be a number of 1 or more, not {self.factor!r}")

    def delay(self, crashes: int, chance: float) -> float:
        """Seconds to wait before the restart after the `crashes`-th crash in a row (1 or more).

        `chance` is a random number in [0, 1): the caller owns the randomness.
        """
        try:
            grown = self.minimum * self.factor ** (crashes - 1)
        except OverflowError:
            grown = self.maximum if self.minimum else 0.0
        return min(self.maximum, grown) * (1 + self.jitter * chance)


@frozen(kw_only=True)
class ChildSpec:
    """How one child is started, stopped and restarted.

    Attributes:
        id: its name among its siblings; stable over restarts.
        body: what it runs; see `Body`.
        restart: when it is started again after it ended by itself. Default PERMANENT.
        requires: names of the gates that must be open while it runs. While one is shut the child is *held*: cancelled
            in order, no restart budget used, and started again when all have been open for their settle time.
        start_within: seconds it has, from its first line to `Child.started`. Default 30.
        drain_within: seconds between the drain order (`Child.draining`) and the cancel when it is stopped in good
            order. Default 0: cancelled at once.
        stop_within: seconds that it may take to leave after the cancel, before it is reported as stuck. Default 5
            (OTP's number for workers); no limit for supervisors, who keep their own.
        backoff: how long it waits between crashes.
        progress_within: seconds within which it promises a `Child.progress` call once it is ready; a child that makes
            none is *stalled* and treated as crashed. Default none.
        kind: worker or supervisor.
    """

    id: str = field(validator=_name)
    body: Body = field(repr=False)
    restart: Restart = field(default=Restart.PERMANENT, validator=_instance_of(Restart))
    requires: tuple[str, ...] = field(default=(), converter=_names)
    start_within: float = field(default=30.0, validator=_limit)
    drain_within: float = field(default=0.0, validator=_limit)
    stop_within: float = field(default=5.0, validator=_limit)
    backoff: Backoff = field(factory=Backoff, validator=_instance_of(Backoff))
    progress_within: float | None = field(default=None, validator=validators.optional(_positive))
    kind: Kind = field(default=Kind.WORKER, validator=_instance_of(Kind))

    def __attrs_post_init__(self) -> None:
        if not callable(self.body):
            raise InvalidSpec(f"the body of child {self.id!r} must be an async function, not {self.body!r}")
        for gate in self.requires:
            if not isinstance(gate, str) or not gate:
                raise InvalidSpec(f"requires of child {self.id!r} must hold gate names, not {gate!r}")
