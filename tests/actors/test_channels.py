"""Broadcast channels: every process is told, in order; and what is missed is read again."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any

import pytest
import redis.exceptions
import trio
from attrs import define, field, frozen
from trio.testing import MockClock

from penstock.actors.channels import Broadcast, Channel, Gap
from penstock.actors.event import event
from penstock.actors.handling import Context, Delivery
from penstock.actors.listening import READ_AGAIN_AT_MOST, Listening
from penstock.actors.retrying import RetryPolicy
from penstock.actors.settings import ActorSettings, DeliverySettings
from penstock.actors.system import DeclarationError, System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.runtime.testing.redis import InProcessRedis
from penstock.runtime.testing.redis_cluster import InProcessCluster

NEWS = "chat:news"
SOON = RetryPolicy(deliveries=3, minimum=0.1, maximum=0.1)


@event("BAN")
@frozen
class Ban:
    user: str


@define(eq=False)
class Server:
    """One chat server: what its handlers saw.

    Attributes:
        heard: the messages' data, in order.
        gaps: the gaps, in order.
        banned: what its handler of events did.
    """

    heard: list[Any] = field(factory=list)
    gaps: list[Gap] = field(factory=list)
    banned: list[str] = field(factory=list)

    def system(self) -> System:
        made = System("chat")
        news = made.channel(NEWS)
        bans = made.stream("bans", events=[Ban])

        @news.on
        async def hear(message: Broadcast) -> None:
            self.heard.append(message.data)

        @news.on_gap
        async def read_again(gap: Gap) -> None:
            self.gaps.append(gap)

        @bans.on(Ban, group="chat")
        async def ban(event: Ban, context: Context) -> None:
            self.banned.append(event.user)
            context.broadcast(NEWS, {"banned": event.user})

        return made


@asynccontextmanager
async def servers(place: Any, count: int = 3) -> AsyncIterator[list[tuple[Server, VirtualDeployment[Any]]]]:
    store = MemoryStore()
    async with trio.open_nursery() as nursery:
        made: list[tuple[Server, VirtualDeployment[Any]]] = []
        stops = trio.Event()

        async def run(server: Server, name: str, task_status: trio.TaskStatus[VirtualDeployment[Any]]) -> None:
            async with virtual(server.system(), redis=place, store=store, instance=name) as app:
                task_status.started(app)
                await stops.wait()

        for number in range(count):
            server = Server()
            made.append((server, await nursery.start(run, server, f"server-{number}")))
        yield made
        stops.set()


def note(app: VirtualDeployment[Any]) -> str:
    return app.child("actors/channels").note


@pytest.mark.parametrize("kind", [InProcessRedis, InProcessCluster])
async def test_every_process_is_told_and_one_of_a_group_handles(autojump_clock: MockClock, kind: Any) -> None:
    async with kind() as place, servers(place) as all_:
        for number in range(30):
            await all_[number % 3][1].publish("bans", Ban(f"u-{number}"))
        for _, app in all_:
            await app.settled()
        await trio.sleep(1)
        users = [f"u-{number}" for number in range(30)]
        assert sorted(user for server, _ in all_ for user in server.banned) == sorted(users)
        for server, app in all_:
            assert sorted(told["banned"] for told in server.heard) == sorted(users)
            assert note(app) == "channels: 1, messages handled: 30, errors: 0, gaps: 0"


async def test_a_message_is_json_in_order_and_counted_by_redis(autojump_clock: MockClock) -> None:
    said = [{"text": "점검 10분 전"}, ["a", 1, None], "text", 4.5, None, True]
    async with InProcessRedis() as place, servers(place) as all_:
        first = all_[0][1].deployment
        assert [await first.broadcast(NEWS, each) for each in said] == [3] * len(said)
        assert await first.broadcast("nobody", 1) == 0
        await trio.sleep(1)
        assert [server.heard for server, _ in all_] == [said] * 3


async def test_what_another_program_sends_is_text_where_it_is_no_json(autojump_clock: MockClock) -> None:
    async with InProcessRedis() as place, servers(place, 1) as [(server, app)]:
        for payload in ("server down", b"\xff!", "NaN", "[" * 100_000, '{"a": 1}', ""):
            await app.deployment.client().publish(NEWS, payload)
        await trio.sleep(1)
        assert server.heard == ["server down", "\ufffd!", "NaN", "[" * 100_000, {"a": 1}, ""]


async def test_a_pattern_tells_which_channel(autojump_clock: MockClock) -> None:
    system, heard = System("chat"), []
    rooms = system.channel("room:*", pattern=True)

    @rooms.on
    async def hear(message: Broadcast) -> None:
        heard.append(message)

    async with virtual(system) as app:
        await app.deployment.broadcast("room:7", "hello")
        await trio.sleep(1)
    assert heard == [Broadcast(channel="room:7", data="hello", pattern="room:*")]


async def test_a_handler_that_raises_or_hangs_costs_one_message_and_nobody_else(autojump_clock: MockClock) -> None:
    system, heard = System("chat"), []
    news, other = system.channel(NEWS), system.channel("other")

    @news.on
    async def fail(message: Broadcast) -> None:
        if message.data == "hang":
            await trio.sleep_forever()
        if message.data == "exit":
            raise SystemExit(3)
        async with trio.open_nursery():
            raise ValueError(message.data)

    @news.on
    async def hear(message: Broadcast) -> None:
        heard.append(message.data)

    @other.on
    async def hear_other(message: Broadcast) -> None:
        heard.append(message.data)

    settings = ActorSettings(delivery=DeliverySettings(handler_timeout=10.0))
    async with virtual(system, settings=settings) as app:
        for said in ("hang", "exit", "third"):
            await app.deployment.broadcast(NEWS, said)
        await app.deployment.broadcast("other", "other")
        await trio.sleep(1)
        assert heard == ["other"]
        await trio.sleep(10)
        assert heard == ["other", "hang", "exit", "third"]
        assert note(app) == "channels: 2, messages handled: 4, errors: 3, gaps: 0"
        assert app.child("actors/channels").restarts == 0


@pytest.mark.parametrize("outage", ["refuse", "hang"])
async def test_an_outage_holds_it_and_is_a_gap(autojump_clock: MockClock, outage: str) -> None:
    async with InProcessRedis() as place, servers(place) as all_:
        await trio.sleep(100)
        [(server, app), *_] = all_
        assert [gap.lost_at for gap in server.gaps] == [-math.inf]
        getattr(place, outage)()
        lost_at = trio.current_time()
        await trio.sleep(60)
        assert app.child("actors/channels").state == "held"
        with pytest.raises(redis.exceptions.RedisError):
            await app.deployment.broadcast(NEWS, "into the void")
        place.restore()
        place.resume()
        back_at = trio.current_time()
        for _, each in all_:
            await each.serving()
        assert await all_[1][1].deployment.broadcast(NEWS, "back") == 3
        await trio.sleep(1)
        for server, app in all_:
            first, gap = server.gaps
            assert first.back_at < gap.lost_at <= lost_at
            assert gap.lost_at > lost_at - 20
            assert gap.back_at >= back_at
            assert server.heard[-1:] == ["back"]
            assert note(app).endswith("gaps: 1")


async def test_a_gap_without_an_outage_comes_in_its_place(autojump_clock: MockClock) -> None:
    """Only the subscription's own connection is lost."""
    async with InProcessRedis() as place, servers(place, 1) as [(server, app)]:
        client = app.deployment.client()
        await client.publish(NEWS, 1)
        await trio.sleep(1)
        await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await trio.sleep(5)
        await client.publish(NEWS, 2)
        await trio.sleep(1)
        assert server.heard == [1, 2]
        assert len(server.gaps) == 2
        assert app.child("actors/channels").incarnation == 1


