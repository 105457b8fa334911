"""The producer: one bad entry harms no other, what Redis does not take is accepted all the same, and nothing hangs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest
import trio
import trio.testing
from attrs import frozen
from trio.testing import MockClock

from penstock.actors.event import Envelope, Fields, Origin, event
from penstock.actors.handling import Context
from penstock.actors.lane import AGAIN_AFTER
from penstock.actors.outbox_table import OutboxRow
from penstock.actors.producer import LINGER, Outgoing, Published, PublishFailed
from penstock.actors.sending import Sender
from penstock.actors.settings import ActorSettings, CaptureSettings
from penstock.actors.store import Transaction
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


async def numbers(app: VirtualDeployment) -> list[int]:
    """What is in the stream, in order."""
    entries = await app.deployment.client().xrange(STREAM)
    return [json.loads(fields[b"data"])["number"] for _, fields in entries]


class _InOutbox:
    """Equal to every answer that an event is in the outbox."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Published) and (other.entry_id, other.durable) == (None, "outbox")


IN_OUTBOX = _InOutbox()

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


async def test_a_full_redis_holds_up_nobody(autojump_clock: MockClock) -> None:
    """XADD is refused; reading and acknowledging are not: what is there is handled, and nobody is held."""
    async with virtual(orders()) as app:
        listener = "actors/payments@orders/listener-1"
        before = app.child(listener).incarnation
        app.redis.fail_next("XADD", OOM, times=1_000_000)
        assert await app.publish(STREAM, order(1)) == [IN_OUTBOX]
        gate = app.deployment.gates["redis-memory"]
        assert "OOM" in gate.cause
        commands = app.redis.commands["XADD"]
        assert await app.publish(STREAM, order(2), order(3)) == [IN_OUTBOX] * 2
        assert app.redis.commands["XADD"] == commands  # it was not even asked
        await trio.sleep(3600)  # the probes do not hold anybody either
        assert app.deployment.gates["redis"].is_open
        assert app.child(listener).incarnation == before
        app.redis.heal()
        with trio.fail_after(700):
            await gate.wait_open()
        await app.settled()
        assert await numbers(app) == [1, 2, 3]
        assert effects(app) == [1, 2, 3]


async def test_what_is_captured_while_redis_is_full_is_spooled(autojump_clock: MockClock) -> None:
    async with virtual(orders()) as app:
        app.redis.fail_next("XADD", OOM, times=1_000_000)
        assert all(app.deployment.capture(order(number), STREAM) for number in range(700))
        await trio.sleep(1)
        assert app.deployment.producer.waiting == 0
        assert len(app.store.outbox.rows) == 700
        app.redis.heal()
        await trio.sleep(700)
        await app.settled()
        assert await numbers(app) == list(range(700))


async def test_what_is_captured_while_nothing_is_there_is_kept(autojump_clock: MockClock) -> None:
    async with virtual(orders()) as app:
        app.lose_database("away")
        app.redis.fail_next("XADD", OOM, times=1_000_000)
        assert all(app.deployment.capture(order(number), STREAM) for number in range(700))
        await trio.sleep(3600)
        assert app.deployment.producer.waiting == 700
        app.restore_database()
        await trio.sleep(30)
        assert app.deployment.producer.waiting == 0
        assert len(app.store.outbox.rows) == 700
        app.redis.heal()
        await trio.sleep(700)
        await app.settled()
        assert await numbers(app) == list(range(700))


# Waiting --------------------------------------------------------------------------------------------------------------


async def test_a_frozen_redis_keeps_nobody_waiting(autojump_clock: MockClock) -> None:
    """The first burst is spooled, too, when it has had no answer for a while; what comes then goes behind it."""
    async with virtual(orders()) as app:
        app.redis.hang()
        waited: list[float] = []

        async def publish(number: int) -> None:
            await trio.sleep(number / 100)
            started = trio.current_time()
            assert await app.publish(STREAM, order(number)) == [IN_OUTBOX]
            waited.append(trio.current_time() - started)

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(publish, number)
        assert max(waited) <= 0.06
        await trio.sleep(60)
        app.redis.resume()
        await app.settled()
        assert effects(app) == list(range(50))
        # What was on its way may be there twice; what is there for the first time is in order.
        assert list(dict.fromkeys(await numbers(app))) == list(range(50))


async def test_a_slow_answer_takes_the_rows_back(autojump_clock: MockClock) -> None:
    """Redis was only slow: the row that was written meanwhile is deleted before anybody has relayed it."""
    async with virtual(orders()) as app:
        app.redis.delay(0.2, "XADD")
        assert await app.publish(STREAM, order(1)) == [IN_OUTBOX]
        assert len(app.store.outbox.rows) == 1
        app.redis.delay(0.0, "XADD")
        await app.settled()
        assert await numbers(app) == [1]
        assert app.deployment.publishing.relay.relayed == 0
        with trio.fail_after(1):
            while (await app.publish(STREAM, order(2)))[0] == IN_OUTBOX:
                await trio.sleep(0.01)


