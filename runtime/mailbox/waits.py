"""Who waits for whom: how deadlocks between the readers of mailboxes are found.

A *wait* leads from a task that sends or asks to a mailbox, and on to the mailbox's reader, the task that borrowed its
receiving end. A circle of waits is a deadlock if each reader in it can do nothing but wait, and if nobody else can do
in its place what is waited for. Two answers are given:

- `certain_circle`, at the beginning of a wait. It believes only in what nothing but a time-out or a cancel can end, so
  it never calls a deadlock what would have gone well. A reader that has tasks in its nurseries may have its messages
  read there; an inbox that was shared may be read anywhere; a request that was taken may be answered by anybody.
- `likely_circle`, when time is up. Nothing came of it, and the circle says why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio
import trio.lowlevel
from trio.lowlevel import Task

if TYPE_CHECKING:
    from .box import Mailbox
    from .reply import Reply

__all__ = ["Wait", "certain_circle", "likely_circle"]

_asleep: dict[Task, Wait] = {}
"""The wait of each task that sleeps in one. It is removed by the task itself, when it runs again.

So a task whose time is up stands here until then: of two whose time is up at once, both are told of the deadlock.
"""


class Wait:
    """One task's wait for room in a mailbox or, if there is a reply, for the answer to its request."""

    __slots__ = ("circle", "for_room", "has_room", "mailbox", "reply")

    def __init__(self, mailbox: Mailbox[Any], reply: Reply[Any] | None = None) -> None:
        self.mailbox = mailbox
        self.reply = reply
        self.has_room = False
        self.for_room: trio.CancelScope | None = None  # bounds the part of it that is for room
        self.circle: tuple[str, ...] | None = None  # `likely_circle` at the time-out

    @property
    def is_over(self) -> bool:
        """Whether what was waited for has come: the task is about to run."""
        return (self.has_room or self.mailbox.is_closed) if self.reply is None else self.reply.is_answered

    async def sleep(self, on_cancel: Callable[[], object]) -> None:
        """Sleep until rescheduled. Cancelled, `on_cancel` is called at once, before anybody else runs."""
        task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            on_cancel()
            self.circle = likely_circle(task, self)
            return trio.lowlevel.Abort.SUCCEEDED

        # Trio forgets this in the moment in which the task is woken or cancelled: what stands there is never stale.
        task.custom_sleep_data = self
        _asleep[task] = self
        try:
            await trio.lowlevel.wait_task_rescheduled(abort)
        finally:
            del _asleep[task]


def certain_circle(mine: Wait) -> tuple[str, ...] | None:
    """The names of the mailboxes in the deadlock that this task's wait would certainly be; None if it would not."""
    if mine.mailbox._inbox is None or mine.mailbox._refuses():
        return None
    return _circle(trio.lowlevel.current_task(), mine, lambda wait: _only_reader(wait, mine), _wait_of)


def likely_circle(me: Task, mine: Wait) -> tuple[str, ...] | None:
    """The names of the mailboxes in the deadlock that this wait, which was in vain, seems to have been."""
    return _circle(me, mine, _likely_reader, _vain_wait_of)


def _circle(
    me: Task, mine: Wait, reader_of: Callable[[Wait], Task | None], wait_of: Callable[[Task], Wait | None]
) -> tuple[str, ...] | None:
    names: list[str] = []
    passed: set[Task] = set()  # others may go in a circle that I am not part of
    wait: Wait | None = mine
    while wait is not None:
        names.append(wait.mailbox.name)
        reader = reader_of(wait)
        if reader is me:
            return (names[-1], *names[:-1])
        if reader is None or reader in passed:
            return None
        passed.add(reader)
        wait = wait_of(reader)
    return None


def _only_reader(wait: Wait, mine: Wait) -> Task | None:
    """The task without which this wait cannot end well, if there certainly is such a one."""
    inbox, reply = wait.mailbox._inbox, wait.reply
    if inbox is None or inbox._is_shared or _has_helpers(inbox._reader) or wait.mailbox.is_closed:
        return None
    if reply is not None:
        if reply._taken or reply._detached:
            return None
        if wait.mailbox._may_drop and wait is not mine:
            return None  # Somebody's message may push out the request: then its asker goes on.
    return inbox._reader


def _likely_reader(wait: Wait) -> Task | None:
    """The task on which this wait depended, as far as one can see."""
    inbox, reply = wait.mailbox._inbox, wait.reply
    if inbox is None or inbox._is_shared or inbox._was_read_by_others:
        return None
    if reply is not None and (reply._detached or (reply._taken and _has_helpers(inbox._reader))):
        return None
    return inbox._reader


def _has_helpers(task: Task) -> bool:
    return any(nursery.child_tasks for nursery in task.child_nurseries)


def _wait_of(task: Task) -> Wait | None:
    found = task.custom_sleep_data
    return found if isinstance(found, Wait) else None


def _vain_wait_of(task: Task) -> Wait | None:
    found = _asleep.get(task)
    return None if found is None or found.is_over else found
