"""A place for data directories, a tree around a server, and a program that can be killed with its servers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve

from penstock.runtime.embedded import EmbeddedPostgres, EmbeddedValkey, postgres, valkey
from penstock.runtime.embedded.leftovers import find_leftovers
from penstock.runtime.supervision import Backoff, LifecycleKind, Supervisor, Tree

SERVE = Path(__file__).with_name("serve.py")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that any user can reach; pytest's own are closed to all but us."""
    path = Path(tempfile.mkdtemp(prefix="penstock-test-", dir="/tmp")).resolve()
    path.chmod(0o755)
    yield path
    # A test that failed may have left servers; the next ones shall not suffer from it.
    for data in (*path.rglob("valkey"), *path.rglob("data")):
        for found in (*find_leftovers("valkey-server", data), *find_leftovers("postgres", data)):
            os.kill(found.pid, signal.SIGKILL)
    shutil.rmtree(path)


@pytest.fixture
def lines() -> list[str]:
    """What the servers log."""
    return []


class Running:
    """A server within a tree."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    @property
    def pid(self) -> int:
        (child,) = self._tree.snapshot().root.children
        return int(child.note.removeprefix("pid "))

    async def until_incarnation(self, number: int) -> None:
        with trio.fail_after(60):
            while True:
                (child,) = self._tree.snapshot().root.children
                if child.incarnation == number and child.state == "running":
                    return
                await trio.sleep(0.005)

    @property
    def pauses(self) -> list[float]:
        """The waits before its restarts, in seconds."""
        events = self._tree.journal.recent
        return [event.seconds or 0.0 for event in events if event.kind is LifecycleKind.CHILD_BACKOFF]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of a stop has a minute: a second one says that the first did not work, not that the disk is busy."""
    for module in (postgres, valkey):
        monkeypatch.setattr(module, "STOP", tuple(evolve(step, wait=60.0) for step in module.STOP))


Run = Callable[[EmbeddedValkey | EmbeddedPostgres], AbstractAsyncContextManager[Running]]


@pytest.fixture
def running() -> Run:
    """``async with running(server) as it``: it runs under a real supervisor, is up, and is stopped at the end."""

    @asynccontextmanager
    async def run(server: EmbeddedValkey | EmbeddedPostgres) -> AsyncIterator[Running]:
        tree = Tree(Supervisor("test", [server.spec()]))
        assert server.spec().backoff == Backoff()
        async with trio.open_nursery() as nursery:
            await nursery.start(tree.run)
            with trio.fail_after(60):
                await tree.ready()
            yield Running(tree)
            tree.stop("end of the test")

    return run


class Program:
    """``serve.py`` as a process, with what it printed."""

    def __init__(self, command: list[str], **options: Any) -> None:
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, **options
        )
        self.lines: list[str] = []
        self.up: dict[str, dict[str, Any]] = {}
        self._told = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pids(self) -> dict[str, int]:
        return self.up["pids"]

    @property
    def urls(self) -> dict[str, str]:
        return self.up["urls"]

    def until_up(self) -> None:
        assert self._told.wait(60), "\n".join(self.lines)
        assert self.up, "\n".join(self.lines)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and wait for its end; its exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(100)
        # A grandchild may hold the pipe open for a moment longer; that is no reason to wait.
        self._reader.join(1)
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if line.startswith("{"):
                self.up = json.loads(line)
                self._told.set()
        self._told.set()


Start = Callable[..., Program]


@pytest.fixture
def start() -> Iterator[Start]:
    """``start(directory, …)``: run ``serve.py`` there; whatever of it is left at the end of the test is ended."""
    programs: list[Program] = []

    def start_program(
        directory: Path,
        *arguments: str,
        prefix: tuple[str, ...] = (),
        python: tuple[str, ...] = (sys.executable,),
        **options: Any,
    ) -> Program:
        programs.append(Program([*prefix, *python, str(SERVE), str(directory), *arguments], **options))
        return programs[-1]

    yield start_program
    for program in programs:
        if program.process.poll() is None:
            program.end(signal.SIGTERM)


@pytest.fixture
def is_running() -> Callable[[int], bool]:
    """Whether a process is neither gone nor a zombie."""

    def look(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    return look


@pytest.fixture
def until_gone(is_running: Callable[[int], bool]) -> Callable[[Iterable[int]], None]:
    """Wait, for a minute at the most, until none of these processes runs any more."""

    def wait(pids: Iterable[int]) -> None:
        deadline = time.monotonic() + 60
        while remaining := [pid for pid in pids if is_running(pid)]:
            assert time.monotonic() < deadline, f"still running: {remaining}"
            time.sleep(0.01)

    return wait


@pytest.fixture
def as_root() -> None:
    """For tests that change owners and users."""
    if os.geteuid() != 0:
        pytest.skip("only root can run the servers as somebody else")
