"""LISTEN on a connection of its own: nothing is lost without a gap, whatever becomes of the server."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, LiteralString

import attrs
import pytest
import trio
import trio.testing
from psycopg import sql
from psycopg.rows import TupleRow

from penstock.runtime.postgres import (
    Connection,
    Gap,
    Notification,
    Notifications,
    PostgresOptions,
    PostgresRejected,
    PostgresUnavailable,
    listen,
)


@pytest.fixture
async def speaker(options: PostgresOptions) -> AsyncIterator[Connection[TupleRow]]:
    connection = await Connection.open(options)
    yield connection
    await connection.close()


async def say(connection: Connection[TupleRow], channel: str, payload: str = "") -> None:
    await connection.execute("select pg_notify(%s, %s)", [channel, payload])


async def take(notifications: Notifications) -> Notification | Gap:
    with trio.fail_after(20):
        return await anext(notifications)


@contextmanager
def impatient(notifications: Notifications) -> Iterator[None]:
    """Short limits for a frozen server; before and afterwards it is well, and may be slow."""
    options, limit = notifications.options, notifications._check_timeout
    notifications.options, notifications._check_timeout = attrs.evolve(options, connect_timeout=0.2), 0.2
    yield
    notifications.options, notifications._check_timeout = options, limit


async def listening_pids(connection: Connection[TupleRow], name: str) -> list[int]:
    """The backends of the application of that name."""
    cursor = await connection.execute("select pid from pg_stat_activity where application_name = %s", [name])
    return [row[0] for row in await cursor.fetchall()]


async def test_what_is_notified_is_an_item(options, speaker) -> None:
    async with listen(options, "mill", "weir") as notifications:
        assert notifications.channels == ("mill", "weir")
        await say(speaker, "mill", "open")
        await say(speaker, "weir")
        await say(speaker, "elsewhere", "unheard")
        await say(speaker, "mill", "shut")
        pid = speaker.info.backend_pid
        assert [await take(notifications) for _ in range(3)] == [
            Notification("mill", "open", pid),
            Notification("weir", "", pid),
            Notification("mill", "shut", pid),
        ]
        assert notifications.statistics().received == 3


@pytest.mark.parametrize("name", ["Mill Race", 'a"b;drop', "schütz", "select", "x" * 63])
async def test_names_are_taken_as_they_are(options, speaker, name: str) -> None:
    async with listen(options, name) as notifications:
        await say(speaker, name, "heard")
        assert await take(notifications) == Notification(name, "heard", speaker.info.backend_pid)


@pytest.mark.parametrize("name", ["", "ü" * 32, "a\x00b"])
async def test_a_name_that_postgresql_would_change_is_refused(options, name: str) -> None:
    with pytest.raises(ValueError, match="63 bytes"):
        listen(options, name)
    async with listen(options) as notifications:
        with pytest.raises(ValueError, match="63 bytes"):
            await notifications.add(name)


async def test_channels_come_and_go(options, speaker) -> None:
    """What `add` returned for is heard; what was removed is not."""
    async with listen(options) as notifications:
        await notifications.add("mill", "weir")
        await say(speaker, "mill", "1")
        await notifications.remove("mill", "never there")
        await say(speaker, "mill", "2")
        await say(speaker, "weir", "3")
        await notifications.add("mill")
        await say(speaker, "mill", "4")
        assert notifications.channels == ("weir", "mill")
        heard = [await take(notifications) for _ in range(3)]
        assert [item.payload for item in heard if isinstance(item, Notification)] == ["1", "3", "4"]


async def test_many_change_the_channels_at_once(options, speaker) -> None:
    async with listen(options, "base") as notifications:
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(notifications.add, f"channel-{number}")
        for number in range(30):
            await say(speaker, f"channel-{number}", str(number))
        assert [(await take(notifications)).payload for _ in range(30)] == [str(n) for n in range(30)]  # type: ignore[union-attr]


async def test_a_silent_server_is_asked_and_stays(options, speaker) -> None:
    async with listen(options, "mill", check_every=0.02) as notifications:
        with trio.fail_after(20):
            while notifications.statistics().checks < 3:
                await trio.sleep(0.01)
        await say(speaker, "mill", "still here")
        assert isinstance(await take(notifications), Notification)
        assert notifications.statistics().connects == 1
        assert notifications.statistics().troubles == 0


async def test_a_terminated_backend_is_a_gap(server, options, speaker) -> None:
    """Told at once, listened to again, and the gap stands before what is heard afterwards."""
    troubles: list[PostgresUnavailable] = []
    named = server.options(application_name="terminated-listener")
    async with listen(named, "mill", on_trouble=troubles.append) as notifications:
        await notifications.add("weir")
        (pid,) = await listening_pids(speaker, "terminated-listener")
        await speaker.execute("select pg_terminate_backend(%s, 5000)", [pid])
        gap = await take(notifications)
        assert isinstance(gap, Gap)
        assert gap.seconds >= 0
        await say(speaker, "weir", "after")
        assert await take(notifications) == Notification("weir", "after", speaker.info.backend_pid)
        assert len(troubles) == 1
        assert notifications.statistics().connects == 2


async def test_a_killed_server_that_comes_back_is_one_gap(own_server) -> None:
    """`kill -9`, a while without any server, a restart: one gap, and everything is heard from then on."""
    troubles: list[PostgresUnavailable] = []
    async with listen(own_server.options(), "mill", on_trouble=troubles.append) as notifications:
        own_server.execute("notify mill, 'before'")
        assert isinstance(await take(notifications), Notification)
        own_server.send(signal.SIGKILL)
        with trio.fail_after(20):
            while len(troubles) < 4:
                await trio.sleep(0.01)
        await notifications.add("added in the outage")
        await trio.to_thread.run_sync(own_server.restart)
        gap = await take(notifications)
        assert isinstance(gap, Gap)
        assert gap.seconds > 0
        own_server.execute("notify mill, 'after'")
        own_server.execute("notify \"added in the outage\", 'too'")
        heard = [await take(notifications) for _ in range(2)]
        assert [item.payload for item in heard if isinstance(item, Notification)] == ["after", "too"]
        assert notifications.statistics().connects == 2


async def test_a_frozen_server_is_noticed_and_is_a_gap(own_server) -> None:
    troubles: list[PostgresUnavailable] = []
    async with listen(
        own_server.options(), "mill", on_trouble=troubles.append, check_every=0.05, check_timeout=5
    ) as notifications:
        own_server.send(signal.SIGSTOP)
        with impatient(notifications), trio.fail_after(20):
            while not troubles:
                await trio.sleep(0.01)
        assert "no answer within 0.2 s" in str(troubles[0])
        own_server.send(signal.SIGCONT)
        assert isinstance(await take(notifications), Gap)
        own_server.execute("notify mill, 'thawed'")
        item = await take(notifications)
        assert isinstance(item, Notification)
        assert item.payload == "thawed"


async def test_a_black_hole_is_noticed(proxy, speaker) -> None:
    """The network swallows everything, new connections included."""
    troubles: list[PostgresUnavailable] = []
    async with listen(
        proxy.options(), "mill", on_trouble=troubles.append, check_every=0.05, check_timeout=5
    ) as notifications:
        proxy.freeze()
        with impatient(notifications), trio.fail_after(20):
            while len(troubles) < 3:
                await trio.sleep(0.01)
        proxy.thaw()
        assert isinstance(await take(notifications), Gap)
        await say(speaker, "mill", "through")
        assert isinstance(await take(notifications), Notification)


async def test_what_comes_together_with_an_answer_is_heard(proxy, speaker) -> None:
    """libpq reads it with the answer: it must not lie there until something else comes."""
    async with listen(proxy.options(), "mill", check_every=0.05, check_timeout=30) as notifications:
        proxy.freeze()
        await proxy.wait_held(1)  # the question is on its way
        # It is let through, and its answer held back until the notification has come as well.
        proxy.let_pass("client")
        await proxy.wait_held(2)
        await say(speaker, "mill", "in one piece")
        await proxy.wait_held(3)
        checks = notifications.statistics().checks
        proxy.thaw()
        assert await take(notifications) == Notification("mill", "in one piece", speaker.info.backend_pid)
        assert notifications.statistics().checks == checks


async def test_a_slow_reader_gets_a_gap_instead_of_memory(options, speaker) -> None:
    async with listen(options, "mill", max_waiting=3) as notifications:
        for number in range(10):
            await say(speaker, "mill", str(number))
        with trio.fail_after(20):
            while notifications.statistics().received < 10:
                await trio.sleep(0.01)
        statistics = notifications.statistics()
        assert (statistics.waiting, statistics.dropped) == (4, 7)
        items = notifications.drain()
        assert [item.payload for item in items if isinstance(item, Notification)] == ["0", "1", "2"]
        assert isinstance(items[3], Gap)
        assert "max_waiting" in items[3].reason
        await say(speaker, "mill", "10")
        item = await take(notifications)
        assert isinstance(item, Notification)
        assert item.payload == "10"


async def test_outages_without_a_reader_are_one_gap(server, options, speaker) -> None:
    named = server.options(application_name="unread-listener")
    async with listen(named, "mill") as notifications:
        for connects in (2, 3, 4):
            (pid,) = await listening_pids(speaker, "unread-listener")
            await speaker.execute("select pg_terminate_backend(%s, 5000)", [pid])
            with trio.fail_after(20):
                while notifications.statistics().connects < connects:
                    await trio.sleep(0.01)
        assert [type(item) for item in notifications.drain()] == [Gap]


async def test_a_cancelled_taker_loses_no_item(options, speaker) -> None:
    async with listen(options, "mill") as notifications:
        heard: list[Notification | Gap] = []
        cut = 0
        for number in range(30):
            await say(speaker, "mill", str(number))
            with trio.move_on_after(0.0005 * (number % 3)) as scope:
                heard.append(await anext(notifications))
            cut += scope.cancelled_caught
        while len(heard) < 30:
            heard.append(await take(notifications))
        assert [item.payload for item in heard if isinstance(item, Notification)] == [str(n) for n in range(30)]
        assert cut >= 10
        with trio.CancelScope() as scope:
            await say(speaker, "mill", "kept")
            scope.cancel()
            await anext(notifications)
        assert isinstance(await take(notifications), Notification)


async def test_several_takers_share_the_items(options, speaker) -> None:
    heard: list[str] = []

    async def hear() -> None:
        item = await take(notifications)
        assert isinstance(item, Notification)
        heard.append(item.payload)

    async with listen(options, "mill") as notifications, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(hear)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(5):
            await say(speaker, "mill", str(number))
    assert sorted(heard) == ["0", "1", "2", "3", "4"]


async def test_leaving_closes_the_connection_and_ends_who_still_takes(server, speaker) -> None:
    ended = trio.Event()

    async def take_until_closed() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await anext(notifications)
        ended.set()

    async with trio.open_nursery() as nursery:
        async with listen(server.options(application_name="leaving-listener"), "mill") as notifications:
            nursery.start_soon(take_until_closed)
            await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(5):
            await ended.wait()
    with trio.fail_after(20):
        while await listening_pids(speaker, "leaving-listener"):
            await trio.sleep(0.01)
    with pytest.raises(trio.ClosedResourceError):
        await notifications.add("weir")
    with pytest.raises(RuntimeError, match="entered before"):
        await notifications.__aenter__()


async def test_an_error_of_the_block_comes_out_bare(options) -> None:
    with pytest.raises(ZeroDivisionError):
        async with listen(options, "mill"):
            raise ZeroDivisionError


async def test_a_cancelled_block_ends_at_once(options) -> None:
    with trio.fail_after(5), trio.move_on_after(0.05) as scope:
        async with listen(options, "mill") as notifications:
            async with aclosing(_all(notifications)) as items:
                async for _ in items:
                    pytest.fail("nobody spoke")
    assert scope.cancelled_caught


async def _all(notifications: Notifications) -> AsyncIterator[Notification | Gap]:
    async for item in notifications:
        yield item


async def test_entering_tells_what_is_wrong(server, tmp_path) -> None:
    with pytest.raises(PostgresUnavailable):
        async with listen(PostgresOptions(host=str(tmp_path)), "mill"):
            pytest.fail("there is no server")
    with pytest.raises(PostgresRejected):
        async with listen(server.options(user="penstock", password="wrong"), "mill"):
            pytest.fail("the password is wrong")


async def test_a_password_changed_in_an_outage_ends_the_iteration(own_server) -> None:
    own_server.execute("create role penstock login password 'one'")
    async with listen(own_server.options(user="penstock", password="one"), "mill") as notifications:
        own_server.execute("alter role penstock password 'two'")
        own_server.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = 'penstock'")
        with pytest.raises(PostgresRejected):
            await take(notifications)
        with pytest.raises(PostgresRejected):
            await notifications.add("weir")


async def test_retry_for_bounds_an_outage(own_server) -> None:
    async with listen(own_server.options(), "mill", retry_for=0.3) as notifications:
        await trio.to_thread.run_sync(own_server.stop)
        with pytest.raises(PostgresUnavailable):
            await take(notifications)


async def test_a_standby_cannot_listen_and_says_so(own_server) -> None:
    own_server.stop()
    (own_server.data / "standby.signal").touch()
    own_server.start()
    with pytest.raises(PostgresUnavailable, match="read-only"):
        async with listen(own_server.options(), "mill"):
            pytest.fail("a standby has no LISTEN")


async def test_at_least_one_may_wait(options) -> None:
    with pytest.raises(ValueError, match="max_waiting"):
        listen(options, "mill", max_waiting=0)


# No hole between what add() promises and what is listened to


class Slow(Notifications):
    """The answers to its statements count only when they are let go on.

    Attributes:
        sent: Its statements since it was told to hold.
        instead: Statements to send in their place, once each.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.sent: list[str] = []
        self.instead: list[LiteralString] = []
        self.changed = trio.Event()
        self.go_on = trio.Event()
        self.go_on.set()

    async def _ask(self, connection: Connection[TupleRow], statement: sql.SQL | sql.Composed) -> None:
        self.sent.append(statement.as_string(None))
        self.changed.set()
        await super()._ask(connection, sql.SQL(self.instead.pop()) if self.instead else statement)
        await self.go_on.wait()

    def hold(self) -> None:
        self.sent.clear()
        self.changed = trio.Event()
        self.go_on = trio.Event()


