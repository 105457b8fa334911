"""A supervision tree: its root, its gates, its journal, and the views of them."""

from __future__ import annotations

import enum
import random
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import trio

from .brief import brief
from .caller import check_caller
from .check import Finding, inspect
from .declaration import Declaration
from .errors import Ignore, InvalidSpec, Shutdown
from .events import Journal, LifecycleKind, Report, Subscription
from .gates import Gates
from .handle import ChildHandle
from .house import House
from .messages import Grace, Phase
from .outcome import text_of
from .view import Snapshot, view_of_root

if TYPE_CHECKING:
    from .names import Names
    from .run import Run

__all__ = ["Ending", "Tree"]


class Ending(enum.Enum):
    """How a tree came to its end, when it was no error."""

    STOPPED = "stopped"
    SHUTDOWN = "shutdown"
    IGNORED = "ignored"


class Tree:
    """A supervision tree. It runs once; to run another, build it anew, supervisors and gates included.

    Args:
        root: its root: a `Supervisor` or a `Pool`.
        gates: the gates that its children require. Default: none.
        seed: of the jitter of backoffs; a random one unless a test brings its own.

    Raises:
        UnknownGate: a child, or a gate, requires a gate that is not among `gates`.
        InvalidSpec: the gates, or one of the supervisors, belong to another tree; or `check` finds an error: two
            children with one name, a gate that can never open.
    """

    def __init__(self, root: Declaration, *, gates: Gates | None = None, seed: int | None = None) -> None:
        if not isinstance(root, Declaration):
            raise InvalidSpec(f"the root of a tree is a Supervisor or a Pool, not {brief(root)}")
        if gates is not None and not isinstance(gates, Gates):
            raise InvalidSpec(f"the gates of a tree are a Gates object, not {brief(gates)}")
        self.root = root
        self.gates = gates if gates is not None else Gates()
        self.journal: Journal = self.gates.journal
        self._stopping: str | None = None
        self._is_cut = False
        self._begun = False
        if self.journal.is_closed:
            raise InvalidSpec(f"the gates of {root.id!r} belonged to a tree that has ended; make new ones")
        if self.gates.tree is not None:
            text = f"the gates of {root.id!r} are in a tree already, that of {self.gates.tree!r}"
            raise InvalidSpec(f"{text}; make new ones, a tree has its own")
        self.gates.check_chains()
        chosen = random.SystemRandom().getrandbits(32) if seed is None else seed
        self._house = House(self.gates, self.journal, root.id, chosen)
        root.check_in(self._house)
        wrong = [finding for finding in self.check() if finding.severity == "error"]
        if wrong:
            raise InvalidSpec("; ".join(f"{finding.path}: {finding.text}" for finding in wrong))
        root.settle_in(self._house)  # last, so that who is refused may be given to another tree
        root.hold_own()
        self.gates.tree = root.id

    @property
    def names(self) -> Names:
        """Who is reached under which name; children register themselves, others may."""
        return self._house.names

    def whereis(self, name: str) -> ChildHandle | None:
        """The living incarnation of the child whose specification has this `name`, or None. Never blocks."""
        holder = self._house.names.whereis(name)
        return holder if isinstance(holder, ChildHandle) else None

    def check(self) -> list[Finding]:
        """What is worth knowing of the tree before it starts: limits that are none, budgets that multiply, gates that
        nobody opens. Never blocks, starts nothing; see `Finding`."""
        return inspect(self.root, self.gates)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> Ending:
        """Start the tree and keep it until it is stopped.

        `task_status.started()` is called when the tree is being started, not when it is up: wait for `ready` for that.
        Blocks until all children are gone. Cancelled, it stops them in order, without drains, before it lets the
        cancellation through.

        Returns:
            STOPPED after a stop on order, SHUTDOWN when significant children of the root have ended, IGNORED when the
            root's builder said that there is nothing to run.

        Raises:
            StartFailed: a child failed in its first start.
            RestartLimitExceeded: the root gave up.
            Escalated: a child of the root crashed with what its policy escalates.
            HeldTooLong: a gate held a child of the root beyond its limit.
            RuntimeError: it was run before.
            BaseException: what a child raised that ends the process (`KeyboardInterrupt`, `SystemExit`, …).
        """
        if self._begun:
            raise RuntimeError(f"the tree {self.root.id!r} was run before; a tree runs once, build another one")
        self._begun = True
        task_status.started()
        ending = Ending.STOPPED
        try:
            if self._stopping is None:
                await self.root.serve(on_run=self._hand_over)
            else:
                await trio.lowlevel.checkpoint()  # stopped before it began: nobody is started
        except Shutdown as shutdown:
            ending = Ending.SHUTDOWN
            self._stopping = self._stopping or text_of(shutdown)
        except Ignore as ignored:
            ending = Ending.IGNORED
            self._stopping = self._stopping or f"there is nothing to run: {text_of(ignored)}".removesuffix(": ")
        finally:
            try:
                self._house.mail.close(f"the tree {self.root.id} has ended")  # runs hooks that are not ours
            finally:
                self._report(LifecycleKind.TREE_STOPPED, self._stopping or "")
                self.journal.close()
        return ending

    def _hand_over(self, run: Run) -> None:
        """The root's builder may have ordered the stop, before there was anybody to stop."""
        if self._stopping is not None:
            run.stop(self._stopping, Grace.CUT if self._is_cut else Grace.DRAIN)

    def stop(self, reason: str, *, cut: bool = False) -> None:
        """Order the stop: the children leave in reverse order. Returns at once. `cut` leaves out all drains.

        A second call with `cut` hastens a stop that is under way: drains end, and who is leaving sees `Child.cut`; the
        order is kept. Before `run` it makes `run` return without starting anybody; after the end nothing happens.

        Raises:
            RuntimeError: called from another thread while the tree runs; nothing has changed.
        """
        if self._begun:
            check_caller("Tree.stop")
        if self.journal.is_closed:
            return
        if self._stopping is None:
            self._stopping = reason
            self._report(LifecycleKind.TREE_STOPPING, f"{reason}, without grace" if cut else reason)
        elif cut and not self._is_cut:
            self._report(LifecycleKind.TREE_STOPPING, f"{reason} again: without grace")
        self._is_cut = self._is_cut or cut
        if self.root.run is not None:
            self.root.run.stop(reason, Grace.CUT if cut else Grace.DRAIN)

    def subscribe(self, buffer: int = 10_000) -> AbstractContextManager[Subscription]:
        """``with tree.subscribe() as events: async for event in events: …``; see `Journal.subscribe`.

        The iteration ends after ``TREE_STOPPED``, the last event of every tree.
        """
        return self.journal.subscribe(buffer)

    async def ready(self) -> bool:
        """Block until all children are up, or held. False if the tree ends without; why, `run` raises."""
        with self.subscribe() as events:
            if self.root.run is not None and self.root.run.core.phase is Phase.RUNNING:
                return True
            async for event in events:
                if event.kind is LifecycleKind.TREE_READY:
                    return True
        return False

    def snapshot(self) -> Snapshot:
        """The tree now. Never blocks; may be called at any time."""
        return Snapshot(
            time=self.journal.wall(),
            sequence=self.journal.sequence,
            root=view_of_root(self.root),
            gates=self.gates.view(),
        )

    def _report(self, kind: LifecycleKind, reason: str) -> None:
        self.journal.enter(Report(kind=kind, subject=self.root.id, reason=reason), self.root.id, self.root.id)
