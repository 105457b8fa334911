"""Which system a command is about, and what it says when the settings do not go with it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from penstock.http.commands.check import check
from penstock.http.commands.declared import declared_system
from penstock.http.commands.migrate import migrate_command
from penstock.http.configuration import Settings
from penstock.runtime.cli import CommandError
from penstock.runtime.settings import load

SHOP = """
from attrs import frozen
from penstock.actors.event import event
from penstock.actors.system import System

@event("PLACED")
@frozen
class Placed:
    number: int

system = System("declared-shop")
orders = system.stream("orders", events=[Placed])

@orders.on(Placed, group="payment")
async def pay(placed, context):
    pass

async def note(placed, context):
    pass

nothing = 3
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delitem(sys.modules, "declared_shop", raising=False)
    Path("declared_shop.py").write_text(SHOP)
    return tmp_path


def settings_of(text: str) -> Settings:
    Path("penstock.toml").write_text(text)
    return load(Settings, file=Path("penstock.toml"), environ={})


def run_check(text: str, *arguments: str, **environ: str) -> Result:
    Path("penstock.toml").write_text(text)
    environment = {"PENSTOCK_HTTP_BIND": "127.0.0.1:0", **environ}
    return CliRunner().invoke(check, arguments, env=environment, catch_exceptions=True)


def test_without_system_and_streams_it_is_the_access_event_system() -> None:
    assert declared_system(None, settings_of("")).name == "event-system"


def test_the_setting_names_the_system_and_an_argument_goes_before_it() -> None:
    settings = settings_of('system = "declared_shop.py:system"\n')
    assert declared_system(None, settings).name == "declared-shop"
    Path("other.py").write_text('from penstock.actors.system import System\nsystem = System("other")\n')
    assert declared_system("other.py:system", settings).name == "other"


def test_streams_alone_make_a_system() -> None:
    Path("migrations").mkdir()
    made = declared_system(
        None, settings_of('name = "mine"\nmigrations = "migrations"\n[streams.a.groups.g]\n[streams.b]\n')
    )
    assert (made.name, made.migrations, list(made.streams)) == ("mine", Path("migrations"), ["a", "b"])
    assert declared_system(None, settings_of("[streams.a]\n")).name == "penstock"


def test_the_access_events_own_stream_is_set_where_it_is_named() -> None:
    text = "[streams.EVENT_STREAM.groups.EVENT_GROUP]\nconsumers = 5\n[streams.beside]\n"
    made = declared_system(None, settings_of(text))
    assert (made.name, list(made.streams)) == ("event-system", ["EVENT_STREAM", "beside"])
    assert made.streams["EVENT_STREAM"].groups["EVENT_GROUP"].consumers == 5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('system = "nowhere:system"\n', "there is no module 'nowhere'"),
        ('system = "declared_shop.py"\n', "is not of the form module:name or file.py:name"),
        ('system = "declared_shop.py:nothing"\n', "declared_shop.py:nothing is a int, not a penstock System"),
        ('name = "mine"\n', "name is of a system that is made of settings alone, and they make none"),
        (
            'system = "declared_shop.py:system"\nmigrations = "x"\n',
            "migrations is of a system that is made of settings alone; declared_shop.py:system has its own",
        ),
        ('migrations = "nowhere"\n[streams.a]\n', "migrations: there is no directory nowhere"),
        ('[streams.a.groups.g.handlers]\nX = "nowhere:x"\n', "there is no module 'nowhere'"),
        (
            'system = "declared_shop.py:system"\n[streams.order.groups.payment]\nbatch = 3\n',
            "stream 'orders' has a group of this name",
        ),
        ('system = "declared_shop.py:system"\n[streams.ordrs]\nmax_len = 9\n', "did you mean 'orders'? If a further"),
    ],
)
def test_what_does_not_go_together_is_one_line_with_exit_code_2(text: str, problem: str) -> None:
    with pytest.raises(CommandError) as refused:
        declared_system(None, settings_of(text))
    assert refused.value.exit_code == 2
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)


def test_check_shows_the_streams_and_groups_as_they_would_run() -> None:
    text = """
    system = "declared_shop.py:system"
    [streams.orders]
    max_len = 500
    [streams.orders.groups.payment]
    consumers = 2
    batch = 7
    [streams.orders.groups.notes]
    enabled = false
    handlers = { PLACED = "declared_shop.py:note" }
    [streams.orders.groups.ranking]
    """
    shown = run_check(text)
    assert shown.exit_code == 0, shown.output
    for line in (
        "events PLACED, about 500 entries at the most",
        "of orders: 2 consumers, 4 workers, batch 7, block 1 s; handles PLACED",
        "of orders: made, and not read here: not enabled",
        "of orders: another program's: made, and left alone",
    ):
        assert line in shown.output
    named = run_check("", "declared_shop.py:system")
    assert "of orders: 1 consumer, 4 workers, batch 100, block 1 s; handles PLACED" in named.output


def test_check_says_when_partitions_are_not_those_that_a_stream_was_made_with(database: Any) -> None:
    text = 'system = "declared_shop.py:system"\n'
    before = run_check(text, PENSTOCK_POSTGRES_URL=database.address)
    assert before.exit_code == 0, before.output
    migrated = CliRunner().invoke(migrate_command, env={"PENSTOCK_POSTGRES_URL": database.address})
    assert migrated.exit_code == 0, migrated.output
    with psycopg.connect(database.address) as connection:
        connection.execute("insert into penstock_stream (stream, partitions) values ('orders', 1)")
    assert run_check(text, PENSTOCK_POSTGRES_URL=database.address).exit_code == 0
    after = run_check(text + "[streams.orders]\npartitions = 3\n", PENSTOCK_POSTGRES_URL=database.address)
    assert isinstance(after.exception, CommandError)
    assert after.exception.exit_code == 2
    assert "stream 'orders' was made with 1 partitions and is declared with 3" in str(after.exception)
