"""``penstock tree --follow``: as a user runs it, and line by line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import click
import pytest
import trio
from attrs import define, field

from penstock.http.commands.lifecycle import LifecycleLines
from penstock.runtime.supervision import LifecycleKind

_RUN = "from penstock.runtime.cli import main; main()"


@define
class Following:
    """A command that runs until it is interrupted, and what it has printed so far."""

    process: trio.Process
    out: str = ""
    err: str = ""
    _news: trio.Event = field(factory=trio.Event)

    async def read(self) -> None:
        """Take what it prints, to the end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take, self.process.stdout, "out")
            nursery.start_soon(self._take, self.process.stderr, "err")

    async def _take(self, stream: Any, name: str) -> None:
        async for data in stream:
            setattr(self, name, getattr(self, name) + data.decode())
            self._news.set()
            self._news = trio.Event()

    async def until(self, *texts: str) -> None:
        """Block until it has printed all of these."""
        with trio.move_on_after(15) as waiting:
            while not all(text in self.out + self.err for text in texts):
                await self._news.wait()
        assert not waiting.cancelled_caught, f"{texts} not in:\n{self.out}\n{self.err}"

    async def interrupt(self) -> int:
        """Ctrl-C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        with trio.fail_after(10):
            return await self.process.wait()


@asynccontextmanager
async def _following(name: str, *arguments: str, port: int) -> AsyncIterator[Following]:
    command = [sys.executable, "-u", "-c", _RUN, name, *arguments, "--url", f"http://127.0.0.1:{port}"]
    pipes = partial(trio.run_process, capture_stdout=False, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    async with trio.open_nursery() as nursery:
        following = Following(await nursery.start(pipes, command))
        nursery.start_soon(following.read)
        yield following
        nursery.cancel_scope.cancel()


def _events(following: Following) -> list[str]:
    """The lines that came behind the tree."""
    return following.out.partition("Ctrl-C ends):\n")[2].splitlines()


async def _watched(server: Any, following: Following) -> None:
    """Block until the command listens: what happens before that would be told, too, but at another moment."""
    await following.until("Ctrl-C ends")
    with trio.fail_after(10):
        while len(server.deployment.tree.journal._subscriptions) < 2:  # the live feed has one
            await trio.sleep(0.005)


async def test_the_tree_comes_first_and_then_a_line_for_each_event(serving: Any) -> None:
    async with serving() as server, _following("tree", "--follow", port=server.port) as following:
        await _watched(server, following)
        server.deployment.shut_redis()
        await following.until("listener-2                has stopped")
        server.deployment.crashes["producer"].set()
        await following.until("restarts in")
        assert await following.interrupt() == 0
    assert following.out.splitlines()[0].split() == ["child", "state", "starts", "restarts", "note"]
    lines = _events(following)
    assert all(line[2] == line[5] == ":" and line[8] == "." for line in lines)
    told = [line[14:] for line in lines]
    assert told[:4] == [
        "redis                     gate shut: connection refused at 127.0.0.1:6379",
        "listener-1                is held, waits for redis",
        "listener-2                is held, waits for redis",
        "listener-2                is asked to stop  ← redis gate shut",
    ]
    assert told[-2:] == [
        "producer                  crashed: ConnectionError: producer lost redis://root:***@127.0.0.1:6379",
        "producer                  restarts in 30 s: restart 1, one_for_one",
    ]
    assert following.err == ""
    assert "\x1b" not in following.out


async def test_as_json_the_tree_and_each_event_are_a_line_each(serving: Any) -> None:
    async with serving() as server, _following("tree", "--follow", "--json", port=server.port) as following:
        await following.until('"tree"')
        server.deployment.shut_redis()
        await following.until('"child_stopped"')
        assert await following.interrupt() == 0
    first, *events = (json.loads(line) for line in following.out.splitlines())
    assert first["tree"]["id"] == "event-system"
    assert [event["kind"] for event in events[:2]] == ["gate_shut", "child_held"]
    assert events[0]["sequence"] == first["sequence"] + 1


@pytest.mark.parametrize(
    ("arguments", "says"), [(("tree", "--follow"), "Ctrl-C ends"), (("tail", "anything", "--after", "0"), '{"n": 1}')]
)
async def test_ctrl_c_is_how_one_ends_it_and_no_failure(serving: Any, arguments: tuple[str, ...], says: str) -> None:
    async with serving() as server:
        body = b'{"eventType":"X","data":{"n":1}}'
        await server.request("POST", "/api/v1/streams/anything/events", body, {"Content-Type": "application/json"})
        async with _following(*arguments, port=server.port) as following:
            await following.until(says)
            assert await following.interrupt() == 0
    assert following.err == ""


async def test_a_connection_that_is_cut_is_made_again_and_no_event_is_lost_or_told_twice(serving: Any) -> None:
    async with serving() as server, _wire(server.port) as wire:
        async with _following("tree", "--follow", port=wire.port) as following:
            await _watched(server, following)
            server.deployment.shut_redis()
            await following.until("gate shut", "listener-1                has stopped")
            wire.cut()
            server.deployment.gates["redis"].open()
            await following.until("the stream of events has ended; connecting again", "connected again after")
            await following.until("listener-2                is back")
            assert await following.interrupt() == 0
    told = [line[14:].split("  ")[0] for line in _events(following)]
    assert told.count("redis") == 2
    expected = [event.kind for event in server.deployment.tree.journal.recent]
    expected = expected[expected.index(LifecycleKind.GATE_SHUT) :][: len(told)]
    assert len(told) == len(expected)
    assert expected[-1] is LifecycleKind.CHILD_READY
    assert "missing" not in following.out


async def test_a_server_that_is_started_anew_is_followed_from_its_beginning(serving: Any, free_port: int) -> None:
    bind = f"127.0.0.1:{free_port}"
    async with _following_when_up(serving, bind) as following:
        await following.until(
            "stops, children in reverse order: the test is over", "the system stops, and says no more"
        )
        async with serving(bind=bind):
            await following.until("connected again after", "event-system              is up")
            assert await following.interrupt() == 0
    lines = _events(following)
    (new,) = [index for index, line in enumerate(lines) if "the system was started anew" in line]
    assert [line[14:] for line in lines[new + 1 : new + 3]] == [
        "servers                   starts",
        "redis-server              starts",
    ]
    assert not any("is back" in line for line in lines)
    said = following.err.splitlines()
    assert sum("nothing answers" in line for line in said) <= 1  # once, not at each attempt
    assert said[-1].startswith("penstock: connected again after ")


@asynccontextmanager
async def _following_when_up(serving: Any, bind: str) -> AsyncIterator[Following]:
    """A command whose first server has stopped in order."""
    async with trio.open_nursery() as nursery:
        stopped = trio.Event()

        async def serve(task_status: Any) -> None:
            async with serving(bind=bind) as server:
                task_status.started(server)
                await stopped.wait()

        server = await nursery.start(serve)
        async with _following("tree", "--follow", port=server.port) as following:
            await _watched(server, following)
            stopped.set()
            yield following


async def test_a_server_that_has_no_such_stream_is_said_in_one_line(serving: Any) -> None:
    async with serving(live_clients=0) as server:
        async with _following("tree", "--follow", port=server.port) as following:
            await following.until("There are 0 clients that follow the tree already (setting http.live_clients)")
            with trio.fail_after(10):
                assert await following.process.wait() == 1


@define
class _Wire:
    """What stands between a client and a server, and can be cut."""

    port: int
    cut: Callable[[], None]


@asynccontextmanager
async def _wire(target: int) -> AsyncIterator[_Wire]:
    scopes: list[trio.CancelScope] = []

    async def connect(client: trio.SocketStream) -> None:
        async with client, await trio.open_tcp_stream("127.0.0.1", target) as server, trio.open_nursery() as both:
            scopes.append(both.cancel_scope)
            both.start_soon(copy, server, client)
            await copy(client, server)
            both.cancel_scope.cancel()

    async def copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        async for data in source:
            await sink.send_all(data)

    def cut() -> None:
        for scope in scopes:
            scope.cancel()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, connect, 0, host="127.0.0.1"))
        yield _Wire(listener.socket.getsockname()[1], cut)
        nursery.cancel_scope.cancel()


# Line by line --------------------------------------------------------------------------------------------------------


def _event(kind: str, path: str, **facts: Any) -> dict[str, Any]:
    number = next(_numbers)
    return {
        "sequence": number,
        "time": "2026-11-22T03:12:07.502Z",
        "kind": kind,
        "path": path,
        "incarnation": 1,
        "reason": "",
        "error": None,
        "seconds": None,
        "cause": None,
        **facts,
    }


_numbers: Iterator[int] = iter(range(1, 1_000_000))


def _lines(*children: str, gates: tuple[str, ...] = ()) -> LifecycleLines:
    return LifecycleLines(["app", *children], gates, up=True)


def _told(lines: LifecycleLines, event: dict[str, Any]) -> str:
    """The line as plain text, without its time; columns become one blank."""
    return " ".join(click.unstyle(lines.line(event)).split()[1:])


@pytest.mark.parametrize(
    ("kind", "facts", "says"),
    [
        ("child_starting", {}, "starts"),
        ("child_starting", {"incarnation": 2}, "starts (incarnation 2)"),
        ("child_ready", {"seconds": 0.25}, "is ready after 0.25 s"),
        ("child_ready", {"seconds": 0.0}, "is ready"),
        ("child_returned", {"reason": "bowed out: done"}, "has ended: bowed out: done"),
        ("child_crashed", {"error": {"type": "a.b.Broken", "message": "off"}}, "crashed: Broken: off"),
        ("child_ignored", {"reason": "no port"}, "has nothing to run: no port"),
        ("child_resumed", {"error": {"type": "ValueError", "message": "7"}}, "went on after an error: ValueError: 7"),
        ("child_backoff", {"seconds": 0.123, "reason": "restart 1"}, "restarts in 0.12 s: restart 1"),
        ("child_held", {"reason": "redis: refused"}, "is held, waits for redis"),
        ("child_stopping", {"seconds": 6.0, "reason": "SIGTERM"}, "is asked to stop within 6 s: SIGTERM"),
        ("child_stopped", {}, "has stopped"),
        ("child_stuck", {"seconds": 5.0, "reason": "at x.py:7"}, "does not stop after 5 s: at x.py:7"),
        ("child_called_off", {"reason": "by a call"}, "is not started again: by a call"),
        ("child_removed", {"reason": "deleted"}, "is no longer in the tree: deleted"),
        ("mail_lost", {"reason": "3 in the mailbox m"}, "lost messages: 3 in the mailbox m"),
        ("supervisor_gave_up", {"reason": "more than 5"}, "gave up: more than 5"),
        ("supervisor_shut_down", {"reason": "a has ended"}, "shuts down by itself: a has ended"),
        ("plan_changed", {"reason": "added: b"}, "has a new plan: added: b"),
        ("gate_shut", {"reason": "refused"}, "gate shut: refused"),
        ("gate_opened", {"seconds": 7440.0}, "gate open again after 2 h 04 min"),
        ("tree_ready", {}, "is up"),
        ("tree_stopping", {"reason": "SIGTERM"}, "stops, children in reverse order: SIGTERM"),
        ("tree_stopped", {}, "has stopped"),
        ("child_sang", {"reason": "a newer server's"}, "child sang: a newer server's"),
    ],
)
def test_what_happened_is_said_in_plain_words(kind: str, facts: dict[str, Any], says: str) -> None:
    assert _told(_lines("app/a"), _event(kind, "app/a", **facts)).partition(" ")[2] == says


def test_each_kind_stands_in_the_table_above() -> None:
    (mark,) = test_what_happened_is_said_in_plain_words.pytestmark
    assert {kind for kind, *_ in mark.args[1]} == {*(kind.value for kind in LifecycleKind), "child_sang"}


def test_what_led_there_is_named_unless_the_line_before_was_it() -> None:
    lines = _lines("app/a", "app/b")
    crash = _event("child_crashed", "app/a", error={"type": "E", "message": ""})
    lines.line(crash)
    again = _event("child_backoff", "app/a", seconds=1.0, cause=crash["sequence"], reason="restart 1, rest_for_one")
    assert _told(lines, again) == "app/a restarts in 1 s: restart 1, rest_for_one".removeprefix("app/")
    stop = _event("child_stopping", "app/b", cause=crash["sequence"], reason="rest_for_one: stopped with its group")
    assert _told(lines, stop) == "b is asked to stop ← a crashed"
    assert _told(lines, _event("child_stopping", "app/b", cause=99_999_999, reason="why")) == "b is asked to stop: why"


def test_a_child_is_named_by_as_much_of_its_path_as_tells_it_apart() -> None:
    below = ("links", "links/redis", "g1", "g1/x", "g2", "g2/x", "pool", "pool/7")
    lines = _lines(*(f"app/{path}" for path in below), gates=("redis",))
    paths = ("app", "app/g1", "app/g1/x", "app/g2/x")
    names = [_told(lines, _event("child_starting", path)).split()[0] for path in paths]
    assert names == ["app", "g1", "g1/x", "g2/x"]
    assert _told(lines, _event("gate_shut", "redis")) == "redis gate shut"
    assert _told(lines, _event("child_starting", "app/links/redis")) == "links/redis starts"
    assert _told(lines, _event("child_starting", "app/pool/7")) == "pool/7 starts"
    assert _told(lines, _event("child_starting", "app/pool/17")) == "pool/17 starts"  # of a pool, and not there before
    assert _told(lines, _event("child_starting", "app/g1/new")) == "g1/new starts"


def test_nothing_that_a_child_says_breaks_the_line_or_reaches_the_terminal_as_a_code() -> None:
    lines = _lines("app/a")
    error = {"type": "E", "message": "one\ntwo\x1b[2J"}
    line = lines.line(_event("child_crashed", "app/a\x07", error=error))
    assert r"a\x07" in line
    assert line.endswith(r": E: one\ntwo\x1b[2J")


def test_events_that_are_missing_are_counted_and_a_new_beginning_forgets_the_old() -> None:
    lines = _lines("app/a")
    lines.line(_event("child_crashed", "app/a", sequence=7))
    gap = click.unstyle(lines.gap({"missed": 12, "reason": "the client reads too slowly"}))
    assert gap.split("  ")[-1] == "12 events are missing here: the client reads too slowly"
    assert "1 event is missing here" in lines.gap({"missed": 1, "reason": "x"})
    assert "its own story begins here" in lines.gap({"missed": None, "reason": "the system was started anew"})
    assert _told(lines, _event("child_ready", "app/a", seconds=0.1, cause=7)) == "a is ready after 0.1 s"


def test_what_somebody_must_look_at_is_red_and_a_mere_step_is_dim() -> None:
    lines = _lines("app/a")
    assert "\x1b[31mcrashed" in lines.line(_event("child_crashed", "app/a"))
    assert "\x1b[33mgate shut" in lines.line(_event("gate_shut", "redis"))
    assert "\x1b[2mstarts" in lines.line(_event("child_starting", "app/a"))
