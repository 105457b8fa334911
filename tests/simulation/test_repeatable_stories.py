"""The same seed is the same story: step by step, in the same interpreter and in another one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from simulation_shop import SHOP

from penstock.actors.simulation import tell_story

SEEDS = range(6)

_TELL = """
import sys
sys.path.insert(0, sys.argv[1])
from simulation_shop import SHOP
from penstock.actors.simulation import tell_story
for seed in map(int, sys.argv[2:]):
    print(tell_story(SHOP, seed).trace)
"""


def _elsewhere(hash_seed: str) -> list[str]:
    command = [sys.executable, "-c", _TELL, str(Path(__file__).parent), *map(str, SEEDS)]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()


def test_the_same_seed_is_the_same_story() -> None:
    first = [tell_story(SHOP, seed) for seed in SEEDS]
    again = [tell_story(SHOP, seed) for seed in SEEDS]
    assert again == first
    assert len({outcome.trace for outcome in first}) == len(SEEDS)


def test_in_another_interpreter_too() -> None:
    """Whatever order its sets and its memory have."""
    here = [tell_story(SHOP, seed).trace for seed in SEEDS]
    assert _elsewhere("1") == here
