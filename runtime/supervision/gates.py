"""Gates: whether what a child needs is there.

A gate is open or shut. Whoever knows (a link that lost its connection, a health monitor whose probe failed, the user's
own code) shuts and opens it; every child that `requires` it is held while it is shut. No restart budget is used, and
one cause is shown instead of many crashes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

import trio
from attrs import frozen

from .brief import brief
from .caller import check_caller
from .errors import GateCycle, InvalidSpec, UnknownGate
from .events import Journal, LifecycleKind, Report

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Gate", "GateView", "Gates", "circle_in"]


@frozen(kw_only=True)
class GateView:
    """A gate at one moment.

    Attributes:
        name: its name.
        open: whether it is.
        since: wall-clock time of the last change, aware, UTC.
        cause: why it is shut; empty when it is open.
    """

    name: str
    open: bool
    since: datetime
    cause: str


class Gate:
    """One dependency's state. Made by `Gates.add`.

    A gate that requires others counts as shut while one of them is, whatever was said of itself; `root` tells where
    the cause lies, so that one outage has one cause wherever it is shown.

    Attributes:
        name: what children write into `requires`.
        requires: names of the gates that it stands behind.
    """

    def __init__(
        self, name: str, journal: Journal, settle: float, cause: str | None, requires: tuple[str, ...] = ()
    ) -> None:
        self.name = name
        self.requires = requires
        self._own_settle = self._settle = settle
        self._journal = journal
        self._cause = cause or ""
        self._own_open = cause is None
        self._open = self._own_open
        self._root = None if cause is None else (name, self._cause)
        self._since = journal.wall()
        self._changed_at: float | None = None
        self._listeners: list[Callable[[Gate], None]] = []
        self._turned = trio.Event()
        self._needs: list[Gate] = []
        self._needed_by: list[Gate] = []

    @property
    def is_open(self) -> bool:
        """Whether what it stands for is known to be there, and all that it requires."""
        return self._open

    @property
    def was_opened(self) -> bool:
        """Whether it is open itself, whatever it stands behind."""
        return self._own_open

    @property
    def root(self) -> tuple[str, str] | None:
        """The gate where the cause lies, and the cause; None when this gate is open.

        That is the gate that itself was shut, and stands behind no other shut one.
        """
        return self._root

    @property
    def cause(self) -> str:
        """Why it is shut: its own cause, or ``redis: …`` where that is the root; empty when it is open."""
        root = self.root
        if root is None:
            return ""
        return root[1] if root[0] == self.name else f"{root[0]}: {root[1]}"

    @property
    def settle(self) -> float:
        """Seconds that it must have been open before held children are started, so that a flapping dependency starts
        nobody: the longest of its own and of those that it stands behind."""
        return self._settle

    @property
    def settled_at(self) -> float:
        """When it has been open for its settle time, in seconds of trio's clock; for one that never turned: always."""
        return -math.inf if self._changed_at is None or not self._open else self._changed_at + self.settle

    @property
    def since(self) -> datetime:
        """Wall-clock time of the last change."""
        return self._since

    def view(self) -> GateView:
        """A snapshot of it."""
        return GateView(name=self.name, open=self._open, since=self._since, cause=self.cause)

    def shut(self, cause: str) -> None:
        """Say that it is not there, and why. Takes effect at once; never blocks.

        A gate that is shut already stays shut since when it was; only the cause is brought up to date.

        Raises:
            TypeError: `cause` is no text; nothing has changed.
            RuntimeError: called from another thread; nothing has changed.
        """
        check_caller("Gate.shut")
        if not isinstance(cause, str):
            raise TypeError(f"the cause for which gate {self.name!r} is shut must be text, not {brief(cause)}")
        self._cause, self._own_open = cause or "no cause was given", False
        self._look()

    def open(self) -> None:
        """Say that it is there (again). Nothing happens if it was open, or while a gate that it requires is shut.

        Raises:
            RuntimeError: called from another thread; nothing has changed.
        """
        check_caller("Gate.open")
        if not self._own_open:
            self._cause, self._own_open = "", True
            self._look()

    async def wait_open(self) -> None:
        """Block until it is open; returns at once (after a checkpoint) if it is."""
        await trio.lowlevel.checkpoint()
        while not self._open:
            await self._turned.wait()

    async def wait_shut(self) -> None:
        """Block until it is shut; returns at once (after a checkpoint) if it is."""
        await trio.lowlevel.checkpoint()
        while self._open:
            await self._turned.wait()

    def listen(self, listener: Callable[[Gate], None]) -> None:
        """Call `listener(gate)` at each change, also of `root` alone, synchronously. It must not raise or block."""
        self._listeners.append(listener)

    def unlisten(self, listener: Callable[[Gate], None]) -> None:
        """Stop calling `listener`."""
        self._listeners.remove(listener)

    def stand_behind(self, gate: Gate) -> None:
        """From now on count as shut while `gate` is; called when the tree is built, of what `requires` names."""
        self._needs.append(gate)
        gate._needed_by.append(self)
        for each in self._dependents():
            # Before anybody listens, so it is no event.
            each._root = each._cause_now()
            each._open = each._root is None
            each._settle = max([each._own_settle, *(gate._settle for gate in each._needs)])

    def _dependents(self) -> list[Gate]:
        """It, and all that stand behind it, each after those that it stands behind itself."""
        needs: dict[Gate, list[Gate]] = {}
        ahead = [self]
        while ahead:
            gate = ahead.pop()
            if gate not in needs:
                needs[gate] = gate._needs
                ahead.extend(gate._needed_by)
        return [gate for gate in TopologicalSorter(needs).static_order() if gate in needs]

    def _cause_now(self) -> tuple[str, str] | None:
        """What `root` is to be, once those that it stands behind know theirs."""
        behind = next((gate for gate in self._needs if not gate._open), None)
        if behind is not None:
            return behind._root
        return None if self._own_open else (self.name, self._cause)

    def _look(self) -> None:
        """It was told something: turn, and have those turn that stand behind it, where they are not what they were."""
        turned: list[Gate] = []
        for gate in self._dependents():
            root, before = gate._cause_now(), gate._root
            if root == before:
                continue
            gate._root = root
            if root is None or before is None:
                # The first that was shut is the cause, and the last that was opened.
                led = turned if before is None else reversed(turned)
                because = next((each for each in led if each in gate._needs), None)
                gate._turn(root is None, None if because is None else because.name)
                turned.append(gate)
            for listener in tuple(gate._listeners):
                listener(gate)

    def _turn(self, is_open: bool, because: str | None) -> None:
        now = trio.current_time()
        seconds = None if self._changed_at is None else now - self._changed_at
        self._open, self._changed_at, self._since = is_open, now, self._journal.wall()
        self._turned.set()
        self._turned = trio.Event()
        kind = LifecycleKind.GATE_OPENED if is_open else LifecycleKind.GATE_SHUT
        cause = None if because is None else f"gate:{because}"
        report = Report(kind=kind, subject=self.name, reason=self.cause, seconds=seconds, cause=cause)
        self._journal.enter(report, path=self.name)


