"""The stories that are told in each run of the tests, in four files: so that several workers share them.

More of them: ``SIMULATION_SEEDS=10000 pytest tests/simulation``, or, on several cores and with a bar,
``penstock simulate tests/simulation/simulation_shop.py:SHOP --seeds 10000 --jobs 2``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from simulation_shop import SHOP

from penstock.actors.simulation import Outcome, Scenario, tell_story

__all__ = ["SEEDS", "check", "check_seeds", "quarter"]

SEEDS: Final = int(os.environ.get("SIMULATION_SEEDS", "300"))
CHUNK: Final = 15


def quarter(number: int) -> range:
    """The first seeds of the chunks of one of four files; 0 to 3."""
    return range(number * CHUNK, SEEDS, 4 * CHUNK)


def check(first: int) -> None:
    """Tell the stories of a chunk; fails if a promise is broken, and says how to see it again."""
    check_seeds(SHOP, "simulation_shop.py:SHOP", range(first, min(first + CHUNK, SEEDS)))


def check_seeds(scenario: Scenario, place: str, seeds: Iterable[int]) -> list[Outcome]:
    """The same for the stories of a scenario, which is to be found at `place`; what they came to."""
    outcomes = []
    for seed in seeds:
        outcomes.append(outcome := tell_story(scenario, seed))
        if outcome.violations:
            print(f"seed {seed}", *outcome.story, *(f"BROKEN: {each}" for each in outcome.violations), sep="\n  ")
            print(f"again: penstock simulate tests/simulation/{place} --seed {seed}")
    assert [outcome.seed for outcome in outcomes if outcome.violations] == []
    return outcomes
