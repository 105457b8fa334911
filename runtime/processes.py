"""An operating system process as a supervised child: started, watched, stopped in steps, always reaped.

`run_process` is what a child's body calls. The process leads a session of its own (Ctrl-C in the terminal does not
reach it: it is stopped when its turn comes), gets none of our environment, and on Linux does not outlive us, however
we end: the kernel sends it `ProcessSpec.death_signal` when we are gone.

Why not ``trio.run_process``: it forks in a worker thread, and Linux counts the *thread* as the parent; the death signal
would come when that thread goes idle and ends. Here the fork happens in the thread that runs trio.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from attrs import field, frozen

if TYPE_CHECKING:
    from .supervision.child import Child

__all__ = [
    "Account",
    "LaunchFailed",
    "Log",
    "ProcessError",
    "ProcessExited",
    "ProcessSpec",
    "Ready",
    "StopStep",
    "Unreachable",
    "run_command",
    "run_process",
]

Log = Callable[[str], None]
"""Takes one line of a process's output, without its end of line. Must neither block nor raise."""

Ready = Callable[[], Awaitable[bool]]
"""Asks a process, once, whether it can be used. Is cancelled after `PROBE_WITHIN` seconds, which counts as no."""

PROBE_WITHIN = 2.0
"""Seconds that one readiness probe may take: a frozen process accepts the connection and then says nothing."""
KILL_WITHIN = 5.0
"""Seconds to wait for the end after SIGKILL. Only a process in an uninterruptible system call takes longer."""
OUTPUT_WITHIN = 0.2
"""Seconds to read on after the end: a grandchild that holds the pipe open must not hold us."""
TAIL_LINES = 12
LINE_LIMIT = 8192
"""Bytes of one output line; longer ones are cut into several."""

_LAUNCHER = str(Path(__file__).with_name("launch.py"))


class ProcessError(Exception):
    """Base of the errors about processes."""

    tells_all = True
    """For the log: what the process said is the news, not where we waited for it."""


class LaunchFailed(ProcessError):
    """The program was never started; the text says why. Trying again is of no use."""


class Unreachable(LaunchFailed):
    """The account may not enter a directory that the program needs.

    Attributes:
        directory: the topmost such directory.
    """

    def __init__(self, message: str, directory: Path) -> None:
        super().__init__(message)
        self.directory = directory


class ProcessExited(ProcessError):
    """A process ended although nobody had ordered it to.

    Attributes:
        program: its name.
        pid: its process id, by now free for others.
        returncode: exit code, or minus the number of the signal that killed it (as `subprocess.Popen.returncode`).
        tail: the last lines of its output, oldest first.
    """

    def __init__(self, program: str, pid: int, returncode: int, tail: tuple[str, ...]) -> None:
        said = "; it said nothing" if not tail else "\nits last words:\n  " + "\n  ".join(tail)
        super().__init__(f"{program} (pid {pid}) {_describe_end(returncode)}{said}")
        self.program = program
        self.pid = pid
        self.returncode = returncode
        self.tail = tail


@frozen
class Account:
    """The user that a process runs as: name, and numeric ids. Only root can choose another than its own."""

    name: str
    uid: int
    gid: int


@frozen
class StopStep:
    """One step of a stop: `signal` is sent, then the process has `wait` seconds to end before the next step."""

    signal: signal.Signals
    wait: float


@frozen(kw_only=True)
class ProcessSpec:
    """What to run and how to end it.

    Attributes:
        name: the program's name in messages.
        argv: absolute path of the program, then its arguments. Everybody on the machine can read them: no secrets.
        cwd: its working directory.
        environment: all of its environment. Default: a search path and the C locale. Ours is never passed on, for it
            may hold passwords.
        account: who it runs as; None means as we do.
        reach: directories that it must be able to list and enter, checked as `account` before it starts.
        stop: the steps of an ordered stop; SIGKILL to its whole process group follows the last one. Default: SIGTERM,
            then 5 seconds.
        death_signal: what it gets when we die without having stopped it (Linux only). Default: the first step's.
    """

    name: str
    argv: tuple[str, ...]
    cwd: Path
    environment: dict[str, str] = field(factory=lambda: {"PATH": os.defpath, "LC_ALL": "C"}, repr=False)
    account: Account | None = None
    reach: tuple[Path, ...] = ()
    stop: tuple[StopStep, ...] = (StopStep(signal.SIGTERM, 5.0),)
    death_signal: signal.Signals = field()

    @death_signal.default
    def _first_step(self) -> signal.Signals:
        return self.stop[0].signal if self.stop else signal.SIGKILL

    @property
    def stop_within(self) -> float:
        """Seconds that `run_process` takes to leave at the most, once cancelled."""
        return sum(step.wait for step in self.stop) + KILL_WITHIN + OUTPUT_WITHIN


