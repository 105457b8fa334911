"""A pool: any number of children of one template, started while it runs (OTP: ``simple_one_for_one``)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import evolve

from .brief import brief, clipped
from .declaration import Declaration
from .errors import InvalidSpec, IsAPool, NotFound
from .handle import ChildHandle
from .listing import ChildCounts, ChildEntry, counts_of, entries_of, entry_of
from .messages import AddChild, Reload, TerminateChild
from .nested import Nested
from .plan import Changes, Plan
from .run import Run
from .spec import AutoShutdown, ChildSpec, Decay, Intensity, check_significant

__all__ = ["Pool"]


class Pool(Declaration):
    """A supervisor of any number of children of one kind, each started by a call with arguments of its own.

    They have no order among each other: a crash concerns the one that crashed, and at the stop all are told at once and
    share one limit. They are known by their handles; their ids are numbers.

    Args:
        id: its name among its siblings, or the root's name.
        template: the specification of each child; its `id` names the kind. Its body gets the arguments of
            `start_child` behind its `Child`; a restarted child gets the same ones again. Those of temporary children
            are not kept.
        intensity: the restart budget of them all.
        max_children: how many there may be at a time; one more is refused, and does not wait. Default: no limit.
        stagger: see `Plan`.

    Raises:
        InvalidSpec: there is not exactly one template, it is a supervisor, of which there is only the one, or it cannot
            work.
    """

    is_pool = True

    def __init__(
        self,
        id: str,  # noqa: A002 - the field's own name
        template: ChildSpec | Mapping[str, Any],
        *,
        intensity: Intensity | Decay | None = None,
        max_children: int | None = None,
        stagger: float | None = None,
    ) -> None:
        super().__init__(id)
        self.template = _one(template)
        check_significant(self.template, AutoShutdown.NEVER)
        if max_children is not None and (isinstance(max_children, bool) or not isinstance(max_children, int)):
            raise InvalidSpec(f"max_children must be a whole number or None, not {max_children!r}")
        if max_children is not None and max_children < 1:
            raise InvalidSpec(f"max_children must be 1 or more, not {max_children!r}")
        self.max_children = max_children
        given: dict[str, Any] = {"intensity": intensity} if intensity is not None else {}
        given |= {"stagger": stagger} if stagger is not None else {}
        self._plan = Plan((), **given)
        self._numbers = itertools.count(1)

    @property
    def own_specs(self) -> tuple[ChildSpec, ...]:
        """Its template."""
        return (self.template,)

    @property
    def plan(self) -> Plan:
        """Its flags; it has no children but those that calls bring."""
        return self._plan if self.run is None else self.run.core.plan

    def make_plan(self) -> Plan:
        """No children: they come by calls."""
        return self._plan

    def take_over(self, plan: Plan, template: ChildSpec | None = None) -> None:
        """Its flags have changed, or its template. The children that are there keep theirs, and its mailboxes."""
        self._plan = plan
        if template is not None:
            self.template = template
            self.hold_own()

    # Calls ----------------------------------------------------------------------------------------------------------

    async def start_child(self, *args: Any) -> ChildHandle | None:
        """Start a child with `args`. Blocks until it is ready, held, or has failed; see `Supervisor.start_child`.

        Raises:
            PoolFull: there are `max_children` already.
            StartFailed: it did not come up; the cause is chained, and nothing of it is kept.
            NotRunning: the pool does not run, or stopped before the child was ready.
        """
        run = self._live()
        child = self.template.renamed(str(next(self._numbers)))
        handle: ChildHandle | None = await run.call(lambda ticket: AddChild(ticket, child, args), [child])
        return handle

    async def terminate_child(self, handle: ChildHandle) -> None:
        """Stop a child; its specification goes with it. Blocks until it has left; returns at once for one that has.

        A child that is being restarted goes by the handle of its last incarnation that was ready.

        Raises:
            IsAPool: an id was given.
            NotFound: it is a child of somebody else.
            ChildIsStuck: it did not leave within its limit; it is reported, and leaves when it can.
            NotRunning: as above.
        """
        run = self._live()
        name = self._own(run, handle)
        if name not in run.core.children:
            return
        await run.call(lambda ticket: TerminateChild(ticket, name, handle.incarnation))

    async def restart_child(self, id: object) -> None:  # noqa: A002 - the field's own name
        """Refused: nobody in a pool is stopped and kept.

        Raises:
            IsAPool: always.
        """
        raise IsAPool(f"{self.id} is a pool: it keeps no stopped children that could be restarted; start a new one")

    async def delete_child(self, id: object) -> None:  # noqa: A002 - the field's own name
        """Refused: `terminate_child` deletes.

        Raises:
            IsAPool: always.
        """
        raise IsAPool(f"{self.id} is a pool: terminate_child deletes, too")

    async def reload(
        self,
        template: ChildSpec | Mapping[str, Any] | None = None,
        *,
        intensity: Intensity | Decay | None = None,
        stagger: float | None = None,
    ) -> Changes:
        """Change the template and the flags while running; what is left out stays as it is.

        The new template holds for children started from now on; those there are keep theirs until they are replaced.

        Raises:
            InvalidSpec: there is not exactly one template, or it cannot work.
            NotRunning: as above, or the pool is still starting.
        """
        run = self._live()
        new = None if template is None else _one(template)
        if new is not None:
            check_significant(new, AutoShutdown.NEVER)
        given: dict[str, Any] = {"intensity": intensity, "stagger": stagger}
        flags = {name: value for name, value in given.items() if value is not None}
        Plan(**flags)  # raises what they are refused for
        before = self.template
        changes: Changes = await run.call(
            lambda ticket: Reload(ticket, None, new, flags), () if new is None else (new,)
        )
        return changes if new is None or new == before else evolve(changes, changed=(new.id,))

    def which_children(self) -> list[ChildEntry]:
        """All children, the newest first. Never blocks; raises `NotRunning`."""
        return entries_of(self._live())

    def which_child(self, handle: ChildHandle) -> ChildEntry:
        """One child. Never blocks.

        Raises:
            IsAPool: an id was given.
            NotFound: it is not there any more, it has been restarted since and goes by another handle, or it is a child
                of somebody else.
            NotRunning: as above.
        """
        run = self._live()
        name = self._own(run, handle)
        child = run.core.children.get(name)
        if child is not None and handle.incarnation < child.was_ready:
            raise NotFound(
                f"{handle!r} was restarted since, and goes by the handle of its incarnation {child.was_ready}"
            )
        return entry_of(run, name)

    def count_children(self) -> ChildCounts:
        """How many there are. Never blocks; raises `NotRunning`."""
        return counts_of(self._live())

    def get_childspec(self, handle: ChildHandle) -> ChildSpec:
        """The template that a child was started from. Never blocks; raises what `which_child` raises."""
        entry = self.which_child(handle)
        return self._live().core.children[entry.id].spec.renamed(self.template.id)

    def _own(self, run: Run, handle: ChildHandle) -> str:
        if not isinstance(handle, ChildHandle):
            raise IsAPool(
                f"{run.path} is a pool: its children are known by their handles, not by ids like {brief(handle)}"
            )
        if not run.owns(handle):
            if handle.is_alive:
                raise NotFound(f"{handle!r} is no child of {run.path}")
            return ""  # nobody's any more
        return handle.id

    def __repr__(self) -> str:
        count = len(self.run.core.children) if self.run is not None else 0
        return f"<Pool {self.id} of {count} {self.template.id}>"


def _one(template: object) -> ChildSpec:
    if isinstance(template, ChildSpec | Mapping):
        spec = ChildSpec.of(template)
        if isinstance(spec.body, Nested):
            text = f"the template {spec.id!r} of a pool is a supervisor, of which there is only the one"
            raise InvalidSpec(f"{text}; let a Supervisor take its place, and start_child each with a new one")
        return spec
    some = itertools.islice(template, 10) if isinstance(template, Iterable) else [template]
    named = clipped(", ".join(_named(each) for each in some), 500) or "none"
    raise InvalidSpec(f"a pool takes exactly one template, a ChildSpec; it was given {named}")


def _named(given: object) -> str:
    return given.id if isinstance(given, ChildSpec) else brief(given)
