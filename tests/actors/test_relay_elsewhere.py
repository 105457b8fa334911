"""While another process relays a stream, the relay looks often; when that is done, it is at its pace again."""

from __future__ import annotations

from uuid import uuid4

from trio import sleep
from trio.testing import MockClock

from penstock.actors.outbox_table import OutboxRow
from penstock.actors.relay import ELSEWHERE
from penstock.actors.system import System
from penstock.actors.virtual import virtual


async def test_the_relay_hurries_no_longer_than_another_process_is_at_it(autojump_clock: MockClock) -> None:
    system = System("app")
    system.stream("orders")
    async with virtual(system) as app:
        relay, outbox = app.deployment.publishing.relay, app.store.outbox
        async with app.store.transaction() as transaction:
            await outbox.add(transaction, [OutboxRow(stream="orders", event_id=uuid4(), fields={}, kind="replay")])
            assert await outbox.take(transaction, "orders", 1, 0) is not None
            async with app.store.transaction() as ours:
                await outbox.add(ours, [OutboxRow(stream="orders", event_id=uuid4(), fields={}, kind="replay")])
            await sleep(0.2)
            assert relay._pause() == ELSEWHERE
            stored = await outbox.take(transaction, "orders", 10, 0)
            await outbox.remove(transaction, [each.id for each in stored or ()])
        await sleep(0.2)
        assert not outbox.rows
        assert relay._pause() > ELSEWHERE
