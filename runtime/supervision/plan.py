"""What a supervisor is made of, as one value: its children and its flags; and what a change of it would change.

Source: the result of OTP's ``init/1`` callback, and of ``code_change``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import evolve, field, fields, frozen

from .brief import brief
from .errors import InvalidSpec
from .spec import AutoShutdown, ChildSpec, Decay, Intensity, Strategy, check_specs

__all__ = ["Builder", "Changes", "Plan", "built"]


def _flag(name: str, *kinds: type) -> Callable[[object, Any, Any], None]:
    def check(instance: object, attribute: Any, value: Any) -> None:
        if not isinstance(value, kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise InvalidSpec(f"{name} must be of type {wanted}, not {brief(value)}")

    return check


def _spacing(instance: object, attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        raise InvalidSpec(f"stagger must be a finite number of seconds, 0 or more, not {brief(value)}")


def _shown(specs: Iterable[Any]) -> str:
    return brief([getattr(each, "id", each) for each in specs])


def _specs(value: Iterable[ChildSpec | Mapping[str, Any]]) -> tuple[Any, ...]:
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise InvalidSpec(f"the children of a supervisor must be a collection of specifications, not {brief(value)}")
    return tuple(value)


@frozen
class Plan:
    """The children and the flags of a supervisor.

    Attributes:
        children: the specifications (or mappings, see `ChildSpec.of`), in start order.
        strategy: which siblings a restart takes along.
        intensity: the restart budget.
        auto_shutdown: whether the end of significant children ends it.
        stagger: seconds between two starts of children whose waits end together (after a backoff, or when a gate has
            settled), so that what has just come back is not run over. Default 0.01: ten children are back within a
            tenth of a second, and a thousand do not start at once. Groups need none: they start one after the other.

    Raises:
        InvalidSpec: two children have one id, or a flag is not what it must be; the text names it and its value.
    """

    children: tuple[ChildSpec, ...] = field(default=(), converter=_specs, repr=_shown)
    strategy: Strategy = field(default=Strategy.ONE_FOR_ONE, validator=_flag("strategy", Strategy))
    intensity: Intensity | Decay = field(factory=Intensity, validator=_flag("intensity", Intensity, Decay))
    auto_shutdown: AutoShutdown = field(default=AutoShutdown.NEVER, validator=_flag("auto_shutdown", AutoShutdown))
    stagger: float = field(default=0.01, validator=_spacing)
    _ids: frozenset[str] = field(init=False, eq=False, repr=False, default=frozenset())

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "children", check_specs(self.children, self.auto_shutdown))
        object.__setattr__(self, "_ids", frozenset(spec.id for spec in self.children))

    def has(self, name: str) -> bool:
        """Whether a child of that id is planned."""
        return name in self._ids

    def changes(self, new: Plan) -> Changes:
        """What it would mean to go over to `new`."""
        before = {spec.id: spec for spec in self.children}
        after = {spec.id: spec for spec in new.children}
        return Changes(
            added=tuple(name for name in after if name not in before),
            removed=tuple(name for name in before if name not in after),
            changed=tuple(name for name, spec in after.items() if name in before and before[name] != spec),
            flags=tuple(name for name in _FLAGS if getattr(self, name) != getattr(new, name)),
            is_reordered=[name for name in before if name in after] != [name for name in after if name in before],
        )

    def with_children(self, children: Iterable[ChildSpec]) -> Plan:
        """The same flags over other children."""
        return evolve(self, children=children)


_FLAGS = tuple(each.name for each in fields(Plan) if each.init and each.name != "children")

Builder = Callable[[], Plan | Iterable[ChildSpec]]
"""Makes the plan of a supervisor, anew at each of its starts; raises `Ignore` where there is nothing to run."""


@frozen
class Changes:
    """The difference between two plans.

    Attributes:
        added: ids that are new; their children are known, and not started until somebody asks.
        removed: ids that are gone; their children run on under their old specification.
        changed: ids whose specification is another one; it holds from the child's next stop or start on.
        flags: names of the flags that differ; they hold at once.
        is_reordered: whether those that stay stand in another order; it holds at once.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    is_reordered: bool = False

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.flags or self.is_reordered)

    def __str__(self) -> str:
        said = [(name, getattr(self, name)) for name in ("added", "removed", "changed", "flags")]
        told = [f"{name}: {', '.join(names)}" for name, names in said if names]
        return "; ".join([*told, "another order"] if self.is_reordered else told) or "nothing"


def built(builder: Builder, owner: str, flags: Plan) -> Plan:
    """What `builder` makes; a bare collection of specifications gets the `flags`.

    Raises:
        InvalidSpec: it made neither, or something that cannot work; the text names `owner`, the builder and the value.
        BaseException: what the builder raises.
    """
    made = builder()
    try:
        return made if isinstance(made, Plan) else flags.with_children(made)
    except InvalidSpec as error:
        name = getattr(builder, "__qualname__", None) or brief(builder)
        raise InvalidSpec(f"the builder {name} of {owner} made no plan: {error}") from error
