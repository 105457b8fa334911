"""The order in which trio runs tasks that are ready at once: made repeatable by a seed."""

from __future__ import annotations

import random

import trio

__all__ = ["seed_scheduler"]


def seed_scheduler(seed: int) -> bool:
    """From now on the same seed gives the same order of tasks, in this process; call it before each run.

    Trio shuffles what is ready at once with a generator of its own, and has no public way to seed it (trio#890). With
    the seed, trio's switch for deterministic scheduling is thrown, as pytest-trio does: without it the shuffle begins
    from the order of a set, which depends on memory addresses.

    Returns:
        Whether this version of trio let itself be seeded. If not, runs just differ.
    """
    run = trio._core._run  # private, so it may be gone one day
    generator = getattr(run, "_r", None)
    if not isinstance(generator, random.Random) or not hasattr(run, "_ALLOW_DETERMINISTIC_SCHEDULING"):
        return False
    run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    generator.seed(seed)
    return True
