"""Gates: whether what a child needs is there.

A gate is open or shut. Whoever knows (a link that lost its connection, a health monitor whose probe failed, the user's
own code) shuts and opens it; every child that `requires` it is held while it is shut. No restart budget is used, and
one cause is shown instead of many crashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

import trio
from attrs import frozen

from .errors import InvalidSpec, UnknownGate
from .events import Journal, LifecycleKind, Report

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Gate", "GateView", "Gates"]


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

    Attributes:
        name: what children write into `requires`.
        settle: seconds that it must have been open before held children are started, so that a flapping dependency
            starts nobody.
    """

    def __init__(self, name: str, journal: Journal, settle: float, cause: str | None) -> None:
        self.name = name
        self.settle = settle
        self._journal = journal
        self._cause = cause or ""
        self._open = cause is None
        self._since = journal.wall()
        self._changed_at: float | None = None
        self._listeners: list[Callable[[Gate], None]] = []
        self._turned = trio.Event()

    @property
    def is_open(self) -> bool:
        """Whether what it stands for is known to be there."""
        return self._open

    @property
    def cause(self) -> str:
        """Why it is shut; empty when it is open."""
        return self._cause

    @property
    def since(self) -> datetime:
        """Wall-clock time of the last change."""
        return self._since

    def view(self) -> GateView:
        """A snapshot of it."""
        return GateView(name=self.name, open=self._open, since=self._since, cause=self._cause)

    def shut(self, cause: str) -> None:
        """Say that it is not there, and why. Takes effect at once; never blocks.

        A gate that is shut already stays shut since when it was; only the cause is brought up to date.
        """
        self._cause = cause
        if self._open:
            self._turn(False)

    def open(self) -> None:
        """Say that it is there (again). Nothing happens if it was open."""
        if not self._open:
            self._cause = ""
            self._turn(True)

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
        """Call `listener(gate)` at each change, synchronously. It must not raise or block."""
        self._listeners.append(listener)

    def unlisten(self, listener: Callable[[Gate], None]) -> None:
        """Stop calling `listener`."""
        self._listeners.remove(listener)

    def _turn(self, is_open: bool) -> None:
        now = trio.current_time()
        seconds = None if self._changed_at is None else now - self._changed_at
        self._open, self._changed_at, self._since = is_open, now, self._journal.wall()
        self._turned.set()
        self._turned = trio.Event()
        kind = LifecycleKind.GATE_OPENED if is_open else LifecycleKind.GATE_SHUT
        self._journal.enter(Report(kind=kind, subject=self.name, reason=self._cause, seconds=seconds), path=self.name)
        for listener in tuple(self._listeners):
            listener(self)


class Gates(Mapping[str, Gate]):
    """The gates of one tree, by name.

    Args:
        journal: where their changes are entered; a `Tree` brings its own to the gates that it is given.
    """

    def __init__(self, journal: Journal | None = None) -> None:
        self.journal = journal or Journal()
        self._gates: dict[str, Gate] = {}

    def add(self, name: str, *, settle: float = 0.25, shut: str | None = None) -> Gate:
        """Add a gate; open, unless `shut` gives the cause for which it begins shut.

        Args:
            name: a name that no other gate has.
            settle: seconds of open before held children start. Default 0.25: longer than a burst of connection
                errors, and not felt.
            shut: why it is shut at first, for example ``"not probed yet"``.

        Raises:
            InvalidSpec: there is a gate of that name, or `settle` is negative.
        """
        if name in self._gates:
            raise InvalidSpec(f"there is a gate named {name!r} already")
        if not settle >= 0:
            raise InvalidSpec(f"settle of gate {name!r} must be 0 or more seconds, not {settle!r}")
        self._gates[name] = gate = Gate(name, self.journal, settle, shut)
        return gate

    def check(self, owner: str, names: Iterable[str]) -> None:
        """Raise `UnknownGate` for the first of `names` that was never added, naming `owner`."""
        for name in names:
            if name not in self._gates:
                known = ", ".join(sorted(self._gates)) or "none"
                raise UnknownGate(f"{owner} requires the gate {name!r}, which does not exist; known: {known}")

    def view(self) -> tuple[GateView, ...]:
        """All gates at one moment, in the order in which they were added."""
        return tuple(gate.view() for gate in self._gates.values())

    def __getitem__(self, name: str) -> Gate:
        try:
            return self._gates[name]
        except KeyError:
            raise UnknownGate(f"there is no gate named {name!r}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._gates

    def __iter__(self) -> Iterator[str]:
        return iter(self._gates)

    def __len__(self) -> int:
        return len(self._gates)
