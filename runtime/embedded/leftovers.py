"""Servers that an earlier run left behind: found by what they are and where they work, and stopped before ours start.

On Linux there should be none, since they die with their parent; but a frozen one does not, nor do the back ends of a
PostgreSQL that was killed, for a moment. A pid file would not tell: pids are used again. A server is *ours* when its
program has the right name and its working directory is the very directory that we have locked.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import trio
from attrs import frozen

from ..processes import KILL_WITHIN, Log, StopStep
from .errors import LeftoverServer

__all__ = ["Leftover", "end_leftovers", "find_leftovers"]


@frozen
class Leftover:
    """One process of a server, and its parent's pid."""

    pid: int
    parent: int


async def end_leftovers(program: str, directory: Path, steps: Sequence[StopStep], log: Log) -> None:
    """Stop every process of `program` that works in `directory`: by `steps`, then by SIGKILL.

    The steps go to the topmost processes only, as in an ordered stop; SIGKILL goes to all. Takes the steps' seconds and
    `KILL_WITHIN` at the most, and almost none when there is nothing to stop.

    Raises:
        LeftoverServer: one of them outlived SIGKILL, or is not ours to end.
    """
    found = await _find(program, directory)
    if not found:
        return
    for step in (*steps, StopStep(signal.SIGKILL, KILL_WITHIN)):
        _signal(program, directory, found, step.signal)
        with trio.move_on_after(step.wait):
            await _until_gone(program, directory)
            log(f"stopped {program} (pid {_pids(found)}), left behind in {directory}")
            return
        found = await _find(program, directory)
    raise LeftoverServer(
        f"{program} (pid {_pids(found)}) of an earlier run still works in {directory} and cannot be ended;"
        " end it by hand"
    )


def find_leftovers(program: str, directory: Path) -> list[Leftover]:
    """The processes of `program` that work in `directory`. Blocks for some milliseconds.

    Those of other users are not seen, except by root.
    """
    if sys.platform == "linux":
        return list(_find_in_proc(program, directory))
    return _find_by_ps(program, directory)


async def _find(program: str, directory: Path) -> list[Leftover]:
    return await trio.to_thread.run_sync(find_leftovers, program, directory)


async def _until_gone(program: str, directory: Path) -> None:
    pause = 0.005
    while await _find(program, directory):
        await trio.sleep(pause)
        pause = min(pause * 1.5, 0.1)


def _signal(program: str, directory: Path, found: list[Leftover], number: signal.Signals) -> None:
    family = {leftover.pid for leftover in found}
    for leftover in found:
        if number is signal.SIGKILL or leftover.parent not in family:
            # A stopped process sees its signal only when it goes on.
            _signal_one(program, directory, leftover.pid, number, signal.SIGCONT)


def _signal_one(program: str, directory: Path, pid: int, *numbers: signal.Signals) -> None:
    if sys.platform != "linux":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            for number in numbers:
                os.kill(pid, number)
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        pidfd = os.pidfd_open(pid)
        try:
            # Looked at again with the pidfd in hand: the one that is signalled is the one that was looked at.
            if _works_in(program, directory, pid):
                for number in numbers:
                    signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)


def _find_in_proc(program: str, directory: Path) -> list[Leftover]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and _works_in(program, directory, int(entry)):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{entry}/stat").read_text()
                # pid (name, which may hold anything) state ppid …
                found.append(Leftover(int(entry), int(status.rpartition(")")[2].split()[1])))
    return found


def _works_in(program: str, directory: Path, pid: int) -> bool:
    try:
        if os.readlink(f"/proc/{pid}/cwd") != str(directory):
            return False
        executable = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return False  # it is gone, or a zombie, or not ours to look at
    return os.path.basename(executable.removesuffix(" (deleted)")) == program


def _find_by_ps(program: str, directory: Path) -> list[Leftover]:
    """Where there is no /proc: by the command line, in which both servers name their directory."""
    listing = subprocess.run(
        ["/bin/ps", "-axww", "-o", "pid=,ppid=,command="], capture_output=True, text=True, check=True, timeout=10
    )
    found = []
    for line in listing.stdout.splitlines():
        pid, parent, command = line.split(maxsplit=2)
        executable, _, arguments = command.partition(" -")
        if os.path.basename(executable) == program and f" {directory} " in f"{arguments} ":
            found.append(Leftover(int(pid), int(parent)))
    return found


def _pids(found: list[Leftover]) -> str:
    return ", ".join(str(leftover.pid) for leftover in found)
