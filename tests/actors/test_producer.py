"""The producer: one bad entry harms no other, a full Redis stops publishing and nothing else, and nothing hangs."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
import trio
from attrs import frozen
from trio.testing import MockClock

from penstock.actors.event import Envelope, Fields, Origin, event
from penstock.actors.handling import Context
from penstock.actors.producer import Outgoing, Published, PublishFailed
from penstock.actors.settings import ActorSettings, CaptureSettings
from penstock.actors.system import System
from penstock.actors.virtual import VirtualDeployment, virtual

STREAM = "orders"
OOM = "OOM command not allowed when used memory > 'maxmemory'."


class HalfCodec:
    """Somebody's codec that does what it likes."""

    def encode(self, envelope: Envelope) -> Any:
        if envelope.data["as"] == "error":
            raise KeyError("a bug")
        return {"nothing": {}, "number": {"odd": 7}, "name": {7: "odd"}}[envelope.data["as"]]

    def decode(self, fields: Any, origin: Origin) -> Envelope:
        raise NotImplementedError

    def recognises(self, fields: Fields) -> bool:
        return False


@event("ODD", codec=HalfCodec())
@frozen
class Odd:
    pass


def orders() -> System:
    system = System("app")
    stream = system.stream(STREAM, events=[Odd])

    async def pay(event: Any, context: Context) -> None:
        await context.connection.execute("insert", [event.number])

    stream.on(Order, group="payments")(pay)
    return system


@event("ORDER")
@frozen
class Order:
    number: int


def order(number: int, **members: Any) -> Envelope:
    return Envelope(event_type="ORDER", data={"number": number}, **members)


def effects(app: VirtualDeployment) -> list[int]:
    return sorted(effect.values[0] for effect in app.store.effects)


