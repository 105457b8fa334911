"""An OS process as a child: it is up when it answers, its end is never missed, and nothing of it stays behind."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from penstock.runtime import launch, processes
from penstock.runtime.processes import LaunchFailed, ProcessExited, ProcessSpec, StopStep, run_command, run_process
from penstock.runtime.supervision import Child

# Handlers write by themselves: one that came in the middle of a print() could not print, too.
POLITE = (
    "import os, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'bye\\n'), sys.exit(0)))\n"
)
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
UP_AND_WAIT = "print('up', flush=True)\nwhile True: time.sleep(60)\n"

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")


def python(program: str, *, stop: tuple[StopStep, ...] = (StopStep(signal.SIGTERM, 60.0),)) -> ProcessSpec:
    return ProcessSpec(name="snake", argv=(sys.executable, "-c", program), cwd=Path("/"), stop=stop)


def is_running(pid: int) -> bool:
    """Neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(condition: Callable[[], bool], within: float = 30.0) -> None:
    with trio.fail_after(within):
        while not condition():
            await trio.sleep(0.005)


class Lines(list[str]):
    """A log, with something to wait for."""

    async def until(self, line: str) -> None:
        await until(lambda: line in self)


class Host:
    """The child handle and the log of one running process."""

    def __init__(self) -> None:
        self.lines = Lines()
        self.up = trio.Event()
        self.child = Child("test/snake", 1, self.up.set)
        self.stop: Callable[[], None] = lambda: None

    @property
    def pid(self) -> int:
        return int(self.child.text.removeprefix("pid "))

    def says_up(self) -> Callable[[], Awaitable[bool]]:
        async def ready() -> bool:
            return "up" in self.lines

        return ready


@asynccontextmanager
async def hosted(spec: ProcessSpec) -> AsyncIterator[Host]:
    """Run `spec` until the end of the block, and stop it then; the block begins when it is ready."""
    host = Host()
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await run_process(host.child, spec, ready=host.says_up(), log=host.lines.append)

        nursery.start_soon(run)
        with trio.fail_after(30):
            await host.up.wait()
        yield host
        nursery.cancel_scope.cancel()


async def test_it_is_started_when_the_probe_says_yes_and_not_before() -> None:
    host = Host()
    probes: list[bool] = []

    async def ready() -> bool:
        probes.append(len(probes) == 3)
        assert not host.child.ready
        return probes[-1]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            lambda: run_process(host.child, python(POLITE + UP_AND_WAIT), ready=ready, log=host.lines.append)
        )
        await host.up.wait()
        assert probes == [False, False, False, True]
        assert is_running(host.pid)
        nursery.cancel_scope.cancel()
    assert not is_running(host.pid)


async def test_a_probe_that_hangs_counts_as_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PROBE_WITHIN", 0.05)
    host = Host()
    probes = 0

    async def ready() -> bool:
        nonlocal probes
        probes += 1
        if probes == 1:
            await trio.sleep_forever()
        return True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run_process(host.child, python(POLITE + UP_AND_WAIT), ready=ready, log=print))
        with trio.fail_after(30):
            await host.up.wait()
        nursery.cancel_scope.cancel()
    assert probes == 2


async def test_an_exit_that_nobody_ordered_is_an_error_with_its_last_words() -> None:
    host = Host()
    program = (
        "import sys\nfor n in range(30): print('line', n, flush=True)\n"
        "print('no money left', file=sys.stderr)\nsys.exit(3)"
    )
    with pytest.raises(ProcessExited, match=r"(?s)^snake \(pid \d+\) exited with code 3\n.*no money left$") as caught:
        await run_process(host.child, python(program), ready=host.says_up(), log=host.lines.append)
    assert caught.value.returncode == 3
    assert len(caught.value.tail) == processes.TAIL_LINES
    assert {"line 0", "line 29", "no money left"} <= set(host.lines)
    assert not host.child.ready


async def test_an_exit_with_code_0_is_an_error_too() -> None:
    host = Host()
    with pytest.raises(ProcessExited, match="exited with code 0; it said nothing"):
        await run_process(host.child, python("pass"), ready=host.says_up(), log=host.lines.append)


async def test_a_kill_is_seen_at_once_and_named() -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(ProcessExited, match="was killed by SIGKILL")):
        async with hosted(python(POLITE + UP_AND_WAIT)) as host:
            os.kill(host.pid, signal.SIGKILL)
            with trio.fail_after(30):
                await trio.sleep_forever()


