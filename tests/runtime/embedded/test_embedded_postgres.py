"""The embedded PostgreSQL is made once, whole or not at all, and comes back after every kind of end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio

from penstock.runtime.embedded import DataDirectory, DataDirectoryError, EmbeddedPostgres, postgres
from penstock.runtime.embedded.leftovers import find_leftovers
from penstock.runtime.supervision import Child

Running = Callable[[EmbeddedPostgres], AbstractAsyncContextManager[Any]]


def query(server: EmbeddedPostgres, text: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(server.url, autocommit=True, connect_timeout=5) as connection:
        cursor = connection.execute(text.encode())
        return cursor.fetchall() if cursor.description else []


async def test_it_serves_the_database_on_its_private_socket_only_and_leaves_nothing_behind(
    place: Path, lines: list[str], running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "1")  # belongs to somebody's other server
    with DataDirectory(place) as directory:
        server = EmbeddedPostgres(directory, log=lines.append)
        async with running(server):
            rows = query(
                server,
                "SELECT current_database(), current_setting('server_encoding'), current_setting('listen_addresses'),"
                " current_setting('fsync'), current_setting('synchronous_commit'), current_setting('TimeZone'),"
                " lower('ÄÖ')",
            )
            assert rows == [("penstock", "UTF8", "", "on", "on", "UTC", "äö")]
            assert find_leftovers("postgres", place / "postgres" / "data")
        assert not find_leftovers("postgres", place / "postgres" / "data")
        assert not list((place / "postgres").glob(".s.*"))


async def test_data_is_kept_from_one_run_to_the_next(place: Path, lines: list[str], running: Running) -> None:
    with DataDirectory(place) as directory:
        server = EmbeddedPostgres(directory, log=lines.append)
        async with running(server):
            query(server, "CREATE TABLE kept AS SELECT 42 AS answer")
        lines.clear()
        async with running(server):
            assert query(server, "SELECT answer FROM kept") == [(42,)]
    assert not any("initdb" in line or "creating" in line for line in lines)


async def test_a_kill_of_the_postmaster_while_it_works_is_soon_over(
    place: Path, lines: list[str], running: Running
) -> None:
    with DataDirectory(place) as directory:
        server = EmbeddedPostgres(directory, log=lines.append)
        async with running(server) as it:
            query(server, "CREATE TABLE kept AS SELECT 42 AS answer")
            # A back end at work sees the end of its postmaster late, and holds the shared memory until then.
            with closing(psycopg.connect(server.url, autocommit=True)) as connection:
                connection.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 10000000000)")
                connection.pgconn.flush()
                await _until_at_work(server, connection.info.backend_pid)
                os.kill(it.pid, signal.SIGKILL)
                await it.until_incarnation(2)
                (pause,) = it.pauses
            assert query(server, "SELECT answer FROM kept") == [(42,)]
    # Its first start is the one that succeeds: half a second on a quiet disk; the recovery waits for the disk.
    assert 0.1 <= pause <= 0.15
    assert not any("starting up" in line for line in lines)


async def _until_at_work(server: EmbeddedPostgres, pid: int) -> None:
    with trio.fail_after(30):
        while query(server, f"SELECT state FROM pg_stat_activity WHERE pid = {pid}") != [("active",)]:
            await trio.sleep(0.01)


@pytest.mark.usefixtures("patient")
async def test_a_frozen_server_is_stopped_in_good_order(place: Path, lines: list[str], running: Running) -> None:
    with DataDirectory(place) as directory:
        async with running(EmbeddedPostgres(directory, log=lines.append)) as it:
            os.kill(it.pid, signal.SIGSTOP)
    assert lines[-1].endswith("database system is shut down")


@pytest.mark.usefixtures("patient")
async def test_clients_that_stay_do_not_hold_up_the_stop(place: Path, lines: list[str], running: Running) -> None:
    with DataDirectory(place) as directory:
        server = EmbeddedPostgres(directory, log=lines.append)
        async with running(server):
            stays = psycopg.connect(server.url)
        stays.close()
    assert any("received fast shutdown request" in line for line in lines)
    assert not any("immediate shutdown" in line for line in lines)


async def test_a_kill_while_the_cluster_is_made_leaves_none_and_the_next_start_makes_it(
    place: Path, lines: list[str], running: Running
) -> None:
    with DataDirectory(place) as directory:
        server = EmbeddedPostgres(directory, log=lines.append)
        with trio.CancelScope() as scope:

            def cut(line: str) -> None:
                if "bootstrap" in line or "creating subdirectories" in line:
                    scope.cancel()

            await EmbeddedPostgres(directory, log=cut).run(Child("test/postgres", 1, lambda: None))
        assert scope.cancelled_caught
        assert not (place / "postgres" / "data").exists()
        (place / "postgres" / "data.new").mkdir(exist_ok=True)
        (place / "postgres" / "data.new" / "half").write_text("made")
        async with running(server):
            assert query(server, "SELECT 1") == [(1,)]
        assert not (place / "postgres" / "data.new").exists()


@pytest.mark.parametrize("content", [f"{os.getpid()}\n", ""], ids=["somebody else", "nobody"])
async def test_a_stale_lock_whose_pid_is_somebody_elses_by_now_does_not_stop_it(
    place: Path, lines: list[str], running: Running, content: str
) -> None:
    with DataDirectory(place) as directory:
        server = EmbeddedPostgres(directory, log=lines.append)
        async with running(server):
            pass
        for lock in ("data/postmaster.pid", f"{postgres.SOCKET_NAME}.lock"):
            (place / "postgres" / lock).write_text(content)
        async with running(server):
            assert query(server, "SELECT 1") == [(1,)]


async def test_a_dropped_database_is_made_again(place: Path, lines: list[str], running: Running) -> None:
    with DataDirectory(place) as directory:
        server = EmbeddedPostgres(directory, log=lines.append)
        async with running(server):
            other = server.url.replace("/penstock?", "/postgres?")
            with psycopg.connect(other, autocommit=True) as connection:
                connection.execute("DROP DATABASE penstock")
        async with running(server):
            assert query(server, "SELECT current_database()") == [("penstock",)]


async def test_data_of_another_major_version_is_refused_with_the_way_out(place: Path) -> None:
    with DataDirectory(place) as directory:
        server = EmbeddedPostgres(directory, log=print)
        home = directory.home("postgres", postgres.SOCKET_NAME)
        (home.path / "data").mkdir()
        (home.path / "data" / "PG_VERSION").write_text("9\n")
        with pytest.raises(DataDirectoryError, match=r"made by PostgreSQL 9.*dump it.*PENSTOCK_DATA_DIR"):
            await server.run(Child("test/postgres", 1, lambda: None))


@pytest.mark.parametrize("name", ["d" * 100, "with, comma and 100%"])
async def test_any_path_will_do(place: Path, lines: list[str], running: Running, name: str) -> None:
    with DataDirectory(place / name) as directory:
        server = EmbeddedPostgres(directory, log=lines.append)
        async with running(server):
            assert query(server, "SELECT 1") == [(1,)]
        assert not directory.socket_directory("postgres", postgres.SOCKET_NAME).exists()
