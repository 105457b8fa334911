"""What a supervisor is told about a child: the child specification and its policies.

Source: Erlang/OTP ``supervisor`` (child specifications, restart types, strategies, intensity); backoff after Akka's
``restartWithBackoff``. Defaults state their reason beside them.
"""

from __future__ import annotations

import copy
import difflib
import enum
import math
import sys
import types
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, Final

from attrs import Factory, field, fields, frozen, validators

from ..mailbox import Mailbox
from .brief import brief
from .errors import InvalidSpec

if TYPE_CHECKING:
    from .child import Child

__all__ = [
    "CUT",
    "AutoShutdown",
    "Backoff",
    "Body",
    "ChildSpec",
    "Cut",
    "Decay",
    "Directive",
    "Intensity",
    "Kind",
    "Restart",
    "Rule",
    "Strategy",
    "check_significant",
    "check_specs",
]

Body = Callable[Concatenate["Child", ...], Awaitable[None]]
"""What a child runs: an async function of its `Child`; in a pool, also of the arguments given to ``start_child``.

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


class AutoShutdown(enum.Enum):
    """Whether a supervisor leaves when significant children have ended by themselves (OTP 24, EEP 56)."""

    NEVER = "never"
    ANY_SIGNIFICANT = "any_significant"
    """It leaves when one has."""
    ALL_SIGNIFICANT = "all_significant"
    """It leaves when the last one has."""


class Directive(enum.Enum):
    """What an error of a child leads to, the mildest first."""

    RESUME = "resume"
    """Nothing but this one message is given up, where the body works within `Child.resuming`; else as RESTART."""
    RESTART = "restart"
    """As the restart type says."""
    STOP = "stop"
    """It is over: not started again, but by a call or with its group."""
    ESCALATE = "escalate"
    """Its supervisor stops all its children and fails."""


class Cut(enum.Enum):
    """The stop limit of who gets no grace."""

    CUT = "cut"


CUT: Final = Cut.CUT
"""A `ChildSpec.stop_within` without any grace: no drain, `Child.cut` is set with the cancel, and who has not left at
once is stuck. OTP's ``brutal_kill``, as far as it goes: nothing within a process can kill a task."""


class Kind(enum.Enum):
    """Worker or supervisor: a supervisor's stop has no limit but those of its own children, unless it is given one."""

    WORKER = "worker"
    SUPERVISOR = "supervisor"


_LONGEST = sys.float_info.max
"""A whole number beyond it could not be added to a time."""


def _whose(instance: object) -> str:
    """Which child it is about, for the end of an error about one field of many."""
    name = instance.id if isinstance(instance, ChildSpec) else None
    return f" (child {name!r})" if isinstance(name, str) and len(name) <= 100 else ""


