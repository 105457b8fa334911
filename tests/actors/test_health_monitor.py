"""The health monitor: gates are shut at once, opened by a probe alone, and never flap at full speed."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from attrs import frozen
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from penstock.actors.event import event
from penstock.actors.handling import Context
from penstock.actors.health_monitor import HealthMonitor, Watch
from penstock.actors.probes import Unhealthy
from penstock.actors.settings import ActorSettings, CheckSettings, HealthSettings
from penstock.actors.system import System
from penstock.actors.virtual import virtual
from penstock.runtime.redis import NotSent, OutcomeUnknown, RedisOptions
from penstock.runtime.redis._compat import reply_error
from penstock.runtime.redis.mux import Mux
from penstock.runtime.redis.wire import Wire
from penstock.runtime.supervision import Gates, LifecycleKind

SETTINGS = HealthSettings(interval_up=10.0, interval_down_min=1.0, interval_down_max=10.0, timeout=2.0)


class Server:
    """A server as a probe sees it, and when it was asked."""

    def __init__(self) -> None:
        self.wrong = ""
        self.takes = 0.0
        self.asked: list[float] = []

    async def probe(self) -> None:
        self.asked.append(trio.current_time())
        await trio.sleep(self.takes)
        if self.wrong:
            raise Unhealthy(self.wrong)


@asynccontextmanager
async def watching() -> AsyncIterator[tuple[Server, Watch]]:
    """A watch at work, its gate open, and its first probe behind it."""
    server = Server()
    watch = Watch(Gates().add("redis", shut="not probed yet"), server.probe, SETTINGS, "redis://here")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await watch.gate.wait_open()
        yield server, watch
        nursery.cancel_scope.cancel()


async def test_trouble_shuts_the_gate_at_once_and_a_good_probe_opens_it(autojump_clock: MockClock) -> None:
    async with watching() as (server, watch):
        await trio.sleep(25)
        server.takes = 0.5
        watch.trouble(Unhealthy("reset by peer"))
        assert not watch.gate.is_open
        assert watch.gate.cause == "reset by peer"
        await trio.sleep(0.4)
        assert not watch.gate.is_open
        await trio.sleep(0.2)
        assert watch.gate.is_open


async def test_a_reply_that_shuts_the_gate_is_told_whole_and_with_its_server(autojump_clock: MockClock) -> None:
    """redis-py takes the first word off a reply that it knows."""
    async with watching() as (_, watch):
        watch.trouble(reply_error("CLUSTERDOWN The cluster is down"))
        assert watch.gate.cause == "redis://here: CLUSTERDOWN The cluster is down"
        watch.trouble(NotSent("redis://there", "not sent: refused"))
        assert watch.gate.cause == "redis://there: not sent: refused"


async def test_a_connection_that_is_given_up_in_an_outage_hides_no_cause(autojump_clock: MockClock) -> None:
    """A node that was replaced: calls that were under way fail, for their link is closed then."""
    failures: list[Exception] = []

    async def wait_for_reply(mux: Mux) -> None:
        with pytest.raises(OutcomeUnknown) as caught:
            await mux.call(b"PING")
        failures.append(caught.value)

    ours, _ = memory_stream_pair()
    wire = Wire(ours, decode=False)
    async with watching() as (server, watch), trio.open_nursery() as nursery:
        mux = Mux(wire, RedisOptions(), on_break=lambda *_: None, on_stall=lambda _: None)
        nursery.start_soon(mux.run)
        nursery.start_soon(wait_for_reply, mux)
        await wait_all_tasks_blocked()
        server.wrong = "node 10.0.0.1:7001 does not answer within 1.5 s"
        watch.trouble(Unhealthy(server.wrong))
        mux.close()
        await wait_all_tasks_blocked()
        watch.trouble(failures[0])
        assert watch.gate.cause == server.wrong
        server.wrong = ""
        await watch.gate.wait_open()
        watch.trouble(failures[0])  # there is no better one
        assert watch.gate.cause == str(failures[0])


async def test_trouble_while_it_is_probed_is_newer_than_the_answer(autojump_clock: MockClock) -> None:
    async with watching() as (server, watch):
        await trio.sleep(25)
        server.takes = 1.0
        watch.trouble(Unhealthy("first"))
        await trio.sleep(0.5)
        watch.trouble(Unhealthy("second"))
        await trio.sleep(1.0)  # the probe that began before has ended well
        assert not watch.gate.is_open
        assert watch.gate.cause == "second"
        await trio.sleep(1.0)
        assert watch.gate.is_open


async def test_a_long_outage_is_probed_ever_more_rarely(autojump_clock: MockClock) -> None:
    async with watching() as (server, watch):
        await trio.sleep(25)
        server.wrong = "connection refused"
        watch.trouble(Unhealthy("connection refused"))
        del server.asked[:]
        await trio.sleep(61)
        gaps = [round(later - earlier, 3) for earlier, later in itertools.pairwise(server.asked)]
        assert gaps == [1, 2, 4, 8, 10, 10, 10, 10]


async def test_a_nudge_is_a_probe_now(autojump_clock: MockClock) -> None:
    async with watching() as (server, watch):
        server.wrong = "connection refused"
        watch.trouble(Unhealthy("connection refused"))
        await trio.sleep(600)
        server.wrong = ""
        watch.nudge()
        await trio.sleep(0.001)
        assert watch.gate.is_open


async def test_what_is_no_answer_within_the_limit_names_the_server(autojump_clock: MockClock) -> None:
    async with watching() as (server, watch):
        server.takes = 3600.0
        await trio.sleep(13)
        assert watch.gate.cause == "redis://here: no answer within 2 s"


async def test_a_frozen_server_is_seen_at_the_moment_at_which_it_goes_on(autojump_clock: MockClock) -> None:
    """There is always a probe on its way, and it is answered first."""
    async with watching() as (_server, watch):
        frozen = trio.Event()

        async def probe() -> None:
            await frozen.wait()

        watch._probe = probe
        await trio.sleep(300)
        assert not watch.gate.is_open
        frozen.set()
        await trio.sleep(0.01)
        assert watch.gate.is_open


async def test_a_doubt_is_a_probe_now_and_shuts_nothing_by_itself(autojump_clock: MockClock) -> None:
    async with watching() as (server, watch):
        await trio.sleep(25)
        server.takes = 0.5
        del server.asked[:]
        watch.doubt()
        await trio.sleep(1)
        assert watch.gate.is_open
        assert server.asked == [25.0]
        server.wrong = "connection refused"
        watch.doubt()
        await trio.sleep(0.6)
        assert watch.gate.cause == "connection refused"


async def test_a_doubt_while_it_is_probed_is_answered_by_another_probe(autojump_clock: MockClock) -> None:
    """What broke may be newer than the answer that is on its way; but it is no reason to think ill of that."""
    async with watching() as (server, watch):
        await trio.sleep(25)
        server.takes = 0.5
        del server.asked[:]
        watch.doubt()
        await trio.sleep(0.2)
        watch.doubt()
        await trio.sleep(2)
        assert watch.gate.is_open
        assert server.asked == [25.0, 25.5]


async def test_a_watch_of_what_comes_back_by_itself_never_rests_long(autojump_clock: MockClock) -> None:
    server = Server()
    watch = Watch(Gates().add("redis", shut="not probed yet"), server.probe, SETTINGS, "here", rest_at_most=1.0)
    server.wrong = "cluster_state is fail"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await trio.sleep(300.5)
        assert {later - earlier for earlier, later in itertools.pairwise(server.asked)} == {1.0}
        server.wrong = ""
        with trio.fail_after(1):
            await watch.gate.wait_open()
        nursery.cancel_scope.cancel()


async def test_a_doubt_may_leave_less_time_for_the_answer(autojump_clock: MockClock) -> None:
    async with watching() as (server, watch):
        await trio.sleep(25)
        del server.asked[:]
        server.takes = 0.5
        watch.doubt(0.6)
        await trio.sleep(1)
        assert watch.gate.is_open
        server.takes = 3600.0
        watch.doubt(0.6)
        await trio.sleep(0.7)
        assert not watch.gate.is_open
        assert watch.gate.cause == "redis://here: no answer within 0.6 s"
        # The next one waits on, so as to see the moment at which the server goes on.
        await trio.sleep(5)
        assert [round(at, 3) for at in server.asked] == [25.0, 26.0, 26.6, 28.6]


async def test_less_time_is_for_one_probe_only(autojump_clock: MockClock) -> None:
    async with watching() as (server, watch):
        await trio.sleep(25)
        watch.doubt(0.6)
        await trio.sleep(1)
        server.takes = 1.5
        watch.doubt()
        await trio.sleep(5)
        assert watch.gate.is_open


async def test_a_server_that_is_down_has_its_whole_time(autojump_clock: MockClock) -> None:
    async with watching() as (server, watch):
        await trio.sleep(25)
        server.takes = 1.5
        watch.trouble(Unhealthy("reset by peer"))
        watch.doubt(0.6)
        await trio.sleep(2)
        assert watch.gate.is_open


async def test_our_own_delay_is_not_the_servers() -> None:
    """The real clock: this very process is busy for longer than the server has, and the server is well."""
    server = Server()
    watch = Watch(Gates().add("redis", shut="not probed yet"), server.probe, SETTINGS, "redis://here")
    turns = 0

    async def probe() -> None:
        nonlocal turns
        for _ in range(4):
            await trio.sleep(0.01)
            time.sleep(0.15)  # noqa: ASYNC251 - that is what this is about
        turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await watch.gate.wait_open()
        watch._probe = probe
        watch.doubt(0.3)
        with trio.fail_after(30):
            while not turns:
                await trio.sleep(0.01)
                assert watch.gate.is_open
        nursery.cancel_scope.cancel()


# Relapses -------------------------------------------------------------------------------------------------------------


async def test_what_fails_right_after_every_good_probe_is_probed_ever_more_rarely(autojump_clock: MockClock) -> None:
    async with watching() as (_server, watch):
        opened = []
        for _ in range(10):
            await watch.gate.wait_open()
            opened.append(trio.current_time())
            await trio.sleep(0.25)
            watch.trouble(Unhealthy("NOPERM"))
        gaps = [round(later - earlier - 0.25, 3) for earlier, later in itertools.pairwise(opened)]
        assert gaps == [0, 0, 1, 2, 4, 8, 10, 10, 10]


async def test_a_gate_that_has_been_open_for_a_while_is_forgiven(autojump_clock: MockClock) -> None:
    async with watching() as (_server, watch):
        for _ in range(10):
            await watch.gate.wait_open()
            await trio.sleep(0.25)
            watch.trouble(Unhealthy("NOPERM"))
        await watch.gate.wait_open()
        await trio.sleep(11)
        started = trio.current_time()
        watch.trouble(Unhealthy("reset by peer"))
        await watch.gate.wait_open()
        assert trio.current_time() == started


async def test_a_nudge_ends_the_wait_after_a_relapse(autojump_clock: MockClock) -> None:
    async with watching() as (_server, watch):
        for _ in range(10):
            await watch.gate.wait_open()
            watch.trouble(Unhealthy("NOPERM"))
        started = trio.current_time()
        watch.trouble(Unhealthy("still"))  # no news that would end it
        await trio.sleep(0.1)
        assert not watch.gate.is_open
        watch.nudge()
        await watch.gate.wait_open()
        assert trio.current_time() - started == pytest.approx(0.1)


async def test_both_servers_are_watched_while_both_are_down(autojump_clock: MockClock) -> None:
    gates, servers = Gates(), [Server(), Server()]
    watches = [
        Watch(gates.add(name), server.probe, SETTINGS, name)
        for name, server in zip(("redis", "postgres"), servers, strict=True)
    ]

    class Child:
        path = "app/health-monitor"

        def started(self) -> None:
            pass

    async def observe() -> None:
        await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(HealthMonitor(watches, observe, 2.0), Child())
        servers[0].takes, servers[1].wrong = 3600.0, "starting up"
        await trio.sleep(100)
        assert [gate.is_open for gate in gates.values()] == [False, False]
        servers[1].wrong = ""
        await trio.sleep(11)
        assert [gate.is_open for gate in gates.values()] == [False, True]  # the frozen one hides nobody
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NotSent("redis://here", "refused"), [0, 0, 1, 1, 1, 1]),
        (Unhealthy("NOPERM"), [0, 0, 1, 2, 4, 8]),
    ],
    ids=["away", "refused"],
)
async def test_what_may_come_back_elsewhere_is_looked_for_soon_also_after_relapses(
    autojump_clock: MockClock, error: Exception, expected: list[float]
) -> None:
    """Where a node is away, the probe sees it too; what it may be blind to is what somebody else is refused."""
    server = Server()
    watch = Watch(Gates().add("redis", shut="not probed yet"), server.probe, SETTINGS, "here", rest_at_most=1.0)
    opened = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        for _ in range(7):
            await watch.gate.wait_open()
            opened.append(trio.current_time())
            await trio.sleep(0.25)
            watch.trouble(error)
        nursery.cancel_scope.cancel()
    assert [round(later - earlier - 0.25, 3) for earlier, later in itertools.pairwise(opened)] == expected


# Configuration --------------------------------------------------------------------------------------------------------


@event("ORDER")
@frozen
class Order:
    number: int


def orders() -> System:
    system = System("app")
    stream = system.stream("orders", events=[Order])

    @stream.on(Order, group="payments")
    async def pay(order: Order, context: Context) -> None:
        await context.connection.execute("insert", [order.number])

    return system


async def test_a_right_that_only_the_listener_misses_makes_no_noise_and_costs_nothing(
    autojump_clock: MockClock,
) -> None:
    allowing = ActorSettings(checks=CheckSettings(allow=["access"]))  # or the start-up checks would find it
    async with virtual(orders(), settings=allowing) as app:
        with app.deployment.tree.subscribe() as events:
            refusal = "NOPERM User default has no permissions to run the 'xreadgroup' command"
            app.redis.fail_next("XREADGROUP", refusal, times=100_000)
            await trio.sleep(3600)
            gate = app.deployment.gates["redis"]
            assert "xreadgroup" in gate.cause
            turns = [each for each in events.drain() if each.kind is LifecycleKind.GATE_SHUT]
            assert 300 < len(turns) < 400  # every ten seconds, in the hour
        app.redis.heal()
        with trio.fail_after(12):
            await gate.wait_open()
            await app.publish("orders", Order(1))
            await app.settled()
        assert [view.restarts for view in app.deployment.tree.snapshot().root.walk() if view.restarts] == []


async def test_a_missing_right_keeps_the_gate_shut_and_is_named_with_the_fix(autojump_clock: MockClock) -> None:
    async with virtual(orders(), settings=ActorSettings()) as app:
        gate = app.deployment.gates["redis"]
        with app.deployment.tree.subscribe() as events:
            app.redis.fail_next("XREADGROUP", "NOPERM this user has no permissions", times=100_000)
            await trio.sleep(3600)
            assert "our user may not run XREADGROUP on orders; ACL SETUSER" in gate.cause
            assert len([each for each in events.drain() if each.kind is LifecycleKind.GATE_SHUT]) == 1
        app.redis.heal()
        with trio.fail_after(12):
            await gate.wait_open()
        assert [view.restarts for view in app.deployment.tree.snapshot().root.walk() if view.restarts] == []


async def test_a_missing_right_to_a_queue_keeps_the_gate_shut_too(autojump_clock: MockClock) -> None:
    system = orders()
    jobs = system.queue("jobs")

    @jobs.on(Order)
    async def work(order: Order, context: Context) -> None: ...

    async with virtual(system, settings=ActorSettings()) as app:
        gate = app.deployment.gates["redis"]
        with app.deployment.tree.subscribe() as events:
            app.redis.fail_next("BLMOVE", "NOPERM this user has no permissions", times=100_000)
            await trio.sleep(3600)
            assert "our user may not run BLMOVE on jobs (work queues); ACL SETUSER … ~{jobs}:* +@list" in gate.cause
            assert len([each for each in events.drain() if each.kind is LifecycleKind.GATE_SHUT]) == 1
        app.redis.heal()
        with trio.fail_after(12):
            await gate.wait_open()


async def test_a_key_that_is_no_stream_is_named_and_its_repair_noticed(autojump_clock: MockClock) -> None:
    async with virtual(orders(), settings=ActorSettings()) as app:
        client = app.deployment.client()
        await client.delete("orders")
        await client.set("orders", "a string")
        await trio.sleep(60)
        gate = app.deployment.gates["redis"]
        assert not gate.is_open
        assert "WRONGTYPE" in gate.cause
        assert "orders" in gate.cause
        await client.delete("orders")
        with trio.fail_after(12):
            await gate.wait_open()
            await trio.sleep(1)
            await app.publish("orders", Order(1))
            await app.settled()
        assert [effect.values[0] for effect in app.store.effects] == [1]
        assert [view.restarts for view in app.deployment.tree.snapshot().root.walk() if view.restarts] == []
