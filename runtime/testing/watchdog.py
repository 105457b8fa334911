"""A limit in real time on a run of trio: for what virtual time cannot end.

A task that spins, one that waits shielded for nobody, one that blocks the whole thread: none of these lets the virtual
clock move on.
"""

from __future__ import annotations

import math
import signal
import threading
import traceback
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self

import trio
import trio.lowlevel

from .waiting import Overdue, tasks_waiting

__all__ = ["Watchdog"]

_SIGNAL = signal.SIGVTALRM
"""It wakes the main thread from whatever it is in. Nobody else uses it: SIGALRM is pytest-timeout's."""

_PATIENCE = 1.0
"""Seconds of real time between the cancel and the first interrupt, and between two interrupts."""

_FRAMES = 8


class _Bite(KeyboardInterrupt):
    """Raised in the midst of whatever runs. A KeyboardInterrupt, for supervisors restart nobody after one."""


class Watchdog:
    """``with Watchdog(30) as dog: trio.run(main)``, where `main` holds its work in ``with dog.run_scope():``.

    After `seconds` of real time the run is cancelled. If it goes on, what runs in the main thread is interrupted, once
    a second, until the run is over; in the last resort trio itself is, and its tasks are left where they are. In other
    threads than the main one there is only the cancel, for Python can interrupt no other.

    Args:
        seconds: the limit; `math.inf` is none.

    Raises:
        Overdue: on the way out of the block: it took longer. What ended the run is the cause.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        self._seen: tuple[str, ...] | None = None
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        self._before: Any = None

    def run_scope(self) -> trio.CancelScope:
        """The scope that is cancelled when the time is up; called in the run, and entered around all of its work."""
        self._token = trio.lowlevel.current_trio_token()
        return self._scope

    def __enter__(self) -> Self:
        if self._seconds < math.inf:
            if self._in_main_thread:
                self._before = signal.signal(_SIGNAL, self._interrupted)
            threading.Thread(target=self._watch, name="penstock watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._over.set()
        if self._seconds < math.inf and self._in_main_thread:
            signal.signal(_SIGNAL, signal.SIG_DFL if self._before is None else self._before)
        if self._seen is not None and not isinstance(error, Overdue):
            raise self.overdue() from error

    def overdue(self) -> Overdue:
        """The error to raise after the scope was cancelled."""
        return Overdue(f"the run is not over after {self._seconds:g} s of real time; at that moment", self._seen or ())

    def _watch(self) -> None:
        if self._over.wait(self._seconds):
            return
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._cancel)
        while not self._over.wait(_PATIENCE):
            with self._lock:
                if self._in_main_thread and not self._over.is_set():
                    signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)

    def _cancel(self) -> None:
        if self._seen is None:
            self._seen = tasks_waiting()
        self._scope.cancel(reason=f"the run took longer than {self._seconds:g} s of real time")

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self._over.is_set():
            return
        if self._seen is None:  # The loop does not turn: somebody keeps the thread for himself.
            stack = traceback.extract_stack(frame)[-_FRAMES:]
            self._seen = tuple(f"{each.name} ({each.filename}:{each.lineno})" for each in reversed(stack))
        raise _Bite("the watchdog interrupts")
