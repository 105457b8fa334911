"""The slot for one answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio
import trio.lowlevel

if TYPE_CHECKING:
    from .box import Mailbox
    from .inbox import Inbox
    from .waits import Wait

__all__ = ["Reply"]

R = TypeVar("R")


class Reply(Generic[R]):
    """The one-shot slot for the answer to one request; made by `Mailbox.ask`.

    Not a channel: setting one whose asker has left must not fail (trio's channels raise in the answerer then). The
    first answer counts; a later one, or one whose asker has left, is dropped and counted (`Mailbox.statistics`).

    From the moment in which its message is taken the reader owes the answer: should the reader's `Mailbox.receive`
    block end before, the asker gets `PeerDied`. `detach` ends that.
    """

    __slots__ = (
        "_asker",
        "_broken",
        "_detached",
        "_done",
        "_error",
        "_mailbox",
        "_owing",
        "_taken",
        "_value",
        "_waiting",
    )

    def __init__(self, mailbox: Mailbox[Any]) -> None:
        self._mailbox = mailbox
        self._asker: trio.lowlevel.Task | None = None  # while it sleeps
        self._owing: Inbox[Any] | None = None  # through which its message was taken, as long as that must answer
        self._taken = False
        self._detached = False
        self._waiting = True
        self._done = False
        self._broken = False
        self._value: R | None = None
        self._error: Exception | None = None

    @property
    def is_answered(self) -> bool:
        """Whether an answer was set."""
        return self._done

    @property
    def is_abandoned(self) -> bool:
        """Whether the asker has left; work for it may be spared."""
        return not self._waiting

    def set(self, value: R) -> None:
        """Answer. Never blocks, never raises."""
        self._answer(value, None)

    def fail(self, error: Exception) -> None:
        """Answer with an error, which is raised where the answer is awaited. Never blocks, never raises."""
        self._answer(None, error)

    def detach(self) -> Reply[R]:
        """Take the answer off the reader: from now on its end is no news to the asker, who waits until the time-out.

        For a reader that hands the reply to somebody who outlives it, or to a task that is not its own. Returns the
        reply itself: ``worker.offer(Job(request.reply.detach()))``. Never blocks, never raises.
        """
        self._detached = True
        self._disown()
        return self

    def _answer(self, value: R | None, error: Exception | None) -> None:
        if self._done:
            return
        self._done = True
        if not self._waiting:
            self._mailbox._late += 1
            return
        self._value, self._error = value, error
        if self._asker is not None:
            trio.lowlevel.reschedule(self._asker)
            self._asker = None

    def _break(self, error: Exception) -> None:
        """There will be no answer: bad news for whoever still waits, and no late answer."""
        if self._waiting and not self._done:
            self._broken = True
            self._answer(None, error)

    def _owed_by(self, inbox: Inbox[Any]) -> None:
        self._taken = True
        if self._waiting and not self._done and not self._detached:
            self._owing = inbox
            inbox._owe(self)

    def _disown(self) -> None:
        if self._owing is not None:
            self._owing._forgive(self)
            self._owing = None

    async def _wait(self, wait: Wait) -> R:
        if not self._done:
            await self._sleep(wait, lambda: None)
        return self._answered()

    @trio.lowlevel.enable_ki_protection
    async def _sleep(self, wait: Wait, on_cancel: Callable[[], object]) -> None:
        def leave() -> None:
            self._asker = None
            on_cancel()

        self._asker = trio.lowlevel.current_task()
        await wait.sleep(leave)

    def _answered(self) -> R:
        self._waiting = False
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
            return self._value  # type: ignore[return-value]
        finally:
            del error  # its traceback holds this frame: no cycle

    def _leave(self) -> None:
        """The asker goes; if an answer came that it does not take along, that was late."""
        if self._waiting:
            self._waiting = False
            self._value = self._error = None
            self._mailbox._late += self._done and not self._broken
        self._disown()
