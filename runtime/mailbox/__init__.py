"""Mailboxes: bounded, typed, and owned by nobody who can crash.

The actor that reads a mailbox may die and be started again; what is queued stays. So a mailbox belongs to whoever
builds the tree, and actors only borrow its receiving end (`Mailbox.receive`).

Three ways to send, each with its promise: `Mailbox.tell` queues, or says that it could not; `Mailbox.offer` never waits
and counts what did not fit; `Mailbox.ask` waits for the answer, and for the bad news. What a full mailbox does is its
`Overflow`. When its owner is gone for good, `Mailbox.close` hands over what is left.
"""

from .box import Mailbox, Overflow
from .errors import AskTimeout, Deadlock, MailboxClosed, Overloaded, PeerDied
from .inbox import Inbox
from .reply import Reply
from .statistics import MailboxStatistics

__all__ = [
    "AskTimeout",
    "Deadlock",
    "Inbox",
    "Mailbox",
    "MailboxClosed",
    "MailboxStatistics",
    "Overflow",
    "Overloaded",
    "PeerDied",
    "Reply",
]
