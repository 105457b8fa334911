from __future__ import annotations

import importlib
import signal
import sys
import zipfile
from collections.abc import AsyncIterator, Callable
from importlib import resources
from pathlib import Path

import pytest
import trio
import trio.testing

from penstock.runtime.postgres import (
    Connection,
    Fault,
    MigrationFailed,
    MigrationLimits,
    MigrationLocked,
    PostgresOptions,
    PostgresUnavailable,
    classify,
    migrate,
    pending,
    roll_back,
)

CREATE = """\
-- The first.
create table grain (id int primary key, note text default '100% ; pure');
create function weigh() returns int language plpgsql as $body$
begin
  perform 1; -- a semicolon; in a comment
  if true then return 2; end if;
end;
$body$;
insert into grain values (1);
select * from grain;
"""

ASLEEP = "select 1 from pg_stat_activity where query like '%pg_sleep(60)' and pid <> pg_backend_pid()"

Files = Callable[..., Path]


@pytest.fixture
async def options(server) -> AsyncIterator[PostgresOptions]:
    """A database of its own for each test."""
    server.execute("create database millrace")
    yield server.options(database="millrace")
    server.execute("drop database millrace with (force)")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Write migrations and return their directory."""

    def write(**texts: str) -> Path:
        directory = tmp_path / "migrations"
        directory.mkdir(exist_ok=True)
        for name, text in texts.items():
            # a keyword cannot hold a dot: _0001_grain__rollback is 0001.grain.rollback.sql
            number, _, rest = name.removeprefix("_").partition("_")
            (directory / f"{number}.{rest.replace('__', '.')}.sql").write_text(text)
        return directory

    return write


async def query(options: PostgresOptions, statement: str) -> list[tuple[object, ...]]:
    async with await Connection.open(options) as connection:
        return await (await connection.execute(statement.encode())).fetchall()


async def test_migrations_are_applied_once_and_in_order(options, files: Files, capsys) -> None:
    directory = files(_0002_more="alter table grain add column weight int", _0001_grain=CREATE)
    assert await pending(options, directory) == ["0001.grain", "0002.more"]
    assert await migrate(options, directory) == ["0001.grain", "0002.more"]
    assert await migrate(options, directory) == []
    assert await pending(options, directory) == []
    assert await query(options, "select id, note, weigh() from grain") == [(1, "100% ; pure", 2)]
    files(_0003_last="drop function weigh()")
    assert await pending(options, directory) == ["0003.last"]
    assert await migrate(options, directory) == ["0003.last"]
    assert capsys.readouterr().out == ""


async def test_each_prefix_has_its_own_record(options, files: Files) -> None:
    directory = files(_0001_grain="create table if not exists grain ()")
    assert await migrate(options, directory) == ["0001.grain"]
    assert await migrate(options, directory, table_prefix="mill") == ["0001.grain"]
    tables = await query(options, "select relname from pg_class where relname like 'mill\\_%' and relkind = 'r'")
    assert sorted(tables) == [("mill_migration",), ("mill_migration_log",), ("mill_migration_version",)]


async def test_a_failing_migration_is_named_with_its_line_and_leaves_nothing(options, files: Files) -> None:
    directory = files(
        _0001_good="create table grain (id int)",
        _0002_bad="create table flour (id int);\n\ninsert into nowhere values (1);",
        _0003_never="create table never ()",
    )
    with pytest.raises(MigrationFailed, match=r'0002\.bad failed: line 3: relation "nowhere" does not exist') as caught:
        await migrate(options, directory)
    assert caught.value.migration == "0002.bad"
    assert classify(caught.value) is Fault.BUG
    assert await query(options, "select to_regclass('grain')::text, to_regclass('flour')") == [("grain", None)]
    assert await pending(options, directory) == ["0002.bad", "0003.never"]
    files(_0002_bad="create table flour (id int)")
    assert await migrate(options, directory) == ["0002.bad", "0003.never"]


async def test_a_migration_and_its_record_are_one_transaction(options, files: Files) -> None:
    """When the record cannot be written the migration did not happen either: a crash in between is like that."""
    directory = files(_0001_grain="create table grain ()")
    await migrate(options, directory)
    async with await Connection.open(options) as connection:
        await connection.execute("alter table penstock_migration_log add check (migration_id < '0002')")
    files(_0002_flour="create table flour ()")
    with pytest.raises(MigrationFailed, match=r"0002\.flour"):
        await migrate(options, directory)
    assert await query(options, "select to_regclass('flour')") == [(None,)]
    assert await pending(options, directory) == ["0002.flour"]


async def test_a_migration_that_ends_its_own_transaction_is_told_so(options, files: Files) -> None:
    directory = files(_0001_ends="create table ended (id int); commit; select 1/0")
    with pytest.raises(MigrationFailed, match="has it a COMMIT"):
        await migrate(options, directory)


async def test_a_migration_outside_of_a_transaction(options, files: Files) -> None:
    directory = files(
        _0001_grain="create table grain (id int)",
        _0002_index="-- transactional: false\ncreate index concurrently if not exists by_id on grain (id)",
    )
    assert await migrate(options, directory) == ["0001.grain", "0002.index"]
    assert await query(options, "select to_regclass('by_id')::text") == [("by_id",)]


async def test_roll_back_undoes_from_the_newest_to_the_named_one(options, files: Files) -> None:
    directory = files(
        _0001_grain="create table grain ()",
        _0002_flour="create table flour ()",
        _0002_flour__rollback="drop table flour",
        _0003_bread="create table bread ()",
        _0003_bread__rollback="drop table bread",
    )
    await migrate(options, directory)
    assert await roll_back(options, directory, "0002.flour") == ["0003.bread", "0002.flour"]
    assert await pending(options, directory) == ["0002.flour", "0003.bread"]
    with pytest.raises(MigrationFailed, match=r"no 0001\.grain\.rollback\.sql"):
        await roll_back(options, directory, "0001.grain")
    with pytest.raises(ValueError, match="not applied"):
        await roll_back(options, directory, "0002.flour")
    assert await migrate(options, directory) == ["0002.flour", "0003.bread"]


async def test_processes_that_start_together_do_not_collide(options, files: Files) -> None:
    directory = files(_0001_grain="create table grain (); select pg_sleep(0.2)", _0002_flour="create table flour ()")
    results: list[list[str]] = []

    async def start() -> None:
        results.append(await migrate(options, directory))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(start)
    assert sorted(results) == [[], [], [], ["0001.grain", "0002.flour"]]


async def test_a_lock_held_for_too_long_names_its_holder(options, files: Files) -> None:
    directory = files(_0001_grain="create table grain ()")
    async with await Connection.open(options) as other:
        await other.execute("select pg_advisory_lock(hashtextextended('penstock migrations penstock', 0))")
        with pytest.raises(MigrationLocked, match=f"process {other.info.backend_pid} .*penstock.* more than 0.1 s"):
            await migrate(options, directory, limits=MigrationLimits(turn=0.1))
    assert await migrate(options, directory) == ["0001.grain"]


async def test_a_tables_lock_held_for_too_long_fails_the_migration(options, files: Files) -> None:
    directory = files(_0001_grain="create table grain ()", _0002_more="alter table grain add column id int")
    (directory / "0002.more.sql").rename(directory / "later")
    await migrate(options, directory)
    (directory / "later").rename(directory / "0002.more.sql")
    async with await Connection.open(options) as other, other.transaction():
        await other.execute("lock table grain in access share mode")
        with pytest.raises(MigrationFailed, match="lock timeout") as caught:
            await migrate(options, directory, limits=MigrationLimits(lock=0.1))
    assert classify(caught.value) is Fault.RETRY


async def test_a_cancelled_run_ends_soon_and_holds_no_lock(options, server, files: Files) -> None:
    directory = files(_0001_grain="create table grain ()", _0002_slow="create table slow (); select pg_sleep(60)")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(migrate, options, directory)
        with trio.fail_after(20):
            while not server.execute(ASLEEP):
                await trio.sleep(0.005)
        started = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - started < 30
    files(_0002_slow="create table slow ()")
    with trio.fail_after(30):
        assert await migrate(options, directory) == ["0002.slow"]


async def test_a_cancelled_wait_for_its_turn_ends_soon(options, files: Files) -> None:
    directory = files(_0001_grain="create table grain ()")
    async with await Connection.open(options) as other:
        await other.execute("select pg_advisory_lock(hashtextextended('penstock migrations penstock', 0))")
        started = trio.current_time()
        with trio.move_on_after(0.3):
            await migrate(options, directory)
        assert trio.current_time() - started < 30, "far less than the minute that it may wait"


async def test_a_cancelled_run_on_a_frozen_server_is_cut_off(own_server, files: Files) -> None:
    directory = files(_0001_slow="select pg_sleep(60)")
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await migrate(own_server.options(), directory, limits=MigrationLimits(stop=0.5))

        nursery.start_soon(run)
        with trio.fail_after(20):
            while not own_server.execute(ASLEEP):
                await trio.sleep(0.005)
        own_server.send(signal.SIGSTOP)
        started = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - started < 20
    own_server.send(signal.SIGCONT)


async def test_a_server_that_goes_away_meanwhile_is_unavailable(own_server, files: Files) -> None:
    directory = files(_0001_slow="create table grain (); select pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(PostgresUnavailable):
        await migrate(own_server.options(), directory)
    own_server.stop()
    with pytest.raises(PostgresUnavailable):
        await migrate(own_server.options(), directory)


async def test_secrets_do_not_show(server, files: Files, caplog) -> None:
    caplog.set_level("DEBUG")
    directory = files(_0001_grain="create table grain ()")
    options = server.options(user="penstock", password="s3cret/%@:", database="postgres")
    with pytest.raises(MigrationFailed, match="permission denied") as caught:
        await migrate(options, directory, table_prefix="mill")
    link: BaseException | None = caught.value
    while link is not None:
        assert "s3cret" not in str(link)
        link = link.__cause__ or link.__context__
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        ([], "no migrations"),
        (["1.grain.sql"], "NNNN"),
        (["0001-grain.sql"], "NNNN"),
        (["0001.grain.sql", "0001.flour.sql"], "number 0001"),
        (["0001.grain.sql", "0002.flour.rollback.sql"], "rollback without a migration"),
    ],
)
async def test_bad_file_names_are_refused_before_anything_is_done(tmp_path, names: list[str], fault: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=fault):
        await migrate(PostgresOptions(host="/nowhere"), tmp_path)


async def test_migrations_are_read_from_a_package_inside_an_archive(options, tmp_path, monkeypatch) -> None:
    """As from any installed package, wherever its files lie."""
    with zipfile.ZipFile(tmp_path / "mill.zip", "w") as archive:
        archive.writestr("mill_migrations/__init__.py", "")
        archive.writestr("mill_migrations/0001.grain.sql", "create table grain ()")
    monkeypatch.syspath_prepend(str(tmp_path / "mill.zip"))
    importlib.invalidate_caches()
    try:
        assert await migrate(options, resources.files("mill_migrations")) == ["0001.grain"]
    finally:
        sys.modules.pop("mill_migrations", None)


async def test_a_bad_prefix_is_refused(options, files: Files) -> None:
    with pytest.raises(ValueError, match="table_prefix"):
        await migrate(options, files(_0001_grain="select 1"), table_prefix='x"; drop')
