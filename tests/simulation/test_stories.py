"""What is simulated is worth it."""

from __future__ import annotations

from simulation_shop import SHOP

from penstock.actors.simulation import tell_story


def test_stories_are_no_idylls() -> None:
    """Events are accepted, things go wrong, and events come to every kind of end."""
    outcomes = [tell_story(SHOP, seed) for seed in range(12)]
    assert sum(outcome.events for outcome in outcomes) >= 150
    assert sum(outcome.faults for outcome in outcomes) >= 36
    ends = {end for outcome in outcomes for end, number in outcome.ends.items() if number}
    assert {"done", "max_deliveries", "permanent", "expired"} <= ends