async def test_a_stop_is_polite_and_hears_the_last_words() -> None:
    async with hosted(python(POLITE + UP_AND_WAIT)) as host:
        pass
    assert host.lines == ["up", "bye"]
    assert not is_running(host.pid)


async def test_a_stop_that_is_not_heard_ends_in_sigkill_within_its_limit() -> None:
    async with hosted(python(DEAF + UP_AND_WAIT, stop=(StopStep(signal.SIGTERM, 0.2),))) as host:
        before = time.monotonic()
    assert 0.2 <= time.monotonic() - before < 30
    assert not is_running(host.pid)


async def test_the_steps_of_a_stop_go_one_after_the_other() -> None:
    program = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: os.write(1, b'int\\n'))\n"
        "signal.signal(signal.SIGQUIT, lambda *_: (os.write(1, b'quit\\n'), sys.exit(0)))\n"
    )
    steps = (StopStep(signal.SIGINT, 0.2), StopStep(signal.SIGQUIT, 60.0))
    async with hosted(python(program + UP_AND_WAIT, stop=steps)) as host:
        pass
    assert host.lines == ["up", "int", "quit"]


async def test_a_cut_goes_to_the_last_step_at_once_and_leaves_it_its_time() -> None:
    program = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: os.write(1, b'int\\n'))\n"
        "signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b'usr1\\n'))\n"
        "signal.signal(signal.SIGQUIT, lambda *_: (time.sleep(0.2), os.write(1, b'quit\\n'), sys.exit(0)))\n"
    )
    steps = (StopStep(signal.SIGINT, 60.0), StopStep(signal.SIGUSR1, 60.0), StopStep(signal.SIGQUIT, 60.0))
    with trio.fail_after(50):
        async with trio.open_nursery() as nursery:
            async with hosted(python(program + UP_AND_WAIT, stop=steps)) as host:

                async def cut() -> None:
                    await host.lines.until("int")
                    host.child.cut.set()

                nursery.start_soon(cut)
    assert host.lines == ["up", "int", "quit"]


async def test_a_frozen_process_is_woken_so_that_it_can_stop_politely() -> None:
    async with hosted(python(POLITE + UP_AND_WAIT)) as host:
        os.kill(host.pid, signal.SIGSTOP)
    assert host.lines == ["up", "bye"]
    assert not is_running(host.pid)


async def test_a_process_that_was_cancelled_while_it_starts_leaves_nothing() -> None:
    host = Host()
    with trio.move_on_after(0):
        await run_process(host.child, python(POLITE + UP_AND_WAIT), ready=host.says_up(), log=host.lines.append)
    assert not is_running(host.pid)
    with pytest.raises(ProcessLookupError):
        os.kill(host.pid, 0)


async def test_its_helpers_in_the_same_group_go_with_it() -> None:
    program = "import subprocess, time\nprint(subprocess.Popen(['sleep', '300']).pid, flush=True)\n"
    helper = 0
    with pytest.RaisesGroup(ProcessExited):
        async with hosted(python(program + UP_AND_WAIT)) as host:
            helper = int(host.lines[0])
            assert is_running(helper)
            os.kill(host.pid, signal.SIGKILL)
            await trio.sleep_forever()
    await until(lambda: not is_running(helper))


async def test_a_grandchild_that_holds_the_output_open_does_not_hold_us() -> None:
    program = (
        "import subprocess\nprint(subprocess.Popen(['sleep', '300'], start_new_session=True).pid, flush=True)\n"
        "print('last words', flush=True)"
    )
    host = Host()
    with trio.fail_after(60), pytest.raises(ProcessExited, match="last words"):
        await run_process(host.child, python(program), ready=host.says_up(), log=host.lines.append)
    os.kill(int(host.lines[0]), signal.SIGKILL)


async def test_it_leads_a_session_of_its_own_so_ctrl_c_does_not_reach_it() -> None:
    async with hosted(python(POLITE + UP_AND_WAIT)) as host:
        assert os.getsid(host.pid) == host.pid != os.getsid(0)


async def test_it_gets_nothing_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_POSTGRES_URL", "postgresql://u:secret@h/d")
    lines = Lines()
    await run_command(python("import os; print(sorted(os.environ))"), log=lines.append)
    assert "PENSTOCK_POSTGRES_URL" not in lines[0]
    assert "PATH" in lines[0]