async def run_process(child: Child, spec: ProcessSpec, *, ready: Ready, log: Log) -> None:
    """Run `spec` as `child`: the whole life of one process.

    Notes its pid, reports `child.started` as soon as `ready` says yes (asked again and again, 5 ms to 250 ms apart;
    how long that may take in all is the supervisor's `start_within`), forwards its output to `log`, and never returns.

    Cancelled, it stops the process by `spec.stop` before it lets the cancellation through; that is shielded and takes
    `spec.stop_within` seconds at the most. When the stop is cut (`Child.cut`), it goes to the last of these steps at
    once, which keeps its time: SIGKILL would cost a server what it has not written yet. The process is reaped in every
    case.

    Raises:
        ProcessExited: the process ended by itself, whatever its exit code.
        LaunchFailed: it could not be started at all.
    """
    process = _Process(spec, log, child.cut)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.forward_output)
        try:
            child.note(f"pid {process.pid}")
            if await process.launched():
                await _announce_until_exit(child, process, ready)
        finally:
            await process.end()
    raise process.failure()


async def run_command(spec: ProcessSpec, *, log: Log) -> None:
    """Run `spec` to its end, without standard input; returns when its exit code is 0.

    Has no limit of its own. Cancelled, it stops the process as `run_process` does.

    Raises:
        ProcessExited: the exit code is not 0.
        LaunchFailed: it could not be started at all.
    """
    process = _Process(spec, log, cut=trio.Event())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.forward_output)
        try:
            if await process.launched():
                await process.wait()
        finally:
            await process.end()
    if process.refusal is not None or process.returncode != 0:
        raise process.failure()


async def _announce_until_exit(child: Child, process: _Process, ready: Ready) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_announce, child, ready)
        await process.wait()
        nursery.cancel_scope.cancel()


async def _announce(child: Child, ready: Ready) -> None:
    pause = 0.005
    while not await _is_ready(ready):
        await trio.sleep(pause)
        pause = min(pause * 1.5, 0.25)
    child.started()


async def _is_ready(ready: Ready) -> bool:
    with trio.move_on_after(PROBE_WITHIN):
        return await ready()
    return False


class _Process:
    """One started process. `end` must be called, once; everything else may be cancelled at any await."""

    def __init__(self, spec: ProcessSpec, log: Log, cut: trio.Event) -> None:
        """Start it. Blocks for the length of a fork and an exec (some milliseconds)."""
        self._spec = spec
        self._cut = cut
        self._log = log
        self.refusal: LaunchFailed | None = None
        output, output_end = os.pipe()
        try:
            report, report_end = os.pipe()
        except OSError:
            os.close(output)
            os.close(output_end)
            raise
        try:
            self._popen = subprocess.Popen(  # noqa: S603 - argv comes from a spec, and there is no shell
                [sys.executable, "-I", "-S", _LAUNCHER, _order(spec, report_end)],
                stdin=subprocess.DEVNULL,
                stdout=output_end,
                stderr=subprocess.STDOUT,
                cwd=spec.cwd,
                env=spec.environment,
                pass_fds=(report_end,),
                start_new_session=True,
            )
        except BaseException:
            os.close(output)
            os.close(report)
            raise
        finally:
            os.close(output_end)
            os.close(report_end)
        self.pid = self._popen.pid
        self._exit = _ExitWatch(self._popen)
        self._output = _Output(output, log)
        self._report = trio.lowlevel.FdStream(report)

    @property
    def returncode(self) -> int | None:
        return self._popen.returncode

    async def forward_output(self) -> None:
        """Hand every line of output to the log, until `end`. A cancellation does not stop it; `end` does."""
        await self._output.forward()

    async def launched(self) -> bool:
        """Wait until the program itself runs (True), or until it is known that it never will (False; `refusal`)."""
        async with self._report:
            told = b"".join([chunk async for chunk in self._report])
        if told:
            report = json.loads(told)
            if report["unreachable"] is None:
                self.refusal = LaunchFailed(report["message"])
            else:
                self.refusal = Unreachable(report["message"], Path(report["unreachable"]))
        return self.refusal is None

    async def wait(self) -> None:
        """Wait until it has ended, and reap it."""
        await self._exit.wait()

    async def end(self) -> None:
        """Stop it if it still runs, reap it, read what it last said. Shielded; takes `stop_within` at the most."""
        with trio.CancelScope(shield=True):
            await self._stop()
            self._exit.close()
            await self._output.finish()
            await self._report.aclose()

    async def _stop(self) -> None:
        for step in self._spec.stop[:-1]:
            if self.returncode is None and not self._cut.is_set():
                self._signal(step.signal)
                await self._exit_or_cut(step.wait)
        for step in (*self._spec.stop[-1:], StopStep(signal.SIGKILL, KILL_WITHIN)):
            if self.returncode is not None:
                return
            self._signal(step.signal)
            with trio.move_on_after(step.wait):
                await self._exit.wait()
                return
        self._log(f"pid {self.pid} is still there {KILL_WITHIN:g} s after SIGKILL; no longer waiting for it")

    async def _exit_or_cut(self, within: float) -> None:
        """Wait for its end, but no longer than `within` seconds, nor longer than until the stop is cut."""
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + within
            nursery.start_soon(_cancel_at, self._cut, nursery.cancel_scope)
            await self._exit.wait()
            nursery.cancel_scope.cancel()

    def _signal(self, number: signal.Signals) -> None:
        # Safe from pid reuse: until we reap it, the pid is its own, also as a zombie.
        if number is signal.SIGKILL:
            _signal_group(self.pid, number)
            return
        os.kill(self.pid, number)
        # A stopped process (SIGSTOP, a debugger) sees its signal only when it goes on; to any other this is nothing.
        _signal_group(self.pid, signal.SIGCONT)

    def failure(self) -> ProcessError:
        """Why it is no longer there. To be asked after `end`."""
        if self.refusal is not None:
            return self.refusal
        returncode = self.returncode
        assert returncode is not None, "failure() is asked for after the end"  # noqa: S101
        return ProcessExited(self._spec.name, self.pid, returncode, tuple(self._output.tail))


