"""What a handler changes in Redis, and how often, whatever happens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import redis.exceptions as redis_errors
import trio
from attrs import define, field, frozen
from trio.testing import MockClock

from penstock.actors.event import Envelope, event
from penstock.actors.handling import Context, Delivery, Unavailable
from penstock.actors.once_in_redis import COMMANDS, RedisCommand, RedisSteps, marker_of, unavailable_for
from penstock.actors.retry_row import RetryOrigin, RetryRow
from penstock.actors.retrying import RetryPolicy
from penstock.actors.system import System
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.runtime.redis import Redis, RedisUnavailable
from penstock.runtime.redis.slots import slot_of
from penstock.runtime.supervision import LifecycleKind
from penstock.runtime.testing.redis_cluster import InProcessCluster
from penstock.runtime.testing.redis_commands import COMMANDS as SERVER_COMMANDS

RANKING = "{ranking}:products"


@event("ORDER", key="product")
@frozen
class Order:
    product: str
    quantity: int = 1


async def nothing(_: Context) -> None:
    await trio.lowlevel.checkpoint()


@define
class Shop:
    """A system whose handler adds to a ranking; a test says what happens around that, and what else is done."""

    before: Callable[[Context], Awaitable[None]] = nothing
    after: Callable[[Context], Awaitable[None]] = nothing
    more: list[RedisCommand] = field(factory=list)
    options: dict[str, Any] = field(factory=dict)
    retry: RetryPolicy = field(default=RetryPolicy(deliveries=1))
    done: list[bool] = field(factory=list)
    key: str = RANKING

    @property
    def system(self) -> System:
        system = System("shop")
        orders = system.stream("orders", events=[Order])
        orders.group("ranking", retry=self.retry)

        @orders.on(Order, group="ranking")
        async def rank(order: Order, context: Context) -> None:
            await context.connection.execute("insert", [order.product])
            await self.before(context)
            commands = [("ZINCRBY", self.key, order.quantity, order.product), *self.more]
            self.done.append(await context.once_in_redis("ranking", commands, **self.options))
            await self.after(context)

        return system


async def scores(app: VirtualDeployment[Any], key: str = RANKING) -> dict[str, float]:
    found = await app.deployment.client().zrange(key, 0, -1, withscores=True)
    return {name.decode(): score for name, score in found}


async def markers(app: VirtualDeployment[Any]) -> list[bytes]:
    found: list[bytes] = await app.deployment.client().keys("*:penstock-once:*")
    return found


async def test_it_is_done_once_though_what_follows_fails(autojump_clock: MockClock) -> None:
    failures = 3

    async def fail(context: Context) -> None:
        nonlocal failures
        await trio.lowlevel.checkpoint()
        failures -= 1
        if failures >= 0:
            raise ValueError("later")

    shop = Shop(after=fail, retry=RetryPolicy(deliveries=5))
    async with virtual(shop.system) as app:
        await app.publish("orders", Order("p-1", 3))
        await app.settled()
        assert (await scores(app), shop.done, len(app.store.effects)) == ({"p-1": 3}, [True, False, False, False], 1)


@pytest.mark.parametrize("effect", [False, True])
async def test_it_is_done_once_though_the_answer_to_the_commit_is_lost(
    autojump_clock: MockClock, *, effect: bool
) -> None:
    async def lose(context: Context) -> None:
        await trio.lowlevel.checkpoint()
        if len(shop.done) == 1:
            app.store.lose_commit(effect=effect)

    shop = Shop(after=lose)
    async with virtual(shop.system) as app:
        await app.publish("orders", Order("p-1", 3))
        await app.settled()
        assert (await scores(app), len(app.store.effects), app.store.letters) == ({"p-1": 3}, 1, [])


async def test_events_that_share_a_transaction_pay_for_none_that_fails(autojump_clock: MockClock) -> None:
    async def fail(context: Context) -> None:
        await trio.lowlevel.checkpoint()
        assert context.delivery is not None
        if context.delivery.event.product == "bad":
            raise ValueError("bad")

    async with virtual(Shop(before=fail).system) as app:
        orders = [Order(f"p-{number % 7}") for number in range(70)]
        await app.publish("orders", *orders[:35], Order("bad"), *orders[35:])
        await app.settled()
        assert await scores(app) == {f"p-{number}": 10 for number in range(7)}
        assert len(app.store.letters) == 1


@pytest.mark.parametrize("effect", ["before", "after"])
async def test_an_outage_in_the_middle_costs_no_attempt_and_repeats_nothing(
    autojump_clock: MockClock, effect: Any
) -> None:
    async def cut(context: Context) -> None:
        await trio.lowlevel.checkpoint()
        if not shop.done:
            shop.before = nothing
            app.redis.cut_after(1, effect=effect, command="eval")  # what follows the first EVALSHA

    shop = Shop(before=cut)
    async with virtual(shop.system) as app:
        await app.publish("orders", Order("p-1", 3))
        while not app.store.effects:
            await trio.sleep(0.1)
        await app.settled()
        assert (await scores(app), len(app.store.effects), app.store.letters) == ({"p-1": 3}, 1, [])
        # Where it took effect and nobody knew, it is found done.
        assert shop.done == [effect == "before"]


async def test_while_redis_is_away_the_group_waits_and_nothing_dies(autojump_clock: MockClock) -> None:
    calls = 0

    async def lose(context: Context) -> None:
        nonlocal calls
        calls += 1
        if not app.deployment.gates["redis"].is_open or calls > 1:
            await trio.lowlevel.checkpoint()
            return
        app.redis.refuse()
        await app.deployment.gates["redis"].wait_shut()

    shop = Shop(before=lose)
    async with virtual(shop.system) as app:
        await app.publish("orders", *(Order("p-1") for _ in range(10)))
        await trio.sleep(600)
        assert calls < 10
        app.redis.restore()
        await app.settled()
        assert (await scores(app), len(app.store.effects), app.store.letters) == ({"p-1": 10}, 10, [])


async def test_a_pool_that_waits_for_redis_ends_at_once(autojump_clock: MockClock) -> None:
    async def lose(context: Context) -> None:
        app.redis.refuse()
        await app.deployment.gates["redis"].wait_shut()

    async with virtual(Shop(before=lose).system) as app:
        await app.publish("orders", Order("p-1"))
        await app.deployment.gates["redis"].wait_shut()
        await trio.sleep(60)
        began = trio.current_time()
    assert trio.current_time() - began < 3


async def test_while_redis_is_full_the_group_waits(autojump_clock: MockClock) -> None:
    async def fill(context: Context) -> None:
        await trio.lowlevel.checkpoint()
        if app.deployment.gates["redis-memory"].is_open and not filled:
            filled.append(True)
            app.redis.answer("out-of-memory", until=trio.current_time() + 20)

    filled: list[bool] = []
    shop = Shop(before=fill)
    async with virtual(shop.system) as app:
        await app.publish("orders", Order("p-1"))
        await app.deployment.gates["redis-memory"].wait_shut()
        await trio.sleep(15)
        assert (shop.done, app.deployment.gates["redis"].is_open) == ([], True)
        await app.settled()
        assert (await scores(app), app.store.letters) == ({"p-1": 1}, [])


async def test_what_redis_refuses_is_a_failure_and_the_next_attempt_goes_on_there(autojump_clock: MockClock) -> None:
    """The commands before it are not repeated, and those behind it were not run."""
    shop = Shop(more=[("LPUSH", "{ranking}:log", "a"), ("INCR", "{ranking}:count")], retry=RetryPolicy(deliveries=3))
    async with virtual(shop.system) as app:
        client = app.deployment.client()
        await client.set("{ranking}:log", "no list")
        await app.publish("orders", Order("p-1"))
        while not app.store.retries.rows:
            await trio.sleep(0.01)
        (row,) = app.store.retries.rows
        assert "WRONGTYPE" in str(row)
        assert await client.get("{ranking}:count") is None
        await client.delete("{ranking}:log")
        await app.settled()
        assert (await scores(app), await client.get("{ranking}:count")) == ({"p-1": 1}, b"1")
        assert (await client.llen("{ranking}:log"), shop.done, app.store.letters) == (1, [True], [])


async def test_the_marker_expires(autojump_clock: MockClock) -> None:
    shop = Shop(options={"expires": 60.0})
    async with virtual(shop.system) as app:
        await app.publish("orders", Order("p-1"))
        await app.settled()
        (marker,) = await markers(app)
        assert slot_of(marker) == slot_of(RANKING)
        assert 50 < await app.deployment.client().ttl(marker) <= 60
        await trio.sleep(61)
        assert await markers(app) == []


async def test_who_orders_a_repetition_gets_one(autojump_clock: MockClock) -> None:
    shop = Shop()
    async with virtual(shop.system) as app:
        await app.publish("orders", Order("p-1"))
        await app.settled()
        [(entry_id, fields)] = await app.deployment.client().xrange("orders")
        row = RetryRow(
            consumer_group="ranking",
            stream="orders",
            entry_id=entry_id.decode(),
            fields=fields,
            origin=RetryOrigin.REPLAY,
            forced=True,
        )
        async with app.store.transaction() as transaction:
            await app.store.retries.add(transaction, [row])
        await app.settled()
        assert (await scores(app), shop.done) == ({"p-1": 2}, [True, True])


async def test_on_a_cluster(autojump_clock: MockClock) -> None:
    shop = Shop(more=[("HINCRBY", "{ranking}:sums", "all", 1)])
    async with InProcessCluster() as cluster, virtual(shop.system, redis=cluster) as app:
        await app.publish("orders", *(Order(f"p-{number % 3}") for number in range(9)))
        await app.settled()
        assert await scores(app) == {"p-0": 3, "p-1": 3, "p-2": 3}
        assert await app.deployment.client().hgetall("{ranking}:sums") == {b"all": b"9"}


async def test_a_node_of_a_cluster_that_has_no_stream_holds_up_only_those_who_need_it(
    autojump_clock: MockClock,
) -> None:
    async with InProcessCluster(replicas=1) as cluster:
        others = (f"{{r-{number}}}" for number in range(99))
        shop = Shop(key=next(key for key in others if cluster.master_of(key) is not cluster.master_of("orders")))
        async with virtual(shop.system, redis=cluster) as app:
            await app.publish("orders", Order("p-1"))
            await app.settled()
            cluster.master_of(shop.key).refuse()
            await app.publish("orders", *(Order("p-1") for _ in range(5)))
            await trio.sleep(cluster.node_timeout / 2)
            assert shop.done == [True]
            while len(app.store.effects) < 6:
                await trio.sleep(0.1)
            await app.settled()
            assert (await scores(app, shop.key), app.store.letters) == ({"p-1": 6}, [])
            events = app.deployment.tree.journal.recent
            assert [each.path for each in events if each.kind is LifecycleKind.GATE_SHUT and each.reason] == []


async def test_a_batch_handler_says_which_event_it_means(autojump_clock: MockClock) -> None:
    failed = False
    system = System("shop")
    orders = system.stream("orders", events=[Order])

    @orders.on(Order, group="ranking", batch=True)
    async def rank(deliveries: Sequence[Delivery[Order]], context: Context) -> None:
        nonlocal failed
        for each in deliveries:
            await context.once_in_redis("ranking", [("ZINCRBY", "ranking", 1, each.event.product)], delivery=each)
        if not failed:
            failed = True
            context.fail(deliveries[0], ValueError("later"))

    async with virtual(system) as app:
        await app.publish("orders", Order("a"), Order("b"), Order("c"))
        await app.settled()
        assert await scores(app, "ranking") == {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize(
    ("commands", "told"),
    [
        ([], "has no commands"),
        ([("ZINCRBY",)], "its name, its key"),
        (["INCR orders"], "its name, its key"),
        ([("GET", "a")], "GET cannot be run once"),
        ([("BLPOP", "a", 0)], "BLPOP cannot be run once"),
        ([("EVAL", "return 1", 0)], "EVAL cannot be run once"),
        ([("INCR", 7)], "a key is a string"),
        ([("DEL", "a", "b")], "DEL takes one key"),
        ([("INCR", "a"), ("INCR", "b")], "one hash tag, as in '{a}:…'"),
        ([("INCR", "a}b")], "give it a hash tag"),
        ([("SADD", "a", *range(5000))], "write several commands"),
    ],
)
async def test_what_cannot_be_done_once_is_refused(
    autojump_clock: MockClock, commands: list[RedisCommand], told: str
) -> None:
    system = System("shop")
    orders = system.stream("orders", events=[Order])
    orders.group("ranking", retry=RetryPolicy(deliveries=1))

    @orders.on(Order, group="ranking")
    async def rank(order: Order, context: Context) -> None:
        await context.once_in_redis("ranking", commands)

    async with virtual(system) as app:
        await app.publish("orders", Order("p-1"))
        await app.settled()
        (letter,) = app.store.letters
        assert letter.error_class == "builtins.ValueError"
        assert told in letter.error_message


@pytest.mark.parametrize("expires", [0, -1.0, float("nan"), float("inf"), 1e300])
async def test_a_marker_that_could_not_expire_is_refused(autojump_clock: MockClock, expires: float) -> None:
    async with virtual(Shop(options={"expires": expires}).system) as app:
        await app.publish("orders", Order("p-1"))
        await app.settled()
        (letter,) = app.store.letters
        assert (letter.error_class, letter.error_message.split(" a number")[0]) == ("builtins.ValueError", "expires is")


async def test_two_steps_of_one_event_need_names_of_their_own(autojump_clock: MockClock) -> None:
    async def again(context: Context) -> None:
        await context.once_in_redis("another", [("INCR", "{ranking}:count")])
        await context.once_in_redis("ranking", [("INCR", "{ranking}:count")])

    async with virtual(Shop(after=again).system) as app:
        await app.publish("orders", Order("p-1"))
        await app.settled()
        (letter,) = app.store.letters
        assert "each needs a name of its own" in letter.error_message
        assert (await scores(app), await app.deployment.client().get("{ranking}:count")) == ({"p-1": 1}, b"1")


def test_the_marker_stands_in_the_slot_of_its_keys() -> None:
    for keys in (["ranking"], ["{ranking}:a", "{ranking}:b"], [b"{r}", "a{r}b"]):
        assert slot_of(marker_of(keys, "x")) == slot_of(keys[0])
    # Only `{a}b}` would be in the slot of this one.
    with pytest.raises(ValueError, match="no marker can stand beside"):
        marker_of(["a}b"], "x")


def test_every_command_writes_its_first_argument_and_no_other_key() -> None:
    for name in COMMANDS:
        command = SERVER_COMMANDS[name]
        assert command.writes
        assert (command.first, command.step) == (1, 1)
        assert command.last == (-1 if name in ("del", "unlink") else 1)


@pytest.mark.parametrize("away", [False, True])
async def test_an_error_of_a_link_of_the_handlers_own_is_its_failure_unless_redis_is_away(
    autojump_clock: MockClock, *, away: bool
) -> None:
    async def fail(context: Context) -> None:
        if away and not recovered and app.deployment.gates["redis"].is_open:
            app.redis.refuse()
            await app.deployment.gates["redis"].wait_shut()
        await trio.lowlevel.checkpoint()
        if not recovered:
            raise RedisUnavailable("redis://elsewhere", "refused") from ConnectionRefusedError("refused")

    recovered = False
    async with virtual(Shop(before=fail).system) as app:
        await app.publish("orders", Order("p-1"))
        await trio.sleep(300)
        assert len(app.store.letters) == (0 if away else 1)
        recovered = True
        app.redis.restore()
        await app.settled()
        assert await scores(app) == ({"p-1": 1} if away else {})


async def test_without_redis_it_says_so() -> None:
    with pytest.raises(RuntimeError, match="no Redis"):
        await Context(connection=None, stream="orders", group="ranking").once_in_redis("x", [("INCR", "a")])  # type: ignore[arg-type]


def test_an_error_of_the_command_is_none_of_the_server() -> None:
    assert unavailable_for(redis_errors.ResponseError("WRONGTYPE Operation against a key")) is None
    assert unavailable_for(redis_errors.NoPermissionError("NOPERM this user has no permissions")) is None
    found = unavailable_for(redis_errors.OutOfMemoryError("OOM command not allowed when used memory"))
    assert found is not None
    assert found.gate == "redis-memory"


# On a real server -----------------------------------------------------------------------------------------------------


def step(redis: Redis) -> Callable[..., Awaitable[bool]]:
    """`once` of one event, each time as if it came anew."""
    delivery: Any = Delivery(event=None, envelope=Envelope(event_type="ORDER", data={}), entry_id="1-0", attempt=1)
    steps = RedisSteps(lambda: redis, (), "ranking")
    return lambda *commands: steps.once(delivery, "ranking", commands, 60.0)


async def test_a_real_server_does_it_once_and_goes_on_where_it_was_refused(redis: Redis) -> None:
    once, commands = step(redis), [("ZINCRBY", "{r}", 3, "p"), ("LPUSH", "{r}:log", "a"), ("INCR", "{r}:count")]
    await redis.set("{r}:log", "no list")
    for _ in range(2):
        with pytest.raises(redis_errors.ResponseError, match="WRONGTYPE"):
            await once(*commands)
    await redis.delete("{r}:log")
    assert [await once(*commands) for _ in range(2)] == [True, False]
    assert (await redis.zscore("{r}", "p"), await redis.llen("{r}:log"), await redis.get("{r}:count")) == (3, 1, b"1")


async def test_a_real_server_that_is_full_has_done_nothing(redis: Redis) -> None:
    once, commands = step(redis), [("ZREM", "{r}", "p"), ("INCR", "{r}:count")]
    await redis.zadd("{r}", {"p": 1})
    await redis.config_set("maxmemory", 1)
    with pytest.raises(Unavailable) as caught:
        await once(*commands)
    assert caught.value.gate == "redis-memory"
    await redis.config_set("maxmemory", 0)
    # Not even what a full server allows.
    assert await redis.zcard("{r}") == 1
    assert await once(*commands)
    assert (await redis.zcard("{r}"), await redis.get("{r}:count")) == (0, b"1")


async def test_a_marker_is_small(redis: Redis) -> None:
    await step(redis)(("INCR", "{ranking}:products"))
    [marker] = await redis.keys("*penstock-once*")
    assert await redis.memory_usage(marker) < 300