@pytest.fixture
async def slow(options: PostgresOptions, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Slow]:
    monkeypatch.setattr("penstock.runtime.postgres.notifications.Notifications", Slow)
    async with listen(attrs.evolve(options, application_name="slow"), "mill", check_every=1000) as notifications:
        assert isinstance(notifications, Slow)
        yield notifications


async def test_what_is_added_while_it_connects_is_listened_to_before_the_gap(slow, server, speaker) -> None:
    """Whoever looks at the tables after the gap would otherwise miss what comes before the second LISTEN."""
    slow.hold()
    (pid,) = await listening_pids(speaker, "slow")
    server.execute(f"select pg_terminate_backend({pid})")
    with trio.fail_after(20):
        await slow.changed.wait()
    await slow.add("weir")  # returns at once: there is no connection
    slow.go_on.set()
    assert isinstance(await take(slow), Gap)
    assert slow.sent == ['listen "mill"', 'listen "weir"']
    await say(speaker, "weir", "heard")
    item = await take(slow)
    assert isinstance(item, Notification)
    assert item.payload == "heard"


async def test_a_channel_that_is_wanted_again_while_it_is_given_up_is_waited_for(slow, speaker) -> None:
    slow.hold()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow.remove, "mill")
        with trio.fail_after(20):
            await slow.changed.wait()
        nursery.start_soon(_add_and_hear, slow, speaker)
        await trio.testing.wait_all_tasks_blocked()
        slow.go_on.set()
    assert slow.sent == ['unlisten "mill"', 'listen "mill"']


async def _add_and_hear(slow: Slow, speaker: Connection[TupleRow]) -> None:
    await slow.add("mill")
    await say(speaker, "mill", "heard")
    item = await take(slow)
    assert isinstance(item, Notification)
    assert item.payload == "heard"


async def test_a_cancelled_listen_is_a_gap_and_not_the_end(slow, speaker) -> None:
    """By an administrator, say, or by a statement_timeout on a busy server."""
    slow.instead.append("do $$ begin raise sqlstate '57014'; end $$")
    await slow.add("weir")
    assert isinstance(await take(slow), Gap)
    await say(speaker, "weir", "heard")
    item = await take(slow)
    assert isinstance(item, Notification)
    assert item.payload == "heard"


async def test_an_idle_session_timeout_is_a_gap_too(slow) -> None:
    """The server ends the session for a reason of its own: it is not the caller's fault."""
    slow.instead.append("set idle_session_timeout = 20; listen weir")
    await slow.add("weir")
    assert isinstance(await take(slow), Gap)
    assert slow.statistics().connects == 2


async def test_items_of_what_was_not_entered_are_not_waited_for(options) -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await anext(listen(options, "mill"))
