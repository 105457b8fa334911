from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "postgres_link.py"


def test_the_example_of_the_how_to_runs(server) -> None:
    server.execute("create database example")
    environment = {**os.environ, "POSTGRES_URL": server.options(database="example").address}
    run = subprocess.run([sys.executable, _EXAMPLE], env=environment, capture_output=True, text=True, timeout=60)
    server.execute("drop database example with (force)")
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == "migrated: ['0001.sacks']"
    assert lines[1] == "stored: (1000,)"
    assert lines[2] == "gave up in time: True and still connected: True"
    assert lines[3] == "a second sack 1 is the fault of the event"
    assert run.stderr == ""
