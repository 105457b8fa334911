"""The tests that prove the tests: each deliberately broken variant of the system is caught within 200 seeds."""

from __future__ import annotations

import pytest
from sabotages import QUEUE_SABOTAGES, SABOTAGES, Sabotage
from simulation_shop import SHOP
from simulation_workshop import WORKSHOP

from penstock.actors.simulation import Scenario, tell_story

WITHIN = 200
FIRST = (0, 1, 7, 11, 20, 31, 43, 64)
"""The seeds that caught one when this was written: tried before the others, for most of the time goes into these."""


FIRST_OF_QUEUES = (20, 0)


def _is_caught(
    sabotage: Sabotage, scenario: Scenario, first: tuple[int, ...], record_property: pytest.RecordProperty
) -> None:
    with sabotage():
        for seed in dict.fromkeys((*first, *range(WITHIN))):
            outcome = tell_story(scenario, seed)
            # A sabotage that the code has grown away from crashes actors, and would be caught by that alone.
            if telling := [each for each in outcome.violations if "was restarted" not in each]:
                record_property("caught_at_seed", seed)
                print(f"caught at seed {seed}: {telling[0]}")
                return
    pytest.fail(f"{WITHIN} seeds have not caught {sabotage.__name__}")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda sabotage: sabotage.__name__)
def test_a_broken_variant_is_caught(sabotage: Sabotage, record_property: pytest.RecordProperty) -> None:
    _is_caught(sabotage, SHOP, FIRST, record_property)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("sabotage", QUEUE_SABOTAGES, ids=lambda sabotage: sabotage.__name__)
def test_a_broken_variant_of_queues_is_caught(sabotage: Sabotage, record_property: pytest.RecordProperty) -> None:
    _is_caught(sabotage, WORKSHOP, FIRST_OF_QUEUES, record_property)
