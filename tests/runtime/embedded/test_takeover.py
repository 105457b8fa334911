"""However penstock ends, no server stays behind: the kernel ends them, or the next start does."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from penstock.runtime.embedded.leftovers import _find_by_ps, find_leftovers

Start = Callable[..., Any]
IsRunning = Callable[[int], bool]


def leftovers(place: Path) -> list[int]:
    found = [
        *find_leftovers("valkey-server", place / "valkey"),
        *find_leftovers("postgres", place / "postgres" / "data"),
    ]
    return [leftover.pid for leftover in found]


def write(urls: dict[str, str]) -> None:
    redis.Redis.from_url(urls["redis-server"]).set("kept", "yes")
    with psycopg.connect(urls["postgres-server"]) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")


def check(urls: dict[str, str]) -> None:
    assert redis.Redis.from_url(urls["redis-server"]).get("kept") == b"yes"
    with psycopg.connect(urls["postgres-server"]) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)


def test_after_a_kill_of_penstock_the_servers_end_and_the_next_start_has_all_data(
    place: Path, start: Start, is_running: IsRunning
) -> None:
    first = start(place)
    first.until_up()
    write(first.urls)
    first.end(signal.SIGKILL)
    second = start(place)
    second.until_up()
    check(second.urls)
    assert not any(is_running(pid) for pid in first.pids.values())
    assert second.end() == 0
    assert not leftovers(place)


def test_after_a_kill_of_penstock_the_servers_end_by_themselves(
    place: Path, start: Start, until_gone: Callable[[Iterable[int]], None]
) -> None:
    program = start(place)
    program.until_up()
    program.end(signal.SIGKILL)
    until_gone(program.pids.values())


def test_servers_that_did_not_end_are_taken_over(place: Path, start: Start, is_running: IsRunning) -> None:
    """A frozen server does not act on the death of its parent."""
    first = start(place)
    first.until_up()
    write(first.urls)
    for pid in first.pids.values():
        os.kill(pid, signal.SIGSTOP)
    first.end(signal.SIGKILL)
    assert set(first.pids.values()) <= set(leftovers(place))
    second = start(place)
    second.until_up()
    check(second.urls)
    for name, program in (("redis-server", "valkey-server"), ("postgres-server", "postgres")):
        assert not is_running(first.pids[name])
        assert any(f"stopped {program} (pid {first.pids[name]}" in line for line in second.lines)
    second.end()


def test_a_second_one_is_refused_and_the_first_is_not_disturbed(place: Path, start: Start) -> None:
    first = start(place)
    first.until_up()
    second = start(place)
    assert second.wait() == 1
    (line,) = second.lines
    assert line.startswith(f"DataDirectoryInUse: another penstock (pid {first.process.pid}) runs in {place}; stop it")
    write(first.urls)
    assert first.end() == 0


def test_an_ordered_stop_is_quick_and_leaves_nothing(place: Path, start: Start) -> None:
    program = start(place, "patient")
    program.until_up()
    assert program.end() == 0
    assert any("received fast shutdown request" in line for line in program.lines)
    assert not any("immediate shutdown" in line for line in program.lines)
    assert not leftovers(place)


def test_a_bystander_that_works_in_the_directory_is_never_taken_for_a_server(place: Path, start: Start) -> None:
    """Neither a shell in the directory, nor a server of the same name elsewhere."""
    bystander = start(place / "other")
    bystander.until_up()
    assert not find_leftovers("valkey-server", place / "valkey")
    assert not find_leftovers("python", place / "other" / "valkey")
    assert [found.pid for found in find_leftovers("valkey-server", place / "other" / "valkey")] == [
        bystander.pids["redis-server"]
    ]
    bystander.end()


@pytest.mark.skipif(not Path("/bin/ps").exists(), reason="there is no ps here")
def test_where_there_is_no_proc_they_are_found_by_their_command_line(place: Path, start: Start) -> None:
    program = start(place)
    program.until_up()
    for name, directory, server in (
        ("valkey-server", place / "valkey", "redis-server"),
        ("postgres", place / "postgres" / "data", "postgres-server"),
    ):
        assert program.pids[server] in [found.pid for found in _find_by_ps(name, directory)]
        assert not _find_by_ps(name, place)
    program.end()
