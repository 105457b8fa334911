"""Changes of plan while children run, and who has which mailbox then."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trees import child, make
from trio.testing import MockClock

from penstock.runtime import Mailbox
from penstock.runtime.supervision import (
    AlreadyPresent,
    AlreadyStarted,
    AutoShutdown,
    Body,
    Changes,
    Child,
    Intensity,
    InvalidSpec,
    Plan,
    Pool,
    Restart,
    StillRunning,
    Supervisor,
    Tree,
    UnknownGate,
)
from penstock.runtime.testing import bad_starter, flaky, running, steady


def job() -> Supervisor:
    """It leaves by itself after half a second."""
    worker = child("worker", flaky("return", 0.5), restart=Restart.TRANSIENT, significant=True)
    return Supervisor("job", [worker], auto_shutdown=AutoShutdown.ANY_SIGNIFICANT)


def reads(box: Mailbox[int], seen: list[int]) -> Body:
    async def body(child: Child) -> None:
        async with box.receive() as inbox:
            child.started()
            async for message in inbox:
                seen.append(message)

    return body


async def both(*calls: Callable[[], Awaitable[object]]) -> None:
    """Make the calls in one tick; trio chooses their order."""

    async def make_it(call: Callable[[], Awaitable[object]]) -> None:
        await call()

    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(make_it, call)


# Supervisors that calls bring ----------------------------------------------------------------------------------------


async def test_the_next_job_may_start_as_soon_as_the_last_one_has_ended(autojump_clock: MockClock) -> None:
    """Whoever waits for the end of a temporary supervisor may be faster than its removal; the next one of that id
    belongs to the tree all the same."""
    app = Supervisor("app")
    async with running(Tree(app)):
        for _ in range(20):
            handle = await app.start_child(job().spec(restart=Restart.TEMPORARY))
            assert handle is not None
            await handle.wait_ended()


async def test_a_start_in_one_tick_with_the_delete_is_carried_out_or_refused(autojump_clock: MockClock) -> None:
    app = Supervisor("app")

    async def start() -> None:
        try:
            assert await app.start_child(Supervisor("job").spec()) is not None
        except AlreadyPresent:
            await app.start_child(Supervisor("job").spec())

    async with running(Tree(app)):
        await app.start_child(Supervisor("job").spec())
        for _ in range(20):
            await app.terminate_child("job")
            await both(lambda: app.delete_child("job"), start)


async def test_a_supervisor_that_was_refused_may_go_elsewhere(autojump_clock: MockClock) -> None:
    """Its id is taken, or somebody below it cannot be: it, and those below it, are bound to no place."""
    left, right = Supervisor("left", [child("job")]), Supervisor("right")
    low = Supervisor("low")
    given = Supervisor("job", [low.spec()])
    unfit = Supervisor("unfit", [low.spec(), child("a", requires=["none"])])
    async with running(make(left.spec(), right.spec())):
        with pytest.raises(AlreadyStarted):
            await left.start_child(given.spec())
        with pytest.raises(UnknownGate):
            await left.start_child(unfit.spec())
        assert await right.start_child(given.spec()) is not None
        with pytest.raises(InvalidSpec, match="is in a tree already, at app/right/job"):
            await left.start_child(given.spec())
        with pytest.raises(AlreadyStarted):
            await right.start_child(given.spec())
        assert (await right.reload(Plan([given.spec()]))).added == ("job",)
        await right.terminate_child("job")
        assert await right.restart_child("job") is not None


async def test_of_two_places_in_one_tick_a_supervisor_gets_one(autojump_clock: MockClock) -> None:
    left, right = Supervisor("left"), Supervisor("right")
    given, refused = Supervisor("job"), []

    async def start(place: Supervisor) -> None:
        try:
            await place.start_child(given.spec())
        except InvalidSpec as error:
            refused.append(error)

    async with running(make(left.spec(), right.spec())):
        await both(lambda: start(left), lambda: start(right))
        assert len(refused) == 1
        assert left.count_children().active + right.count_children().active == 1


async def test_a_start_is_checked_although_the_id_is_taken(autojump_clock: MockClock) -> None:
    """The child that has the id may be gone when the call is carried out."""
    app = Supervisor("app", [child("a")])
    box: Mailbox[int] = Mailbox("orders", 1)
    box.close("early")
    async with running(Tree(app)):
        with pytest.raises(UnknownGate):
            await app.start_child(child("a", requires=["none"]))
        with pytest.raises(InvalidSpec, match="the mailbox 'orders' of app/a is closed"):
            await app.start_child(child("a", mailboxes=[box]))


# Mailboxes -----------------------------------------------------------------------------------------------------------


async def test_a_reader_whose_specification_is_replaced_reads_on(autojump_clock: MockClock) -> None:
    """The mailbox of the old specification is closed when its incarnation has left, and the new one is read then."""
    old, new = Mailbox[int]("old", 10), Mailbox[int]("new", 10)
    seen: list[int] = []
    app = Supervisor("app", [child("a", reads(old, seen), mailboxes=[old])])
    async with running(Tree(app)):
        await app.reload(Plan([child("a", reads(new, seen), mailboxes=[new])]))
        await old.tell(1)
        await trio.sleep(1)
        assert (seen, app.which_child("a").state) == ([1], "running")
        await app.terminate_child("a")
        assert (old.is_closed, new.is_closed) == (True, False)
        await app.restart_child("a")
        await new.tell(2)
        await trio.sleep(1)
        assert seen == [1, 2]


async def test_so_do_the_children_of_a_pool_whose_template_is_replaced(autojump_clock: MockClock) -> None:
    """The old mailbox goes with the last child that was made from the old template, however often it is restarted."""
    old, new = Mailbox[int]("old", 10), Mailbox[int]("new", 10)
    seen: list[int] = []

    async def crashes_first(child: Child) -> None:
        if child.incarnation == 1:
            child.started()
            await trio.sleep(2)
            raise ValueError
        await reads(old, seen)(child)

    pool = Pool("pool", child("worker", crashes_first, mailboxes=[old]))
    async with running(Tree(pool)):
        await pool.start_child()
        await pool.reload(child("worker", steady(), mailboxes=[new]))
        await trio.sleep(2.5)
        assert not old.is_closed  # in backoff
        await trio.sleep(2.5)
        await old.tell(1)
        await trio.sleep(1)
        assert seen == [1]
        (entry,) = pool.which_children()
        assert entry.handle is not None
        await pool.terminate_child(entry.handle)
        assert (old.is_closed, new.is_closed) == (True, False)


async def test_the_mailbox_of_a_child_that_a_plan_took_over_goes_with_it(autojump_clock: MockClock) -> None:
    box: Mailbox[int] = Mailbox("orders", 1)
    app = Supervisor("app")
    async with running(Tree(app)):
        await app.start_child(child("a", mailboxes=[box]))
        await app.reload(Plan([child("a", drain_within=1, mailboxes=[box])]))
        await app.terminate_child("a")
        assert not box.is_closed
        await app.delete_child("a")
        assert box.is_closed


async def test_so_does_that_of_one_that_was_out_of_the_plan_and_in_again(autojump_clock: MockClock) -> None:
    box: Mailbox[int] = Mailbox("orders", 1)
    app = Supervisor("app", [child("a", mailboxes=[box])])
    async with running(Tree(app)):
        await app.reload(Plan())
        await app.reload(Plan([child("a", mailboxes=[box])]))
        await app.terminate_child("a")
        assert not box.is_closed
        await app.delete_child("a")
        assert box.is_closed


@pytest.mark.parametrize("first", ["deleted", "out of the plan"])
async def test_below_a_supervisor_that_may_come_back_it_goes_with_child_and_plan(
    first: str, autojump_clock: MockClock
) -> None:
    """A child of the plan is gone for good when it is deleted and planned no more, in either order."""
    box: Mailbox[int] = Mailbox("orders", 1)
    inner = Supervisor("inner", [child("a", mailboxes=[box])])

    async def delete() -> None:
        await inner.terminate_child("a")
        await inner.delete_child("a")

    async with running(make(inner.spec())):
        steps = [delete, lambda: inner.reload(Plan())]
        one, other = steps if first == "deleted" else reversed(steps)
        await one()
        assert not box.is_closed
        await other()
        assert box.is_closed


async def test_a_supervisor_of_a_replaced_specification_keeps_what_is_below_it(autojump_clock: MockClock) -> None:
    """The same supervisor under a new specification: nothing below it is closed, until it is gone for good."""
    box: Mailbox[int] = Mailbox("orders", 1)
    inner = Supervisor("inner", [child("a", mailboxes=[box])])
    app = Supervisor("app", [inner.spec()])
    async with running(Tree(app)):
        await app.reload(Plan([inner.spec(stop_within=9)]))
        await app.terminate_child("inner")
        await app.restart_child("inner")
        await app.terminate_child("inner")
        assert not box.is_closed
        await app.delete_child("inner")
        assert box.is_closed


async def test_a_start_that_is_refused_closes_nothing_and_one_that_fails_does(autojump_clock: MockClock) -> None:
    box: Mailbox[int] = Mailbox("orders", 1)
    app = Supervisor("app", [child("a")])
    async with running(Tree(app)):
        with pytest.raises(AlreadyStarted):
            await app.start_child(Supervisor("a", [child("b", mailboxes=[box])]).spec())
        assert not box.is_closed
        with pytest.raises(Exception, match="c could not be started"):
            await app.start_child(Supervisor("c", [child("b", bad_starter(1), mailboxes=[box])]).spec())
        assert box.is_closed


# Pools and bodies ----------------------------------------------------------------------------------------------------


async def test_a_pool_s_reload_is_carried_out_whole_although_its_caller_leaves(autojump_clock: MockClock) -> None:
    pool = Pool("pool", child("worker"))
    async with running(Tree(pool)):
        with trio.CancelScope() as scope:
            scope.cancel()
            await pool.reload(child("worker", drain_within=9), intensity=Intensity(77))
        await trio.sleep(1)
        assert (pool.template.drain_within, pool.plan.intensity) == (9, Intensity(77))


async def test_reloads_of_a_pool_in_one_tick_take_nothing_from_each_other(autojump_clock: MockClock) -> None:
    """Each changes what it names, whichever comes first."""
    pool = Pool("pool", child("worker"))
    async with running(Tree(pool)):
        for number in range(1, 20):
            new, budget = child("worker", drain_within=number), Intensity(number)
            stagger = float(number)
            await both(
                lambda new=new: pool.reload(new),  # type: ignore[misc]
                lambda budget=budget: pool.reload(intensity=budget),  # type: ignore[misc]
                lambda stagger=stagger: pool.reload(stagger=stagger),  # type: ignore[misc]
            )
            assert pool.template is new
            assert (pool.plan.intensity, pool.plan.stagger) == (budget, stagger)


async def test_a_pool_s_reload_that_is_refused_changes_nothing(autojump_clock: MockClock) -> None:
    pool = Pool("pool", child("worker"))
    async with running(Tree(pool)):
        before = pool.template, pool.plan
        with pytest.raises(InvalidSpec, match="stagger"):
            await pool.reload(child("worker", drain_within=9), stagger=-1)
        with pytest.raises(UnknownGate):
            await pool.reload(child("worker", requires=["none"]), intensity=Intensity(9))
        assert (pool.template, pool.plan) == before


async def test_a_body_that_cannot_be_compared_harms_nobody(autojump_clock: MockClock) -> None:
    """Bodies are compared by identity; a method, which each look at it makes anew, by whose and which it is."""

    class Picky:
        async def __call__(self, child: Child) -> None:
            await steady()(child)

        async def other(self, child: Child) -> None:
            await steady()(child)

        def __eq__(self, other: object) -> bool:
            raise RuntimeError

        __hash__ = None  # type: ignore[assignment]

    picky = Picky()
    app = Supervisor("app", [child("a", Picky())])
    async with running(Tree(app)):
        assert await app.reload(Plan([child("a", picky)])) == Changes(changed=("a",))
        assert not await app.reload(Plan([child("a", picky)]))
        assert await app.reload(Plan([child("a", picky.other)])) == Changes(changed=("a",))
        assert not await app.reload(Plan([child("a", picky.other)]))
        with pytest.raises(StillRunning):
            await app.delete_child("a")
