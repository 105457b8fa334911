"""What all supervisors of a tree share: its gates, its journal, its names, the mailboxes of its children."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import Factory, define, evolve

from ..mailbox import Mailbox
from .errors import InvalidSpec, SupervisionError
from .events import LifecycleKind, Report
from .names import Names
from .nested import Nested
from .outcome import ErrorInfo

if TYPE_CHECKING:
    from .declaration import Declaration
    from .events import Journal
    from .gates import Gates
    from .spec import ChildSpec

    _Thing: TypeAlias = Mailbox[Any] | Declaration

__all__ = ["House"]

_Claim = tuple[object, str]
"""Who has something, and for the child at which path."""


class Mail:
    """What the children of a tree have: their mailboxes, each open as long as somebody has it.

    Three have the mailboxes of a specification, each in its own name: a supervisor that may start a child from it later
    (its plan, a pool's template); the life of a supervisor, for a child that is there, up or down; and an incarnation,
    which may outlive the specification it was started from. A supervisor among the children is had in the same way,
    and has what is its own as long as it is had itself.

    Args:
        journal: is told of messages that nobody took.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._things: dict[_Claim, tuple[_Thing, ...]] = {}
        self._claims: dict[_Thing, dict[_Claim, None]] = {}

    def has(self, thing: _Thing) -> bool:
        """Whether somebody has it."""
        return thing in self._claims

    def assign(self, owner: object, path: str, things: Iterable[_Thing], reason: str) -> None:
        """Have `owner` have these for the child at `path`, and nothing else: close what nobody has any more."""
        claim, now = (owner, path), tuple(things)
        before = self._things.pop(claim, ())
        if now:
            self._things[claim] = now
        for thing in now:
            is_new = thing not in self._claims
            self._claims.setdefault(thing, {})[claim] = None
            if is_new and not isinstance(thing, Mailbox):
                thing.hold_own()
        for thing in before:
            if thing not in now:
                self._drop(thing, claim, reason)

    def _drop(self, thing: _Thing, claim: _Claim, reason: str) -> None:
        claims = self._claims.get(thing, {})
        claims.pop(claim, None)
        if claims or self._claims.pop(thing, None) is None:
            return
        if isinstance(thing, Mailbox):
            self._close(thing, claim[1], reason)
        else:
            thing.let_go_own(reason)

    def close(self, reason: str) -> None:
        """The tree has ended: close all, also when a hook raises what must not be held back."""
        had, self._claims, self._things = self._claims, {}, {}
        with ExitStack() as closing:
            for thing, claims in reversed(had.items()):
                if isinstance(thing, Mailbox):
                    closing.callback(self._close, thing, next(iter(claims))[1], reason)

    def _close(self, mailbox: Mailbox[Any], path: str, reason: str) -> None:
        before = mailbox.statistics().undelivered
        error = mailbox.close(reason)
        lost = mailbox.statistics().undelivered - before
        if lost:
            above, _, name = path.rpartition("/")
            told = f"{lost} in the mailbox {mailbox.name}: {reason}"
            info = None if error is None else ErrorInfo.of(error)
            report = Report(kind=LifecycleKind.MAIL_LOST, subject=name, reason=told, error=info, cause=f"child:{name}")
            self._journal.enter(report, path, above)


@define
class House:
    """The tree as one supervisor sees it.

    Attributes:
        gates: all gates.
        journal: the one stream of lifecycle events.
        path: where this supervisor stands.
        seed: of all jitter in the tree; each life of each supervisor draws from a row of its own.
        names: who is reached under which name.
        mail: the mailboxes of all children.
    """

    gates: Gates
    journal: Journal
    path: str
    seed: int
    names: Names = Factory(Names)
    mail: Mail = Factory(lambda house: Mail(house.journal), takes_self=True)

    def below(self, name: str) -> House:
        """The same for a supervisor one floor down."""
        return evolve(self, path=f"{self.path}/{name}")

    def chance(self, life: int) -> Callable[[], float]:
        """Random numbers in [0, 1) for one life of this supervisor; the same seed, path and life give the same row."""
        return random.Random(f"{self.seed}/{self.path}#{life}").random  # noqa: S311 - jitter, no secret

    def admit(self, spec: ChildSpec) -> None:
        """Check what a child needs of the tree, and let the supervisors in it settle in.

        Raises:
            UnknownGate: it requires a gate that was never added.
            InvalidSpec: it is a supervisor that is in a tree already, elsewhere; or one of its mailboxes is closed.
        """
        self._check_own(spec)
        if isinstance(spec.body, Nested):
            spec.body.declaration.settle_in(self.below(spec.id))

    def book(self, specs: Iterable[ChildSpec]) -> None:
        """Admit all of these or, if one cannot be, none; nobody else gets the supervisors among them until `unbook`.

        Raises:
            UnknownGate, InvalidSpec: as `admit`.
        """
        booked: list[ChildSpec] = []
        try:
            for spec in specs:
                self.admit(spec)
                booked.append(spec)
                if isinstance(spec.body, Nested):
                    spec.body.declaration.bookings += 1
        except SupervisionError:
            self.unbook(booked)
            raise

    def unbook(self, specs: Iterable[ChildSpec]) -> None:
        """It is settled whether they were taken: the supervisors that were not may go elsewhere."""
        for spec in specs:
            if isinstance(spec.body, Nested):
                spec.body.declaration.bookings -= 1
                spec.body.declaration.leave()

    def check(self, spec: ChildSpec) -> None:
        """Raise what `admit` would raise; nobody settles in."""
        self._check_own(spec)
        if isinstance(spec.body, Nested):
            spec.body.declaration.check_in(self.below(spec.id))

    def _check_own(self, spec: ChildSpec) -> None:
        path = f"{self.path}/{spec.id}"
        self.gates.check(path, spec.requires)
        for mailbox in spec.mailboxes:
            if mailbox.is_closed:
                text = f"the mailbox {mailbox.name!r} of {path} is closed: it went with the child that had it"
                raise InvalidSpec(f"{text}; give the new one a new mailbox")

    def hold(self, owner: object, spec: ChildSpec) -> None:
        """Have `owner` have what belongs to this child, and to those below it; no more what it had for it before."""
        path = f"{self.path}/{spec.id}"
        things: tuple[_Thing, ...] = spec.mailboxes
        if isinstance(spec.body, Nested):
            spec.body.declaration.sit(self.below(spec.id))
            things = (*things, spec.body.declaration)
        self.mail.assign(owner, path, things, f"{path} was replaced")

    def let_go(self, owner: object, name: str, reason: str) -> None:
        """Have `owner` have nothing of the child of that name."""
        self.mail.assign(owner, f"{self.path}/{name}", (), reason)
