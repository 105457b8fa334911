"""The system of docs/examples/from_settings.toml in both profiles, in virtual time."""

from __future__ import annotations

from pathlib import Path

import pytest
from trio.testing import MockClock

from penstock.actors.event import Envelope
from penstock.actors.virtual import virtual
from penstock.http.commands.declared import declared_system
from penstock.http.configuration import Settings
from penstock.runtime.settings import load

FILE = Path(__file__).parent / "from_settings.toml"


@pytest.mark.parametrize(
    ("profile", "consumers", "groups"),
    [("dev", 1, ["order-processing"]), ("prod", 3, ["order-processing", "ranking-update"])],
)
async def test_orders_are_sold_and_cancelled(
    autojump_clock: MockClock, profile: str, consumers: int, groups: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FILE.parents[2])  # paths in the file are those of the working directory
    settings = load(Settings, file=FILE, environ={"PENSTOCK_PROFILE": profile})
    async with virtual(declared_system(None, settings), settings=settings) as sales:
        await sales.publish(
            "order-events",
            Envelope(event_type="ORDER_COMPLETED", data={"orderId": "o-1", "price": 9.5}),
            Envelope(event_type="ORDER_CANCELLED", data={"orderId": "o-1"}),
        )
        await sales.settled()
        assert sorted(effect.values for effect in sales.store.effects) == [("o-1",), ("o-1", 9.5)]
        found = await sales.deployment.client().xinfo_groups("order-events")
        listeners = [each.id for each in sales.child("actors/order-processing@order-events").children][2:]
    assert sorted(group["name"].decode() for group in found) == groups
    assert len(listeners) == consumers
