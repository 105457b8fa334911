"""``penstock simulate`` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHOP = "docs/examples/shop.py:system"

_RUN = """
import sys
from penstock.http.commands.simulate import simulate
from penstock.runtime import cli
cli._cli.add_command(simulate, "simulate")
cli.main(["simulate", *sys.argv[1:]])
"""

BROKEN = """
from attrs import frozen
from penstock.actors.event import event
from penstock.actors.system import System

@event("ORDER", key="customer")
@frozen
class Order:
    customer: str
    number: int

system = System("broken")
orders = system.stream("orders", events=[Order])

@orders.on(Order, group="payments")
async def pay(order, context):
    cursor = await context.connection.execute("select 1")
    assert await cursor.fetchone() is None

def simulation_events(chance):
    for number in range(5):
        yield "orders", Order("ada", number)
"""

SABOTAGED = (
    BROKEN
    + """
from penstock.actors.testing.store import MemoryTransaction

async def first_time(self, group, entries):
    return {entry.event_id for entry in entries}  # the inbox is off

MemoryTransaction.first_time = first_time
"""
)


def _run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _RUN, *arguments], capture_output=True, text=True, check=False, cwd=cwd
    )


def test_a_sound_system_keeps_its_promises() -> None:
    done = _run(SHOP, "--seeds", "6", "--jobs", "2", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["seeds"] == 6
    assert report["failed"] == []
    assert report["events"] > 0


def test_what_breaks_names_its_seed_and_how_to_see_it_again(tmp_path: Path) -> None:
    (tmp_path / "sabotaged.py").write_text(SABOTAGED)
    done = _run("sabotaged:system", "--seeds", "3", "--processes", "1", cwd=tmp_path)
    assert done.returncode == 1
    assert "BROKEN: " in done.stdout
    assert "again: penstock simulate sabotaged:system --processes 1 --seed " in done.stdout
    assert done.stderr.splitlines()[-1].endswith("broke a promise")


def test_one_seed_tells_its_story(tmp_path: Path) -> None:
    """With events and handlers of the user's own, one of which asks the database."""
    (tmp_path / "own.py").write_text(BROKEN)
    done = _run("own:system", "--seed", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all is quiet" in done.stdout
    assert "events accepted" in done.stdout


def test_a_system_of_settings_alone_keeps_its_promises(tmp_path: Path) -> None:
    """Also where a group is another program's, and one is not read by anybody."""
    settings = """
    [streams.orders]
    partitions = 2
    [streams.orders.groups.payments]
    batch = 3
    handlers = { ORDER = "own.py:pay_anything" }
    [streams.orders.groups.notes]
    enabled = false
    handlers = { ORDER = "own.py:pay_anything" }
    [streams.orders.groups.ranking]
    """
    (tmp_path / "penstock.toml").write_text(settings)
    handler = "\nasync def pay_anything(order: dict, context):\n    await pay(order, context)\n"
    (tmp_path / "own.py").write_text(BROKEN + handler)
    done = _run("--seeds", "4", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["failed"] == []
    assert report["events"] == 20
    (tmp_path / "own.py").write_text(handler)
    done = _run(cwd=tmp_path)
    assert done.returncode == 2
    assert "nothing is declared of the data of 'ORDER'" in done.stderr


QUEUE = """
from attrs import frozen
from penstock.actors.event import event
from penstock.actors.system import System

@event("RESIZE")
@frozen
class Resize:
    image: str

system = System("images")
thumbnails = system.queue("thumbnails")

@thumbnails.on(Resize)
async def resize(job, context):
    await context.connection.execute("insert")

def simulation_events(chance):
    yield "thumbnails", Resize("a.png")
"""


def test_a_work_queue_needs_nothing_more() -> None:
    done = _run("docs/examples/thumbnails.py:system", "--first", "5", "--seeds", "2", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["failed"] == []
    assert report["events"] >= 20


def test_jobs_of_ones_own_name_their_queue(tmp_path: Path) -> None:
    (tmp_path / "images.py").write_text(QUEUE)
    done = _run("images:system", "--seed", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ended done" in done.stdout


def test_what_cannot_be_simulated_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(BROKEN.replace("number: int", "number: complex").split("def simulation_events")[0])
    (tmp_path / "lost.py").write_text(QUEUE.replace('yield "thumbnails"', 'yield "pictures"'))
    for place, told in [
        ("odd:system", "Order.number is of the type complex"),
        ("odd:nothing", "odd:nothing is nothing, not a penstock System"),
        ("lost:system", "simulation_events names no declared stream or queue: pictures"),
        ("nowhere:system", "there is no module 'nowhere'"),
    ]:
        done = _run(place, "--seeds", "1", cwd=tmp_path)
        assert done.returncode == 2
        assert told in done.stderr
        assert len(done.stderr.splitlines()) == 1