class _ExitWatch:
    """Waits for the end of a child process: by pidfd where there are any (Linux 5.3), else by polling."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._pidfd: int | None = None
        if sys.platform == "linux":
            # ENOSYS from an old kernel or a strict sandbox, EMFILE: polling does as well.
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(popen.pid)

    async def wait(self) -> None:
        """Return when it has ended and is reaped, together with whatever it left in its process group."""
        if self._popen.returncode is not None:
            return
        if self._pidfd is None:
            while self._popen.poll() is None:  # noqa: ASYNC110 - there is no event to wait for
                await trio.sleep(0.05)
            return
        await trio.lowlevel.wait_readable(self._pidfd)
        # Before the reaping: as long as the zombie is there, the group's number cannot become another's.
        _signal_group(self._popen.pid, signal.SIGKILL)
        self._popen.wait()

    def close(self) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


class _Output:
    """Standard output and error of a process, by lines; keeps the last ones."""

    def __init__(self, descriptor: int, log: Log) -> None:
        self._stream = trio.lowlevel.FdStream(descriptor)
        self._log = log
        self._scope = trio.CancelScope(shield=True)
        self._finished = trio.Event()
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)

    async def forward(self) -> None:
        rest = b""
        try:
            with self._scope:
                async for chunk in self._stream:
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        self._take(line)
                    if len(rest) > LINE_LIMIT:
                        self._take(rest)
                        rest = b""
            self._take(rest)
        finally:
            self._finished.set()

    async def finish(self) -> None:
        """Read on to the end of the stream, for `OUTPUT_WITHIN` seconds at the most; then close it."""
        with trio.move_on_after(OUTPUT_WITHIN):
            await self._finished.wait()
        self._scope.cancel()
        await self._stream.aclose()

    def _take(self, line: bytes) -> None:
        for start in range(0, len(line), LINE_LIMIT):
            if text := line[start : start + LINE_LIMIT].decode(errors="replace").rstrip():
                self.tail.append(text)
                self._log(text)


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _order(spec: ProcessSpec, report: int) -> str:
    account = spec.account
    return json.dumps(
        {
            "argv": spec.argv,
            "account": account and {"name": account.name, "uid": account.uid, "gid": account.gid},
            "reach": [str(path) for path in spec.reach],
            "parent": os.getpid(),
            "death_signal": int(spec.death_signal),
            "report": report,
        }
    )


def _signal_group(leader: int, number: signal.Signals) -> None:
    # EPERM is what macOS says for a group of zombies only.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def _describe_end(returncode: int) -> str:
    if returncode >= 0:
        return f"exited with code {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"