@pytest.mark.parametrize("fault", ["refuse", "hang"])
async def test_in_a_cluster_it_listens_elsewhere_when_its_node_is_gone(autojump_clock: MockClock, fault: str) -> None:
    """A node that has none of our streams: nobody is held, and there is a gap."""
    system, heard, gaps = System("chat"), [], []
    system.stream("bans", events=[Ban])
    news = system.channel(NEWS)

    @news.on
    async def hear(message: Broadcast) -> None:
        heard.append(message.data)

    @news.on_gap
    async def read_again(gap: Gap) -> None:
        gaps.append(gap)

    async with InProcessCluster(replicas=1) as place, virtual(system, redis=place) as app:
        await app.deployment.broadcast(NEWS, 1)
        await trio.sleep(1)
        [listened] = [node for node in place.nodes if node._engine.channels.plain]
        owner = place.master_of("bans")
        if listened is owner:
            place.fail_over(place.replicas_of(owner)[0])
            await trio.sleep(30)
        getattr(listened, fault)()
        await trio.sleep(30)
        for number in (2, 3, 4):
            with suppress(redis.exceptions.RedisError):
                await app.deployment.broadcast(NEWS, number)
        await trio.sleep(1)
        assert heard[0] == 1
        assert heard[-1] == 4
        assert len(gaps) > 1


