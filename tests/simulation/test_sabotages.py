"""The tests that prove the tests: each deliberately broken variant of the system is caught within 200 seeds."""

from __future__ import annotations

import pytest
from sabotages import SABOTAGES, Sabotage
from simulation_shop import SHOP

from penstock.actors.simulation import tell_story

WITHIN = 200


@pytest.mark.timeout(600)
@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda sabotage: sabotage.__name__)
def test_a_broken_variant_is_caught(sabotage: Sabotage, record_property: pytest.RecordProperty) -> None:
    with sabotage():
        for seed in range(WITHIN):
            outcome = tell_story(SHOP, seed)
            if outcome.violations:
                record_property("caught_at_seed", seed)
                print(f"caught at seed {seed}: {outcome.violations[0]}")
                return
    pytest.fail(f"{WITHIN} seeds have not caught {sabotage.__name__}")
