"""`Gate`: decides for one server which commands run, and when."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import trio

from ._fakeredis import OK, SimpleError
from .redis_commands import COMMANDS, Command, name_of
from .redis_faults import Faults
from .redis_session import Session

__all__ = ["Gate"]


class Gate:
    """The `Gatekeeper` of a server that stands alone.

    Attributes:
        faults: what was ordered.
        running: set unless the server hangs.
        commands: how often each command has run.
        next_wake_up: the line for the next command that blocks, or None.
    """

    def __init__(self) -> None:
        self.faults = Faults()
        self.running = trio.Event()
        self.running.set()
        self.commands: Counter[str] = Counter()
        self.next_wake_up: str | None = None
        self._paused_until = -math.inf
        self._pause_writes_only = False
        self._unpaused = trio.Event()

    def admit(self, words: Sequence[bytes]) -> str | None:
        """See `Gatekeeper`."""
        return self.faults.before(name_of(words))

    def redirect(self, session: Session, command: Command, words: Sequence[bytes]) -> str | None:
        """See `Gatekeeper`."""
        return None

    def refusal(self, session: Session, command: Command, words: Sequence[bytes]) -> str | None:
        """See `Gatekeeper`. A transaction is refused for any of its commands."""
        refusal = self.faults.refusal(session, command, words)
        if refusal is None and command.name == "exec":
            texts = [self.faults.refusal(session, COMMANDS[name_of(each)], each) for each in session.queued]
            return next((text for text in texts if text is not None), None)
        return refusal

    def done(self, session: Session, words: Sequence[bytes]) -> None:
        """See `Gatekeeper`."""
        self.commands[name_of(words).upper()] += 1
        self.faults.after()
        if self.next_wake_up is not None and session.blocked is not None:
            text, self.next_wake_up = self.next_wake_up, None
            session.unblock(SimpleError(text))

    def cluster(self, session: Session, words: Sequence[bytes]) -> Any:
        """See `Gatekeeper`. (Valkey 9 takes READONLY also without a cluster.)"""
        if name_of(session.words) in ("readonly", "readwrite"):
            return OK
        raise SimpleError("ERR This instance has cluster support disabled")

    def facts(self) -> dict[str, Any]:
        """See `Gatekeeper`."""
        return {"mode": "standalone", "role": "master", "replicas": 0, "loading": self._loading(), "cluster": 0}

    def role(self) -> list[Any]:
        """See `Gatekeeper`."""
        return [b"master", 0, []]

    def pause(self, until: float, writes_only: bool) -> None:
        """See `Gatekeeper`."""
        self._paused_until, self._pause_writes_only = until, writes_only
        self._unpaused.set()
        self._unpaused = trio.Event()

    async def clearance(self, command: Command | None) -> None:
        """Block while the server hangs, is paused, or is slow for this command."""
        await self._until_running()
        if command is None:
            return
        if delay := self.faults.delay_of(command.name):
            await trio.sleep(delay)
            await self._until_running()
        while self._is_paused(command):
            unpaused = self._unpaused
            with trio.move_on_at(self._paused_until):
                await unpaused.wait()
            await self._until_running()

    async def _until_running(self) -> None:
        while not self.running.is_set():
            await self.running.wait()

    def _is_paused(self, command: Command) -> bool:
        if trio.current_time() >= self._paused_until:
            return False
        return not self._pause_writes_only or command.writes or command.runs_scripts or command.name == "publish"

    def _loading(self) -> int:
        return int(self.faults.has_state("loading"))
