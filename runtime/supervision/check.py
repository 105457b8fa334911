"""What can be said of a tree before it starts: limits that are none, budgets that multiply, gates that nobody opens.

Only what is declared is known: what a builder will make, and what calls will bring, is not looked at.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from attrs import field, frozen, validators

from .nested import Nested
from .spec import Decay, Intensity, Kind

if TYPE_CHECKING:
    from .declaration import Declaration
    from .gates import Gates
    from .spec import ChildSpec

__all__ = ["MANY_RESTARTS", "Finding", "inspect"]

MANY_RESTARTS = 1000
"""More starts of one crashing child than this, before the tree gives up, hide a fault instead of riding it out."""


@frozen
class Finding:
    """One thing that was found.

    Attributes:
        path: of the child, or the gate's name.
        severity: ``error`` (it cannot work: a `Tree` refuses it), ``warning`` (it works, and will surprise somebody),
            ``note`` (a number worth knowing).
        text: what it is, and what to do about it.
    """

    path: str
    severity: str = field(validator=validators.in_(("error", "warning", "note")))
    text: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.path}: {self.text}"


@frozen
class _Place:
    """A child in the tree: its path, and the budgets above it, from the root down."""

    path: str
    spec: ChildSpec
    budgets: tuple[float, ...]

    @property
    def starts(self) -> float:
        """How often it may be started before the tree gives up, if all its starts fail."""
        return math.prod(restarts + 1 for restarts in self.budgets)


def inspect(root: Declaration, gates: Gates) -> list[Finding]:
    """Everything that is found, errors first."""
    places = list(_places(root, root.id, ()))
    found = [
        *_unreachable(places, gates),
        *_double_names(places),
        *_shared_mailboxes(places),
        *_unlimited(places),
        *_multiplied(places),
        *_unopened(places, gates),
        _stop_time(root),
    ]
    return sorted(found, key=lambda finding: ("error", "warning", "note").index(finding.severity))


def _places(declaration: Declaration, path: str, above: tuple[float, ...]) -> Iterator[_Place]:
    budgets = (*above, _restarts(declaration.plan.intensity))
    for spec in declaration.own_specs:
        # A pool that is started again is empty: above it nothing multiplies for its children.
        place = _Place(f"{path}/{spec.id}", spec, budgets[-1:] if declaration.is_pool else budgets)
        yield place
        if isinstance(spec.body, Nested):
            yield from _places(spec.body.declaration, place.path, budgets)


def _restarts(limit: Intensity | Decay) -> float:
    if isinstance(limit, Intensity):
        return limit.restarts
    return math.inf if limit.threshold == math.inf else math.floor(limit.threshold)


# Errors --------------------------------------------------------------------------------------------------------------


def _unreachable(places: list[_Place], gates: Gates) -> Iterator[Finding]:
    """Gates that are shut, and that only children open who stand behind them."""
    openers: dict[str, list[_Place]] = {}
    for place in places:
        for name in place.spec.opens:
            gates.check(f"{place.path} (opens)", [name])
            openers.setdefault(name, []).append(place)
    reached: set[str] = set()
    while True:
        more = {name for name in gates if name not in reached and _can_open(name, gates, openers, reached)}
        if not more:
            break
        reached |= more
    for name in gates:
        if name not in reached and openers.get(name):
            who = ", ".join(place.path for place in openers[name])
            text = f"it is shut, and can never open: {who}, who would open it, cannot run before it is open"
            yield Finding(name, "error", f"{text}; take the gate out of what they require")


def _can_open(name: str, gates: Gates, openers: dict[str, list[_Place]], reached: set[str]) -> bool:
    if not reached.issuperset(gates[name].requires):
        return False
    if gates[name].was_opened or name not in openers:
        return True  # it is open, or somebody outside of the tree opens it
    return any(reached.issuperset(place.spec.requires) for place in openers[name])


def _double_names(places: list[_Place]) -> Iterator[Finding]:
    names = Counter(place.spec.name for place in places if place.spec.name is not None)
    for place in places:
        name = place.spec.name
        if name is not None and names[name] > 1:
            yield Finding(place.path, "error", f"the name {name!r} is given {names[name]} times; a name has one holder")


# Warnings ------------------------------------------------------------------------------------------------------------


def _shared_mailboxes(places: list[_Place]) -> Iterator[Finding]:
    owners: dict[int, list[_Place]] = {}
    for place in places:
        for mailbox in place.spec.mailboxes:
            owners.setdefault(id(mailbox), []).append(place)
    for shared in owners.values():
        if len(shared) > 1:
            who = ", ".join(place.path for place in shared[1:])
            yield Finding(shared[0].path, "warning", f"it shares a mailbox with {who}; a mailbox has one reader")


def _unlimited(places: Iterable[_Place]) -> Iterator[Finding]:
    for place in places:
        spec = place.spec
        if spec.kind is Kind.SUPERVISOR:
            continue
        for name, value in (("drain_within", spec.drain_within), ("stop_within", spec.leaves_within)):
            if value == math.inf:
                text = f"{name} is unlimited: an ordered stop of the tree may wait for it for ever"
                yield Finding(place.path, "warning", f"{text}; give it a number of seconds")
        if spec.start_within == math.inf:
            text = "start_within is unlimited: those behind it may wait for it for ever"
            yield Finding(place.path, "warning", f"{text}; give it a number of seconds")


def _multiplied(places: list[_Place]) -> Iterator[Finding]:
    """Budgets of supervisors in supervisors multiply (erlang/otp#1289)."""
    workers = [place for place in places if place.spec.kind is Kind.WORKER and len(place.budgets) > 1]
    if not workers:
        return
    worst = max(workers, key=lambda place: place.starts)
    if worst.starts == math.inf:
        yield Finding(worst.path, "warning", "crashing again and again, it is started for ever: a budget has no limit")
        return
    product = " x ".join(str(restarts + 1) for restarts in worst.budgets)
    text = f"crashing again and again, it is started up to {worst.starts} times ({product}) before the tree gives up"
    severity = "warning" if worst.starts > MANY_RESTARTS else "note"
    yield Finding(worst.path, severity, text)


# Notes ---------------------------------------------------------------------------------------------------------------


def _unopened(places: list[_Place], gates: Gates) -> Iterator[Finding]:
    opened = {name for place in places for name in place.spec.opens}
    required = {name: place.path for place in reversed(places) for name in place.spec.requires}
    for name, path in required.items():
        if not gates[name].was_opened and name not in opened:
            text = f"it is shut, {path} requires it, and no child says that it opens it (`opens`)"
            yield Finding(name, "note", f"{text}; somebody else must")


def _stop_time(root: Declaration) -> Finding:
    seconds = _stops_within(root)
    if seconds == math.inf:
        return Finding(root.id, "note", "an ordered stop has no limit")
    text = f"an ordered stop takes {seconds:g} s at the most; whoever has not left by then is reported as stuck"
    return Finding(root.id, "note", text)


def _stops_within(declaration: Declaration) -> float:
    limits = [_leaves_within(spec) for spec in declaration.own_specs]
    return max(limits, default=0.0) if declaration.is_pool else sum(limits)


def _leaves_within(spec: ChildSpec) -> float:
    if not isinstance(spec.body, Nested):
        return spec.drain_within + spec.leaves_within
    return min(_stops_within(spec.body.declaration), spec.drain_within + spec.leaves_within)
