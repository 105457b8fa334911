"""The receiving end of a mailbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio
import trio.lowlevel

from .errors import PeerDied

if TYPE_CHECKING:
    from .box import Item, Mailbox
    from .reply import Reply

__all__ = ["Inbox"]

T = TypeVar("T")


class Inbox(Generic[T]):
    """The receiving end of a mailbox, borrowed by its actor; an async iterator over the messages.

    It is for the task that borrowed it and for those that this one starts in its nurseries, down to the leaves. Only so
    can it be certain that nobody else will read, and a deadlock be told from a wait (`Deadlock`). Whoever lets other
    tasks read hands them `share`.

    The iteration ends when the mailbox is closed.
    """

    def __init__(self, mailbox: Mailbox[T], channel: trio.MemoryReceiveChannel[Item[T]]) -> None:
        self._mailbox = mailbox
        self._channel = channel
        self._reader = trio.lowlevel.current_task()
        self._is_shared = False
        self._was_read_by_others = False
        self._has_ended = False
        self._owed: dict[Reply[Any], None] = {}  # a set with an order, for repeatable runs

    def share(self) -> Inbox[T]:
        """Let tasks read that are not the borrower's own. Returns itself: ``nursery.start_soon(work, inbox.share())``.

        From now on a deadlock in which this mailbox is involved shows as a time-out only.
        """
        self._is_shared = True
        return self

    def __aiter__(self) -> Inbox[T]:
        return self

    async def __anext__(self) -> T:
        try:
            return await self.next()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    @trio.lowlevel.enable_ki_protection
    async def next(self) -> T:
        """The next message; blocks until there is one. Cancelled, it takes none.

        Raises:
            trio.EndOfChannel: the mailbox was closed.
            trio.ClosedResourceError: the block that borrowed it has ended, also while waiting here.
            RuntimeError: the task is a stranger (see `share`).
        """
        self._check()
        await trio.lowlevel.checkpoint_if_cancelled()
        mailbox = self._mailbox
        if mailbox._stamps:
            try:
                item = mailbox._pull(self._channel)
            except trio.WouldBlock:
                pass  # what is stamped was handed to others, who have not run yet
            else:
                message = self._accept(item)
                # Counted already: between the taking and the counting nobody else may run.
                await trio.lowlevel.cancel_shielded_checkpoint()
                return message
        item = await self._channel.receive()
        mailbox._stamps.popleft()
        return self._accept(item)

    @trio.lowlevel.enable_ki_protection
    def next_nowait(self) -> T:
        """The next message if one is queued; raises `trio.WouldBlock` otherwise, and what `next` raises."""
        self._check()
        return self._accept(self._mailbox._pull(self._channel))

    def _check(self) -> None:
        if self._has_ended:
            raise trio.ClosedResourceError(f"this inbox of {self._mailbox.name} was given back")
        task = trio.lowlevel.current_task()
        if task is self._reader:
            return
        if not self._is_shared and not _descends(task, self._reader):
            raise RuntimeError(
                f"task {task.name} is in no nursery of {self._reader.name}, which borrowed the inbox of "
                f"{self._mailbox.name}; to let it read, hand it `inbox.share()`"
            )
        self._was_read_by_others = True

    def _accept(self, item: Item[T]) -> T:
        told, message, reply = item
        mailbox = self._mailbox
        mailbox._received += 1
        mailbox._waits.append(trio.current_time() - told)
        if reply is not None:
            reply._owed_by(self)
        return message

    def _owe(self, reply: Reply[Any]) -> None:
        if self._has_ended:  # it was handed to a helper of the reader, in the last moment
            reply._break(self._death(None))
        else:
            self._owed[reply] = None

    def _forgive(self, reply: Reply[Any]) -> None:
        self._owed.pop(reply, None)

    def _end(self, cause: BaseException | None) -> None:
        self._has_ended = True
        self._channel.close()
        owed, self._owed = self._owed, {}
        for reply in owed:
            reply._break(self._death(cause))

    def _death(self, cause: BaseException | None) -> PeerDied:
        died = PeerDied(f"the reader of {self._mailbox.name} ended before it answered")
        if cause is not None and not isinstance(cause, trio.Cancelled):
            died.__cause__ = cause
        return died


def _descends(task: trio.lowlevel.Task, ancestor: trio.lowlevel.Task) -> bool:
    nursery = task.parent_nursery
    while nursery is not None:
        if nursery.parent_task is ancestor:
            return True
        nursery = nursery.parent_task.parent_nursery
    return False