def _limit(instance: object, attribute: Any, value: Any) -> None:
    """A limit in seconds: a number, 0 or more; `math.inf` is allowed and means *no limit*."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (0 <= value <= _LONGEST or value == math.inf)
    ):
        raise InvalidSpec(
            f"{attribute.name} must be a number of seconds, 0 or more, not {brief(value)}{_whose(instance)}"
        )


def _finite(instance: object, attribute: Any, value: Any) -> None:
    _limit(instance, attribute, value)
    if value == math.inf:
        raise InvalidSpec(f"{attribute.name} must be finite: a child that waits for ever is never restarted")


def _positive(instance: object, attribute: Any, value: Any) -> None:
    _limit(instance, attribute, value)
    if value == 0 or value == math.inf:
        raise InvalidSpec(
            f"{attribute.name} must be a finite number of seconds above 0, not {brief(value)}{_whose(instance)}"
        )


def _instance_of(kind: type) -> Callable[[object, Any, Any], None]:
    def check(instance: object, attribute: Any, value: Any) -> None:
        if not isinstance(value, kind):
            choices = f": one of {', '.join(map(str, kind))}" if issubclass(kind, enum.Enum) else ""
            what = f"{attribute.name} must be a {kind.__name__}, not {brief(value)}{_whose(instance)}"
            raise InvalidSpec(what + choices)

    return check


def _name(instance: object, attribute: Any, value: Any) -> None:
    if not isinstance(value, str) or not value or "/" in value or value.strip() != value:
        raise InvalidSpec(
            f"{attribute.name} must be a non-empty string without '/' or outer blanks, not {brief(value)}"
        )


def _stop_limit(instance: object, attribute: Any, value: Any) -> None:
    if value is not CUT:
        _limit(instance, attribute, value)


def _whole(instance: object, attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidSpec(f"intensity.{attribute.name} must be a whole number, 0 or more, not {brief(value)}")


def _collection(name: str, value: object) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidSpec(f"{name} must be a collection, a tuple say, not {brief(value)}")
    return tuple(value)


def _requires(value: Iterable[str]) -> tuple[str, ...]:
    return _collection("requires", value)


def _opens(value: Iterable[str]) -> tuple[str, ...]:
    return _collection("opens", value)


def _policy(value: Iterable[Rule]) -> tuple[Rule, ...]:
    return _collection("policy", value)


def _mailboxes(value: Iterable[Mailbox[Any]]) -> tuple[Mailbox[Any], ...]:
    return _collection("mailboxes", value)


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

    restarts: int = field(default=5, validator=_whole)
    within: float = field(default=30.0, validator=_positive)

    def __str__(self) -> str:
        return f"{self.restarts} restarts in {self.within:g} s"


@frozen
class Decay:
    """A restart budget without a window: a count that every restart raises by one, and that halves every half-life.

    A steady drip never trips it, a burst does. May stand wherever an `Intensity` may. Source: suture.

    Attributes:
        threshold: the count above which the supervisor gives up. Default 5, as suture has it.
        half_life: seconds in which the count halves. Default 30, as suture has it.
    """

    threshold: float = field(default=5.0, validator=_limit)
    half_life: float = field(default=30.0, validator=_positive)

    def __str__(self) -> str:
        return f"a count of {self.threshold:g} restarts with a half-life of {self.half_life:g} s"


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
        if isinstance(self.factor, bool) or not isinstance(self.factor, int | float) or not 1 <= self.factor < math.inf:
            raise InvalidSpec(f"backoff.factor must be a number of 1 or more, not {brief(self.factor)}")

    def delay(self, crashes: int, chance: float) -> float:
        """Seconds to wait before the restart after the `crashes`-th crash in a row (1 or more).

        `chance` is a random number in [0, 1): the caller owns the randomness.
        """
        try:
            grown = self.minimum * self.factor ** (crashes - 1)
        except OverflowError:
            grown = self.maximum if self.minimum else 0.0
        return min(self.maximum, grown) * (1 + self.jitter * chance)


@frozen
class Rule:
    """One line of a child's policy: what errors of a type lead to.

    Of the rules that match an error the one of the nearest type wins (the order of `policy` does not matter); of an
    exception group each leaf is looked at, and the most severe directive holds. Source: Akka's supervision strategies.

    Attributes:
        error: the exception type.
        directive: what follows.
        backoff: the pause before the restart, with a count of its own. Default: the child's.
        limit: how many such restarts are allowed, in a count of its own instead of the supervisor's; one more, and the
            supervisor gives up. Default: they are entered in the supervisor's.
    """

    error: type[BaseException]
    directive: Directive = field(validator=_instance_of(Directive))
    backoff: Backoff | None = field(default=None, validator=validators.optional(_instance_of(Backoff)))
    limit: Intensity | Decay | None = field(default=None)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.error, type) or not issubclass(self.error, Exception):
            raise InvalidSpec(f"the error of a rule must be a class of exceptions, not {brief(self.error)}")
        if self.limit is not None and not isinstance(self.limit, Intensity | Decay):
            raise InvalidSpec(f"the limit of a rule must be an Intensity or a Decay, not {brief(self.limit)}")


def _identity(body: object) -> object:
    """Bodies are compared by what they are: an `__eq__` of their own may raise, and says nothing of what they run."""
    if isinstance(body, types.MethodType):
        return id(body.__self__), id(body.__func__)  # made anew by each look at it
    return id(body)


def _default_stop(self: ChildSpec) -> float:
    return math.inf if self.kind is Kind.SUPERVISOR else 5.0


@frozen(kw_only=True)
class ChildSpec:
    """How one child is started, stopped and restarted.

    Attributes:
        id: its name among its siblings; stable over restarts.
        body: what it runs; see `Body`.
        kind: worker or supervisor.
        restart: when it is started again after it ended by itself. Default PERMANENT.
        significant: whether its end by itself counts for `AutoShutdown`. Never of a permanent child.
        name: the name under which the whole tree finds its living incarnation (`Tree.whereis`). Default none.
        requires: names of the gates that must be open while it runs. While one is shut the child is *held*: cancelled
            in order, no restart budget used, and started again when all have been open for their settle time.
        opens: names of the gates that it opens, for `Tree.check`, which finds circles through them. Default none.
        hold_within: seconds that it may be held; held longer, its supervisor gives up. Default no limit.
        start_within: seconds it has, from its first line to `Child.started`. Default 30.
        drain_within: seconds between the drain order (`Child.draining`) and the cancel when it is stopped in good
            order. Default 0: cancelled at once.
        stop_within: seconds that it may take to leave after the cancel, before it is reported as stuck; or `CUT`.
            Default 5 (OTP's number) for workers; no limit for supervisors, whose children have their own.
        backoff: how long it waits between crashes.
        policy: what errors of which type lead to; see `Rule`. Default: every error is a crash.
        progress_within: seconds within which it promises a `Child.progress` call once it is ready; a child that makes
            none is *stalled* and treated as crashed. Default none.
        mailboxes: those that belong to it: they are closed when it is gone for good, and what is queued in them is
            handed to their `on_undelivered`.
    """

    id: str = field(validator=_name)
    body: Body = field(repr=False, eq=_identity)
    kind: Kind = field(default=Kind.WORKER, validator=_instance_of(Kind))
    restart: Restart = field(default=Restart.PERMANENT, validator=_instance_of(Restart))
    significant: bool = field(default=False, validator=_instance_of(bool))
    name: str | None = field(default=None, validator=validators.optional(_name))
    requires: tuple[str, ...] = field(default=(), converter=_requires)
    opens: tuple[str, ...] = field(default=(), converter=_opens)
    hold_within: float = field(default=math.inf, validator=_limit)
    start_within: float = field(default=30.0, validator=_limit)
    drain_within: float = field(default=0.0, validator=_limit)
    stop_within: float | Cut = field(default=Factory(_default_stop, takes_self=True), validator=_stop_limit)
    backoff: Backoff = field(factory=Backoff, validator=_instance_of(Backoff))
    policy: tuple[Rule, ...] = field(default=(), converter=_policy)
    progress_within: float | None = field(default=None, validator=validators.optional(_positive))
    mailboxes: tuple[Mailbox[Any], ...] = field(default=(), converter=_mailboxes, repr=False)

    def __attrs_post_init__(self) -> None:
        if not callable(self.body):
            raise InvalidSpec(f"the body of child {self.id!r} must be an async function, not {brief(self.body)}")
        for gate in (*self.requires, *self.opens):
            if not isinstance(gate, str) or not gate:
                raise InvalidSpec(f"requires and opens of child {self.id!r} must hold gate names, not {brief(gate)}")
        if self.significant and self.restart is Restart.PERMANENT:
            text = f"child {self.id!r} is significant and permanent: it would never be over"
            raise InvalidSpec(f"{text}; significant=True takes restart=Restart.TRANSIENT or TEMPORARY")
        for rule in self.policy:
            if not isinstance(rule, Rule):
                raise InvalidSpec(f"the policy of child {self.id!r} must hold rules, not {brief(rule)}")
        if len({rule.error for rule in self.policy}) < len(self.policy):
            raise InvalidSpec(f"the policy of child {self.id!r} has two rules for one type of error")
        for mailbox in self.mailboxes:
            if not isinstance(mailbox, Mailbox):
                raise InvalidSpec(f"mailboxes of child {self.id!r} must hold mailboxes, not {brief(mailbox)}")

    @classmethod
    def of(cls, value: ChildSpec | Mapping[str, Any]) -> ChildSpec:
        """The specification that `value` is, or describes: a mapping of field names to values.

        Raises:
            InvalidSpec: it is no mapping, `id` or `body` is missing, there is no field of that name, or what a field's
                value is refused for. (OTP ignores unknown keys: a restart type under a misspelt key is silently the
                default then.)
        """
        if isinstance(value, ChildSpec):
            return value
        if callable(getattr(value, "spec", None)):
            raise InvalidSpec(f"{brief(value)} is a supervisor, not its specification: write .spec() behind it")
        if not isinstance(value, Mapping):
            raise InvalidSpec(f"a child specification is a ChildSpec or a mapping, not {brief(value)}")
        known = [each.name for each in fields(cls)]
        for key in value:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                raise InvalidSpec(f"there is no field {brief(key)} in a child specification; {hint}")
        for name in ("id", "body"):
            if name not in value:
                raise InvalidSpec(
                    f"a child specification needs {name!r}; it has {', '.join(map(brief, value)) or 'none'}"
                )
        return cls(**value)

    def renamed(self, name: str) -> ChildSpec:
        """The same for a child of another id. Not checked anew: ten thousand children of a pool come this way."""
        made = copy.copy(self)
        object.__setattr__(made, "id", name)
        return made

    def over(self, body: Body) -> ChildSpec:
        """The same over another body; not checked anew either."""
        made = copy.copy(self)
        object.__setattr__(made, "body", body)
        return made

    @property
    def leaves_within(self) -> float:
        """`stop_within` in seconds."""
        return 0.0 if isinstance(self.stop_within, Cut) else self.stop_within


def check_specs(
    specs: Iterable[ChildSpec | Mapping[str, Any]], auto_shutdown: AutoShutdown = AutoShutdown.NEVER
) -> tuple[ChildSpec, ...]:
    """The specifications, checked as a supervisor checks its children before anything is started.

    Raises:
        InvalidSpec: two have one id, one is significant under NEVER, or what `ChildSpec.of` raises.
    """
    checked = tuple(ChildSpec.of(each) for each in specs)
    seen = set()
    for spec in checked:
        if spec.id in seen:
            raise InvalidSpec(f"two children have the id {spec.id!r}")
        seen.add(spec.id)
        check_significant(spec, auto_shutdown)
    return checked


def check_significant(spec: ChildSpec, auto_shutdown: AutoShutdown) -> None:
    """Raise `InvalidSpec` for a significant child of a supervisor that never shuts itself down."""
    if spec.significant and auto_shutdown is AutoShutdown.NEVER:
        text = f"child {spec.id!r} has significant=True under auto_shutdown=AutoShutdown.NEVER: it would mean nothing"
        raise InvalidSpec(f"{text}; choose ANY_SIGNIFICANT or ALL_SIGNIFICANT")
