"""The whole system under random faults, in virtual time: 300 stories, and not one broken promise.

More of them: ``SIMULATION_SEEDS=10000 pytest tests/simulation/test_simulated_shop.py``, or, on several cores and with
a bar, ``penstock simulate tests/simulation/simulation_shop.py:SHOP --seeds 10000 --jobs 2``.
"""

from __future__ import annotations

import os

import pytest
from simulation_shop import SHOP

from penstock.actors.simulation import tell_story

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "300"))
CHUNK = 20


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_promise_is_kept(first: int) -> None:
    broken = []
    for seed in range(first, min(first + CHUNK, SEEDS)):
        outcome = tell_story(SHOP, seed)
        if outcome.violations:
            print(f"seed {seed}", *outcome.story, *(f"BROKEN: {each}" for each in outcome.violations), sep="\n  ")
            print(f"again: penstock simulate tests/simulation/simulation_shop.py:SHOP --seed {seed}")
            broken.append(seed)
    assert broken == []


def test_stories_are_no_idylls() -> None:
    """What is simulated is worth it: events are accepted, things go wrong, and events come to every kind of end."""
    outcomes = [tell_story(SHOP, seed) for seed in range(12)]
    assert sum(outcome.events for outcome in outcomes) >= 150
    assert sum(outcome.faults for outcome in outcomes) >= 36
    ends = {end for outcome in outcomes for end, number in outcome.ends.items() if number}
    assert {"done", "max_deliveries", "permanent"} <= ends