async def test_what_cannot_be_read_again_yet_is_tried_until_it_can_and_messages_go_on(
    autojump_clock: MockClock,
) -> None:
    system, seen, away = System("chat"), [], True
    news = system.channel(NEWS)

    @news.on_gap
    async def read_again(gap: Gap) -> None:
        seen.append("try" if away else "read")
        if away:
            raise ConnectionError("the database is away")

    @news.on_gap
    async def after_it(gap: Gap) -> None:
        seen.append("after")

    @news.on
    async def hear(message: Broadcast) -> None:
        seen.append(message.data)

    async with virtual(system) as app:
        await trio.sleep(2)
        await app.deployment.broadcast(NEWS, "meanwhile")
        await trio.sleep(3600)
        assert seen[:3] == ["try", "try", "meanwhile"]
        assert 50 < seen.count("try") < 70
        away = False
        await trio.sleep(61)
        assert seen[-3:] == ["try", "read", "after"]


async def test_a_gap_handler_that_never_succeeds_is_called_every_minute_for_ever(autojump_clock: MockClock) -> None:
    channel, calls = Channel("news"), []

    @channel.on_gap
    async def read_again(gap: Gap) -> None:
        calls.append(trio.current_time())
        raise RuntimeError("broken")

    listening = Listening(channel, nullcontext, within=1.0, silence=0.0)  # type: ignore[arg-type]
    listening._miss("at first", -math.inf, 0.0)
    for _ in range(2000):
        await listening._read_again()
        await trio.sleep(READ_AGAIN_AT_MOST)
    assert len(calls) == 2000


async def test_what_was_missed_is_read_from_the_database_once_it_is_there(autojump_clock: MockClock) -> None:
    system, read = System("chat"), []
    news = system.channel(NEWS)

    @news.on_gap
    async def read_again(gap: Gap) -> None:
        async with gap.connection() as connection:
            read.append(await (await connection.execute("select user_id from ban")).fetchall())

    @news.on
    async def read_one(message: Broadcast) -> None:
        async with message.connection() as connection:
            read.append(await (await connection.execute("select reason from ban", [message.data])).fetchall())

    store = MemoryStore()
    store.answer("select user_id from ban", [("ann",)])
    store.answer("select reason from ban", lambda values: [(f"{values[0]} spams",)])
    async with virtual(system, store=store) as app:
        await trio.sleep(1)
        assert read == [[("ann",)]]
        app.lose_database("the disk is full")
        app.redis.refuse()
        await trio.sleep(20)
        app.redis.restore()
        await app.deployment.gates["redis"].wait_open()
        await trio.sleep(5)
        assert len(read) == 1
        app.restore_database()
        await trio.sleep(60)
        await app.deployment.broadcast(NEWS, "bob")
        await trio.sleep(1)
        assert read[1:] == [[("ann",)], [("bob spams",)]]


async def test_a_channel_that_redis_refuses_holds_up_nothing_and_is_asked_for_again(autojump_clock: MockClock) -> None:
    async with InProcessRedis() as place:
        refusal = "NOPERM this user has no permissions to access one of the channels"
        place.fail_next("SUBSCRIBE", refusal, times=2)  # to the start-up check, and to the channel itself
        async with servers(place, 1) as [(server, app)]:
            assert "NOPERM" in note(app)
            assert await app.deployment.broadcast(NEWS, 1) == 0
            await trio.sleep(11)
            assert "NOPERM" not in note(app)
            await app.deployment.broadcast(NEWS, 2)
            await trio.sleep(1)
            assert server.heard == [2]


# With a handler's transaction


async def test_what_a_transaction_that_is_rolled_back_would_tell_nobody_hears(autojump_clock: MockClock) -> None:
    """Among many in one transaction, of which some fail at first, and one for good."""
    system, heard, tries = System("chat"), [], {}
    bans = system.stream("bans", events=[Ban])
    bans.group("chat", retry=SOON, workers=1)
    news = system.channel(NEWS)

    @news.on
    async def hear(message: Broadcast) -> None:
        heard.append(message.data)

    @bans.on(Ban, group="chat")
    async def ban(event: Ban, context: Context) -> None:
        context.broadcast(NEWS, event.user)
        tries[event.user] = tries.get(event.user, 0) + 1
        if event.user == "never" or (event.user == "later" and tries["later"] < 3):
            raise ValueError(event.user)

    async with virtual(system) as app:
        users = ["a", "never", "b", "later", "c"]
        await app.publish("bans", *map(Ban, users))
        await app.settled()
        await trio.sleep(1)
        assert sorted(heard) == ["a", "b", "c", "later"]
        assert tries["a"] > 1


