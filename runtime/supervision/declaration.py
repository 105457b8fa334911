"""What a supervisor is before it runs, and what it is to the one above it: a child like any other."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from .brief import brief
from .errors import InvalidSpec, NotRunning, SupervisionError
from .nested import Nested
from .run import Run
from .spec import Backoff, ChildSpec, Cut, Kind, Restart, Rule

if TYPE_CHECKING:
    from .child import Child
    from .house import House
    from .plan import Plan

__all__ = ["Declaration"]


class Declaration(ABC):
    """What `Supervisor` and `Pool` have in common.

    Attributes:
        id: its name among its siblings, or the root's.
        run: its present or last life; None before the first.
        bookings: how many calls are on their way that bring it; see `House.book`.
    """

    is_pool = False
    max_children: int | None = None

    def __init__(self, id: str) -> None:  # noqa: A002 - the field's own name
        if not isinstance(id, str) or not id or "/" in id or id.strip() != id:
            what = "the id of a supervisor must be a non-empty string without '/' or outer blanks"
            raise InvalidSpec(f"{what}, not {brief(id)}")
        self.id = id
        self.run: Run | None = None
        self.bookings = 0
        self._house: House | None = None
        self._held: tuple[str, ...] = ()

    @property
    @abstractmethod
    def own_specs(self) -> tuple[ChildSpec, ...]:
        """The specifications that it brings: its children's, or its template."""

    @property
    @abstractmethod
    def plan(self) -> Plan:
        """Its children and flags, as far as they are known."""

    @abstractmethod
    def make_plan(self) -> Plan:
        """What the next life begins with."""

    @abstractmethod
    def take_over(self, plan: Plan, template: ChildSpec | None = None) -> None:
        """A call has brought another plan; and, to a pool, perhaps another template."""

    @property
    def lasting_specs(self) -> tuple[ChildSpec, ...]:
        """The specifications that children may yet be started from, whoever of them is there now."""
        return self.own_specs

    def spec(
        self,
        *,
        restart: Restart = Restart.PERMANENT,
        requires: Iterable[str] = (),
        backoff: Backoff | None = None,
        significant: bool = False,
        name: str | None = None,
        policy: Iterable[Rule] = (),
        stop_within: float | Cut = math.inf,
    ) -> ChildSpec:
        """Its specification as a child of another supervisor.

        Its start has no limit but those of its own children; its stop likewise, unless `stop_within` gives one (OTP:
        ``infinity``).
        """
        return ChildSpec(
            id=self.id,
            body=Nested(self),
            kind=Kind.SUPERVISOR,
            restart=restart,
            significant=significant,
            name=name,
            requires=tuple(requires),
            start_within=math.inf,
            drain_within=math.inf,
            stop_within=stop_within,
            backoff=backoff or Backoff(),
            policy=tuple(policy),
        )

    def settle_in(self, house: House) -> None:
        """Bind it, and the supervisors below it, to a tree's gates and journal, at its one place in it.

        Raises:
            InvalidSpec: it belongs to a tree already, or stands in this one twice.
            UnknownGate: a child requires a gate that was never added.
        """
        self._check_place(house)
        self._house = house
        try:
            for spec in self.own_specs:
                house.admit(spec)
        except SupervisionError:
            self.leave()
            raise

    def sit(self, house: House) -> None:
        """Be bound to the place where it has been admitted."""
        if self._house is None:
            self._house = house

    def leave(self) -> None:
        """Be free for another place, with those below it, unless it is had, or may be soon."""
        house = self._house
        if house is None or self.bookings or house.mail.has(self):
            return
        self._house = None
        for spec in self.own_specs:
            if isinstance(spec.body, Nested) and spec.body.declaration._is_at(house.below(spec.id)):
                spec.body.declaration.leave()

    def hold_own(self) -> None:
        """Have the mailboxes of those that it may yet start, and no others."""
        assert self._house is not None  # noqa: S101 - bound before it is had
        specs = self.lasting_specs
        before, self._held = self._held, tuple(spec.id for spec in specs)
        for spec in specs:
            self._house.hold(self, spec)
        for name in set(before).difference(self._held):
            self._house.let_go(self, name, f"{self._house.path}/{name} is gone")

    def let_go_own(self, reason: str) -> None:
        """Have nothing any more."""
        assert self._house is not None  # noqa: S101 - as above
        before, self._held = self._held, ()
        for name in before:
            self._house.let_go(self, name, reason)

    def check_in(self, house: House) -> None:
        """Raise what `settle_in` would raise, and bind nobody."""
        self._check_place(house)
        for spec in self.own_specs:
            house.check(spec)

    def _check_place(self, house: House) -> None:
        if self._house is not None and not self._is_at(house):
            raise InvalidSpec(f"supervisor {self.id!r} is in a tree already, at {self._house.path}; build another one")

    def _is_at(self, house: House) -> bool:
        return self._house is not None and self._house.journal is house.journal and self._house.path == house.path

    async def serve(self, child: Child | None = None, on_run: Callable[[Run], None] = lambda run: None) -> None:
        """Start the children and keep them, until the stop; see `Tree.run` and `Run.serve`.

        `on_run` is given the new life before it starts anybody.
        """
        if self._house is None:
            raise RuntimeError(f"supervisor {self.id!r} belongs to no tree; build a Tree around its root")
        self.run = Run(self.make_plan(), self._house, child, self.is_pool, self.max_children, self.take_over)
        on_run(self.run)
        self.run.hold_children()
        self.hold_own()  # the root's own life is its last: it has what its children have
        await self.run.serve()

    def _live(self) -> Run:
        """The life that takes calls."""
        if self.run is None or self.run.has_ended:
            when = "yet" if self.run is None else "any more"
            raise NotRunning(f"the supervisor {self.id!r} does not run {when}: it takes no calls")
        return self.run
