"""What is behind the gates of a system's own goes away in its stories, too, and costs no event an attempt."""

from __future__ import annotations

from contextlib import ExitStack
from unittest.mock import patch

from simulation_gated import GATED

from penstock.actors import attempts, blame, pool_outages
from penstock.actors.simulation import tell_story

SEEDS = 30


def test_every_promise_is_kept() -> None:
    outcomes = [tell_story(GATED, seed) for seed in range(SEEDS)]
    assert [violation for outcome in outcomes for violation in outcome.violations] == []
    told = [line for outcome in outcomes for line in outcome.story]
    assert sum("what is behind the gate mail is away" in line for line in told) >= SEEDS / 4


def test_a_variant_that_blames_the_event_is_caught() -> None:
    with ExitStack() as broken:
        for module in (attempts, blame, pool_outages):
            broken.enter_context(patch.object(module, "away_of", lambda error, gates: None))
        assert any(tell_story(GATED, seed).violations for seed in range(SEEDS))
