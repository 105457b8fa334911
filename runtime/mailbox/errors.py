"""What sending to a mailbox, and asking through it, can come to."""

from __future__ import annotations

__all__ = ["AskTimeout", "Deadlock", "MailboxClosed", "Overloaded", "PeerDied"]


class AskTimeout(Exception):
    """No answer came within the limit. The request may still be worked on; a late answer harms nobody."""


class Deadlock(AskTimeout):
    """Readers of mailboxes wait for each other in a circle, or one for itself.

    Raised at once, by `Mailbox.ask` and `Mailbox.tell` alike, in the task whose wait would close the circle, where it
    is certain: each reader in it sleeps until room or a request of its own, still unread, is taken by the next one, and
    nobody else may take it. The others then go on. Nothing was queued.

    Raised by `Mailbox.ask` when its time is up where there was a circle, but an answer might have come all the same: a
    request had been taken, and another task could have been told to answer it.

    Attributes:
        mailboxes: their names; the reader of each waits for the next one, that of the last for the first. The first is
            that of the task in which this is raised.
    """

    def __init__(self, mailboxes: tuple[str, ...], within: float | None = None) -> None:
        first, *others = mailboxes
        circle = ", whose reader waits for ".join([*others, first] if others else [f"{first} itself"])
        when = "a deadlock" if within is None else f"no answer within {within:g} s, in a deadlock"
        super().__init__(
            f"{when}: the reader of {first} waits for {circle}; "
            "let one of them tell instead of asking, or ask from a task of its own"
        )
        self.mailboxes = mailboxes


class PeerDied(Exception):
    """The actor that had taken the request ended before it answered; its error, if it had one, is the cause."""


class Overloaded(Exception):
    """The mailbox is full, and its policy (`Overflow`) does not let this message wait, or wait any longer.

    Attributes:
        mailbox: the mailbox's name.
        capacity: how many messages it holds.
    """

    def __init__(self, mailbox: str, capacity: int, how: str = "it is full") -> None:
        super().__init__(
            f"mailbox {mailbox} (capacity {capacity}): {how}; try again later, send less, or give it a faster reader "
            "or more `capacity`"
        )
        self.mailbox = mailbox
        self.capacity = capacity


class MailboxClosed(Exception):
    """The mailbox was closed (`Mailbox.close`): nobody will read what is sent there.

    Attributes:
        mailbox: the mailbox's name.
        reason: why it was closed.
    """

    def __init__(self, mailbox: str, reason: str) -> None:
        super().__init__(f"mailbox {mailbox} is closed: {reason}")
        self.mailbox = mailbox
        self.reason = reason
