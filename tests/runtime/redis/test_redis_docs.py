"""The documentation of the Redis link: the example runs, the table of replies is the real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.runtime.redis import REPLIES, UNCLASSIFIED

if TYPE_CHECKING:
    from conftest import ValkeyServer

DOCS = Path(__file__).parents[3] / "docs"


def test_the_example_runs(shared_valkey: ValkeyServer) -> None:
    result = subprocess.run(
        [sys.executable, DOCS / "examples" / "redis_link.py"],
        env={**os.environ, "REDIS_URL": shared_valkey.url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "read and acknowledged everything; pending: 0",
        "BUSYGROUP Consumer Group name already exists -> normal: take it as success",
        "still on the first connection: True",
    ]


def test_the_reference_is_the_table() -> None:
    lines = (DOCS / "reference" / "redis-replies.md").read_text().splitlines()
    expected = [
        f"| {row.text} | {row.meaning} | {row.kind.value} | {'yes' if row.shuts_gate else ''} | {row.action} |"
        for row in (*REPLIES, UNCLASSIFIED)
    ]
    assert [line for line in lines if line.startswith("|")][2:] == expected
