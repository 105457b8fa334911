"""The same seed is the same story: step by step, in the same interpreter and in another one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from attrs import evolve
from simulation_gated import GATED
from simulation_shop import SHOP
from simulation_workshop import WORKSHOP

from penstock.actors.simulation import Outcome, tell_story

SEEDS = range(6)
ON_CLUSTER = evolve(WORKSHOP, on_cluster=1.0)
REFUSED = 4
"""A story of the other system, in which a probe is refused a connection, and waits before it asks for another."""

_TELL = """
import sys
sys.path.insert(0, sys.argv[1])
from test_repeatable_stories import outcomes
for outcome in outcomes():
    print(outcome.trace)
"""


def outcomes() -> list[Outcome]:
    """What some seeds come to."""
    rarer = tell_story(ON_CLUSTER, 2), tell_story(GATED, REFUSED)
    return [*(tell_story(SHOP, seed) for seed in SEEDS), *rarer]


def _elsewhere(hash_seed: str) -> list[str]:
    command = [sys.executable, "-c", _TELL, str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()


def test_the_same_seed_is_the_same_story() -> None:
    first = outcomes()
    again = outcomes()
    assert again == first
    assert len({outcome.trace for outcome in first}) == len(first)


def test_in_another_interpreter_too() -> None:
    """Whatever order its sets and its memory have."""
    here = [outcome.trace for outcome in outcomes()]
    assert _elsewhere("1") == here
