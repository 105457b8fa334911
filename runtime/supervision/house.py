"""What all supervisors of a tree share: its gates, its journal, its names, the mailboxes of its children."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import Factory, define, evolve

from .names import Names
from .nested import Nested

if TYPE_CHECKING:
    from ..mailbox import Mailbox
    from .events import Journal
    from .gates import Gates
    from .spec import ChildSpec

__all__ = ["House"]


class Mail:
    """The mailboxes of the children of a tree, each open as long as a specification names it."""

    def __init__(self) -> None:
        self._owners: dict[Mailbox[Any], int] = {}

    def take_in(self, spec: ChildSpec) -> None:
        """A specification has come."""
        for mailbox in spec.mailboxes:
            self._owners[mailbox] = self._owners.get(mailbox, 0) + 1

    def let_go(self, spec: ChildSpec, reason: str) -> None:
        """A specification is gone for good: close what was its alone."""
        for mailbox in spec.mailboxes:
            left = self._owners.get(mailbox, 0) - 1
            if left > 0:
                self._owners[mailbox] = left
            elif self._owners.pop(mailbox, None) is not None:
                mailbox.close(reason)

    def close(self, reason: str) -> None:
        """The tree has ended: close all."""
        for mailbox in self._owners:
            mailbox.close(reason)
        self._owners.clear()


@define
class House:
    """The tree as one supervisor sees it.

    Attributes:
        gates: all gates.
        journal: the one stream of lifecycle events.
        path: where this supervisor stands.
        names: who is reached under which name.
        mail: the mailboxes of all children.
    """

    gates: Gates
    journal: Journal
    path: str
    names: Names = Factory(Names)
    mail: Mail = Factory(Mail)

    def below(self, name: str) -> House:
        """The same for a supervisor one floor down."""
        return evolve(self, path=f"{self.path}/{name}")

    def admit(self, spec: ChildSpec) -> None:
        """Check what a child needs of the tree, and let the supervisors in it settle in.

        Raises:
            UnknownGate: it requires a gate that was never added.
            InvalidSpec: it is a supervisor that is in a tree already, elsewhere.
        """
        self.gates.check(f"{self.path}/{spec.id}", spec.requires)
        if isinstance(spec.body, Nested):
            spec.body.declaration.settle_in(self.below(spec.id))

    def adopt(self, spec: ChildSpec) -> None:
        """The mailboxes of this child, and of those below it, belong to the tree from now on."""
        self.mail.take_in(spec)
        for below in _below(spec):
            self.adopt(below)

    def forget(self, spec: ChildSpec, reason: str) -> None:
        """It is gone for good: close them."""
        self.mail.let_go(spec, reason)
        for below in _below(spec):
            self.forget(below, reason)


def _below(spec: ChildSpec) -> tuple[ChildSpec, ...]:
    return spec.body.declaration.own_specs if isinstance(spec.body, Nested) else ()
