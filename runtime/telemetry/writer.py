"""Where log lines leave the process, without ever holding it up.

Whoever reads the log may stop reading (a paused pager, a stuck collector) or go away. A write to such a pipe blocks,
or fails, and in one thread that would stop every task of the run. So a thread of its own writes, from a bounded queue;
what does not fit is dropped, counted, and told once there is room again. A full disk is treated alike: what could not
be written waits and is tried again. Only a reader that is gone for good ends the writing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Final, TextIO

__all__ = ["LineWriter"]

_GONE: Final = frozenset({errno.EPIPE, errno.EBADF})
"""What a write fails with when nobody will ever read there again; a full disk (ENOSPC, EDQUOT, EIO) may get room."""

_PAUSE: Final = 1.0
"""Seconds before a write is tried again that failed: what mends a disk takes longer, and nobody waits for it."""


class LineWriter:
    """Writes lines to a stream in the background, in order.

    It writes to the stream's file descriptor where there is one: what a broken pipe leaves in a Python buffer would
    fail once more at exit, and turn the exit code into 120.

    Args:
        stream: where to; None (a process started with its streams closed) drops everything.
        tell_dropped: makes the line that tells how many were dropped.
        capacity: how many lines wait at most. Default 10,000: a few megabytes, and minutes of a busy log.

    Attributes:
        dropped: how many lines were dropped and not told yet.
    """

    def __init__(self, stream: TextIO | None, tell_dropped: Callable[[int], str], capacity: int = 10_000) -> None:
        self.dropped = 0
        self._stream = stream
        self._descriptor = _descriptor_of(stream)
        self._tell_dropped = tell_dropped
        self._capacity = capacity
        self._lines: list[str] = []
        self._busy = False
        self._closed = False
        self._gone = stream is None
        self._changed = threading.Condition()  # on a re-entrant lock: a signal handler may log amid a write
        self._thread: threading.Thread | None = None

    def write(self, line: str) -> None:
        """Queue one line, which ends with a line break. Never blocks on the stream, never raises."""
        with self._changed:
            if self._gone or self._closed:
                return
            if len(self._lines) >= self._capacity:
                self.dropped += 1
                return
            self._lines.append(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="penstock-log", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Wait until everything queued is written, for at most `timeout` seconds. True if it is, or never can be."""
        until = time.monotonic() + timeout
        with self._changed:
            while (self._lines or self._busy) and not self._gone:
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def close(self, timeout: float) -> None:
        """Flush for at most `timeout` seconds and let the thread end; the stream stays open. May be called twice."""
        self.flush(timeout)
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while (batch := self._take()) is not None:
            try:
                self._put(batch)
            except (OSError, ValueError):  # the reader is gone, the stream was closed, or the run ends: nobody to tell
                with self._changed:
                    self._gone = True
                    self._lines.clear()

    def _take(self) -> str | None:
        """The text of all queued lines, once there are any; None when closed."""
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            while not self._lines and not self._closed:
                self._changed.wait()
            if not self._lines:
                return None
            self._busy = True
            lines, self._lines = self._lines, []
            if self.dropped:
                lines.append(self._tell_dropped(self.dropped))
                self.dropped = 0
            return "".join(lines)

    def _put(self, text: str) -> None:
        if self._descriptor is None:
            assert self._stream is not None  # noqa: S101 - such a writer is gone from the start
            self._stream.write(text)
            self._stream.flush()
            return
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # somebody who shares the file has made it non-blocking
                select.select([], [self._descriptor], [], 1.0)
            except OSError as error:
                if error.errno in _GONE or self._closed:
                    raise
                time.sleep(_PAUSE)


def _descriptor_of(stream: TextIO | None) -> int | None:
    if stream is None:
        return None
    try:
        with contextlib.suppress(OSError):  # on a full disk
            stream.flush()  # what was printed before stands before
        return stream.fileno()
    except (OSError, ValueError, AttributeError):  # a StringIO, a test's capture
        return None
