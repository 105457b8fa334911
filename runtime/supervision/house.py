"""What all supervisors of a tree share: its gates, its journal, its names, the mailboxes of its children."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import Factory, define, evolve

from .errors import InvalidSpec
from .events import LifecycleKind, Report
from .names import Names
from .nested import Nested
from .outcome import ErrorInfo

if TYPE_CHECKING:
    from ..mailbox import Mailbox
    from .events import Journal
    from .gates import Gates
    from .spec import ChildSpec

__all__ = ["House"]


class Mail:
    """The mailboxes of the children of a tree, each open as long as a specification names it.

    Args:
        journal: is told of messages that nobody took.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._owners: dict[Mailbox[Any], Counter[str]] = {}

    def take_in(self, spec: ChildSpec, path: str) -> None:
        """The specification of the child at `path` has come."""
        for mailbox in spec.mailboxes:
            self._owners.setdefault(mailbox, Counter())[path] += 1

    def let_go(self, spec: ChildSpec, path: str, reason: str) -> None:
        """It is gone for good: close what was its alone."""
        for mailbox in spec.mailboxes:
            owners = self._owners.get(mailbox, Counter())
            owners[path] -= 1
            if owners[path] <= 0:
                del owners[path]
            if not owners and self._owners.pop(mailbox, None) is not None:
                self._close(mailbox, path, reason)

    def close(self, reason: str) -> None:
        """The tree has ended: close all."""
        owned, self._owners = self._owners, {}
        for mailbox, owners in owned.items():
            self._close(mailbox, next(iter(owners)), reason)

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

    def adopt(self, spec: ChildSpec) -> None:
        """The mailboxes of this child, and of those below it, belong to the tree from now on."""
        self.mail.take_in(spec, f"{self.path}/{spec.id}")
        for below in _below(spec):
            self.below(spec.id).adopt(below)

    def forget(self, spec: ChildSpec, reason: str) -> None:
        """It is gone for good: close them."""
        self.mail.let_go(spec, f"{self.path}/{spec.id}", reason)
        for below in _below(spec):
            self.below(spec.id).forget(below, reason)


def _below(spec: ChildSpec) -> tuple[ChildSpec, ...]:
    return spec.body.declaration.own_specs if isinstance(spec.body, Nested) else ()
