"""The boundary of a child: one incarnation's task, its cancel scope, and what comes out of it.

Every child runs in a shielded cancel scope of its own, for a plain nursery stops its tasks in random order. Nothing
that a body raises gets past this point, and nothing is lost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import trio
from attrs import define, evolve

from .brief import brief
from .errors import InvalidSpec
from .handle import ChildHandle
from .outcome import ErrorInfo, Outcome, outcome_of

if TYPE_CHECKING:
    from .child import Child
    from .declaration import Declaration
    from .spec import Body

__all__ = ["Incarnation"]


@define(eq=False)
class Incarnation:
    """One incarnation of a child.

    Attributes:
        child: its own view of itself.
        handle: what others hold of it.
        body: what it runs; given away at its first line.
        args: what the body gets beside the child; given away likewise.
        nested: the supervisor that it is, if it is one.
        scope: its cancel scope.
        task: its task, once it runs.
        cancelled_at: when its cancel went out, in seconds of trio's clock.
    """

    child: Child
    handle: ChildHandle
    body: Body | None
    args: tuple[Any, ...]
    scope: trio.CancelScope
    nested: Declaration | None = None
    task: trio.lowlevel.Task | None = None
    cancelled_at: float | None = None

    def order_off(self, reason: str, *, cut: bool) -> None:
        """Cancel it; with `cut`, tell it to hurry."""
        self.child.draining.set()
        if cut:
            self.child.cut.set()
        if self.cancelled_at is None:
            self.cancelled_at = trio.current_time()
        self.scope.cancel(reason=reason)

    async def attend(self, report: Callable[[Outcome], None]) -> None:
        """Run the body to its end, whatever that is, and `report` it."""
        self.task = trio.lowlevel.current_task()
        raised: BaseException | None = None
        try:
            with self.scope:
                try:
                    await self._begin()
                except BaseException as error:  # noqa: BLE001 - this is the boundary: it judges what came out
                    raised = error.with_traceback(_beyond(error.__traceback__))
        except BaseException as misnested:  # noqa: BLE001 - trio's word on a cancel scope that the body left open
            misnested.__context__ = raised
            raised = misnested
        outcome = outcome_of(raised)
        info = None if outcome.error is None else ErrorInfo.of(outcome.error)
        self.handle._end(info)
        report(evolve(outcome, unasked=not self.child.draining.is_set(), info=info))
        del raised, outcome  # the traceback holds this frame: no cycle, whose garbage a storm would pile up

    async def _begin(self) -> None:
        # What it was given is the body's alone from here on: no frame of ours keeps what it lets go of.
        body, args, self.body, self.args = self.body, self.args, None, ()
        assert body is not None  # noqa: S101 - one incarnation, one run
        begun = body(self.child, *args)
        if not isinstance(begun, Awaitable):
            raise InvalidSpec(f"the body of {self.child.path} is no async function: it returned {brief(begun)}")
        del body, args
        await begun

    def stuck_report(self, limit: float | None) -> str:
        """That it does not leave: its limit, since when, and at which lines of code it waits."""
        where = " < ".join(reversed(list(self._frames()))) or "unknown"
        since = trio.current_time() - (self.cancelled_at or trio.current_time())
        return f"still running {since:g} s after the cancel (limit {limit or 0:g} s); waiting at {where}"

    def _frames(self) -> Iterator[str]:
        if self.task is None:
            return
        for frame, line in self.task.iter_await_frames():
            yield f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{line})"


def _beyond(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames of this module, which everybody has; all of it if nothing else is there."""
    further = trace
    while further is not None and further.tb_frame.f_code.co_filename == __file__:
        further = further.tb_next
    return further or trace