async def test_lines_come_whole_however_they_were_written_and_endless_ones_are_cut() -> None:
    lines = Lines()
    program = "import sys; w = sys.stdout.write; w('on'); sys.stdout.flush(); w('e\\n\\n'); w('x' * 20000); w('\\nend')"
    await run_command(python(program), log=lines.append)
    assert lines[0] == "one"
    assert lines[-1] == "end"
    assert "".join(lines[1:-1]) == "x" * 20000
    assert max(map(len, lines)) <= processes.LINE_LIMIT


async def test_more_output_than_a_pipe_holds_does_not_block_the_process() -> None:
    lines = Lines()
    with trio.fail_after(10):
        await run_command(python("for n in range(20000): print(n)"), log=lines.append)
    assert lines == [str(n) for n in range(20000)]


async def test_a_program_that_cannot_run_is_named() -> None:
    host = Host()
    spec = ProcessSpec(name="ghost", argv=("/nowhere/ghost",), cwd=Path("/"))
    with pytest.raises(LaunchFailed, match="cannot run /nowhere/ghost: No such file"):
        await run_process(host.child, spec, ready=host.says_up(), log=host.lines.append)
    with pytest.raises(LaunchFailed, match="/nowhere/ghost"):
        await run_command(spec, log=host.lines.append)


async def test_a_command_that_fails_is_an_error() -> None:
    with pytest.raises(ProcessExited, match="exited with code 2"):
        await run_command(python("raise SystemExit(2)"), log=print)


async def test_without_pidfds_the_end_is_seen_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    async with hosted(python(POLITE + UP_AND_WAIT)) as host:
        pass
    assert host.lines == ["up", "bye"]
    with pytest.raises(ProcessExited):
        await run_process(Host().child, python("pass"), ready=host.says_up(), log=print)


async def test_no_descriptor_is_left_open() -> None:
    await run_command(python("print('warm')"), log=print)
    before = set(os.listdir("/dev/fd"))
    for _ in range(3):
        async with hosted(python(POLITE + UP_AND_WAIT)):
            pass
        with pytest.raises(LaunchFailed):
            await run_command(ProcessSpec(name="ghost", argv=("/nowhere/ghost",), cwd=Path("/")), log=print)
    assert len(os.listdir("/dev/fd")) == len(before)


async def test_no_descriptor_is_left_open_when_there_are_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    await run_command(python("print('warm')"), log=print)
    before = len(os.listdir("/dev/fd"))
    made: list[tuple[int, int]] = []
    pipe = os.pipe

    def scarce() -> tuple[int, int]:
        if made:
            raise OSError(errno.EMFILE, "Too many open files")
        made.append(pipe())
        return made[0]

    monkeypatch.setattr(os, "pipe", scarce)
    with pytest.raises(OSError, match="Too many open files"):
        await run_command(python("print('never')"), log=print)
    assert len(os.listdir("/dev/fd")) == before


PARENT = """
import sys, trio
from pathlib import Path
from penstock.runtime.processes import ProcessSpec, run_process
from penstock.runtime.supervision import Child

async def main():
    async def ready(): return True
    spec = ProcessSpec(name="snake", argv=(sys.executable, "-c", "import time; time.sleep(300)"), cwd=Path("/"))
    child = Child("test/snake", 1, lambda: print(child.text.split()[1], flush=True))
    await run_process(child, spec, ready=ready, log=print)

trio.run(main)
"""


@linux_only
async def test_it_does_not_outlive_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen(  # noqa: ASYNC220 - trio's own would wait for it in its nursery
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(await trio.to_thread.run_sync(parent.stdout.readline))
    assert is_running(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    await until(lambda: not is_running(pid))


@linux_only
def test_a_parent_that_ended_before_the_signal_was_set_is_noticed(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    order = {
        "argv": ["/usr/bin/touch", str(proof)],
        "account": None,
        "reach": [],
        "parent": 1,  # not the one that runs this
        "death_signal": 15,
        "report": 2,
    }
    ended = subprocess.run([sys.executable, "-I", "-S", launch.__file__, json.dumps(order)], check=False, timeout=10)
    assert ended.returncode == 128 + 15
    assert not proof.exists()
