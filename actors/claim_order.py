"""Orders to take entries over now: who asks the keepers, what a keeper is asked, and what it answers."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Final

from attrs import frozen

from ..runtime.mailbox import AskTimeout, Mailbox, MailboxClosed, PeerDied, Reply

__all__ = ["ClaimDesk", "ClaimOrder", "ClaimOutcome", "ClaimResult", "KeeperHeld"]

CLAIM_WITHIN: Final = 5.0
"""Seconds for which a keeper is given to answer an order: it does so at once, unless it is held."""


class KeeperHeld(Exception):
    """The keeper of a partition did not answer: it is held, or this process stops."""


class ClaimOutcome(enum.StrEnum):
    """What came of one entry of an order."""

    CLAIMED = "claimed"
    """This process has it now, and handles it."""

    GONE = "gone"
    """Its entry was trimmed or deleted: this process has what is left of it, and makes a dead letter of that."""

    BUSY = "busy"
    """Somebody has touched it more lately than was asked for."""

    HERE = "here"
    """This process has it already."""

    NOT_PENDING = "not-pending"
    """The group was not given it, or has acknowledged it."""

    NO_ROOM = "no-room"
    """This process has read as much as it may; later there is room again."""


@frozen(kw_only=True)
class ClaimResult:
    """One entry of an order.

    Attributes:
        key: the key of its stream, or of the partition.
        entry_id: its id.
        outcome: what came of it.
        consumer: who had it before; None where nobody had.
        idle: seconds for which that one had not touched it; likewise.
    """

    key: str
    entry_id: str
    outcome: ClaimOutcome
    consumer: str | None = None
    idle: float | None = None


@frozen(kw_only=True)
class ClaimOrder:
    """What somebody orders of the keeper of a group's partition.

    Attributes:
        ids: of the entries, at most `pending.AT_ONCE` of them.
        idle: only what nobody has touched for so many seconds.
        by: who orders it, for the log.
        reply: one result an entry, in order; or the `redis.exceptions.RedisError` that was met.
    """

    ids: Sequence[str]
    idle: float
    by: str
    reply: Reply[list[ClaimResult]]


@frozen
class ClaimDesk:
    """Where this process is ordered to take entries over.

    Attributes:
        orders: the mailboxes of the keepers, by group and partition.
    """

    orders: Mapping[tuple[str, str], Mailbox[ClaimOrder]]

    async def claim(
        self, keys: Sequence[str], group: str, ids: Sequence[str], *, idle: float, by: str
    ) -> list[ClaimResult]:
        """Have this process take pending entries over now, and handle them.

        Args:
            keys: of the partitions in which they are looked for.
            group: a declared group that is read here, and not ordered.
            ids: of the entries, at most `pending.AT_ONCE`.
            idle: only what nobody has touched for so many seconds.
            by: who orders it, for the log.

        Returns:
            A result for each entry; more of them for an id that is pending in several partitions. Blocks for
            `CLAIM_WITHIN` seconds a partition at the most. Cancelled: what a keeper has begun it goes on with.

        Raises:
            KeyError: there is no such group, or partition.
            KeeperHeld: a keeper did not answer.
            redis.exceptions.RedisError: as the link says.
        """
        found = [result for key in keys for result in await self._ask(self.orders[group, key], ids, idle, by)]
        pending = [each for each in found if each.outcome is not ClaimOutcome.NOT_PENDING]
        ids_pending = {each.entry_id for each in pending}
        # Of an id that is pending nowhere, one partition says so for all.
        absent = {each.entry_id: each for each in found if each.entry_id not in ids_pending}
        return [*pending, *absent.values()]

    async def _ask(self, orders: Mailbox[ClaimOrder], ids: Sequence[str], idle: float, by: str) -> list[ClaimResult]:
        try:
            told: list[ClaimResult] = await orders.ask(
                lambda reply: ClaimOrder(ids=ids, idle=idle, by=by, reply=reply), CLAIM_WITHIN
            )
        except (AskTimeout, MailboxClosed, PeerDied) as error:
            raise KeeperHeld(str(error)) from error
        return told
