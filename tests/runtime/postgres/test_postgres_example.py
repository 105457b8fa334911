from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"


def run(server, name: str) -> list[str]:
    """The lines that the example prints, on an empty database of its own."""
    server.execute("create database example")
    environment = {**os.environ, "POSTGRES_URL": server.options(database="example").address}
    done = subprocess.run(
        [sys.executable, _EXAMPLES / name], env=environment, capture_output=True, text=True, timeout=60
    )
    server.execute("drop database example with (force)")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_the_example_of_the_how_to_runs(server) -> None:
    lines = run(server, "postgres_link.py")
    assert lines[0] == "migrated: ['0001.sacks']"
    assert lines[1] == "stored: (1000,)"
    assert lines[2] == "gave up in time: True and still connected: True"
    assert lines[3] == "a second sack 1 is the fault of the event"


def test_the_example_of_the_outbox_runs(server) -> None:
    assert run(server, "postgres_notifications.py") == [
        "relayed: from before the start",
        "relayed: heard",
        "the listener lost its server",
        "a gap: notifications may be missing, so the table is looked at",
        "relayed: never notified",
    ]
