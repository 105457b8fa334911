"""Membership: a sign of life of this process every few seconds, and what the others give."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Final
from uuid import UUID

import trio

from ..runtime.telemetry import get_logger
from .member_table import Member, MemberView

if TYPE_CHECKING:
    from ..runtime.supervision import Child, Gate
    from .leasing import Standing
    from .settings import DeliverySettings
    from .store import Store

__all__ = ["LEAVE_WITHIN", "Membership"]

log = get_logger(__name__)

SILENT_BEATS: Final = 12
"""Signs of life that must be missing before what an installation has left in Redis may be tidied up: a minute."""

FORGET_AFTER: Final = 24 * 3600.0
"""Seconds after which who is silent is forgotten: long enough to be seen, and looked for."""

LEAVE_WITHIN: Final = 2.0
"""Seconds that a process spends at its end on saying so."""


class Membership:
    """The body of the actor ``membership``.

    Args:
        store: where the signs of life are.
        settings: how often they are given.
        system: the name of the system.
        instance: the id of the installation.
        process: of this process alone.
        groups: the ordered groups, ``GROUP@STREAM``, and whether it can handle partitions of them while `gate` is open.
        gate: of Redis: who does not reach it gets no partition.
    """

    def __init__(
        self,
        store: Store,
        settings: DeliverySettings,
        *,
        system: str,
        instance: str,
        process: UUID,
        groups: Mapping[str, Standing],
        gate: Gate,
    ) -> None:
        self._store = store
        self._every = settings.heartbeat_every
        self._silent_after = SILENT_BEATS * settings.heartbeat_every
        self._system = system
        self._instance = instance
        self._process = process
        self._groups = groups
        self._version = version("penstock")  # reads a file
        self._gate = gate
        self._members: tuple[MemberView, ...] = ()
        self._seen_at = -math.inf

    async def __call__(self, child: Child) -> None:
        """Give signs of life until cancelled, or drained: then the process is taken out at once.

        Raises:
            PostgresUnavailable: as the link says.
        """
        beats = 0
        while not child.draining.is_set():
            await self._beat(tidy=beats % 100 == 0)
            beats += 1
            child.note(f"{count} process" if (count := len(self.live())) == 1 else f"{count} processes")
            if not child.ready:
                child.started()
            with trio.move_on_after(self._every):
                await child.draining.wait()
        with trio.move_on_after(LEAVE_WITHIN):
            async with self._store.transaction() as transaction:
                await self._store.members.leave(transaction, self._process)

    def members(self) -> tuple[MemberView, ...]:
        """All processes of this and other systems that were known at the last look, the oldest first. Never blocks."""
        return self._members

    def live(self) -> list[MemberView]:
        """Those of this system that were alive then."""
        return [
            view for view in self._members if view.member.system == self._system and view.seen_ago <= 3 * self._every
        ]

    def live_instances(self) -> frozenset[str] | None:
        """The installations, of any system, that are not known to be gone; None if we have not looked for too long."""
        if trio.current_time() - self._seen_at > self._silent_after:
            return None
        return frozenset(view.member.instance for view in self._members if view.seen_ago <= self._silent_after)

    async def _beat(self, *, tidy: bool) -> None:
        me = Member(
            process=self._process,
            system=self._system,
            instance=self._instance,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=self._version,
            groups=tuple(name for name, standing in self._groups.items() if standing.is_fit() and self._gate.is_open),
        )
        async with self._store.transaction() as transaction:
            await self._store.members.beat(transaction, me)
            if tidy:
                await self._store.members.forget(transaction, FORGET_AFTER)
            views = await self._store.members.all(transaction)
        self._members, self._seen_at = tuple(views), trio.current_time()