class Gates(Mapping[str, Gate]):
    """The gates of one tree, by name.

    Args:
        journal: where their changes are entered; the tree that they are given to enters its own beside them.

    Attributes:
        journal: as given, or a fresh one.
        tree: the id of the root of the tree that they belong to; None as long as they belong to none.
    """

    def __init__(self, journal: Journal | None = None) -> None:
        self.journal = journal or Journal()
        self.tree: str | None = None
        self._gates: dict[str, Gate] = {}

    def add(self, name: str, *, settle: float = 0.25, shut: str | None = None, requires: Iterable[str] = ()) -> Gate:
        """Add a gate; open, unless `shut` gives the cause for which it begins shut.

        Args:
            name: a name that no other gate has.
            settle: seconds of open before held children start. Default 0.25: longer than a burst of connection
                errors, and not felt.
            shut: why it is shut at first, for example ``"not probed yet"``.
            requires: names of the gates behind which it stands; they may be added later.

        Raises:
            InvalidSpec: there is a gate of that name, or `settle` is no number of seconds, 0 or more and finite.
            GateCycle: it would stand behind itself.
        """
        if name in self._gates:
            raise InvalidSpec(f"there is a gate named {name!r} already")
        is_number = isinstance(settle, int | float) and not isinstance(settle, bool)
        if not is_number or not 0 <= settle <= sys.float_info.max:
            raise InvalidSpec(f"settle of gate {name!r} must be 0 or more seconds, and finite, not {brief(settle)}")
        if shut is not None and not isinstance(shut, str):
            raise InvalidSpec(f"shut of gate {name!r} must be the cause, as text, or None, not {brief(shut)}")
        if isinstance(requires, str):
            raise InvalidSpec(
                f"requires of gate {name!r} must be a collection of names, not the string {brief(requires)}"
            )
        gate = Gate(name, self.journal, settle, shut, tuple(requires))
        self._refuse_cycle(gate)
        self._gates[name] = gate
        for other in self._gates.values():
            if name in other.requires:
                other.stand_behind(gate)
            if other.name in gate.requires:
                gate.stand_behind(other)
        return gate

    def _refuse_cycle(self, added: Gate) -> None:
        needs = {gate.name: gate.requires for gate in (*self._gates.values(), added)}
        circle = circle_in(needs)
        if circle:
            raise GateCycle(f"gates need each other in a circle: {' needs '.join(circle)}; none of them could open")

    def check_chains(self) -> None:
        """Raise `UnknownGate` for the first name that a gate requires, and nobody has added."""
        for gate in self._gates.values():
            self.check(f"the gate {gate.name!r}", gate.requires)

    def check(self, owner: str, names: Iterable[str]) -> None:
        """Raise `UnknownGate` for the first of `names` that was never added, naming `owner`."""
        for name in names:
            if name not in self._gates:
                raise UnknownGate(f"{owner} requires the gate {name!r}, which does not exist; known: {self._known()}")

    def view(self) -> tuple[GateView, ...]:
        """All gates at one moment, in the order in which they were added."""
        return tuple(gate.view() for gate in self._gates.values())

    def __getitem__(self, name: str) -> Gate:
        try:
            return self._gates[name]
        except KeyError:
            raise UnknownGate(f"there is no gate named {name!r}; known: {self._known()}") from None

    def _known(self) -> str:
        return ", ".join(sorted(self._gates)) or "none (pass them to the Tree: gates=…)"

    def __contains__(self, name: object) -> bool:
        return name in self._gates

    def __iter__(self) -> Iterator[str]:
        return iter(self._gates)

    def __len__(self) -> int:
        return len(self._gates)


def circle_in(needs: Mapping[str, Iterable[str]]) -> list[str]:
    """The first circle in a graph of needs, from a name back to itself; empty when there is none."""
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle[::-1]
    return []
