"""The boundary of a child: one incarnation's task, its cancel scope, and what comes out of it.

Every child runs in a shielded cancel scope of its own, for a plain nursery stops its tasks in random order. Nothing
that a body raises gets past this point, and nothing is lost.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import trio
from attrs import define, evolve

from .brief import brief
from .errors import InvalidSpec, SupervisionError
from .handle import ChildHandle
from .outcome import ErrorInfo, Outcome, outcome_of

if TYPE_CHECKING:
    from .child import Child
    from .declaration import Declaration
    from .spec import Body

__all__ = ["Incarnation", "judged", "sound"]


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
                    # Not by the error's own word for it, which its author may have changed.
                    raised = BaseException.with_traceback(error, _beyond(sys.exc_info()[2]))
        except BaseException as misnested:  # noqa: BLE001 - trio's word on a cancel scope that the body left open
            misnested.__context__ = raised
            raised = misnested
        outcome = judged(raised)
        self.handle._end(outcome.info)
        report(evolve(outcome, unasked=not self.child.draining.is_set()))
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
        since = 0.0 if self.cancelled_at is None else trio.current_time() - self.cancelled_at
        return f"still running {since:g} s after the cancel (limit {limit or 0:g} s); waiting at {where}"

    def _frames(self) -> Iterator[str]:
        if self.task is None:
            return
        for frame, line in self.task.iter_await_frames():
            yield f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{line})"


def judged(raised: BaseException | None) -> Outcome:
    """What came out of a body, with its error taken down.

    An error whose own code fails while it is looked at (its text, its class, the errors that it holds) is replaced by
    one that names its type: nothing of its author's making may go wrong again, further on.
    """
    outcome = Outcome(raised)
    try:
        outcome = outcome_of(raised)
        if outcome.error is None:
            return outcome
        isinstance(outcome.error, SupervisionError)  # as the supervisor will ask
        return evolve(outcome, info=ErrorInfo.of(outcome.error))
    except KeyboardInterrupt as interrupt:
        return Outcome(interrupt, fatal=True, info=ErrorInfo.of(interrupt))
    except BaseException as failed:  # noqa: BLE001 - as above: whatever it was
        substitute = _substitute(outcome.error, failed)
        return Outcome(substitute, fatal=outcome.fatal, info=ErrorInfo.of(substitute))


def sound(error: Exception) -> Exception:
    """The same for an error that a body has passed over: itself, or its substitute."""
    try:
        ErrorInfo.of(error)
    except KeyboardInterrupt:
        raise
    except BaseException as failed:  # noqa: BLE001 - as above
        return _substitute(error, failed)
    return error


def _substitute(error: BaseException | None, failed: BaseException) -> Exception:
    # Their classes by Python's own word, whatever a metaclass says.
    what, why = type.__repr__(type(error)), type.__repr__(type(failed))
    return RuntimeError(f"it raised an error of {what}, which cannot be looked at ({why})")


def _beyond(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames of this module, which everybody has; all of it if nothing else is there."""
    further = trace
    while further is not None and further.tb_frame.f_code.co_filename == __file__:
        further = further.tb_next
    return further or trace
