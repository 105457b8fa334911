"""The child that brings the tables up to date, in a whole system."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from penstock.actors import migrating
from penstock.actors.backends import Backends
from penstock.actors.system import System
from penstock.actors.virtual import virtual


async def test_migrations_that_take_their_time_are_not_broken_off(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is broken off is rolled back, and takes as long again: an index that takes minutes would never be made."""
    begun = []

    async def migrate_all(system: System, backends: Backends) -> list[str]:
        begun.append(trio.current_time())
        await trio.sleep(1200)
        return ["0001.index"]

    monkeypatch.setattr(migrating, "migrate_all", migrate_all)
    with trio.fail_after(2400):
        async with virtual(System("app")) as app:
            assert app.child("actors/migrations").restarts == 0
    assert len(begun) == 1
