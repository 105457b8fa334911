"""The stories that are told in each run of the tests, in four files: so that several workers share them.

More of them: ``SIMULATION_SEEDS=10000 pytest tests/simulation``, or, on several cores and with a bar,
``penstock simulate tests/simulation/simulation_shop.py:SHOP --seeds 10000 --jobs 2``.
"""

from __future__ import annotations

import os
from typing import Final

from simulation_shop import SHOP

from penstock.actors.simulation import tell_story

__all__ = ["check", "quarter"]

SEEDS: Final = int(os.environ.get("SIMULATION_SEEDS", "300"))
CHUNK: Final = 15


def quarter(number: int) -> range:
    """The first seeds of the chunks of one of four files; 0 to 3."""
    return range(number * CHUNK, SEEDS, 4 * CHUNK)


def check(first: int) -> None:
    """Tell the stories of a chunk; fails if a promise is broken, and says how to see it again."""
    broken = []
    for seed in range(first, min(first + CHUNK, SEEDS)):
        outcome = tell_story(SHOP, seed)
        if outcome.violations:
            print(f"seed {seed}", *outcome.story, *(f"BROKEN: {each}" for each in outcome.violations), sep="\n  ")
            print(f"again: penstock simulate tests/simulation/simulation_shop.py:SHOP --seed {seed}")
            broken.append(seed)
    assert broken == []
