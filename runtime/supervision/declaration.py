"""What a supervisor is before it runs, and what it is to the one above it: a child like any other."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .brief import brief
from .errors import InvalidSpec, NotRunning
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
    """

    is_pool = False
    max_children: int | None = None

    def __init__(self, id: str) -> None:  # noqa: A002 - the field's own name
        if not isinstance(id, str) or not id or "/" in id or id.strip() != id:
            what = "the id of a supervisor must be a non-empty string without '/' or outer blanks"
            raise InvalidSpec(f"{what}, not {brief(id)}")
        self.id = id
        self.run: Run | None = None
        self._house: House | None = None

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

    def take_over(self, plan: Plan) -> None:
        """A call has brought another plan."""
        raise NotImplementedError

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
        for spec in self.own_specs:
            house.admit(spec)

    def check_in(self, house: House) -> None:
        """Raise what `settle_in` would raise, and bind nobody."""
        self._check_place(house)
        for spec in self.own_specs:
            house.check(spec)

    def _check_place(self, house: House) -> None:
        if self._house is not None and (self._house.journal is not house.journal or self._house.path != house.path):
            raise InvalidSpec(f"supervisor {self.id!r} is in a tree already, at {self._house.path}; build another one")

    async def serve(self, child: Child | None = None) -> None:
        """Start the children and keep them, until the stop; see `Tree.run` and `Run.serve`."""
        if self._house is None:
            raise RuntimeError(f"supervisor {self.id!r} belongs to no tree; build a Tree around its root")
        self.run = Run(self.make_plan(), self._house, child, self.is_pool, self.max_children, self.take_over)
        await self.run.serve()

    def _live(self) -> Run:
        """The life that takes calls."""
        if self.run is None or self.run.has_ended:
            when = "yet" if self.run is None else "any more"
            raise NotRunning(f"the supervisor {self.id!r} does not run {when}: it takes no calls")
        return self.run