async def test_an_answer_that_is_there_before_the_row_is_the_answer(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with virtual(orders()) as app:
        add = app.store.outbox.add

        async def slow_add(transaction: Transaction, rows: Sequence[OutboxRow]) -> list[int]:
            await trio.sleep(1.0)
            return await add(transaction, rows)

        monkeypatch.setattr(app.store.outbox, "add", slow_add)
        app.redis.delay(0.08, "XADD")
        (result,) = await app.publish(STREAM, order(1))
        assert isinstance(result, Published)
        assert result.durable == "redis"
        app.redis.delay(0.0, "XADD")
        await trio.sleep(2)
        await app.settled()
        assert effects(app) == [1]


async def test_a_row_whose_commit_was_lost_is_told_though_redis_refuses_for_sure(autojump_clock: MockClock) -> None:
    """Redis is slow, the commit of the row has no answer, Redis refuses, and the database is away by then."""
    async with virtual(orders()) as app:
        app.redis.delay(0.2, "XADD")
        app.redis.fail_next("XADD", OOM)
        app.store.lose_commit(effect=True)
        results: list[object] = []

        async def publish() -> None:
            results.extend(await app.publish(STREAM, order(1)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            await trio.sleep(0.1)
            assert len(app.store.outbox.rows) == 1
            app.lose_database("away")
        (result,) = results
        assert isinstance(result, PublishFailed)
        assert result.outcome_unknown
        app.redis.delay(0.0, "XADD")
        app.restore_database()
        await app.settled()
        assert effects(app) == [1]


async def test_requests_that_wait_behind_a_frozen_redis_are_refused_when_nothing_else_is_there(
    autojump_clock: MockClock,
) -> None:
    """One burst is on its way and may take its time; those behind it need not."""
    async with virtual(orders()) as app:
        app.lose_database("away")
        app.redis.hang()
        started, waited, unknown = trio.current_time(), [], []

        async def publish(number: int) -> None:
            await trio.sleep(number / 1000)
            (result,) = await app.publish(STREAM, order(number))
            assert isinstance(result, PublishFailed)
            assert "redis" in result.reason
            assert "postgres: away" in result.reason
            waited.append(trio.current_time() - started)
            unknown.append(result.outcome_unknown)

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(publish, number)
        app.redis.resume()
        assert max(waited) < 6.5  # the link's own limit
        assert unknown.count(True) < 50


@pytest.mark.parametrize("losses", [1, 2], ids=["it is back once", "it is lost once more while it writes"])
async def test_a_burst_to_a_frozen_redis_is_accepted_as_soon_as_the_database_is_back(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, losses: int
) -> None:
    """It was sent while the database was away; neither it, nor what came behind it since, waits for the link."""
    async with virtual(orders()) as app:
        gates = app.deployment.gates
        add = app.store.outbox.add

        async def lost_add(transaction: Transaction, rows: Sequence[OutboxRow]) -> list[int]:
            monkeypatch.setattr(app.store.outbox, "add", add)
            app.lose_database("away")
            return await add(transaction, rows)

        if losses > 1:
            monkeypatch.setattr(app.store.outbox, "add", lost_add)
        app.lose_database("away")
        app.redis.hang()
        answers: dict[int, object] = {}

        async def publish(number: int) -> None:
            (answers[number],) = await app.publish(STREAM, order(number))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, 0)
            await gates["redis"].wait_shut()
            await trio.testing.wait_all_tasks_blocked()  # what comes now would be refused
            for _ in range(losses):
                await gates["postgres"].wait_shut()
                app.restore_database()
                await gates["postgres"].wait_open()
                await gates["schema"].wait_open()
            for number in range(1, 4):
                nursery.start_soon(publish, number)
                await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(0.1 if losses == 1 else AGAIN_AFTER + 0.1):
                while len(answers) < 4:
                    await trio.sleep(0.01)
        assert answers == dict.fromkeys(range(4), IN_OUTBOX)
        app.redis.resume()
        await app.settled()
        assert effects(app) == list(range(4))
        assert list(dict.fromkeys(await numbers(app))) == list(range(4))


async def test_what_came_while_the_database_was_back_is_refused_once_that_is_lost_again(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And in its place: it neither waits for the burst before it, nor is it forgotten."""
    async with virtual(orders()) as app:
        gates = app.deployment.gates
        app.lose_database("away")
        app.redis.hang()
        answers: dict[int, object] = {}

        async def publish(number: int) -> None:
            (answers[number],) = await app.publish(STREAM, order(number))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, 0)
            await gates["redis"].wait_shut()
            await trio.testing.wait_all_tasks_blocked()
            with monkeypatch.context() as patch:
                patch.setattr(app.store.outbox, "add", stuck_add)
                app.restore_database()
                await gates["postgres"].wait_open()
                await gates["schema"].wait_open()
                for number in (1, 2):
                    nursery.start_soon(publish, number)
                    await trio.testing.wait_all_tasks_blocked()
                assert answers == {}
                app.lose_database("away once more")
                await trio.testing.wait_all_tasks_blocked()
            assert sorted(answers) == [1, 2]
            for answer in answers.values():
                assert isinstance(answer, PublishFailed)
                assert "postgres: away once more" in answer.reason
                assert not answer.outcome_unknown
            app.redis.resume()
        assert isinstance(answers[0], Published)


async def stuck_add(*_: object) -> list[int]:
    """The database has taken the statement, and says nothing."""
    await trio.sleep_forever()
    raise AssertionError


async def test_nothing_overtakes_the_outbox_when_the_database_goes_away(autojump_clock: MockClock) -> None:
    """Redis is back, but what it did not take before cannot be relayed: what comes now would overtake it."""
    async with virtual(orders()) as app:
        app.redis.refuse()
        assert await app.publish(STREAM, order(1)) == [IN_OUTBOX]
        app.lose_database("away")
        app.redis.restore()
        await app.deployment.gates["redis"].wait_open()
        (result,) = await app.publish(STREAM, order(2))
        assert isinstance(result, PublishFailed)
        assert "events before it wait in the outbox" in result.reason
        assert not result.permanent
        app.restore_database()
        await app.settled()
        assert isinstance((await app.publish(STREAM, order(3)))[0], Published)
        await app.settled()
        assert await numbers(app) == [1, 3]


async def test_one_refusal_keeps_back_what_is_behind_it_in_the_same_burst(autojump_clock: MockClock) -> None:
    """Redis is full for one XADD of a burst only: of one stream all of it goes by way of the outbox, in order."""
    async with virtual(orders()) as app:
        app.redis.fail_next("XADD", OOM)
        results = await app.publish(STREAM, *(order(number) for number in range(20)))
        assert results == [IN_OUTBOX] * 20
        await app.settled()
        assert await numbers(app) == list(range(20))


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
        assert [type(result) for result in results] == [Published] * len(results)
        assert len(results) >= 2
        await app.settled()
        assert {1, 3} <= set(effects(app)) <= {1, 2, 3}


async def test_a_request_survives_the_crash_of_the_producer_with_an_answer(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with virtual(orders()) as app:

        async def crash(sender: Sender, entries: list[Outgoing]) -> Any:
            monkeypatch.undo()
            raise RuntimeError("a bug")

        monkeypatch.setattr(Sender, "add", crash)
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


async def test_captured_events_wait_for_company_and_are_added_together(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    bursts: list[int] = []
    add = Sender.add

    async def counted(self: Sender, entries: Sequence[Any]) -> list[Any]:
        bursts.append(len(entries))
        return await add(self, entries)

    monkeypatch.setattr(Sender, "add", counted)
    async with virtual(orders()) as app:
        for number in range(4):
            assert app.deployment.capture(order(number), STREAM)
            await trio.sleep(LINGER / 10)
        await app.settled()
        assert effects(app) == [0, 1, 2, 3]
    assert bursts == [4]


async def test_a_stop_waits_for_captured_events_that_wait_for_company(autojump_clock: MockClock) -> None:
    async with virtual(orders()) as app:
        assert app.deployment.capture(order(1), STREAM)
    assert (app.deployment.producer.published, app.deployment.producer.waiting) == (1, 0)


# The end --------------------------------------------------------------------------------------------------------------


async def test_a_stop_tells_what_was_captured_and_never_written(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with virtual(orders(), settings=ActorSettings(capture=CaptureSettings(buffer=100))) as app:
        app.lose_database("away")
        app.redis.refuse()
        await trio.sleep(30)
        for number in range(10):
            app.deployment.capture(order(number), STREAM)
    assert "'count': 10" in caplog.text


async def test_a_stop_tells_it_too_when_there_was_no_time_left(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with virtual(orders()) as app:
        app.lose_database("away")
        app.redis.fail_next("XADD", "TRYAGAIN Multiple keys request during rehashing of slot", times=1000)
        app.redis.hang()
        for number in range(10):
            app.deployment.capture(order(number), STREAM)
    assert "'count': 10" in caplog.text