BAD = {
    "half a surrogate pair in data": Envelope(event_type="ORDER", data={"number": 0, "note": "\ud800"}),
    "half a surrogate pair in a name": Envelope(event_type="ORDER", data={"number": 0, "\udfff": 1}),
    "half a surrogate pair in the key": order(0, key="\ud800"),
    "half a surrogate pair in the type": Envelope(event_type="\ud800", data={}),
    "a key that is no text": order(0, key=7),
    "data that are no JSON": Envelope(event_type="ORDER", data={"number": object()}),
    "a name that is no text": Envelope(event_type="ORDER", data={("a", "b"): 1}),
    "a codec that fails": Envelope(event_type="ODD", data={"as": "error"}),
    "no fields": Envelope(event_type="ODD", data={"as": "nothing"}),
    "a field that is no text": Envelope(event_type="ODD", data={"as": "number"}),
    "a field whose name is no text": Envelope(event_type="ODD", data={"as": "name"}),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
async def test_what_cannot_be_written_fails_alone(autojump_clock: MockClock, bad: Envelope) -> None:
    async with virtual(orders()) as app:
        first, second, third = await app.publish(STREAM, order(1), bad, order(3))
        assert isinstance(first, Published)
        assert isinstance(third, Published)
        assert isinstance(second, PublishFailed)
        assert (second.permanent, second.outcome_unknown, second.event_id) == (True, False, bad.event_id)
        assert second.reason
        await app.settled()
        assert effects(app) == [1, 3]
        assert app.child("actors/producer").restarts == 0


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
async def test_what_cannot_be_written_is_not_taken_along(autojump_clock: MockClock, bad: Envelope) -> None:
    async with virtual(orders()) as app:
        taken = [app.deployment.capture(each, STREAM) for each in (order(1), bad, order(3))]
        assert taken == [True, False, True]
        await app.settled()
        assert effects(app) == [1, 3]
        assert app.child("actors/producer").restarts == 0


async def test_nothing_is_published_in_no_time(autojump_clock: MockClock) -> None:
    async with virtual(orders()) as app:
        assert await app.publish(STREAM) == []


# A full server --------------------------------------------------------------------------------------------------------


async def test_a_full_redis_stops_publishing_and_nothing_else(autojump_clock: MockClock) -> None:
    """XADD is refused; reading and acknowledging are not: what is there is handled, and nobody is held."""
    async with virtual(orders()) as app:
        listener = "actors/payments@orders/listener-1"
        before = app.child(listener).incarnation
        app.redis.fail_next("XADD", OOM, times=1_000_000)
        (refused,) = await app.publish(STREAM, order(1))
        assert isinstance(refused, PublishFailed)
        assert "OOM" in refused.reason
        gate = app.deployment.gates["redis-memory"]
        assert "OOM" in gate.cause
        commands = app.redis.commands["XADD"]
        (again,) = await app.publish(STREAM, order(2))
        assert isinstance(again, PublishFailed)
        assert "OOM" in again.reason
        assert app.redis.commands["XADD"] == commands  # refused at once
        await app.deployment.client().execute_command("XGROUP", "SETID", STREAM, "payments", "0")
        await trio.sleep(3600)  # the probes do not hold anybody either
        assert app.deployment.gates["redis"].is_open
        assert app.child(listener).incarnation == before
        app.redis.heal()
        with trio.fail_after(700):
            await gate.wait_open()
        assert isinstance((await app.publish(STREAM, order(3)))[0], Published)
        await app.settled()
        assert effects(app) == [3]


async def test_what_is_captured_while_redis_is_full_is_kept(autojump_clock: MockClock) -> None:
    async with virtual(orders()) as app:
        app.redis.fail_next("XADD", OOM, times=1_000_000)
        assert all(app.deployment.capture(order(number), STREAM) for number in range(700))
        await trio.sleep(3600)
        assert app.deployment.producer.waiting == 700
        app.redis.heal()
        await trio.sleep(700)
        await app.settled()
        assert effects(app) == list(range(700))


# Waiting --------------------------------------------------------------------------------------------------------------


async def test_requests_that_wait_behind_a_frozen_redis_are_refused_when_the_gate_shuts(
    autojump_clock: MockClock,
) -> None:
    """One burst is on its way and may take its time; those behind it need not."""
    async with virtual(orders()) as app:
        app.redis.hang()
        started, waited, unknown = trio.current_time(), [], []

        async def publish(number: int) -> None:
            await trio.sleep(number / 1000)
            (result,) = await app.publish(STREAM, order(number))
            assert isinstance(result, PublishFailed)
            waited.append(trio.current_time() - started)
            unknown.append(result.outcome_unknown)

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(publish, number)
        app.redis.resume()
        assert max(waited) < 6.5  # the link's own limit
        assert unknown.count(True) < 50


async def test_a_publish_that_is_given_up_harms_no_other(autojump_clock: MockClock) -> None:
    async with virtual(orders()) as app:
        app.redis.hang()
        async with trio.open_nursery() as nursery:
            results: list[object] = []

            async def publish(number: int) -> None:
                results.extend(await app.publish(STREAM, order(number)))

            nursery.start_soon(publish, 1)
            with trio.move_on_after(0.1):
                await publish(2)
            nursery.start_soon(publish, 3)
            await trio.sleep(0.1)
            app.redis.resume()
        assert [type(result) for result in results] == [Published] * 2
        await app.settled()
        assert {1, 3} <= set(effects(app)) <= {1, 2, 3}


async def test_a_request_survives_the_crash_of_the_producer_with_an_answer(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with virtual(orders()) as app:
        producer = app.deployment.producer

        async def crash(entries: list[Outgoing]) -> Any:
            monkeypatch.undo()
            raise RuntimeError("a bug")

        monkeypatch.setattr(producer, "_add", crash)
        (failed,) = await app.publish(STREAM, order(1))
        assert isinstance(failed, PublishFailed)
        assert failed.outcome_unknown
        (published,) = await app.publish(STREAM, order(2))
        assert isinstance(published, Published)
        await app.settled()
        assert effects(app) == [2]


async def test_more_requests_than_may_wait_are_let_in_one_by_one(autojump_clock: MockClock) -> None:
    async with virtual(orders()) as app:
        results: list[object] = []

        async def publish(number: int) -> None:
            results.extend(await app.publish(STREAM, order(number)))

        async with trio.open_nursery() as nursery:
            for number in range(3000):
                nursery.start_soon(publish, number)
        assert [type(result) for result in results] == [Published] * 3000
        await app.settled()
        assert effects(app) == list(range(3000))


async def test_a_large_request_keeps_its_order_over_several_bursts(autojump_clock: MockClock) -> None:
    envelopes = [order(number) for number in range(1700)]
    async with virtual(orders()) as app:
        results = await app.publish(STREAM, *envelopes)
        assert [result.event_id for result in results] == [envelope.event_id for envelope in envelopes]
        ids = [result.entry_id for result in results if isinstance(result, Published)]
        entries = await app.deployment.client().xrange(STREAM)
        assert [entry_id.decode() for entry_id, _ in entries] == ids
        assert [UUID(fields[b"eventId"].decode()) for _, fields in entries] == [each.event_id for each in envelopes]


# The end --------------------------------------------------------------------------------------------------------------


async def test_a_stop_tells_what_was_captured_and_never_written(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with virtual(orders(), settings=ActorSettings(capture=CaptureSettings(buffer=100))) as app:
        app.redis.refuse()
        await trio.sleep(30)
        for number in range(10):
            app.deployment.capture(order(number), STREAM)
    assert "'count': 10" in caplog.text


async def test_a_stop_tells_it_too_when_there_was_no_time_left(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with virtual(orders()) as app:
        app.redis.fail_next("XADD", "TRYAGAIN Multiple keys request during rehashing of slot", times=1000)
        app.redis.hang()
        for number in range(10):
            app.deployment.capture(order(number), STREAM)
    assert "'count': 10" in caplog.text
