"""Where tasks wait, and limits that say so when they are passed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import trio
import trio.lowlevel

__all__ = ["Overdue", "place_of", "tasks_waiting", "within"]

_TRIO = str(Path(trio.__file__).parent)
_FRAMES = 4
"""Frames that are shown of a task; the innermost say where it waits, those further out how it came there."""


class Overdue(Exception):
    """Something ran longer than it may. The text names the limit, and the place at which each task was.

    Attributes:
        waiting: one line a task, as `tasks_waiting` gave them when the limit was passed.
    """

    def __init__(self, what: str, waiting: tuple[str, ...] = ()) -> None:
        super().__init__("\n".join([what, *(f"  {line}" for line in waiting)]))
        self.waiting = waiting


@contextmanager
def within(seconds: float, what: str = "this") -> Iterator[None]:
    """``with within(3600): …``: as `trio.fail_after`, but the error shows where all tasks were when the time was up.

    The block is cancelled then. In virtual time `seconds` are virtual, and a block in which everybody waits for
    nothing is over at once. `math.inf` is no limit.

    Raises:
        Overdue: it took longer; what the block raised when it was cancelled is the cause.
    """
    watch, scope = trio.CancelScope(), trio.CancelScope()
    waiting: tuple[str, ...] | None = None

    async def look() -> None:
        nonlocal waiting
        with watch:
            await trio.sleep(seconds)
            waiting = tasks_waiting()
            scope.cancel(reason=f"{what} took longer than {seconds:g} s")

    if seconds < math.inf:
        trio.lowlevel.spawn_system_task(look, name=look)
    failed: Exception | None = None
    try:
        with scope:
            yield
    except Exception as error:
        if waiting is None:
            raise
        failed = error
    finally:
        watch.cancel()
    if waiting is not None:
        raise Overdue(f"{what} is not over after {seconds:g} s; at that moment", waiting) from failed


def tasks_waiting() -> tuple[str, ...]:
    """One line for each task of the present run: its name, and where it waits, innermost frame first.

    Trio's own tasks are left out, and trio's own frames. Never blocks.
    """
    root = trio.lowlevel.current_root_task()
    return tuple(sorted(_lines(root))) if root is not None else ()


def place_of(task: trio.lowlevel.Task) -> str:
    """Where `task` waits, innermost frame first, as ``function (file.py:12) < caller (file.py:34)``."""
    frames = [each for each in task.iter_await_frames() if not each[0].f_code.co_filename.startswith(_TRIO)]
    shown = [_show(frame, line) for frame, line in reversed(frames[-_FRAMES:])]
    return " < ".join(shown) or "its first line, or within trio"


def _lines(root: trio.lowlevel.Task) -> Iterator[str]:
    tasks = [root]
    while tasks:
        task = tasks.pop()
        for nursery in task.child_nurseries:
            tasks.extend(nursery.child_tasks)
        if not _is_of_trio(task):
            yield f"{task.name}: {place_of(task)}"


def _is_of_trio(task: trio.lowlevel.Task) -> bool:
    """The root, trio's helpers, and the watch of `within`: they wait by profession."""
    outermost = next(iter(task.iter_await_frames()), None)
    if outermost is None:
        return False
    file = outermost[0].f_code.co_filename
    return file.startswith(_TRIO) or (file == __file__ and outermost[0].f_code.co_name == "look")


def _show(frame: FrameType, line: int) -> str:
    return f"{frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}:{line})"