@pytest.mark.parametrize("effect", [False, True])
async def test_it_is_told_once_at_the_most_when_the_answer_to_the_commit_is_lost(
    autojump_clock: MockClock, *, effect: bool
) -> None:
    async with InProcessRedis() as place, servers(place, 1) as [(server, app)]:
        app.store.lose_commit(effect=effect)
        await app.publish("bans", Ban("a"))
        await app.settled()
        await trio.sleep(1)
        assert server.heard == ([] if effect else [{"banned": "a"}])
        assert len(server.banned) == (1 if effect else 2)


async def test_a_batch_tells_what_it_noted_though_some_of_it_failed(autojump_clock: MockClock) -> None:
    system, heard = System("chat"), []
    bans = system.stream("bans", events=[Ban])
    bans.group("chat", retry=RetryPolicy(deliveries=1))
    news = system.channel(NEWS)

    @news.on
    async def hear(message: Broadcast) -> None:
        heard.append(message.data)

    @bans.on(Ban, group="chat", batch=True)
    async def ban(deliveries: Sequence[Delivery[Ban]], context: Context) -> None:
        for delivery in deliveries:
            if delivery.event.user == "bad":
                context.fail(delivery, ValueError("bad"))
            else:
                context.broadcast(NEWS, delivery.event.user)

    async with virtual(system) as app:
        await app.publish("bans", *map(Ban, ["a", "bad", "b"]))
        await app.settled()
        await trio.sleep(1)
        assert heard == ["a", "b"]


async def test_what_is_noted_while_redis_is_away_is_dropped_and_counted(autojump_clock: MockClock) -> None:
    system, heard = System("chat"), []
    bans = system.stream("bans", events=[Ban])
    news, at_work = system.channel(NEWS), trio.Event()

    @news.on
    async def hear(message: Broadcast) -> None:
        heard.append(message.data)

    @bans.on(Ban, group="chat")
    async def ban(event: Ban, context: Context) -> None:
        context.broadcast(NEWS, event.user)
        context.broadcast(NEWS, "more")
        at_work.set()
        await trio.sleep(5)
        await context.connection.execute("insert", [event.user])

    async with virtual(system) as app:
        await app.publish("bans", Ban("a"))
        await at_work.wait()
        app.redis.refuse()
        await trio.sleep(10)
        assert [effect.values for effect in app.store.effects] == [("a",)]
        app.redis.restore()
        await app.settled()
        await trio.sleep(1)
        assert heard == []
        sending = app.deployment.broadcasting.sending
        assert (sending.sent, sending.dropped.total) == (0, 2)


async def test_a_frozen_redis_keeps_a_worker_for_a_moment_only(autojump_clock: MockClock) -> None:
    system, at_work = System("chat"), trio.Event()
    bans = system.stream("bans", events=[Ban])
    bans.group("chat", workers=1, batch=1)

    @bans.on(Ban, group="chat")
    async def ban(event: Ban, context: Context) -> None:
        context.broadcast(NEWS, event.user)
        at_work.set()
        await trio.sleep(1)
        await context.connection.execute("insert", [event.user])

    async with virtual(system) as app:
        await app.publish("bans", *map(Ban, "abcde"))
        await at_work.wait()
        app.redis.hang()
        await trio.sleep(9)
        assert sorted(effect.values[0] for effect in app.store.effects) == ["a", "b"]  # those it had
        assert app.deployment.broadcasting.sending.dropped.total == 2
        app.redis.resume()


# Declarations


def test_what_cannot_work_is_refused_at_once() -> None:
    system = System("chat")
    news = system.channel(NEWS)

    @news.on
    async def hear(message: Broadcast) -> None: ...

    for wrong in ("", NEWS, "room:*"):
        with pytest.raises(DeclarationError):
            system.channel(wrong)
    for register in (news.on, news.on_gap):
        with pytest.raises(DeclarationError, match="async function"):
            register(lambda _: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(DeclarationError, match="registered already"):
        news.on(hear)


async def test_a_handler_is_told_at_once_what_cannot_be_sent(autojump_clock: MockClock) -> None:
    async with InProcessRedis() as place, servers(place, 1) as [(_, app)]:
        for wrong in ({1, 2}, math.nan, "\ud800", object()):
            with pytest.raises((TypeError, ValueError)):
                await app.deployment.broadcast(NEWS, wrong)
        with pytest.raises(ValueError, match="name"):
            await app.deployment.broadcast("", 1)


async def test_without_handlers_there_is_no_such_child(autojump_clock: MockClock) -> None:
    system = System("chat")
    system.channel(NEWS)
    async with virtual(system) as app:
        with pytest.raises(KeyError):
            app.child("actors/channels")
        assert await app.deployment.broadcast(NEWS, 1) == 0
