"""Deterministic simulation of a whole system: `tell_story` runs a `Scenario` under one seed, and says what broke."""

from .ledger import Violation
from .scenario import SETTINGS, Publication, Scenario
from .story import Outcome, tell_story

__all__ = ["SETTINGS", "Outcome", "Publication", "Scenario", "Violation", "tell_story"]
