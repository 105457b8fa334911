"""The documentation of pub/sub: the example runs, and the numbers on the page are the real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from penstock.runtime.redis import CommandRefused, Redis, RedisOptions
from penstock.runtime.redis.backoff import Backoff
from penstock.runtime.redis.pubsub import BUFFER_BYTES

if TYPE_CHECKING:
    from conftest import ValkeyServer

DOCS = Path(__file__).parents[3] / "docs"


def test_the_example_runs(shared_valkey: ValkeyServer) -> None:
    result = subprocess.run(
        [sys.executable, DOCS / "examples" / "redis_pubsub.py"],
        env={**os.environ, "REDIS_URL": shared_valkey.url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[:2] == ["changed: rye", "prices: {'rye': '12'}"]
    assert "gap in example:changes: the server closed the connection; reading everything again" in lines
    assert lines[-1] == "prices: {'rye': '12', 'oats': '9'}"


def test_the_numbers_are_the_real_ones() -> None:
    page = (DOCS / "how-to" / "redis-pubsub.md").read_text()
    options, backoff = RedisOptions(), Backoff()
    assert f"(50 ms to {backoff.cap:g} s)" in page
    assert backoff.base == 0.05
    assert f"`response_timeout` ({options.response_timeout:g} s)" in page
    assert f"`stall_after` ({options.stall_after:g} s)" in page
    assert f"About {BUFFER_BYTES // 1024**2} MiB" in page


async def test_the_shared_connection_says_where_subscriptions_are(redis: Redis) -> None:
    with pytest.raises(CommandRefused, match=r"async with redis\.pubsub\(\)"):
        await redis.execute_command("SUBSCRIBE", "a")
