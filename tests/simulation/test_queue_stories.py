"""Work queues under random faults, in virtual time, and not one broken promise: in a share of as many stories."""

from __future__ import annotations

import pytest
from simulation_workshop import WORKSHOP
from stories import SEEDS, check_seeds


@pytest.mark.timeout(600)
def test_every_promise_to_jobs_is_kept() -> None:
    """And they are no idylls: things go wrong, and jobs come to every kind of end."""
    outcomes = check_seeds(WORKSHOP, "simulation_workshop.py:WORKSHOP", range(max(10, SEEDS // 30)))
    assert sum(outcome.events for outcome in outcomes) >= 10 * len(outcomes)
    assert sum(outcome.faults for outcome in outcomes) >= 3 * len(outcomes)
    ends = {end for outcome in outcomes for end, number in outcome.ends.items() if number}
    assert {"done", "max_deliveries", "permanent", "expired"} <= ends
