"""What a running child sees of its supervisor: one handle for each incarnation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from .caller import check_caller
from .errors import Ignore, Shutdown
from .outcome import outcome_of
from .policy import directive_of, rule_for
from .spec import Directive

if TYPE_CHECKING:
    from .spec import Rule

__all__ = ["Child"]


class Child:
    """The handle of one incarnation of a child; the first argument of its body.

    Attributes:
        path: its place in the tree, for example ``penstock/delivery/listener``.
        incarnation: 1 for the first start, 2 for the second, …
        draining: set when the child is to finish what it has; the cancel comes `ChildSpec.drain_within` seconds later.
            A child without a drain limit is cancelled at once, and this is set too.
        cut: set when it is to leave without any grace (``tree.stop(reason, cut=True)``, a second SIGTERM, a
            `ChildSpec.stop_within` of `CUT`): for clean-ups that are shielded and bounded, so that they can hurry. It
            has been cancelled by then.
    """

    def __init__(
        self,
        path: str,
        incarnation: int,
        on_ready: Callable[[], None],
        on_stuck: Callable[[], None] = lambda: None,
        on_resume: Callable[[Exception], None] = lambda error: None,
        policy: tuple[Rule, ...] = (),
    ) -> None:
        self.path = path
        self.incarnation = incarnation
        self.draining = trio.Event()
        self.cut = trio.Event()
        self.ready = False
        self.info: object = None
        self.text = ""
        self.last_progress = trio.current_time()
        self._on_ready = on_ready
        self._on_stuck = on_stuck
        self._on_resume = on_resume
        self._policy = policy

    @property
    def id(self) -> str:
        """Its name among its siblings."""
        return self.path.rpartition("/")[2]

    def started(self, value: object = None) -> None:
        """Say that it is ready for use; the next sibling may start. `value` is kept as `info`.

        Never blocks. Fits `trio.TaskStatus`, so that it can be handed to trio's own servers as ``task_status``.

        Raises:
            RuntimeError: it was called before, or from another thread; nothing has changed.
        """
        check_caller("Child.started")
        if self.ready:
            raise RuntimeError(f"{self.path} called started() twice")
        self.ready, self.info = True, value
        self.progress()
        self._on_ready()

    def progress(self) -> None:
        """Say that it gets on with its work; needed by those that promise `ChildSpec.progress_within`."""
        self.last_progress = trio.current_time()

    def note(self, text: str) -> None:
        """Show a short text beside it in the tree, for example ``pid 4711``."""
        self.text = text

    @contextmanager
    def resuming(self) -> Iterator[None]:
        """Around the work on one message: an error whose policy says RESUME costs this message, and nothing else.

        It is reported (``CHILD_RESUMED``), and the body goes on behind the block with its state as it is; any other
        error passes. Without a policy nothing is swallowed. Never blocks.
        """
        try:
            yield
        except (Shutdown, Ignore):
            raise  # a word to the supervisor, and no error
        except Exception as error:
            fatal = outcome_of(error).fatal  # a MemoryError is an Exception, and nobody's to swallow
            if fatal or directive_of(rule_for(error, self._policy)) is not Directive.RESUME:
                raise
            self._on_resume(error)

    def __repr__(self) -> str:
        return f"<Child {self.path} #{self.incarnation}>"
