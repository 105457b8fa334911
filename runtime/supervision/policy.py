"""What an error of a child leads to: its policy, read; and the counts that each rule of it keeps.

Source: Akka's supervision strategies; that each rule counts for itself, from akka#31461.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from attrs import define

from .budget import Budget, budget_of
from .spec import Directive

if TYPE_CHECKING:
    from .spec import Rule

__all__ = ["Tallies", "Tally", "directive_of", "rule_for"]

_SEVERITY = {directive: number for number, directive in enumerate(Directive)}


def rule_for(error: BaseException | None, policy: Sequence[Rule]) -> Rule | None:
    """The rule that `error` falls under, or None: of each leaf the rule of the nearest type, of these the severest.

    A leaf that no rule matches takes the default, RESTART; so does an error that cannot be looked at.
    """
    if error is None or not policy:
        return None
    try:
        found = [_nearest(leaf, policy) for leaf in _leaves(error)]
    except Exception:  # noqa: BLE001 - the attributes of an error are its author's
        return None
    return max(found, key=lambda rule: _SEVERITY[directive_of(rule)], default=None)


def directive_of(rule: Rule | None) -> Directive:
    """What a rule says; the default without one."""
    return Directive.RESTART if rule is None else rule.directive


def _nearest(error: BaseException, policy: Sequence[Rule]) -> Rule | None:
    # By identity: the equality and the hash of a class are its metaclass's.
    by_type = {id(rule.error): rule for rule in policy}
    return next((by_type[id(kind)] for kind in type(error).__mro__ if id(kind) in by_type), None)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    stack = [error]
    while stack:
        each = stack.pop()
        if isinstance(each, BaseExceptionGroup):
            stack.extend(reversed(each.exceptions))
        else:
            yield each


@define
class Tally:
    """What one rule counts.

    Attributes:
        crashes: how many in a row; forgotten after `Backoff.reset_after`.
        budget: the rule's own, where it has a limit.
    """

    crashes: int = 0
    budget: Budget | None = None


class Tallies:
    """The counts of a child, one for each rule of its policy, and one for all that no rule has a backoff or limit for.

    A rule without a backoff and a limit of its own shares the child's.
    """

    def __init__(self) -> None:
        self._of: dict[type[BaseException] | None, Tally] = {}

    def of(self, rule: Rule | None) -> Tally:
        """The count that an error under `rule` is entered in."""
        own = rule is not None and (rule.backoff is not None or rule.limit is not None)
        key = rule.error if rule is not None and own else None
        limit = rule.limit if rule is not None and own else None
        tally = self._of.setdefault(key, Tally())
        if limit is None:
            tally.budget = None
        else:
            # A change of plan may have brought another limit.
            tally.budget = budget_of(limit) if tally.budget is None else tally.budget.change(limit)
        return tally

    def forget(self) -> None:
        """Begin all rows of crashes anew; budgets keep what was spent."""
        for tally in self._of.values():
            tally.crashes = 0
