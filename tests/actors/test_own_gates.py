"""Gates of a system's own: what handlers need beside Redis and PostgreSQL, and what happens while it is away."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio
from attrs import define, field, frozen
from trio.testing import MockClock

from penstock.actors.deployment import Deployment
from penstock.actors.event import event
from penstock.actors.handling import Context, Delivery, Unavailable
from penstock.actors.health_monitor import Watch
from penstock.actors.probes import Unhealthy, ask_outside
from penstock.actors.retrying import RetryPolicy
from penstock.actors.settings import ActorSettings, HealthSettings
from penstock.actors.system import DeclarationError, Probe, System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.runtime.supervision import Gates
from penstock.runtime.testing.redis import InProcessRedis

ONCE = RetryPolicy(deliveries=1)


@event("ORDER", key="customer")
@frozen
class Order:
    number: int
    customer: str = "c"


async def well() -> None:
    await trio.lowlevel.checkpoint()


@define
class MailServer:
    """Where the handlers of these tests send to."""

    away: str = ""
    gate: str = "mail"
    got: list[int] = field(factory=list)
    tries: int = 0

    async def send(self, number: int) -> None:
        await trio.sleep(0.01)
        self.tries += 1
        if self.away:
            raise Unavailable(self.gate, self.away)
        self.got.append(number)


def shop(server: MailServer, **options: Any) -> System:
    system = System("shop")
    system.gate("mail", well)
    orders = system.stream("orders", events=[Order])
    orders.group("mails", **{"requires": ("mail",), "retry": ONCE, "batch": 1, **options})

    @orders.on(Order, group="mails")
    async def send(order: Order, context: Context) -> None:
        await server.send(order.number)
        await context.connection.execute("insert mail", [order.number])

    @orders.on(Order, group="payments")
    async def pay(order: Order, context: Context) -> None:
        await context.connection.execute("insert payment", [order.number])

    return system


def effects(app: VirtualDeployment[Any], statement: str) -> list[int]:
    return [effect.values[0] for effect in app.store.effects if effect.statement == statement]


def states(app: VirtualDeployment[Any], group: str) -> set[str]:
    return {app.child(f"actors/{group}@orders/{name}").state for name in ("keeper", "handler-pool", "listener-1")}


async def test_an_outage_outside_holds_the_group_that_needs_it_and_costs_no_attempt(autojump_clock: MockClock) -> None:
    server = MailServer(away="421 too many connections")
    async with virtual(shop(server)) as app:
        app.lose("mail", "connection refused")
        await app.publish("orders", *map(Order, range(5)))
        await trio.sleep(3600)
        assert states(app, "mails") == {"held"}
        assert states(app, "payments") == {"running"}
        assert sorted(effects(app, "insert payment")) == list(range(5))
        view = next(view for view in app.deployment.gates.view() if view.name == "mail")
        assert not view.open
        assert "connection refused" in view.cause
        server.away = ""
        app.restore("mail")
        await app.settled()
        assert sorted(effects(app, "insert mail")) == list(range(5))
        assert app.store.letters == []
        assert all(app.child(f"actors/mails@orders/{name}").restarts == 0 for name in ("handler-pool", "listener-1"))


async def test_what_a_handler_says_shuts_the_gate_at_once(autojump_clock: MockClock) -> None:
    server = MailServer(away="421 too many connections")
    async with virtual(shop(server)) as app:
        app.lose("mail", "421")
        await app.publish("orders", Order(1))
        await app.deployment.gates["mail"].wait_shut()
        assert app.deployment.gates["mail"].cause == "421 too many connections"
        assert trio.current_time() < 5


async def test_a_probe_that_is_content_with_what_refuses_is_asked_ever_more_rarely(autojump_clock: MockClock) -> None:
    """It can be reached and takes nothing: its probe sees no fault."""
    server = MailServer(away="451 try again later")
    async with virtual(shop(server)) as app:
        await app.publish("orders", Order(1))
        await trio.sleep(1200)
        assert 40 < server.tries < 200
        server.away = ""
        await app.settled()
        assert server.got == [1]
        assert app.store.letters == []


async def test_an_error_about_a_gate_that_the_group_does_not_require_is_an_error(autojump_clock: MockClock) -> None:
    server = MailServer(away="gone", gate="something else")
    async with virtual(shop(server)) as app:
        await app.publish("orders", Order(1))
        await app.settled()
        (letter,) = app.store.letters
        assert letter.error_message == "gone"
        assert app.deployment.gates["mail"].is_open


async def test_a_batch_handler_may_say_it_of_a_single_event(autojump_clock: MockClock) -> None:
    away, got = True, []
    system = System("shop")
    system.gate("mail", well)
    orders = system.stream("orders", events=[Order])
    orders.group("mails", requires=("mail",), retry=ONCE)

    @orders.on(Order, group="mails", batch=True)
    async def send(deliveries: Sequence[Delivery[Order]], context: Context) -> None:
        await trio.lowlevel.checkpoint()
        for each in deliveries:
            if away:
                context.fail(each, Unavailable("mail", "gone"))
            else:
                got.append(each.event.number)

    async with virtual(system) as app:
        app.lose("mail", "gone")
        await app.publish("orders", *map(Order, range(3)))
        await trio.sleep(600)
        away = False
        app.restore("mail")
        await app.settled()
        assert (got, app.store.letters) == ([0, 1, 2], [])


async def test_in_an_ordered_group_the_order_is_kept(autojump_clock: MockClock) -> None:
    server = MailServer()
    async with virtual(shop(server, ordered=True)) as app:
        await app.publish("orders", *map(Order, range(3)))
        await app.settled()
        server.away = "gone"
        app.lose("mail", "gone")
        await app.publish("orders", *map(Order, range(3, 9)))
        await trio.sleep(100)
        assert server.got == [0, 1, 2]
        server.away = ""
        app.restore("mail")
        await app.settled()
        assert (server.got, app.store.letters) == (list(range(9)), [])


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_gate_that_is_shut_in_one_process_leaves_the_work_to_the_other(
    autojump_clock: MockClock, *, ordered: bool
) -> None:
    server, store = MailServer(), MemoryStore()
    async with InProcessRedis() as redis, trio.open_nursery() as nursery:
        two = [
            VirtualDeployment(
                shop(server, ordered=ordered), ActorSettings(), redis, store, instance=f"i{number}", seed=number
            )
            for number in range(2)
        ]
        for made in two:
            nursery.start_soon(made.deployment.run)
            await made.deployment.tree.ready()
        await trio.sleep(20)
        gates = [made.deployment.gates["lease mails@orders"] for made in two] if ordered else []
        first = two[1] if ordered and gates[1].is_open else two[0]
        await first.publish("orders", *map(Order, range(50)))
        first.lose("mail", "no way to it")
        first.deployment.watches["mail"].nudge()
        with trio.fail_after(180):
            while len(server.got) < 50:
                await trio.sleep(1)
        # While no process can, nobody holds what another might take.
        for made in two:
            made.lose("mail", "no way to it")
            made.deployment.watches["mail"].nudge()
        await trio.sleep(60)
        assert not any(gate.is_open for gate in gates)
        await first.publish("orders", *map(Order, range(50, 60)))
        first.restore("mail")
        with trio.fail_after(180):
            while len(server.got) < 60:
                await trio.sleep(1)
        for made in two:
            made.deployment.tree.stop("the test is over")
    assert sorted(server.got) == list(range(60))
    if ordered:
        assert [effect.values[0] for effect in store.effects if effect.statement == "insert mail"] == list(range(60))


async def test_a_group_that_begins_now_begins_before_its_gate_opens(autojump_clock: MockClock) -> None:
    """What is published while the gate has never been open would not be read."""
    server = MailServer()
    system = shop(server, start="$")
    async with InProcessRedis() as redis:
        made = VirtualDeployment(system, ActorSettings(), redis, MemoryStore(), instance="test", seed=0)
        made.lose("mail", "421")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.deployment.run)
            await made.deployment.tree.ready()
            await trio.sleep(5)
            await made.publish("orders", Order(1))
            await trio.sleep(5)
            assert server.got == []
            made.restore("mail")
            await made.settled()
            made.deployment.tree.stop("the test is over")
    assert server.got == [1]


async def test_whatever_a_probe_raises_is_why(autojump_clock: MockClock) -> None:
    async def refused() -> None:
        await trio.lowlevel.checkpoint()
        raise ConnectionRefusedError("port 25")

    async def silent() -> None:
        await trio.lowlevel.checkpoint()
        raise OSError

    with pytest.raises(Unhealthy, match=r"^mail: port 25$"):
        await ask_outside("mail", refused)
    with pytest.raises(Unhealthy, match=r"^mail: OSError$"):
        await ask_outside("mail", silent)


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


async def ends_the_process() -> None:
    await trio.lowlevel.checkpoint()
    raise SystemExit(3)


async def ends_it_in_a_group() -> None:
    await trio.lowlevel.checkpoint()
    raise BaseExceptionGroup("two", [SystemExit(3), OSError("port 25")])


async def has_no_words() -> None:
    await trio.lowlevel.checkpoint()
    raise Speechless


async def says_no() -> Any:
    await trio.lowlevel.checkpoint()
    return False


async def swallows_its_cancel() -> None:
    with suppress(trio.Cancelled):
        await trio.sleep_forever()


async def fails_as_it_is_cancelled() -> None:
    async def broken() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("closing failed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(broken)
        await trio.sleep_forever()


async def waits_for_a_thread() -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep(100)


@pytest.mark.parametrize(
    "vice",
    [
        ends_the_process,
        ends_it_in_a_group,
        has_no_words,
        says_no,
        swallows_its_cancel,
        fails_as_it_is_cancelled,
        waits_for_a_thread,
    ],
    ids=lambda vice: vice.__name__,
)
async def test_whatever_a_probe_does_shuts_its_gate_in_time_and_crashes_nobody(
    autojump_clock: MockClock, vice: Probe
) -> None:
    settings = HealthSettings(timeout=2.0)
    gate, is_well = Gates().add("mail"), False

    async def probe() -> Any:
        return await (well if is_well else vice)()  # type: ignore[func-returns-value]

    watch = Watch(gate, partial(ask_outside, "mail", probe), settings, "mail")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        with trio.fail_after(2.5):
            await gate.wait_shut()
        await trio.sleep(60)
        is_well = True
        with trio.fail_after(200):
            await gate.wait_open()
        is_well = False
        await trio.sleep(20)
        assert not gate.is_open
        nursery.cancel_scope.cancel()


class MailIsAway(Unavailable):
    def __init__(self) -> None:
        Exception.__init__(self, "the mail server")


async def test_a_kind_of_unavailable_that_names_no_gate_is_an_error(autojump_clock: MockClock) -> None:
    system = System("shop")
    system.gate("mail", well)
    orders = system.stream("orders", events=[Order])
    orders.group("mails", requires=("mail",), retry=ONCE)

    @orders.on(Order, group="mails", batch=True)
    async def send(deliveries: Sequence[Delivery[Order]], context: Context) -> None:
        raise MailIsAway

    async with virtual(system) as app:
        await app.publish("orders", *map(Order, range(3)))
        await app.settled()
        assert {letter.error_message for letter in app.store.letters} == {"the mail server"}
        assert app.child("actors/mails@orders/handler-pool").restarts == 0


async def test_only_what_is_declared_goes_away(autojump_clock: MockClock) -> None:
    async with virtual(shop(MailServer())) as app:
        with pytest.raises(KeyError, match="no gate 'post'; its own are: mail"):
            app.lose("post", "gone")
        with pytest.raises(KeyError, match="no gate 'post'"):
            app.restore("post")
        app.restore("mail")  # it is there already


def test_what_a_process_of_the_handlers_says_can_be_passed_on() -> None:
    passed = pickle.loads(pickle.dumps(Unavailable("mail", "gone")))
    assert (passed.gate, str(passed)) == ("mail", "gone")


async def test_a_probe_that_hangs_shuts_its_gate(autojump_clock: MockClock) -> None:
    system = shop(MailServer())
    async with virtual(system) as app:
        made = Deployment(system, ActorSettings(), app._backends, instance="i2", probes={"mail": trio.sleep_forever})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.watches["mail"].run)
            await trio.sleep(20)
            assert "no answer within" in made.gates["mail"].cause
            nursery.cancel_scope.cancel()


def test_what_cannot_be_a_gate_is_refused() -> None:
    system = System("shop")
    system.gate("mail", well)
    for name in ("mail", "redis", "redis-memory", "postgres", "schema", "lease payments@orders"):
        with pytest.raises(DeclarationError, match="is taken"):
            system.gate(name, well)
    unnamed: list[Any] = ["", " ", "a\nb", 5, None]
    for given in unnamed:
        with pytest.raises(DeclarationError, match="non-empty string on one line"):
            system.gate(given, well)
    with pytest.raises(DeclarationError, match="async function"):
        system.gate("sms", lambda: None)  # type: ignore[arg-type, return-value]


def test_what_cannot_be_required_is_refused() -> None:
    system = System("shop")
    orders = system.stream("orders", events=[Order])
    with pytest.raises(DeclarationError, match=r"takes several names, as \('mail',\)"):
        orders.group("mails", requires="mail")
    orders.group("mails", requires=["mail"])
    with pytest.raises(DeclarationError, match=r"requires the gate 'mail', which is not declared.* are: none"):
        system.check()
    system.gate("mail", well)
    system.check()
