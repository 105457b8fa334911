"""The supervisor: what it keeps, how, and what can be asked of it while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .brief import brief
from .declaration import Declaration
from .errors import InvalidSpec, NotFound
from .handle import ChildHandle
from .listing import ChildCounts, ChildEntry, counts_of, entries_of, entry_of
from .messages import AddChild, DeleteChild, Reload, RestartChild, TerminateChild
from .plan import Builder, Changes, Plan, built
from .spec import AutoShutdown, ChildSpec, Decay, Intensity, Strategy

__all__ = ["Supervisor"]


class Supervisor(Declaration):
    """A supervisor: keeps its children as their specifications say.

    Args:
        id: its name among its siblings, or the root's name.
        children: the specifications (or mappings, see `ChildSpec.of`), in start order; they are stopped in the reverse
            order. Or a *builder*: a function that makes them, or a whole `Plan`, anew at each start of the supervisor;
            it may raise `Ignore`.
        strategy: which siblings a restart takes along. Default ONE_FOR_ONE.
        intensity: the restart budget; see `Intensity` and `Decay`.
        auto_shutdown: whether the end of significant children ends it. Default NEVER.
        stagger: see `Plan`.

    Raises:
        InvalidSpec: what cannot work; the text names the field and the value.

    The calls (`start_child`, …) are carried out by the supervisor's own task, so that no child inherits the context of
    the caller. Each may be cancelled: then it is carried out all the same, and its answer dropped. While the supervisor
    is not running, or stopping, each raises `NotRunning` at once. Source: the API of OTP's ``supervisor``.
    """

    def __init__(
        self,
        id: str,  # noqa: A002 - the field's own name
        children: Iterable[ChildSpec | Mapping[str, Any]] | Builder = (),
        *,
        strategy: Strategy = Strategy.ONE_FOR_ONE,
        intensity: Intensity | Decay | None = None,
        auto_shutdown: AutoShutdown = AutoShutdown.NEVER,
        stagger: float | None = None,
    ) -> None:
        super().__init__(id)
        given: dict[str, Any] = {"strategy": strategy, "auto_shutdown": auto_shutdown}
        given |= {"intensity": intensity} if intensity is not None else {}
        given |= {"stagger": stagger} if stagger is not None else {}
        self._builder: Builder | None = children if callable(children) else None
        self._plan = Plan(() if callable(children) else children, **given)

    @property
    def plan(self) -> Plan:
        """Its children and flags: of the present or last life, or those of the first."""
        return self._plan if self.run is None else self.run.core.plan

    @property
    def own_specs(self) -> tuple[ChildSpec, ...]:
        """The specifications of its children; those of a builder are known once it has been called."""
        return self._plan.children

    def make_plan(self) -> Plan:
        """What the next life begins with: what its builder makes, or what it was given."""
        if self._builder is not None:
            assert self._house is not None  # noqa: S101 - bound before it is started
            made = self._next_plan(None)
            self._house.book(made.children)
            self.take_over(made)
            self._house.unbook(made.children)
        return self._plan

    @property
    def lasting_specs(self) -> tuple[ChildSpec, ...]:
        """Those of its plan, for its next life; the root has none."""
        is_last = self.run is not None and self.run.child is None
        return () if is_last else self._plan.children

    def take_over(self, plan: Plan, template: ChildSpec | None = None) -> None:
        """Go over to a plan. A child that is gone from it runs on, with what belongs to it."""
        self._plan = plan
        self.hold_own()

    # Calls ----------------------------------------------------------------------------------------------------------

    async def start_child(self, spec: ChildSpec | Mapping[str, Any]) -> ChildHandle | None:
        """Take in a child, behind all others, and start it. Blocks until it is ready, held, or has failed; in a group,
        as long as one that stands before it is not up.

        None: there is no task, because it ignored its start (a temporary child's specification is gone then), returned
        at once although it may (transient, temporary), or is held by a gate and will start when that opens.

        Raises:
            AlreadyStarted: there is a child of that id, and it runs; or somebody else holds its name.
            AlreadyPresent: there is one, and it is stopped, held or being restarted.
            StartFailed: it crashed, returned (permanent) or was late before it was ready; the cause is chained, the
                specification is dropped, and nothing else has changed.
            InvalidSpec: the specification cannot work, or not here.
            UnknownGate: it requires a gate that was never added.
            NotRunning: the supervisor does not run, or stopped before the child was ready.
        """
        run = self._live()
        child = ChildSpec.of(spec)
        handle: ChildHandle | None = await run.call(lambda ticket: AddChild(ticket, child), [child])
        return handle

    async def terminate_child(self, id: str) -> None:  # noqa: A002 - the field's own name
        """Stop a child as its specification says, and keep the specification, unless the child is temporary.

        Blocks until it has left; returns at once for one that is stopped. Ends a restart loop, and a hold.

        Raises:
            NotFound: there is no child of that id (a handle is none).
            ChildIsStuck: it did not leave within its limit; it is reported, and leaves when it can.
            NotRunning: as above.
        """
        run = self._live()
        name = _id(id)
        await run.call(lambda ticket: TerminateChild(ticket, name))

    async def restart_child(self, id: str) -> ChildHandle | None:  # noqa: A002 - the field's own name
        """Start a stopped child; costs nothing of the budget. Blocks, and answers, as `start_child`.

        Raises:
            NotFound: there is no child of that id.
            StillRunning: it runs.
            StillRestarting: it is being restarted, or held, and comes up by itself.
            StartFailed: its start failed; the specification is kept, the child is stopped.
            NotRunning: as above.
        """
        run = self._live()
        name = _id(id)
        handle: ChildHandle | None = await run.call(lambda ticket: RestartChild(ticket, name))
        return handle

    async def delete_child(self, id: str) -> None:  # noqa: A002 - the field's own name
        """Delete the specification of a stopped child.

        Raises:
            NotFound: there is no child of that id.
            StillRunning: it runs.
            StillRestarting: it is being restarted, or held.
            NotRunning: as above.
        """
        run = self._live()
        name = _id(id)
        await run.call(lambda ticket: DeleteChild(ticket, name))

    async def reload(self, plan: Plan | Builder | None = None) -> Changes:
        """Go over to another plan while running; without one, to what the builder makes now.

        Flags hold at once. Children that are new are known, and not started until somebody asks. A changed
        specification holds from its child's next stop or start on. Who is gone from the plan runs on. Either all of it
        is taken over or, if any of it cannot work, nothing. Blocks until the supervisor has taken it over.

        Raises:
            Ignore: the builder said so; nothing has changed.
            InvalidSpec: the plan cannot work; the text names what.
            UnknownGate: a child requires a gate that was never added.
            NotRunning: as above, or the supervisor is still starting.
        """
        run = self._live()
        new = self._next_plan(plan)
        changes: Changes = await run.call(lambda ticket: Reload(ticket, new), new.children)
        return changes

    def preview(self, plan: Plan | Builder | None = None) -> Changes:
        """What `reload` would change. Never blocks, changes nothing; raises what `reload` raises."""
        run = self._live()
        new = self._next_plan(plan)
        for spec in new.children:
            run.house.check(spec)
        return run.core.plan.changes(new)

    def which_children(self) -> list[ChildEntry]:
        """All children, the newest first. Never blocks.

        Raises:
            NotRunning: as above.
        """
        return entries_of(self._live())

    def which_child(self, id: str) -> ChildEntry:  # noqa: A002 - the field's own name
        """One child. Never blocks.

        Raises:
            NotFound: there is no child of that id.
            NotRunning: as above.
        """
        return entry_of(self._live(), _id(id))

    def count_children(self) -> ChildCounts:
        """How many there are. Never blocks.

        Raises:
            NotRunning: as above.
        """
        return counts_of(self._live())

    def get_childspec(self, id: str) -> ChildSpec:  # noqa: A002 - the field's own name
        """The specification of a child, defaults filled in; of a temporary child that was started by a call, without
        its body. Never blocks.

        Raises:
            NotFound: there is no child of that id.
            NotRunning: as above.
        """
        run = self._live()
        found = run.core.children.get(_id(id))
        if found is None:
            raise NotFound(f"there is no child {id!r} of {run.path}")
        return found.spec

    def _next_plan(self, plan: Plan | Builder | None) -> Plan:
        builder = self._builder if plan is None else plan
        if isinstance(builder, Plan):
            return builder
        if builder is not None and not callable(builder):
            raise InvalidSpec(f"a supervisor goes over to a Plan, or to what a builder makes, not to {brief(builder)}")
        if builder is None:
            raise InvalidSpec(f"supervisor {self.id!r} has no builder: give the plan that it is to go over to")
        return built(builder, f"supervisor {self.id!r}", self._plan.with_children(()))

    def __repr__(self) -> str:
        count = len(self._plan.children) if self.run is None else len(self.run.core.children)
        return f"<Supervisor {self.id} of {count}, {self.plan.strategy.value}>"


def _id(given: object) -> str:
    if not isinstance(given, str):
        raise NotFound(
            f"a child of a supervisor is named by its id, not by {brief(given)}; only a pool's goes by handle"
        )
    return given
